"""Manifests of ours as Gramine needs them: what is added, allowed, left out and refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cloister.errors import InputError, ManifestError
from cloister.manifest.parse import ManifestText
from cloister.platforms.gramine.translation import Host, Runtime, for_direct, for_sgx
from gramine_standin import ENCRYPTED, SECRET

KEY = bytes(range(16))
RUNTIME = Runtime("/g/libsysdb.so", "ab" * 32, "/g/runtime/glibc", "/home/u/runtime/glibc")
HOST = Host(lambda path: False, lambda path: True)


def text(more: str = "", mounts: str = ENCRYPTED) -> ManifestText:
    return ManifestText(f'libos.entrypoint = "/p"\nfs.mounts = [{mounts}]\n{more}', "m")


def sgx(*arguments: str, runtime: Runtime = RUNTIME, host: Host = HOST) -> dict[str, Any]:
    return for_sgx(text(*arguments), runtime, host).document


def test_gramine_gets_its_own_c_library_first() -> None:
    document = sgx("", '{ path = "/lib/x86_64-linux-gnu", uri = "file:/lib/x86_64-linux-gnu" }')
    assert document["fs"]["mounts"][0] == {"path": "/lib", "uri": "file:/g/runtime/glibc"}
    assert document["sgx"]["trusted_files"] == ["file:/g/runtime/glibc/"]
    assert document["loader"]["entrypoint"] == {"uri": "file:/g/libsysdb.so", "sha256": "ab" * 32}
    assert document["loader"]["env"]["LD_LIBRARY_PATH"].startswith("/lib:/lib/x86_64-linux-gnu")


def test_a_program_with_a_lib_of_its_own_keeps_it() -> None:
    document = sgx("", '{ path = "/lib", uri = "file:/lib" }')
    assert document["fs"]["mounts"][0] == {"path": "/gramine", "uri": "file:/g/runtime/glibc"}
    assert document["loader"]["env"]["LD_LIBRARY_PATH"].split(":")[0] == "/gramine"
    assert "/lib" in document["loader"]["env"]["LD_LIBRARY_PATH"].split(":")


def test_the_directory_of_our_templates_becomes_gramines() -> None:
    ours = RUNTIME.stand_in
    document = sgx(
        f'sgx.trusted_files = ["file:{ours}/", "file:x"]', f'{{ path = "/c", uri = "file:{ours}" }}'
    )
    assert document["fs"]["mounts"] == [{"path": "/c", "uri": "file:/g/runtime/glibc"}]
    assert document["sgx"]["trusted_files"] == ["file:/g/runtime/glibc/", "file:x"]
    assert document["loader"]["env"]["LD_LIBRARY_PATH"].startswith("/c")


def test_its_own_search_path_and_preloads_stay_behind_gramines() -> None:
    more = 'loader.env.LD_LIBRARY_PATH = "/x"\nloader.env.LD_PRELOAD = "/y.so"\n'
    environment = sgx(SECRET + more)["loader"]["env"]
    assert environment["LD_LIBRARY_PATH"].split(":")[:2] == ["/lib", "/x"]
    assert environment["LD_PRELOAD"] == "libsecret_prov_attest.so:/y.so"
    assert environment["SECRET_PROVISION_SET_KEY"] == "default"


def test_names_are_looked_up_by_the_hosts_files_only_where_a_name_is_asked() -> None:
    by_name = sgx(SECRET + 'loader.env.SECRET_PROVISION_SERVERS = "keys.example.org:4433"\n')
    assert by_name["sgx"]["allowed_files"] == ["file:/etc/hosts", "file:/etc/nsswitch.conf"]
    assert by_name["sys"]["enable_extra_runtime_domain_names_conf"] is True
    by_number = sgx(SECRET + 'loader.env.SECRET_PROVISION_SERVERS = "10.0.0.1:4433"\n')
    assert "allowed_files" not in by_number["sgx"]
    assert "/etc/hosts" not in [mount["path"] for mount in by_number["fs"]["mounts"]]


def test_mounted_devices_are_allowed_where_the_version_asks_for_it() -> None:
    mounts = '{ path = "/d", uri = "dev:/dev/null" }, { path = "/e", uri = "dev:/dev/zero" }'
    manifest = text('sgx.allowed_files = ["dev:/dev/zero"]', mounts)
    converted = for_sgx(manifest, RUNTIME, HOST)
    assert converted.document["sgx"]["allowed_files"] == ["dev:/dev/zero", "dev:/dev/null"]
    assert [note for note in converted.notes if "dev:" in note] == [
        "dev:/dev/null is added to sgx.allowed_files, where Gramine wants devices"
    ]
    older = for_sgx(manifest, dataclasses.replace(RUNTIME, version=(1, 8)), HOST)
    assert older.document["sgx"]["allowed_files"] == ["dev:/dev/zero"]


def test_what_is_trusted_is_not_made_allowed() -> None:
    document = sgx(SECRET + 'sgx.trusted_files = ["file:/etc/hosts"]\n')
    assert document["sgx"]["allowed_files"] == ["file:/etc/nsswitch.conf"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('cloister.keys = [{ name = "a", servers = "s:1", ca = "/c" }]', "one key server"),
        ("loader.env.LD_LIBRARY_PATH = { passthrough = true }", "host would choose"),
    ],
)
def test_what_gramine_cannot_do_is_refused(more: str, expected: str) -> None:
    with pytest.raises(ManifestError, match=expected):
        sgx(more)


def test_a_gramine_without_provisioning_library_is_refused_only_where_it_is_needed() -> None:
    lacking = Runtime("/g/l", "ab" * 32, "/g/r", "/u/r", can_provision=False)
    with pytest.raises(InputError, match=r"libsecret_prov_attest\.so: missing"):
        sgx(SECRET, runtime=lacking)
    assert sgx("", runtime=lacking)


def test_libraries_that_the_provisioning_library_needs_come_with_it() -> None:
    runtime = Runtime("/g/l", "ab" * 32, "/g/r", "/u/r", beside_it=("/usr/lib/libmbed.so.21",))
    document = sgx(SECRET, runtime=runtime)
    mount = {"path": "/lib/libmbed.so.21", "uri": "file:/usr/lib/libmbed.so.21"}
    assert mount in document["fs"]["mounts"]
    assert "file:/usr/lib/libmbed.so.21" in document["sgx"]["trusted_files"]
    assert mount not in sgx("", runtime=runtime)["fs"]["mounts"]


def test_direct_asks_no_key_server() -> None:
    more = SECRET + 'loader.env.LD_PRELOAD = "libsecret_prov_attest.so"\n'
    converted = for_direct(text(more), RUNTIME, HOST, {"default": KEY})
    environment = converted.document["loader"]["env"]
    assert set(environment) == {"LD_LIBRARY_PATH"}
    assert converted.document["fs"]["insecure__keys"] == {"default": KEY.hex()}
    assert converted.notes == []


def test_direct_says_which_key_is_missing() -> None:
    (note,) = for_direct(text(), RUNTIME, HOST, {}).notes
    assert "key default is not set" in note


def test_direct_refuses_sealing_keys_and_keys_of_nothing() -> None:
    mount = '{ path = "/d", uri = "file:d", type = "encrypted", key_name = "_sgx_mrenclave" }'
    with pytest.raises(ManifestError, match="sealing keys"):
        for_direct(text(mounts=mount), RUNTIME, HOST, {})
    with pytest.raises(InputError, match="no encrypted mount uses it"):
        for_direct(text(), RUNTIME, HOST, {"other": KEY})
