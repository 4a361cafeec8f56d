"""Manifests in Gramine's dialect: what they mean, and how broken ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ManifestError
from cloister.manifest.model import EnvValue, Manifest
from cloister.manifest.parse import parse_manifest

BASE = 'libos.entrypoint = "/bin/true"\n'


def parse(text: str) -> Manifest:
    return parse_manifest(BASE + text, "app.manifest")


def test_gramines_own_output(data: Path) -> None:
    text = (data / "signing" / "app.manifest").read_text()
    manifest = parse_manifest(text, "app.manifest")
    assert manifest.libos.entrypoint == "/usr/bin/python3"
    assert manifest.loader.env == {"LD_LIBRARY_PATH": EnvValue(value="/lib:/usr/lib")}
    assert manifest.sgx.enclave_size == 64 << 20
    assert manifest.sgx.cpu_features.avx512 == "required"
    assert [mount.type for mount in manifest.fs.mounts] == ["chroot", "encrypted", "tmpfs"]
    assert [file.path for file in manifest.sgx.trusted_files] == [
        "a.txt",
        "dir/b.txt",
        "dir/sub/c.txt",
    ]


def test_defaults_are_secure() -> None:
    manifest = parse("")
    assert not manifest.sgx.debug
    assert manifest.sgx.file_check_policy == "strict"
    assert not manifest.sgx.trusted_files
    assert not manifest.sgx.allowed_files
    assert not manifest.loader.insecure__use_host_env
    assert not manifest.loader.insecure__use_cmdline_argv
    assert manifest.fs.insecure__keys == {}
    assert manifest.sgx.enclave_size == 256 << 20
    assert parse("sgx.edmm_enable = true").sgx.enclave_size == 1 << 40


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 1 << 26),
        ("4g", 1 << 32),
        ("0x100000", 1 << 20),
        ("65536", 1 << 16),
        ("64K", 1 << 16),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse(f'sgx.enclave_size = "{text}"').sgx.enclave_size == size


def test_environment_forms() -> None:
    env = parse('loader.env = { A = "1", B.value = "2", C = { passthrough = true } }').loader.env
    assert [env["A"].value, env["B"].value, env["C"].value] == ["1", "2", None]
    assert [env[name].passthrough for name in "ABC"] == [False, False, True]


BROKEN = [
    ("x = 1", "2: x: unknown key"),
    ('"x\\u001b[31m" = 1', '2: "x\\x1b[31m": unknown key'),
    ('sgx.enclave_siz = "4G"', "2: sgx.enclave_siz: unknown key; did you mean sgx.enclave_size?"),
    ("loader.uidd = 0", "2: loader.uidd: unknown key; did you mean loader.uid?"),
    ("enclave_size = 1", "2: enclave_size: unknown key here; did you mean sgx.enclave_size?"),
    ("sgx.qqqq = 1", "2: sgx.qqqq: unknown key; known here: allowed_files, "),
    (
        "sys.debug__mock_syscalls = [{ name = 'x', retrun = 0 }]",
        "2: sys.debug__mock_syscalls[0].retrun: unknown key; did you mean"
        " sys.debug__mock_syscalls[0].return?",
    ),
    ('sgx.debug = "true"', "2: sgx.debug: expected true or false, without quotes"),
    ("sgx.debug = 1", "2: sgx.debug: expected true or false, without quotes"),
    ("sgx = 1", "2: sgx: expected a table"),
    ("loader.env = 1", "2: loader.env: expected a table"),
    ("loader.log_level = 3", "2: loader.log_level: 3 is none of 'none', 'error'"),
    ("loader.log_level = 'loud'", "2: loader.log_level: 'loud' is none of 'none', 'error'"),
    ("loader.argv = 'x'", "2: loader.argv: expected an array"),
    ("loader.argv = []", "2: loader.argv: an empty array means nothing"),
    ("loader.argv = ['a', 1]", "2: loader.argv[1]: expected a text in quotes"),
    ('loader.argv = ["a\\u0000b"]', "2: loader.argv[0]: a text with a NUL character"),
    (
        "loader.argv = ['a']\nloader.insecure__use_cmdline_argv = true",
        "2: loader: argv, argv_src_file and insecure__use_cmdline_argv exclude each other",
    ),
    (
        "loader.env_src_file = 'file:e'\nloader.insecure__use_host_env = true",
        "2: loader: insecure__use_host_env and env_src_file exclude each other",
    ),
    ("loader.argv_src_file = 'args'", "2: loader.argv_src_file: 'args': expected a URI"),
    ("loader.env.A = { passthrough = false }", "2: loader.env.A: expected a string, { value"),
    (
        "loader.env.A = { passthrough = true, value = 'x' }",
        "2: loader.env.A: expected a string, { value",
    ),
    ("loader.env.A = 5", "2: loader.env.A: expected a text in quotes, or a table with value"),
    ("loader.env.'A=B' = 'x'", '2: loader.env."A=B": a name that cannot be used'),
    ("loader.uid = -1", "2: loader.uid: -1 is out of range, expected at least 0"),
    ("fs.mounts = [{ path = 't', uri = 'file:t' }]", "2: fs.mounts[0].path: 't' is relative"),
    (
        "[[fs.mounts]]\npath = '/a'\nuri = 'file:a'\n[[fs.mounts]]\npath = '/'\nuri = 'file:b'",
        '5: fs.mounts[1]: path = "/" is the root; set fs.root instead',
    ),
    ("fs.mounts = [{ path = '/a' }]", "2: fs.mounts[0]: a mount of type chroot needs a uri"),
    ("fs.mounts = [{ uri = 'file:a' }]", "2: fs.mounts[0].path: missing, but needed"),
    (
        "fs.mounts = [{ path = '/a', uri = 'http://a' }]",
        "2: fs.mounts[0].uri: 'http://a': expected a URI that starts with",
    ),
    (
        "fs.mounts = [{ path = '/a', uri = 'file:a', type = 'nfs' }]",
        "2: fs.mounts[0].type: 'nfs' is none of 'chroot'",
    ),
    (
        "fs.mounts = [{ path = '/a', uri = 'file:a', key_name = 'k' }]",
        '2: fs.mounts[0]: key_name and enable_recovery are for type = "encrypted"',
    ),
    (
        "fs.mounts = [{ path = '/a', uri = 'dev:/dev/a', type = 'encrypted' }]",
        "2: fs.mounts[0]: an encrypted mount needs a uri that starts with file:",
    ),
    (
        "fs.mounts = [{ path = '/a', uri = 'file:a', type = 'untrusted_shm' }]",
        "2: fs.mounts[0]: an untrusted_shm mount needs a uri that starts with dev:",
    ),
    (
        "fs.mounts = [{ path = '/a', uri = 'file:a', type = 'encrypted', key_name = 'a/b' }]",
        "2: fs.mounts[0].key_name: a name that cannot be used",
    ),
    ("fs.root = { type = 'chroot' }", "2: fs.root: a mount of type chroot needs a uri"),
    ("fs.start_dir = 'home'", "2: fs.start_dir: 'home' is relative"),
    ("fs.insecure__keys.default = '12'", "2: fs.insecure__keys.default: expected 32 hexadecimal"),
    ("sys.stack.size = 4096", "2: sys.stack.size: expected a size in quotes"),
    ("sys.stack.size = '4 K'", "2: sys.stack.size: expected a size in quotes"),
    ("sys.fds.limit = 0", "2: sys.fds.limit: 0 is out of range, expected more than 0"),
    ("sgx.enclave_size = '3M'", "2: sgx.enclave_size: 3145728 bytes is not a power of two"),
    ("sgx.enclave_size = '4T'", "2: sgx.enclave_size: expected a size in quotes"),
    ("sgx.max_threads = 0", "2: sgx.max_threads: 0 is out of range, expected at least 1"),
    ("sgx.max_threads = '4'", "2: sgx.max_threads: expected a whole number, without quotes"),
    ("sgx.isvsvn = 70000", "2: sgx.isvsvn: 70000 is out of range, expected at most 65535"),
    ("sgx.trusted_files = ['file:a',\n'b']", "3: sgx.trusted_files[1].uri: 'b': expected a URI"),
    (
        "[[sgx.trusted_files]]\nuri = 'file:a'\nsha256 = 'ab'",
        "4: sgx.trusted_files[0].sha256: expected 64 hexadecimal digits in quotes",
    ),
    ("sgx.allowed_files = ['/tmp']", "2: sgx.allowed_files[0]: '/tmp': expected a URI that starts"),
    ("sgx.file_check_policy = 'off'", "2: sgx.file_check_policy: 'off' is none of 'strict' or"),
    ("sgx.remote_attestation = 'epid'", "2: sgx.remote_attestation: 'epid' is none of 'none'"),
    ("sgx.cpu_features.avx = 'on'", "2: sgx.cpu_features.avx: 'on' is none of 'unspecified'"),
    ("sgx.cpu_features.mpx = 'unspecified'", "2: sgx.cpu_features.mpx: 'unspecified' is none of"),
    ("sgx.seal_key.misc_mask = '0x1'", '2: sgx.seal_key.misc_mask: expected "0x" and 8 hexa'),
    ("sgx.profile.frequency = 0", "2: sgx.profile.frequency: 0 is out of range"),
    (
        "sgx.edmm_enable = true\nsgx.preheat_enclave = true",
        "2: sgx: preheat_enclave and edmm_enable exclude each other",
    ),
    ("cloister.trusted_index = { sha256 = 'x' }", "2: cloister.trusted_index.sha256: expected 64"),
    ("x =", "2: not TOML: invalid value"),
    ("\n\nx = [1, 2", "4: not TOML: "),
    ("sgx.debug = true\nsgx.debug = false", "3: not TOML: "),
    ("libos.entrypoint = '/y'", "2: not TOML: "),
    ("[libos]\nentrypoint = '/y'", "2: not TOML: "),
    ("sgx.debug = True", "2: not TOML: invalid value"),
    ("sgx.isvsvn = " + 5000 * "1", "1: not TOML: a number has too many digits"),
    (
        "sgx.enclave_size = '17179869184G'",
        "2: sgx.enclave_size: 17179869184G is more than any machine has",
    ),
]


@pytest.mark.parametrize(("text", "expected"), BROKEN, ids=[row[0][:40] for row in BROKEN])
def test_broken_manifests_have_one_clear_error(text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    assert caught.value.message.startswith(f"app.manifest:{expected}")
    assert "\n" not in caught.value.message


def test_nothing_at_all() -> None:
    with pytest.raises(ManifestError, match=r"^app.manifest: libos: missing, but needed$"):
        parse_manifest("", "app.manifest")


def test_a_wrong_key_is_never_shown() -> None:
    """The value of a key stays out of messages even when it is not a key."""
    with pytest.raises(ManifestError) as caught:
        parse("fs.insecure__keys.default = 'ffeeddccbbaa99887766554433221100ff'")
    assert "ffee" not in caught.value.message


def test_deep_nesting_is_an_error_too() -> None:
    with pytest.raises(ManifestError):
        parse("x = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ManifestError):
        parse("x = " + "[" * 300 + "]" * 300)


@settings(max_examples=300)
@given(st.text())
def test_no_text_makes_anything_but_a_manifest_error(text: str) -> None:
    try:
        parse_manifest(text, "any")
    except ManifestError as error:
        assert error.message.startswith("any")


KEYS = [
    "libos.entrypoint",
    "loader.argv",
    "loader.env.A",
    "fs.mounts",
    "fs.root",
    "sgx.trusted_files",
    "sgx.enclave_size",
    "sgx.profile",
    "sys.ioctl_structs.a",
    "cloister.trusted_index",
]
VALUES = [
    "1",
    "true",
    "-9223372036854775808",
    "inf",
    "1979-05-27",
    "''",
    "'file:/'",
    "[]",
    "[[]]",
    "[{}]",
    "{}",
    "{ value = 1 }",
    "{ path = '/', uri = 'file:' }",
    '"\\u0000"',
]


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)))
def test_wrong_types_make_nothing_but_a_manifest_error(lines: dict[str, str]) -> None:
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    try:
        parse_manifest(text, "any")
    except ManifestError as error:
        assert error.message.startswith("any")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('sys.stack.size = "9999999999G"', "expected less than 2**63 bytes"),
        (f'sys.stack.size = "{"1" * 5000}"', 'expected a size in quotes, such as "256M"'),
        ("loader.uid = 4294967295", "expected at most 4294967294"),
        ("loader.gid = 4294967296", "expected at most 4294967294"),
        (r'fs.start_dir = "/a\u0000b"', "a path with a NUL character"),
    ],
)
def test_what_no_machine_can_do_is_refused(line: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(f'libos.entrypoint = "/x"\n{line}\n', "m")
    assert message in caught.value.message
