"""Conversions keep the meaning, as the parser of both dialects sees it, or refuse."""

from __future__ import annotations

from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ManifestError
from cloister.manifest.convert import to_gramine, to_graphene
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText, parse_manifest

BASE = 'libos.entrypoint = "/bin/true"\n'


def gramine(text: str, *directories: str) -> dict[str, Any]:
    return to_gramine(ManifestText(BASE + text, "m"), directories.__contains__).document


def graphene(text: str) -> dict[str, Any]:
    return to_graphene(ManifestText(BASE + text, "m")).document


def parsed(document: dict[str, Any]) -> Manifest:
    return parse_manifest(tomli_w.dumps(document), "converted")


OLD = """
loader.preload = "file:{{ graphene.libos }}"
loader.env.SECRET_PROVISION_SET_PF_KEY = "true"
fs.mount.lib = { type = "chroot", path = "/lib", uri = "file:{{ graphene.runtimedir() }}" }
fs.mount.data = { type = "chroot", path = "/long/data", uri = "file:data" }
sgx.thread_num = 8
sgx.require_avx = true
sgx.trusted_files.a = "file:dir"
sgx.trusted_files.b = "file:single"
sgx.protected_files.in = "file:data/input"
sgx.protected_files.here = "file:model"
"""


@pytest.mark.parametrize("yes", ["1", "true", "TRUE"])
@pytest.mark.parametrize("written", ['"{}"', '{{ value = "{}" }}'])
def test_whatever_asks_for_the_wrap_key_still_does(yes: str, written: str) -> None:
    line = f"loader.env.SECRET_PROVISION_SET_PF_KEY = {written.format(yes)}"
    assert gramine(line)["loader"]["env"] == {"SECRET_PROVISION_SET_KEY": "default"}
    with_no = gramine(line.replace(yes, "no"))["loader"]["env"]
    assert "SECRET_PROVISION_SET_KEY" not in with_no


def test_old_manifest_in_new_words() -> None:
    assert gramine(OLD, "dir") == {
        "libos": {"entrypoint": "/bin/true"},
        "loader": {"env": {"SECRET_PROVISION_SET_KEY": "default"}},
        "fs": {
            "mounts": [
                {"type": "chroot", "path": "/lib", "uri": "file:{{ gramine.runtimedir() }}"},
                {"type": "chroot", "path": "/long/data", "uri": "file:data"},
                {"type": "encrypted", "path": "/data/input", "uri": "file:data/input"},
                {"type": "encrypted", "path": "/long/data/input", "uri": "file:data/input"},
                {"type": "encrypted", "path": "/model", "uri": "file:model"},
            ]
        },
        "sgx": {
            "debug": False,
            "max_threads": 8,
            "cpu_features": {"avx": "required"},
            "trusted_files": ["file:dir/", "file:single"],
        },
    }


def test_notes_say_what_changed() -> None:
    notes = to_gramine(ManifestText(BASE + OLD, "m"), lambda path: False).notes
    assert any(note.startswith("sgx.debug is off now") for note in notes)
    assert any(note.startswith("loader.preload was left out: ") for note in notes)


def test_what_reading_leaves_out_is_told_in_both_directions() -> None:
    text = BASE + "loader.argv0_override = 'x'\nloader.insecure__use_cmdline_argv = true\n"
    for notes in (
        to_gramine(ManifestText(text, "m"), lambda path: False).notes,
        to_graphene(ManifestText(text, "m")).notes,
    ):
        assert any(note.startswith("loader.argv0_override was left out: ") for note in notes)
    notes = to_graphene(ManifestText(BASE + OLD, "m")).notes
    assert not any(note.startswith("loader.preload") for note in notes)


def test_gramine_to_gramine_changes_nothing_but_adds_what_its_schema_needs() -> None:
    text = "sgx.debug = true\nsgx.trusted_files = ['file:dir']\n"
    assert gramine(text, "dir") == {
        "libos": {"entrypoint": "/bin/true"},
        "fs": {"mounts": []},
        "sgx": {"debug": True, "trusted_files": ["file:dir"]},
    }


