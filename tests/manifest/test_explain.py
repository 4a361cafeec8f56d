"""What is said of a manifest: what each insecure line gives away, why each idle one is idle."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from cloister.manifest.effects import WITHOUT_EFFECT
from cloister.manifest.explain import Explanation, explain, show
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText

BASE = 'libos.entrypoint = "/bin/true"\n'


def explained(text: str) -> Explanation:
    return explain(ManifestText(BASE + text, "m"))


def printed(explanation: Explanation) -> str:
    lines: list[str] = []
    show(explanation, lines.append)
    return "\n".join(lines)


def test_a_plain_manifest_gives_nothing_away() -> None:
    explanation = explained("")
    assert explanation.executes[0] == "/bin/true, started in /"
    assert not explanation.writes
    assert not explanation.reads
    assert not explanation.insecure
    assert not explanation.without_effect
    assert "It can write:\n  nothing" in printed(explanation)


MOUNTS = """
fs.mounts = [
  { path = "/lib", uri = "file:/runtime" },
  { path = "/enc", uri = "file:enc", type = "encrypted", key_name = "mine" },
  { path = "/tmp", type = "tmpfs" },
]
sgx.trusted_files = ["file:/runtime/", "file:a", "file:b", "file:/elsewhere/c", "file:tmp/x"]
sgx.allowed_files = ["file:out"]
"""


def test_files_are_named_as_the_program_sees_them() -> None:
    explanation = explained(MOUNTS)
    assert explanation.reads[:4] == [
        "all files below /lib, whose content is checked",
        "2 files in /, whose content is checked",
        "/elsewhere/c (not mounted: out of reach), whose content is checked",
        "tmp/x (not mounted: out of reach), whose content is checked",
    ]
    assert explanation.writes == [
        '/enc: encrypted on the host in file:enc under the key "mine"',
        "/tmp: memory, gone when the enclave ends",
        "/out: open to the host, unchecked",
    ]
    assert explanation.reads[4:] == explanation.writes


def test_many_directories_are_counted_not_listed() -> None:
    listed = ", ".join(f'"file:lib/{name}/"' for name in "abcde")
    explanation = explained(f"sgx.trusted_files = [{listed}]\n")
    assert explanation.reads == [
        "all files below 5 directories of /lib (a, b, c, ..), whose content is checked"
    ]


def test_a_loose_policy_also_lets_the_program_write() -> None:
    explanation = explained("sgx.file_check_policy = 'allow_all_but_log'\n")
    assert explanation.writes == ["every other mounted file: open to the host, unchecked"]
    assert explanation.reads == explanation.writes


INSECURE = [
    ("loader.insecure__use_cmdline_argv = true", "loader.insecure__use_cmdline_argv", "arguments"),
    ("loader.insecure__use_host_env = true", "loader.insecure__use_host_env", "LD_PRELOAD"),
    ("loader.env.A = { passthrough = true }", "loader.env.A", "chooses the value"),
    ("fs.insecure__keys.k = '" + "0" * 32 + "'", "fs.insecure__keys.k", "everybody can read it"),
    ("sgx.debug = true", "sgx.debug", "with a debugger"),
    ("sgx.allowed_files = ['file:a']", "sgx.allowed_files[0]", "reads and changes a at any time"),
    ("sgx.allowed_files.x = 'file:a'", "sgx.allowed_files.x", "reads and changes a at any time"),
    ("sgx.file_check_policy = 'allow_all_but_log'", "sgx.file_check_policy", "every mounted file"),
    ("fs.mounts = [{ path = '/proc', uri = 'file:/proc/1/..' }]", "fs.mounts[0]", "likes"),
    (
        "fs.mounts = [{ type = 'untrusted_shm', path = '/s', uri = 'dev:/dev/shm' }]",
        "fs.mounts[0]",
        "what is shared",
    ),
    ("sgx.seal_key.flags_mask = '0x0000000000000000'", "sgx.seal_key.flags_mask", "debug enclave"),
]


@pytest.mark.parametrize(("text", "key", "gain"), INSECURE, ids=[row[1] for row in INSECURE])
def test_every_insecure_line_says_what_a_host_gains(text: str, key: str, gain: str) -> None:
    (remark,) = explained(text).insecure
    assert (remark.key, remark.line) == (key, 2)
    assert gain in remark.text
    assert f"line 2: {key}: " in printed(explained(text))


def test_keys_with_servers_of_their_own() -> None:
    key = '{ name = "model", servers = "owner.example:4433", ca = "/certs/ca.crt" }'
    (line,) = explained(f"cloister.keys = [{key}]").reads
    assert (
        line
        == "what the key 'model' opens, which owner.example:4433 may release (CA: /certs/ca.crt)"
    )


def test_idle_keys_of_both_dialects() -> None:
    text = "sgx.enable_stats = true\nsgx.nonpie_binary = true\n"
    assert {(remark.key, remark.line) for remark in explained(text).without_effect} == {
        ("sgx.enable_stats", 2),
        ("sgx.nonpie_binary", 3),
    }


# What the runtime, the signer or the platform does something with.
HONOURED = {
    "cloister.keys",
    "cloister.terminals",
    "cloister.trusted_index",
    "fs.insecure__keys",
    "fs.mounts",
    "fs.root",
    "fs.start_dir",
    "libos.entrypoint",
    "loader.argv",
    "loader.argv_src_file",
    "loader.env",
    "loader.env_src_file",
    "loader.gid",
    "loader.insecure__use_cmdline_argv",
    "loader.insecure__use_host_env",
    "loader.uid",
    "sgx.allowed_files",
    "sgx.cpu_features",
    "sgx.debug",
    "sgx.edmm_enable",
    "sgx.enclave_size",
    "sgx.file_check_policy",
    "sgx.isvprodid",
    "sgx.isvsvn",
    "sgx.max_threads",
    "sgx.protected_files",
    "sgx.remote_attestation",
    "sgx.seal_key",
    "sgx.trusted_files",
    "sgx.use_exinfo",
    "loader.log_file",
    "loader.log_level",
    "sys.disallow_subprocesses",
    "sys.enable_extra_runtime_domain_names_conf",
    "sys.fds",
    "sys.stack",
}


def test_every_key_is_either_honoured_or_explained() -> None:
    known = {
        f"{table}.{key}"
        for table, field in Manifest.model_fields.items()
        for key in _fields(field.annotation)
    }
    idle = {f"{table}.{key}" for table, key in WITHOUT_EFFECT}
    assert not idle & HONOURED
    assert known == idle | HONOURED


def _fields(model: Any) -> list[str]:
    assert issubclass(model, BaseModel)
    return list(model.model_fields)
