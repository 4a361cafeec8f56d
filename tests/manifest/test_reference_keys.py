"""Every key that Graphene or Gramine knows: honoured, or listed as without effect, or refused.

The list is a transcription of the reference of both systems, not of our model.
"""

from __future__ import annotations

import pytest

from cloister.errors import ManifestError
from cloister.manifest.explain import explain
from cloister.manifest.parse import ManifestText

BASE = 'libos.entrypoint = "/bin/true"\n'

# A line of TOML, and the part of the model that it changes.
HONOURED = [
    # both
    ("libos.entrypoint = '/x'", "libos.entrypoint"),
    ("loader.argv_src_file = 'file:a'", "loader.argv_src_file"),
    ("loader.insecure__use_cmdline_argv = true", "loader.insecure__use_cmdline_argv"),
    ("loader.insecure__use_host_env = true", "loader.insecure__use_host_env"),
    ("loader.env.A = 'x'", "loader.env"),
    ("loader.env_src_file = 'file:e'", "loader.env_src_file"),
    ("fs.root = { type = 'chroot', uri = 'file:/srv' }", "fs.root"),
    ("fs.start_dir = '/srv'", "fs.start_dir"),
    ("sgx.debug = true", "sgx.debug"),
    ("sgx.enclave_size = '1G'", "sgx.enclave_size"),
    ("sgx.isvprodid = 1", "sgx.isvprodid"),
    ("sgx.isvsvn = 1", "sgx.isvsvn"),
    ("sgx.allowed_files = ['file:a']", "sgx.allowed_files"),
    ("sgx.trusted_files = ['file:a']", "sgx.trusted_files"),
    (f"sgx.trusted_files = [{{ uri = 'file:a', sha256 = '{'0' * 64}' }}]", "sgx.trusted_files"),
    ("sgx.file_check_policy = 'allow_all_but_log'", "sgx.file_check_policy"),
    ("loader.log_level = 'debug'", "loader.log_level"),
    ("loader.log_file = '/tmp/log'", "loader.log_file"),
    ("sys.stack.size = '1M'", "sys.stack"),
    # Graphene
    ("libos.entrypoint = 'file:/x'", "libos.entrypoint"),
    ("loader.argv0_override = 'x'", "loader.argv"),
    ("fs.mount.a = { type = 'chroot', path = '/a', uri = 'file:a' }", "fs.mounts"),
    ("sgx.thread_num = 8", "sgx.max_threads"),
    ("sgx.require_avx = true", "sgx.cpu_features"),
    ("sgx.require_avx512 = true", "sgx.cpu_features"),
    ("sgx.require_mpx = true", "sgx.cpu_features"),
    ("sgx.require_pkru = true", "sgx.cpu_features"),
    ("sgx.support_exinfo = true", "sgx.use_exinfo"),
    ("sgx.protected_files = ['file:a']", "sgx.protected_files"),
    (f"sgx.protected_files_key = '{'a' * 32}'", "fs.insecure__keys"),
    (f"sgx.insecure__protected_files_key = '{'a' * 32}'", "fs.insecure__keys"),
    ("sgx.allowed_files.id = 'file:a'", "sgx.allowed_files"),
    ("sgx.trusted_files.id = 'file:a'", "sgx.trusted_files"),
    (
        f"sgx.trusted_files.id = 'file:a'\nsgx.trusted_checksum.id = '{'0' * 64}'",
        "sgx.trusted_files",
    ),
    ("sgx.protected_files.id = 'file:a'", "sgx.protected_files"),
    ("sgx.remote_attestation = true", "sgx.remote_attestation"),
    # Gramine
    ("loader.argv = ['a', 'b']", "loader.argv"),
    ("loader.env.A = { value = 'x' }", "loader.env"),
    ("loader.env.A = { passthrough = true }", "loader.env"),
    ("loader.uid = 1", "loader.uid"),
    ("loader.gid = 1", "loader.gid"),
    ("fs.mounts = [{ path = '/a', uri = 'file:a' }]", "fs.mounts"),
    ("fs.mounts = [{ type = 'tmpfs', path = '/a' }]", "fs.mounts"),
    (
        "fs.mounts = [{ type = 'encrypted', path = '/a', uri = 'file:a', key_name = 'k' }]",
        "fs.mounts",
    ),
    (
        "fs.mounts = [{ type = 'encrypted', path = '/a', uri = 'file:a', enable_recovery = true }]",
        "fs.mounts",
    ),
    ("fs.mounts = [{ type = 'untrusted_shm', path = '/a', uri = 'dev:/dev/shm' }]", "fs.mounts"),
    ("fs.mounts = [{ type = 'chroot', path = '/a', uri = 'dev:/dev/a' }]", "fs.mounts"),
    ("fs.root = { type = 'encrypted', uri = 'file:a', key_name = 'k' }", "fs.root"),
    (f"fs.insecure__keys.k = '{'a' * 32}'", "fs.insecure__keys"),
    ("sgx.edmm_enable = true", "sgx.edmm_enable"),
    ("sgx.max_threads = 8", "sgx.max_threads"),
    ("sgx.cpu_features.avx = 'required'", "sgx.cpu_features"),
    ("sgx.cpu_features.avx512 = 'disabled'", "sgx.cpu_features"),
    ("sgx.cpu_features.amx = 'required'", "sgx.cpu_features"),
    ("sgx.cpu_features.mpx = 'required'", "sgx.cpu_features"),
    ("sgx.cpu_features.pkru = 'required'", "sgx.cpu_features"),
    ("sgx.use_exinfo = true", "sgx.use_exinfo"),
    ("sgx.allowed_files = ['dev:tty']", "sgx.allowed_files"),
    ("sgx.remote_attestation = 'dcap'", "sgx.remote_attestation"),
    ("sgx.seal_key.flags_mask = '0x0000000000000002'", "sgx.seal_key"),
    ("sgx.seal_key.xfrm_mask = '0x0000000000000000'", "sgx.seal_key"),
    ("sgx.seal_key.misc_mask = '0x00000000'", "sgx.seal_key"),
    ("sys.disallow_subprocesses = true", "sys.disallow_subprocesses"),
    (
        "sys.enable_extra_runtime_domain_names_conf = true",
        "sys.enable_extra_runtime_domain_names_conf",
    ),
    ("sys.fds.limit = 100", "sys.fds"),
]