NEW = """
loader.argv = ["true"]
loader.env = { A = "1", B = { value = "2" }, SECRET_PROVISION_SET_KEY = "default" }
fs.root = { uri = "file:/root" }
fs.mounts = [
  { path = "/lib", uri = "file:{{ gramine.runtimedir() }}" },
  { path = "/lib/data", uri = "file:data", type = "encrypted" },
  { path = "/tmp", type = "tmpfs" },
]
fs.insecure__keys.default = "ffeeddccbbaa99887766554433221100"
sgx.max_threads = 8
sgx.insecure__rpc_thread_num = 1
sgx.use_exinfo = true
sgx.remote_attestation = "dcap"
sgx.cpu_features = { avx = "required", amx = "unspecified", mpx = "disabled" }
sgx.trusted_files = ["file:a"]
"""


def test_new_manifest_in_old_words() -> None:
    assert graphene(NEW) == {
        "libos": {"entrypoint": "/bin/true"},
        "loader": {
            "argv0_override": "true",
            "env": {"A": "1", "B": "2", "SECRET_PROVISION_SET_PF_KEY": "true"},
            "preload": "file:{{ graphene.libos }}",
        },
        "fs": {
            "root": {"type": "chroot", "uri": "file:/root"},
            "mount": {
                "lib": {
                    "path": "/lib",
                    "type": "chroot",
                    "uri": "file:{{ graphene.runtimedir() }}",
                },
                "lib_data": {"path": "/lib/data", "type": "chroot", "uri": "file:data"},
                "tmp": {"path": "/tmp", "type": "tmpfs", "uri": "file:none"},
            },
        },
        "sgx": {
            "debug": False,
            "thread_num": 8,
            "rpc_thread_num": 1,
            "support_exinfo": True,
            "remote_attestation": True,
            "require_avx": True,
            "trusted_files": ["file:a"],
            "protected_files": ["file:data"],
            "protected_files_key": "ffeeddccbbaa99887766554433221100",
        },
    }


def test_what_is_protected_at_the_root_becomes_the_root() -> None:
    text = "fs.root = { type = 'chroot', uri = 'file:a' }\nsgx.protected_files = ['file:a']\n"
    assert gramine(text)["fs"] == {"root": {"type": "encrypted", "uri": "file:a"}, "mounts": []}


def test_what_is_encrypted_already_is_not_mounted_twice() -> None:
    mount = {"type": "encrypted", "path": "/a", "uri": "file:a"}
    text = f"fs.mounts = [{inline(mount)}]\nsgx.protected_files = ['file:a']\n"
    assert gramine(text)["fs"]["mounts"] == [mount]
    root = {"type": "encrypted", "uri": "file:a"}
    text = f"fs.root = {inline(root)}\nsgx.protected_files = ['file:a']\n"
    assert gramine(text)["fs"] == {"root": root, "mounts": []}


def inline(table: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{key} = '{value}'" for key, value in table.items()) + " }"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sgx.edmm_enable = true", "m:2: sgx.edmm_enable: Graphene adds no memory"),
        ("sgx.seal_key.misc_mask = '0x00000000'", "m:2: sgx.seal_key: Graphene has no sealing"),
        ("loader.uid = 1", "m:2: loader.uid: in Graphene everybody is root"),
        ("sys.disallow_subprocesses = true", "m:2: sys.disallow_subprocesses: Graphene always"),
        ("loader.argv = ['a', 'b']", "m:2: loader.argv: Graphene takes arguments from a file"),
        ("loader.env.A = { passthrough = true }", "m:2: loader.env.A: Graphene passes no single"),
        ("fs.insecure__keys.k = '" + "0" * 32 + "'", "m:2: fs.insecure__keys.k: Graphene has one"),
        (
            "fs.mounts = [{ type = 'encrypted', path = '/a', uri = 'file:a', key_name = 'k' }]",
            "m:2: fs.mounts[0]: Graphene has one key",
        ),
        (
            "fs.mounts = [{ type='encrypted', path='/a', uri='file:a', enable_recovery=true }]",
            "m:2: fs.mounts[0]: Graphene has no recovery",
        ),
        (
            "fs.mounts = [{ type = 'untrusted_shm', path = '/a', uri = 'dev:/dev/shm' }]",
            "m:2: fs.mounts[0]: Graphene has no shared memory",
        ),
        (
            "fs.mounts = [{ path='/a/b', uri='file:b' },\n{ path = '/a', uri = 'file:a' }]",
            "m:3: fs.mounts[1]: hides an earlier mount",
        ),
        ("sgx.cpu_features.amx = 'required'", "m:2: sgx.cpu_features.amx: Graphene does not know"),
        ("sgx.cpu_features.avx = 'disabled'", "m:2: sgx.cpu_features.avx: Graphene cannot keep"),
        ("cloister.trusted_index.sha256 = '" + "0" * 64 + "'", "m:2: cloister.trusted_index: the"),
    ],
)
def test_what_graphene_cannot_say_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as caught:
        graphene(text)
    assert caught.value.message.startswith(expected)


