"""The long run: ``python -m fuzz [--seconds N] [TARGET ...]`` with ``tests`` as PYTHONPATH.

Each target runs in a process of its own, guided by coverage (atheris, libFuzzer) where that is
installed, else by chance alone. What breaks a target is written to ``--findings``; mend the bug,
and copy the file to ``tests/fuzz/corpus/TARGET/``, so that it is never forgotten.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

atheris: Any = None
with contextlib.suppress(ImportError):
    atheris = importlib.import_module("atheris")

SLOW_SECONDS = 20
MEMORY_MEGABYTES = 2000


def main() -> int:
    """Run the targets that were named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _fuzz(options.targets[0], options.seconds, options.findings)
        return 0
    options.findings.mkdir(parents=True, exist_ok=True)
    broken = [name for name in options.targets or _names() if not _in_child(name, options)]
    print(f"broken: {', '.join(broken)}" if broken else "nothing broke", flush=True)
    return 1 if broken else 0


def _names() -> list[str]:
    from fuzz.targets import TARGETS

    return list(TARGETS)


def _in_child(name: str, options: argparse.Namespace) -> bool:
    how = "by coverage" if atheris else "by chance (atheris is not installed)"
    print(f"==> {name}: {options.seconds} s, {how}", flush=True)
    command = [sys.executable, "-W", "ignore", "-m", "fuzz", "--one", name]
    command += ["--seconds", str(options.seconds), "--findings", str(options.findings)]
    return subprocess.run(command, check=False).returncode == 0


def _fuzz(name: str, seconds: int, findings: Path) -> None:
    if atheris is None:
        _by_chance(name, seconds, findings)
        return
    with atheris.instrument_imports(include=["cloister"]):
        from fuzz.targets import TARGETS, inputs
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="cloister-fuzz-") as directory:
        corpus = Path(directory) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(inputs(name)):
            (corpus / str(number)).write_bytes(data)
        flags = [
            f"-max_total_time={seconds}",
            f"-timeout={SLOW_SECONDS}",
            f"-rss_limit_mb={MEMORY_MEGABYTES}",
            f"-artifact_prefix={findings}/{name}-",
            "-max_len=131072",
            "-print_final_stats=1",
            "-verbosity=0",
        ]
        if target.words:
            dictionary = Path(directory) / "words"
            dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
            flags.append(f"-dict={dictionary}")
        atheris.Setup([sys.argv[0], *flags, str(corpus)], target.survives)
        atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _by_chance(name: str, seconds: int, findings: Path) -> None:
    from fuzz.mutations import mutate
    from fuzz.targets import TARGETS, inputs

    target, begin = TARGETS[name], inputs(name)
    dice = random.Random()
    end = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < end:
        data = mutate(dice, begin, target.words)
        started = time.thread_time()
        try:
            target.survives(data)
            assert time.thread_time() - started < SLOW_SECONDS, f"{name}: too slow"
        except Exception:
            with contextlib.suppress(FileExistsError):
                (findings / f"{name}-{runs}").write_bytes(data)
            raise
        runs += 1
    print(f"{runs} inputs")


if __name__ == "__main__":
    sys.exit(main())