# A line of TOML; its key must be listed with a reason. Where the line has no effect because it says
# what is so anyway, any value will do.
IDLE = [
    # both
    "loader.insecure__disable_aslr = true",
    "libos.check_invalid_pointers = false",
    "sys.brk.max_size = '1M'",
    "sys.insecure__allow_eventfd = true",
    "sys.enable_sigterm_injection = true",
    "sgx.preheat_enclave = true",
    "sgx.enable_stats = true",
    "sgx.profile.enable = 'main'",
    "sgx.profile.mode = 'ocall_inner'",
    "sgx.profile.with_stack = true",
    "sgx.profile.frequency = 100",
    # Graphene
    "loader.preload = 'file:/lib/libsysdb.so'",
    "loader.pal_internal_mem_size = '64M'",
    "pal.entrypoint = 'file:/x'",
    "sgx.nonpie_binary = true",
    "sgx.rpc_thread_num = 8",
    f"sgx.ra_client_spid = '{'0' * 32}'",
    "sgx.ra_client_linkable = true",
    # Gramine
    "loader.entrypoint = 'file:/x'",
    "loader.entrypoint.uri = 'file:/x'",
    f"loader.entrypoint = {{ uri = 'file:/x', sha256 = '{'0' * 64}' }}",
    "sys.experimental__enable_flock = true",
    "sys.debug__mock_syscalls = [{ name = 'x', return = 1 }]",
    "sys.ioctl_structs.s = [{ size = 4, direction = 'in' }]",
    "sys.allowed_ioctls = [{ request_code = 1, struct = 's' }]",
    "sgx.insecure__rpc_thread_num = 8",
    "sgx.insecure__allow_memfaults_without_exinfo = true",
    "sgx.vtune_profile = true",
]

REFUSED = ["loader.exec = 'file:/x'", "loader.debug_type = 'inline'", "sgx.sigfile = 'a.sig'"]


def text_of(line: str) -> ManifestText:
    base = "" if line.startswith("libos.entrypoint") else BASE
    return ManifestText(base + line + "\n", "m")


@pytest.mark.parametrize(("line", "where"), HONOURED, ids=[line[:60] for line, _ in HONOURED])
def test_honoured(line: str, where: str) -> None:
    text = text_of(line)
    table, _, key = where.partition(".")
    plain = ManifestText(BASE, "m").manifest
    changed = getattr(getattr(text.manifest, table), key)
    assert changed != getattr(getattr(plain, table), key)
    assert not explain(text).without_effect


@pytest.mark.parametrize("line", IDLE, ids=[line[:60] for line in IDLE])
def test_listed_as_without_effect(line: str) -> None:
    key = line.partition(" = ")[0]
    listed = {remark.key: remark for remark in explain(text_of(line)).without_effect}
    parts = key.split(".")
    names = [".".join(parts[:length]) for length in range(2, len(parts) + 1)]
    (found,) = [listed[name] for name in names if name in listed]
    assert found.line == 2
    assert len(found.text) > 10


@pytest.mark.parametrize("line", REFUSED)
def test_refused_as_both_systems_refuse_it(line: str) -> None:
    with pytest.raises(
        ManifestError, match=rf"^m:2: {line.partition(' ')[0]}: no longer supported"
    ):
        text_of(line)
