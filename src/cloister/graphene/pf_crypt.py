"""``pf_crypt``: Graphene's tool for protected files, as a front of :mod:`cloister.encrypted`.

Same modes, options, messages and exit codes (0, 255). Differences: the output is whole or absent,
a failure in a directory does not stop the rest, a wrap key is never overwritten, and the embedded
path is normalised, so that ``-o ./x`` makes a file that opens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.errors import CloisterError
from cloister.graphene.options import Option, Parsed, parse

if TYPE_CHECKING:
    from cloister.encrypted.trees import Pair

FAILED: Final = 255

OPTIONS: Final = (
    Option("w", "wrap-key", True),
    Option("i", "input", True),
    Option("o", "output", True),
    Option("V", "verify", False),
    Option("v", "verbose", False),
    Option("h", "help", False),
)

USAGE: Final = """\
Usage: pf_crypt MODE [OPTION]...

Modes:
  gen-key   make a new wrap key
  encrypt   encrypt plaintext files
  decrypt   decrypt protected files

Options:
  -w, --wrap-key PATH  file of the wrap key (all modes)
  -i, --input PATH     file or directory to read
  -o, --output PATH    file or directory to write
  -V, --verify         decrypt: the file must have been encrypted for the path given with -i
  -v, --verbose        say more
  -h, --help           show this text

Example: pf_crypt encrypt -w files/wrap-key -i plaintext/input.jpg -o input.jpg
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return 0, or 255 if anything went wrong."""
    parsed = parse(arguments, OPTIONS)
    for option in parsed.unknown:
        _complain(f"Unknown option: {option}")
        print(USAGE)
    if "help" in parsed.values:
        print(USAGE)
        return 0
    complaint = _missing(parsed)
    if complaint:
        _complain(complaint)
        print(USAGE)
        return FAILED
    try:
        return _MODES[parsed.words[0][:1]](parsed)
    except (CloisterError, OSError) as error:
        _fail(error)
        return FAILED


def _missing(parsed: Parsed) -> str | None:
    """Return what is wrong with the command line, or None."""
    if not parsed.words:
        return "Mode not specified"
    mode = parsed.words[0]
    if "wrap-key" not in parsed.values:
        return "Wrap key path not specified"
    if mode[:1] not in _MODES:
        return f"Invalid mode: {mode}"
    if mode[:1] != "g":
        for name in ("input", "output"):
            if name not in parsed.values:
                return f"{name.capitalize()} path not specified"
    return None


def _generate(parsed: Parsed) -> int:
    from cloister.encrypted.keys import generate
    from cloister.files import write_atomically

    path = parsed.values["wrap-key"]
    write_atomically(Path(path), generate(), mode=0o600, replace=False)
    print(f"Wrap key saved to: {path}")
    return 0


def _encrypt(parsed: Parsed) -> int:
    from cloister.encrypted import whole
    from cloister.encrypted.constants import GRAPHENE_VERSION
    from cloister.encrypted.paths import normalise
    from cloister.encrypted.workers import processors

    key = _key(parsed)

    def encrypt(each: Pair) -> None:
        embedded = normalise(os.fspath(each.target))
        print(f"Encrypting: {each.source} -> {each.target}")
        print(f"            (the manifest must name exactly this path: '{embedded}')")
        whole.encrypt(
            each.source, each.target, key, embedded, version=GRAPHENE_VERSION, jobs=processors()
        )

    return _each(parsed, encrypt)


def _decrypt(parsed: Parsed) -> int:
    from cloister.encrypted import whole
    from cloister.encrypted.workers import processors

    key = _key(parsed)

    def decrypt(each: Pair) -> None:
        path = os.fspath(each.source) if "verify" in parsed.values else None
        print(f"Decrypting: {each.source} -> {each.target}")
        expected = whole.Expected.of("", path, any_path=True)
        whole.decrypt(each.source, each.target, key, expected, jobs=processors())

    return _each(parsed, decrypt)


def _each(parsed: Parsed, operate: Callable[[Pair], None]) -> int:
    from cloister.encrypted import trees

    source, target = Path(parsed.values["input"]), Path(parsed.values["output"])
    plan = trees.pair([source], target)
    for path, _ in plan.skipped:
        print(f"Skipping non-regular file {path}")
    trees.make_directories(plan, mode=0o775)
    for _, error in plan.failed:
        _fail(error)
    failed = len(plan.failed)
    for each in plan.pairs:
        try:
            operate(each)
        except (CloisterError, OSError) as error:
            _fail(error)
            failed += 1
    return FAILED if failed else 0


def _key(parsed: Parsed) -> bytes:
    from cloister.encrypted.keys import read_wrap_key

    return read_wrap_key(parsed.values["wrap-key"])


def _fail(error: CloisterError | OSError) -> None:
    if isinstance(error, CloisterError):
        _complain(error.message)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    else:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _complain(text: str) -> None:
    sys.stdout.flush()
    print(f"pf_crypt: {text}", file=sys.stderr)


_MODES: Final = {"g": _generate, "e": _encrypt, "d": _decrypt}
