"""``--format gramine`` against what Gramine's own tools wrote, and against Gramine's schema."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli

from cloister.errors import ManifestError
from cloister.manifest.parse import ManifestText
from cloister.manifest.prepare import Format, Prepared, Settings, prepare
from cloister.manifest.template import Template
from cloister.manifest.tree import FileTree

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"
BASE = 'libos.entrypoint = "/bin/true"\n'

STRING, BOOL, INT = str, bool, int
SCHEMA: dict[str, Any] = {
    "libos": {"entrypoint": STRING, "check_invalid_pointers": BOOL},
    "loader": {
        "entrypoint": {"uri": STRING, "sha256": STRING},
        "argv": [STRING],
        "env": dict,
        "log_level": STRING,
        "insecure__use_cmdline_argv": BOOL,
    },
    "fs": {
        "mounts": [
            {
                "type": STRING,
                "path": STRING,
                "uri": STRING,
                "key_name": STRING,
                "enable_recovery": BOOL,
            }
        ],
        "insecure__keys": dict,
    },
    "sgx": {
        "debug": BOOL,
        "edmm_enable": BOOL,
        "enable_stats": BOOL,
        "enclave_size": STRING,
        "isvprodid": INT,
        "isvsvn": INT,
        "max_threads": INT,
        "remote_attestation": STRING,
        "use_exinfo": BOOL,
        "cpu_features": dict.fromkeys(("avx", "avx512", "amx", "mpx", "pkru"), STRING),
        "trusted_files": [{"uri": STRING, "sha256": STRING}],
        "allowed_files": [STRING],
    },
}


def conforms(value: Any, schema: Any) -> bool:
    """Tell whether a document has only keys that Gramine knows, with values of its types."""
    if isinstance(schema, dict):
        return isinstance(value, dict) and all(
            key in schema and conforms(inner, schema[key]) for key, inner in value.items()
        )
    if isinstance(schema, list):
        return isinstance(value, list) and all(conforms(inner, schema[0]) for inner in value)
    return type(value) is schema


def prepared(text: str, base: Path) -> Prepared:
    settings = Settings(
        libpal=(SIGNING / "pal.so").read_bytes(),
        now=datetime.datetime.now(datetime.timezone.utc),
        format=Format.GRAMINE,
        use_cache=False,
    )
    return prepare(ManifestText(text, "m"), base, settings, FileTree())


def document(text: str, base: Path) -> dict[str, Any]:
    return tomli.loads(prepared(text, base).signed.decode())


@pytest.mark.parametrize(("edmm", "name"), [("0", "app.manifest"), ("1", "app-edmm.manifest")])
def test_says_what_gramines_tools_say_to_the_byte(edmm: str, name: str) -> None:
    template = (SIGNING / "app.manifest.template").read_text()
    rendering = Template(template, {"log_level": "error"}, source="t", environment={"EDMM": edmm})
    ours = prepared(rendering.render(), SIGNING).signed.decode()
    theirs = (SIGNING / name).read_text()
    # Where Gramine is not installed, nobody knows the hash of its library OS.
    library = tomli.loads(theirs)["loader"]["entrypoint"]["sha256"]
    known = tomli.loads(ours)["loader"]["entrypoint"].get("sha256")
    expected = f'sha256 = "{known}"\n' if known else ""
    assert ours == theirs.replace(f'sha256 = "{library}"\n', expected)
    assert conforms(tomli.loads(ours), SCHEMA)


def test_defaults_are_added_in_gramines_order() -> None:
    sgx = document(f'{BASE}sgx.isvsvn = 3\nsgx.cpu_features.mpx = "required"\n', SIGNING)["sgx"]
    assert list(sgx) == [
        "isvsvn",
        "trusted_files",
        "max_threads",
        "isvprodid",
        "remote_attestation",
        "debug",
        "enable_stats",
        "edmm_enable",
        "enclave_size",
        "use_exinfo",
        "cpu_features",
    ]
    assert list(sgx["cpu_features"]) == ["mpx", "avx", "avx512", "amx", "pkru"]
    assert sgx["enclave_size"] == "256M"
    assert document(f"{BASE}sgx.edmm_enable = true\n", SIGNING)["sgx"]["enclave_size"] == "1024G"


def test_names_stay_as_they_are_written() -> None:
    listed = f'{BASE}sgx.trusted_files = ["file:./a.txt", "file:.//dir/../dir/"]\n'
    files = document(listed, SIGNING)["sgx"]["trusted_files"]
    assert [file["uri"] for file in files] == [
        "file:./a.txt",
        "file:dir/../dir/b.txt",
        "file:dir/../dir/sub/c.txt",
    ]


GRAPHENE = """
loader.argv0_override = "x"
fs.mount.lib = { type = "chroot", path = "/lib", uri = "file:/lib" }
sgx.thread_num = 8
sgx.enclave_size = "64m"
sgx.trusted_files.d = "file:dir"
sgx.allowed_files.o = "file:out"
sgx.protected_files.p = "file:in"
sgx.protected_files_key = "ffeeddccbbaa99887766554433221100"
sgx.support_exinfo = true
"""


def test_graphenes_dialect_too() -> None:
    ours = document(BASE + GRAPHENE, SIGNING)
    assert conforms(ours, SCHEMA)
    assert ours["sgx"]["enclave_size"] == str(64 << 20)
    assert ours["sgx"]["max_threads"] == 8
    assert [file["uri"] for file in ours["sgx"]["trusted_files"]] == [
        "file:dir/b.txt",
        "file:dir/sub/c.txt",
    ]
    assert ours["fs"]["mounts"][1] == {"type": "encrypted", "path": "/in", "uri": "file:in"}


def test_what_is_measured_is_what_is_written() -> None:
    result = prepared(BASE + GRAPHENE, SIGNING)
    assert result.manifest == ManifestText(result.signed.decode(), "signed").manifest
    assert result.index is None


def test_installed_library_os_is_hashed(tmp_path: Path) -> None:
    library = tmp_path / "libsysdb.so"
    library.write_bytes(b"library")
    result = prepared(f'{BASE}loader.entrypoint.uri = "file:{library}"\n', tmp_path)
    entrypoint = tomli.loads(result.signed.decode())["loader"]["entrypoint"]
    assert entrypoint["sha256"] == hashlib.sha256(b"library").hexdigest()
    assert not result.notes


def test_missing_library_os_is_said(tmp_path: Path) -> None:
    result = prepared(f'{BASE}loader.entrypoint.uri = "file:{tmp_path}/none"\n', tmp_path)
    assert result.notes[0].startswith("loader.entrypoint has no sha256")
    given = f'{BASE}loader.entrypoint = {{ uri = "file:/none", sha256 = "{"0" * 64}" }}\n'
    assert not prepared(given, tmp_path).notes


def test_names_that_toml_cannot_say(tmp_path: Path, copy_of: Callable[[Path], Path]) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / b"\xe9".decode("utf-8", "surrogateescape")).touch()
    with pytest.raises(ManifestError, match="its name is not UTF-8"):
        prepared(f'{BASE}sgx.trusted_files = ["file:dir/"]\n', tmp_path)
