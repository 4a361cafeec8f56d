"""Keys that are understood and checked, but change nothing on this platform: which, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cloister.manifest.locate import KeyPath

_NO_TRANSITIONS = "there are no enclave transitions to be sped up or counted"

WITHOUT_EFFECT: dict[tuple[str, str], str] = {
    ("loader", "entrypoint"): "the runtime is Cloister's own, and is measured in its place",
    ("loader", "insecure__disable_aslr"): "addresses stay random",
    ("libos", "check_invalid_pointers"): "the kernel always checks pointers",
    ("sys", "brk"): "the kernel could limit it only together with all other private memory",
    ("sys", "insecure__allow_eventfd"): "eventfd always works, inside the enclave alone",
    ("sys", "enable_sigterm_injection"): "SIGTERM always reaches the program",
    ("sys", "experimental__enable_flock"): "flock always works",
    ("sys", "debug__mock_syscalls"): "system calls are the kernel's; none is replaced",
    ("sys", "ioctl_structs"): "the kernel knows the layout of its requests",
    ("sys", "allowed_ioctls"): "the kernel and the mounted devices decide which requests there are",
    ("sgx", "insecure__rpc_thread_num"): _NO_TRANSITIONS,
    ("sgx", "preheat_enclave"): "the enclave's pages need no heating",
    ("sgx", "enable_stats"): _NO_TRANSITIONS,
    ("sgx", "profile"): "profile the program with the kernel's own tools",
    ("sgx", "vtune_profile"): "profile the program with the kernel's own tools",
    ("sgx", "insecure__allow_memfaults_without_exinfo"): "page faults are the kernel's",
}


def without_effect(document: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the keys of a manifest that change nothing, with the reason."""
    for (table, key), why in WITHOUT_EFFECT.items():
        if key in document.get(table, {}):
            yield (table, key), why