def test_a_signed_manifest_with_index_is_no_source() -> None:
    with pytest.raises(ManifestError, match="only Cloister reads"):
        gramine("cloister.trusted_index.sha256 = '" + "0" * 64 + "'")


def test_keys_with_servers_of_their_own_stay_ours() -> None:
    text = "cloister.keys = [{ name = 'a', servers = 'h:1', ca = '/ca' }]"
    for convert in (gramine, graphene):
        with pytest.raises(ManifestError, match=r"m:2: cloister.keys: .* one key server"):
            convert(text)


PATHS = st.sampled_from(["/a", "/b", "/lib", "/usr/lib"])
DOCUMENTS = st.fixed_dictionaries(
    {"libos": st.just({"entrypoint": "/bin/true"})},
    optional={
        "loader": st.fixed_dictionaries(
            {},
            optional={
                "argv": st.lists(st.just("true"), min_size=1, max_size=1),
                "env": st.dictionaries(st.sampled_from("ABC"), st.sampled_from(["", "x y"])),
                "insecure__use_host_env": st.booleans(),
                "log_level": st.sampled_from(["error", "all"]),
            },
        ),
        "fs": st.fixed_dictionaries(
            {},
            optional={
                "start_dir": PATHS,
                "mounts": st.lists(
                    st.fixed_dictionaries({"path": PATHS, "uri": st.just("file:x")}),
                    unique_by=lambda mount: mount["path"],
                ).map(lambda mounts: sorted(mounts, key=lambda mount: len(mount["path"]))),
                "insecure__keys": st.just({"default": "00" * 16}),
            },
        ),
        "sgx": st.fixed_dictionaries(
            {},
            optional={
                "debug": st.booleans(),
                "max_threads": st.integers(1, 64),
                "enclave_size": st.sampled_from(["256M", "4G"]),
                "remote_attestation": st.sampled_from(["none", "dcap"]),
                "use_exinfo": st.booleans(),
                "cpu_features": st.dictionaries(
                    st.sampled_from(["avx", "avx512", "mpx"]), st.just("required")
                ),
                "trusted_files": st.lists(st.sampled_from(["file:a", "file:dir/"])),
                "allowed_files": st.lists(st.sampled_from(["file:o", "dev:/dev/null"])),
            },
        ),
    },
)


@given(DOCUMENTS)
def test_there_and_back_means_the_same(document: dict[str, Any]) -> None:
    text = ManifestText(tomli_w.dumps(document), "m")
    old = ManifestText(tomli_w.dumps(to_graphene(text).document), "old")
    if text.manifest.loader.argv is None:
        # Graphene needs to be told what argv[0] is; ours is the entrypoint.
        assert old.manifest.loader.argv == [text.manifest.libos.entrypoint]
    back = to_gramine(old, lambda path: False).document
    back["loader"].pop("argv")
    document.get("loader", {}).pop("argv", None)
    assert parsed(back) == parsed(document)


def test_what_is_mounted_below_a_protected_directory_stays_visible() -> None:
    old = graphene(
        'fs.mounts = [ { path = "/data", uri = "file:data", type = "encrypted" },\n'
        ' { path = "/data/models", uri = "file:models" } ]\n'
    )
    new = to_gramine(ManifestText(tomli_w.dumps(old), "m"), {"data"}.__contains__).document
    assert [(mount["path"], mount["type"]) for mount in new["fs"]["mounts"]] == [
        ("/data", "chroot"),
        ("/data", "encrypted"),
        ("/data/models", "chroot"),
    ]
