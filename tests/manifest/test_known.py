"""What an enclave keeps of its validated manifest: the same values, and only its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cloister.manifest.known import KnownManifest
from cloister.manifest.parse import parse_manifest

KEY = bytes(range(16))
TEXT = """\
libos.entrypoint = "/bin/sh"
loader.env.table = "a name that the file format uses too"
loader.env.mapping.passthrough = true
fs.mounts = [{ path = "/a", uri = "file:a" }, { path = "/b", type = "tmpfs" }]
fs.insecure__keys.default = "00112233445566778899aabbccddeeff"
sgx.enclave_size = "1G"
sgx.trusted_files = ["file:a/"]
"""


def same(model: Any, plain: Any) -> bool:
    """Compare a validated model with what was recalled, attribute by attribute."""
    if isinstance(model, list):
        return len(model) == len(plain) and all(map(same, model, plain))
    if isinstance(model, dict):
        return isinstance(plain, dict) and all(same(model[key], plain[key]) for key in model)
    fields = getattr(type(model), "model_fields", None)
    if fields is None:
        return type(model) is type(plain) and bool(model == plain)
    return all(same(getattr(model, name), getattr(plain, name)) for name in fields)


def test_recalled_values_are_the_validated_ones(tmp_path: Path) -> None:
    manifest = parse_manifest(TEXT, "m")
    KnownManifest(tmp_path / "new" / "manifests", b"text", b"sig").keep(KEY, manifest)
    known = KnownManifest(tmp_path / "new" / "manifests", b"text", b"sig")
    recalled = known.recall()
    assert recalled is not None and known.is_confirmed(KEY)
    assert same(manifest, recalled)
    (path,) = (tmp_path / "new" / "manifests").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_another_text_signature_or_key_is_another_enclave(tmp_path: Path) -> None:
    KnownManifest(tmp_path, b"text", b"sig").keep(KEY, parse_manifest(TEXT, "m"))
    (path,) = tmp_path.iterdir()
    known = KnownManifest(tmp_path, b"text", b"sig")
    known.recall()
    assert not known.is_confirmed(bytes(16))
    for text, signature in ((b"Text", b"sig"), (b"text", b"gis")):
        other = KnownManifest(tmp_path / "others", text, signature)
        assert other.recall() is None
        other.keep(KEY, parse_manifest(TEXT, "m"))
        for theirs in (tmp_path / "others").iterdir():
            shutil.copy(path, theirs)
        other.recall()
        assert not other.is_confirmed(KEY)


@pytest.mark.parametrize("damage", [b"", b"x", b"mac\n{", b"mac\n[1]", b'mac\n{"table": 1}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    KnownManifest(tmp_path, b"text", b"sig").keep(KEY, parse_manifest(TEXT, "m"))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert KnownManifest(tmp_path, b"text", b"sig").recall() is None
