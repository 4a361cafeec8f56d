"""Graphene's dialect means the same as its translation to Gramine's, and its errors are clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ManifestError
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText, parse_manifest
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import expand

BASE = 'libos.entrypoint = "/usr/bin/python3"\n'

GRAPHENE = """
loader.preload = "file:/lib/libsysdb.so"
libos.entrypoint = "/usr/bin/python3"
loader.log_level = "error"
loader.argv0_override = "python3"
loader.pal_internal_mem_size = "64M"
loader.env.LD_LIBRARY_PATH = "/lib"

fs.mount.pip.type = "chroot"
fs.mount.pip.path = "/home/x/.local/lib"
fs.mount.pip.uri = "file:/home/x/.local/lib"
fs.mount.lib.type = "chroot"
fs.mount.lib.path = "/lib"
fs.mount.lib.uri = "file:/runtime/"
fs.mount.tmp.type = "tmpfs"
fs.mount.tmp.path = "/tmp"
fs.mount.tmp.uri = "file:dummy"

sgx.nonpie_binary = true
sgx.enclave_size = "4G"
sgx.thread_num = 64
sgx.rpc_thread_num = 2
sgx.support_exinfo = true
sgx.require_avx = true
sgx.require_mpx = false
sgx.remote_attestation = true
sgx.ra_client_spid = ""
sgx.ra_client_linkable = false
sgx.protected_files_key = "ffeeddccbbaa99887766554433221100"
sgx.trusted_files.python = "file:/usr/bin/python3"
sgx.trusted_files.lib = "file:/runtime/"
sgx.trusted_checksum.python = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
sgx.allowed_files.out = "file:out"
sgx.protected_files.input = "file:input.jpg"
"""

GRAMINE = """
libos.entrypoint = "/usr/bin/python3"
loader.log_level = "error"
loader.argv = ["python3"]
loader.env.LD_LIBRARY_PATH = "/lib"
fs.mounts = [
  { type = "chroot", path = "/lib", uri = "file:/runtime/" },
  { type = "tmpfs", path = "/tmp", uri = "file:dummy" },
  { type = "chroot", path = "/home/x/.local/lib", uri = "file:/home/x/.local/lib" },
]
fs.insecure__keys.default = "ffeeddccbbaa99887766554433221100"
sgx.enclave_size = "4G"
sgx.max_threads = 64
sgx.insecure__rpc_thread_num = 2
sgx.use_exinfo = true
sgx.cpu_features.avx = "required"
sgx.cpu_features.mpx = "disabled"
sgx.remote_attestation = "dcap"
sgx.trusted_files = [
  { sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    uri = "file:/usr/bin/python3" },
  "file:/runtime/",
]
sgx.allowed_files = ["file:out"]
sgx.protected_files = ["file:input.jpg"]
"""


def test_both_dialects_mean_the_same() -> None:
    assert parse_manifest(GRAPHENE, "a") == parse_manifest(GRAMINE, "b")


def test_what_means_nothing_is_noted_with_its_reason() -> None:
    dropped = ManifestText(GRAPHENE, "a").dropped
    assert {".".join(map(str, path)) for path in dropped} == {
        "loader.preload",
        "loader.pal_internal_mem_size",
        "sgx.nonpie_binary",
        "sgx.ra_client_spid",
        "sgx.ra_client_linkable",
    }
    assert all(dropped.values())


def test_the_secure_default_holds_where_the_dialects_differ() -> None:
    assert not parse_manifest(GRAPHENE, "a").sgx.debug


def parse(text: str) -> Manifest:
    return parse_manifest(BASE + text, "old")


def test_program_as_a_uri() -> None:
    manifest = parse_manifest('libos.entrypoint = "file:/usr/bin/python3"\n', "old")
    assert manifest.libos.entrypoint == "/usr/bin/python3"


def test_argv0_comes_with_arguments_from_outside() -> None:
    text = "loader.argv0_override = 'x'\nloader.insecure__use_cmdline_argv = true\n"
    assert parse(text).loader.argv is None
    assert ("loader", "argv0_override") in ManifestText(BASE + text, "old").dropped


def test_mounts_of_both_kinds() -> None:
    mounts = parse(
        "fs.mounts = [{ path = '/a', uri = 'file:a' }]\n"
        "fs.mount.b = { type = 'chroot', path = '/b', uri = 'file:b' }\n"
    ).fs.mounts
    assert [mount.path for mount in mounts] == ["/a", "/b"]


def test_directories_without_slash(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").touch()

    def expanded(text: str) -> list[str]:
        manifest = ManifestText(BASE + text, "old")
        return list(
            expand(
                manifest.manifest.sgx.trusted_files,
                tmp_path,
                FileTree(),
                manifest.trusted_file_problem,
                bare_directories=manifest.graphene,
            )
        )

    assert expanded("sgx.trusted_files.dir = 'file:dir'") == ["dir/file"]
    assert expanded("sgx.trusted_files.dir = 'file:dir/'") == ["dir/file"]
    with pytest.raises(ManifestError, match=r"^old:2: sgx.trusted_files\[0\]: file:dir is a dir"):
        expanded("sgx.trusted_files = ['file:dir']")
    with pytest.raises(ManifestError, match=r"^old:2: sgx.trusted_files.gone: file:gone does not"):
        expanded("sgx.trusted_files.gone = 'file:gone'")


BROKEN = [
    ("loader.exec = 'file:x'", "2: loader.exec: no longer supported; use libos.entrypoint"),
    ("loader.debug_type = 'inline'", "2: loader.debug_type: no longer supported; use loader.log"),
    ("sgx.sigfile = 'x'", "2: sgx.sigfile: no longer supported"),
    ("sgx.thread_num = '4'", "2: sgx.thread_num: expected a whole number"),
    ("sgx.thread_num = 0", "2: sgx.thread_num: 0 is out of range, expected at least 1"),
    ("sgx.thread_nums = 4", "2: sgx.thread_nums: unknown key; did you mean sgx.thread_num?"),
    (
        "sgx.max_threads = 4\nsgx.thread_num = 4",
        "3: sgx.thread_num: sgx.max_threads says the same; keep one of them",
    ),
    ("sgx.require_avx = 'yes'", "2: sgx.require_avx: expected true or false"),
    (
        "sgx.cpu_features.avx = 'required'\nsgx.require_avx = true",
        "3: sgx.require_avx: sgx.cpu_features.avx says the same",
    ),
    ("sgx.cpu_features = 1\nsgx.require_avx = true", "2: sgx.cpu_features: expected a table"),
    ("sgx.protected_files_key = 'ff'", "2: sgx.protected_files_key: expected 32 hexadecimal"),
    ("loader.argv0_override = 1", "2: loader.argv0_override: expected a text in quotes"),
    (
        "loader.argv = ['a']\nloader.argv0_override = 'b'",
        "3: loader.argv0_override: loader.argv says the same",
    ),
    ("fs.mount = 1", "2: fs.mount: expected a table"),
    ("fs.mount.a = 1", "2: fs.mount.a: expected a table"),
    ("fs.mount.a.path = '/a'", "2: fs.mount.a.type: missing, or not a text in quotes"),
    (
        "fs.mount.a.path = '/a'\nfs.mount.a.type = 'tmpfs'",
        "2: fs.mount.a.uri: missing, or not a text in quotes",
    ),
    (
        "fs.mount.a.type = 'chroot'\nfs.mount.a.uri = 'file:a'\nfs.mount.a.path = 'a'",
        "4: fs.mount.a.path: 'a' is relative",
    ),
    (
        "fs.mount.a = { type = 'chroot', path = '/', uri = 'file:a' }",
        '2: fs.mount.a: path = "/" is the root; set fs.root instead',
    ),
    (
        "fs.mounts = 1\nfs.mount.a = { type = 'tmpfs', path = '/a', uri = 'file:a' }",
        "2: fs.mounts: expected an array",
    ),
    ("sgx.trusted_files.a = 'a'", "2: sgx.trusted_files.a.uri: 'a': expected a URI that starts"),
    (
        "sgx.trusted_files.a = 1",
        "2: sgx.trusted_files.a: expected a text in quotes, or a table",
    ),
    ("sgx.allowed_files.a = '/tmp'", "2: sgx.allowed_files.a: '/tmp': expected a URI"),
    (
        "sgx.trusted_checksum.a = 'b'\nsgx.trusted_files = []",
        "2: sgx.trusted_checksum: there is no table trusted_files",
    ),
    (
        "sgx.trusted_checksum.a = 'b'\nsgx.trusted_files.b = 'file:b'",
        "2: sgx.trusted_checksum: has other names than trusted_files",
    ),
    (
        "sgx.trusted_files.b = 'file:b'\nsgx.trusted_checksum.b = 'b'",
        "2: sgx.trusted_files.b.sha256: expected 64 hexadecimal digits",
    ),
]


@pytest.mark.parametrize(("text", "expected"), BROKEN, ids=[row[0][:40] for row in BROKEN])
def test_broken_manifests_have_one_clear_error(text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    assert caught.value.message.startswith(f"old:{expected}")


KEYS = [
    "loader.preload",
    "loader.argv0_override",
    "loader.argv",
    "libos.entrypoint",
    "pal.entrypoint",
    "fs.mount",
    "fs.mount.a",
    "fs.mounts",
    "fs.insecure__keys",
    "sgx.thread_num",
    "sgx.require_avx",
    "sgx.cpu_features",
    "sgx.remote_attestation",
    "sgx.protected_files",
    "sgx.protected_files_key",
    "sgx.trusted_files",
    "sgx.trusted_files.a",
    "sgx.trusted_checksum",
    "sgx",
    "fs",
]
VALUES: list[Any] = [
    "1",
    "true",
    "''",
    "'file:/x'",
    "[]",
    "['a']",
    "{}",
    "{ a = 'x' }",
    "{ a = {} }",
]


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)))
def test_nothing_makes_anything_but_a_manifest_error(lines: dict[str, str]) -> None:
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    try:
        parse_manifest(text, "any")
    except ManifestError as error:
        assert error.message.startswith("any")
