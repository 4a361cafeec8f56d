"""From what a program opened to a manifest: not more than that, nothing insecure unasked."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from cloister.manifest.explain import explain
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText, parse_manifest
from cloister.manifest.propose import Keys, Observed, Proposal, merge, propose
from cloister.manifest.visibility import inside_paths


def observed(**changes: Any) -> Observed:
    values: dict[str, Any] = {
        "command": ("/usr/bin/python3", "job.py", "in.txt"),
        "directory": "/home/x/job",
        "environment": {"LANG": "C"},
        "read": (
            "/usr/bin/python3",
            "/lib64/ld-linux-x86-64.so.2",
            "/usr/lib/python3.11/json/__init__.py",
            "/etc/passwd",
            "/home/x/job/job.py",
            "/home/x/job/in.txt",
        ),
        "written": (),
        "passing": (),
    }
    return Observed(**(values | changes))


def parsed(proposal: Proposal) -> Manifest:
    return parse_manifest(proposal.text, "proposed")


def test_program_and_surroundings() -> None:
    manifest = parsed(propose(observed()))
    assert manifest.libos.entrypoint == "/usr/bin/python3"
    assert manifest.loader.argv == ["/usr/bin/python3", "job.py", "in.txt"]
    assert manifest.loader.env["LANG"].value == "C"
    assert manifest.fs.start_dir == "/home/x/job"


def test_exactly_what_was_read_is_trusted_and_found_at_its_path() -> None:
    manifest = parsed(propose(observed()))
    assert [file.uri for file in manifest.sgx.trusted_files] == [
        "file:/etc/passwd",
        "file:job.py",
        "file:/lib64/ld-linux-x86-64.so.2",
        "file:/usr/bin/python3",
        "file:/usr/lib/python3.11/json/__init__.py",
        "file:in.txt",
    ]
    for file in manifest.sgx.trusted_files:
        native = file.path if file.path.startswith("/") else f"/home/x/job/{file.path}"
        assert native in inside_paths(manifest, file.path)


def test_no_mount_shows_half_of_the_system() -> None:
    mounts = {mount.path for mount in parsed(propose(observed())).fs.mounts}
    assert mounts == {
        "/etc/passwd",
        "/home/x/job",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/bin",
        "/usr/lib/python3.11",
    }


def test_inputs_are_marked() -> None:
    text = propose(observed()).text
    inputs = text[text.index("# Inputs: checked, but readable by the host") :]
    assert '"file:in.txt"' in inputs
    assert '"file:job.py"' not in inputs


def test_outputs_in_a_directory_of_their_own_are_encrypted() -> None:
    proposal = propose(observed(written=("/home/x/job/out/a", "/srv/results/b")))
    manifest = parsed(proposal)
    encrypted = {m.path: m.uri for m in manifest.fs.mounts if m.type == "encrypted"}
    assert encrypted == {"/home/x/job/out": "file:out", "/srv/results": "file:/srv/results"}
    assert not manifest.sgx.allowed_files
    assert "under the key named default" in proposal.text


def test_outputs_beside_inputs_are_encrypted_one_by_one() -> None:
    proposal = propose(
        observed(written=("/home/x/job/result",), passing=("/home/x/job/result.tmp",))
    )
    manifest = parsed(proposal)
    assert manifest.sgx.protected_files == ["file:result", "file:result.tmp"]
    assert proposal.notes[0] == (
        "temporary files are written beside inputs in /home/x/job; if their names differ"
        " from run to run, let the program write into a directory of its own"
    )


def test_what_a_run_left_in_the_clear_is_said() -> None:
    written = ("/home/x/job/out/a b", "/home/x/job/state")
    proposal = propose(observed(written=written, changed=("/home/x/job/state",)))
    new, old, _ = proposal.notes
    assert new.startswith("written in the clear by this run, remove")
    assert new.endswith(": '/home/x/job/out/a b'")
    assert old.startswith("read and written in the clear, encrypt")
    assert old.endswith(": /home/x/job/state")


def test_where_the_key_for_outputs_comes_from() -> None:
    seen = observed(written=("/home/x/job/out/a",))
    assert "nothing says yet where the key comes from" in propose(seen).notes[-1]

    proposal = propose(seen, keys=Keys(server="keys:4433", ca_chain="/home/x/ca.crt"))
    manifest = parsed(proposal)
    env = {name: value.value for name, value in manifest.loader.env.items()}
    assert env["SECRET_PROVISION_SERVERS"] == "keys:4433"
    assert env["SECRET_PROVISION_CA_CHAIN_PATH"] == "/home/x/ca.crt"
    assert "/home/x/ca.crt" in inside_paths(manifest, "/home/x/ca.crt")
    assert "file:/home/x/ca.crt" in [file.uri for file in manifest.sgx.trusted_files]
    assert manifest.sgx.remote_attestation == "dcap"

    proposal = propose(seen, keys=Keys(test="ab" * 16))
    assert parsed(proposal).fs.insecure__keys == {"default": "ab" * 16}
    assert any(note.startswith("INSECURE: the key for outputs") for note in proposal.notes)
    assert "INSECURE" in proposal.text


def test_only_python_is_told_to_write_no_bytecode() -> None:
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    told = parsed(propose(observed(environment=environment)))
    assert "PYTHONDONTWRITEBYTECODE" in told.loader.env
    other = parsed(propose(observed(environment=environment, read=("/bin/true",))))
    assert not other.loader.env


def test_temporary_files_stay_in_memory() -> None:
    proposal = propose(observed(passing=("/tmp/a/b", "/dev/shm/c"), written=("/tmp/left",)))
    memory = [mount.path for mount in parsed(proposal).fs.mounts if mount.type == "tmpfs"]
    assert sorted(memory) == ["/dev/shm", "/tmp"]
    assert not proposal.notes


def test_a_file_in_tmp_that_was_asked_for_is_an_output() -> None:
    command = ("/usr/bin/cp", "in.txt", "/tmp/out/copy")
    manifest = parsed(propose(observed(command=command, written=("/tmp/out/copy",))))
    assert [(m.path, m.type) for m in manifest.fs.mounts if m.type != "chroot"] == [
        ("/tmp/out", "encrypted")
    ]


def test_a_program_in_tmp_keeps_its_files() -> None:
    proposal = propose(
        observed(
            directory="/tmp/job",
            read=("/usr/bin/python3", "/tmp/job/job.py"),
            written=("/tmp/job/out/a",),
            passing=("/tmp/x",),
        )
    )
    manifest = parsed(proposal)
    assert [(m.path, m.type) for m in manifest.fs.mounts] == [
        ("/tmp", "tmpfs"),  # before what lies in it
        ("/tmp/job", "chroot"),
        ("/usr/bin", "chroot"),
        ("/tmp/job/out", "encrypted"),
    ]


def test_open_outputs_only_when_asked_and_never_silently() -> None:
    proposal = propose(observed(written=("/home/x/job/result",)), allow_outputs=True)
    assert parsed(proposal).sgx.allowed_files == ["file:result"]
    assert "# INSECURE: the host reads and changes these files." in proposal.text
    assert proposal.notes == ["INSECURE: what the program writes is open to the host"]


NAMES = st.sampled_from(
    [
        "/home/x/job/a b",
        '/home/x/job/"q"',
        "/etc/x",
        "/lib/l.so.1",
        "/usr/lib/p/m.py",
        "/x",
        "/tmp/t",
    ]
)
FILES = st.lists(NAMES, unique=True, max_size=4)


@given(FILES, FILES, FILES)
def test_without_being_asked_nothing_is_insecure(
    read: list[str], written: list[str], passing: list[str]
) -> None:
    read = [path for path in read if path not in {*written, *passing}]
    proposal = propose(observed(read=tuple(read), written=tuple(written), passing=tuple(passing)))
    text = ManifestText(proposal.text, "proposed")
    assert not explain(text).insecure
    assert {file.path for file in text.manifest.sgx.trusted_files} == {
        path.removeprefix("/home/x/job/") for path in read
    }


EXISTING = """\
libos.entrypoint = "/usr/bin/python3"
sgx.trusted_files = ["file:/usr/bin/python3", "file:lib/"]
sgx.allowed_files = ["file:open"]
sgx.isvsvn = 3
"""


def merged(seen: Observed, text: str) -> Proposal:
    return merge(
        seen, ManifestText(text, "existing"), text, lambda new: ManifestText(new, "existing")
    )


def test_merging_adds_what_is_missing_and_keeps_the_rest() -> None:
    proposal = merged(
        observed(
            read=("/usr/bin/python3", "lib/deep/a", "open/b", "new"), written=("open/c", "out")
        ),
        EXISTING,
    )
    document = tomli.loads(proposal.text)
    assert document["sgx"] == {
        "trusted_files": ["file:new", "file:/usr/bin/python3", "file:lib/"],
        "allowed_files": ["file:open"],
        "isvsvn": 3,
    }
    assert proposal.notes == [
        "trusted now: file:new",
        "out is written, but the manifest grants no writing there;"
        " mount an encrypted or tmpfs directory",
    ]


def test_merging_what_is_complete_changes_nothing() -> None:
    proposal = merged(observed(read=("lib/a",)), EXISTING)
    assert proposal.text == EXISTING
    assert not proposal.notes


GRAPHENE = """\
# written for Graphene
loader.entrypoint = "file:x"
libos.entrypoint = "/usr/bin/python3"
sgx.trusted_files.lib = "file:lib/"
"""
MISLEADING = """\
libos.entrypoint = "/x"
loader.env.TEXT = '''
sgx.trusted_files = [
'''
[sgx]
isvsvn = 3
"""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("# mine\n" + EXISTING, "# mine\n"),
        ("[sgx]\n# here\ntrusted_files = []\n[libos]\nentrypoint = '/x'\n", "# here\n"),
        ("# mine\nlibos.entrypoint = '/x'\nsgx.isvsvn = 3\n", "# mine\n"),
        ("libos.entrypoint = '/x'\n[sgx]\nisvsvn = 3\n", ""),  # no place: written anew
        (MISLEADING, ""),
        ("libos.entrypoint = '/x'\n# mine\n", "# mine\n"),
        (GRAPHENE, ""),
    ],
)
@pytest.mark.parametrize(
    "name", ["new", 'quo"te', "back\\slash", "ümlaut", "😀", "\x7f", "]", "#", "{}"]
)
def test_merging_keeps_what_the_author_wrote_where_it_can(text: str, kept: str, name: str) -> None:
    before = ManifestText(text, "existing").document
    proposal = merged(observed(read=(name,)), text)
    assert kept in proposal.text
    after = ManifestText(proposal.text, "merged").document
    old, new = (
        before.setdefault("sgx", {}).pop("trusted_files", []),
        after["sgx"].pop("trusted_files"),
    )
    assert sorted(map(repr, new)) == sorted(map(repr, [*old, f"file:{name}"]))
    assert after == before
