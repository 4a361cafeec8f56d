"""Why two enclaves measure differently: the runtime, a line of the manifest, or a trusted file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tomli

from cloister.manifest.index import UNKNOWN_SIZE, TrustedEntry
from cloister.manifest.locate import KeyPath
from cloister.manifest.parse import dotted
from cloister.manifest.prepare import Prepared, measure_manifest
from cloister.manifest.signed import SignedEnclave
from cloister.sgx.sigstruct import Sigstruct

_TRUSTED = {("sgx", "trusted_files"), ("cloister", "trusted_index")}


@dataclass(frozen=True)
class Difference:
    """One input that differs.

    Attributes:
        input: ``runtime``, ``manifest`` or ``file``.
        name: key of the manifest, or path of the trusted file.
        text: one line for people.
    """

    input: str
    name: str
    text: str


def differences(new: Prepared, old: SignedEnclave, libpal: bytes) -> list[Difference]:
    """Return why ``new`` does not measure what ``old`` was signed for; empty if it does.

    Args:
        new: what would be signed now.
        old: what was signed.
        libpal: the runtime image with which ``new`` was measured.
    """
    signed_for = Sigstruct.unpack(old.sigstruct).mr_enclave
    if new.measurement.mrenclave == signed_for:
        return []
    found = [*_manifest(new, old), *_files(new, old)]
    if measure_manifest(old.manifest_bytes, old.manifest, libpal).mrenclave != signed_for:
        found.insert(0, Difference("runtime", "", "the runtime image is another one"))
    if not found:
        text = "the manifest says the same in other words: order, comments or white space"
        found.append(Difference("manifest", "", text))
    return found


def _manifest(new: Prepared, old: SignedEnclave) -> Iterator[Difference]:
    before = dict(_flat(tomli.loads(old.manifest_bytes.decode())))
    after = dict(_flat(tomli.loads(new.signed.decode())))
    for path in dict.fromkeys((*before, *after)):
        if before.get(path) != after.get(path):
            name = dotted(path)
            was, now = _shown(before, path), _shown(after, path)
            yield Difference("manifest", name, f"{name}: was {was}, is {now}")


def _shown(values: Mapping[KeyPath, Any], path: KeyPath) -> str:
    return repr(values[path]) if path in values else "absent"


def _flat(value: Any, at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the leaves of a document, without what is said of trusted files."""
    if at in _TRUSTED:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _flat(inner, (*at, number))
    else:
        yield at, value


def _files(new: Prepared, old: SignedEnclave) -> Iterator[Difference]:
    before, after = dict(old.trusted.entries()), dict(new.trusted().entries())
    unknown = 0
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if was is None or now is None:
            yield Difference("file", path, f"{path}: {'new' if was is None else 'gone'}")
            continue
        same = _same(was, now)
        if same is None:
            unknown += 1
        elif not same:
            yield Difference("file", path, f"{path}: changed")
    if unknown:
        yield Difference("file", "", f"{unknown} files are known by digests of different kinds")


def _same(was: TrustedEntry, now: TrustedEntry) -> bool | None:
    """Tell whether two files have the same content; None if their digests cannot tell."""
    if was.sha256 and now.sha256:
        return was.sha256 == now.sha256
    if UNKNOWN_SIZE in (was.size, now.size):
        return None
    return (was.size, was.chunks) == (now.size, now.chunks)
