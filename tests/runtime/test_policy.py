"""The access rules as a table, and the names by which files are known."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.manifest.index import TrustedEntry
from cloister.runtime.policy import DeniedError, DirectRules, EnclaveRules, Intent, ReadOnlyRules

ENTRY = TrustedEntry(3, bytes(32), bytes(32))
TRUSTED = {"lib/a.so": ENTRY, "/abs/b.so": ENTRY, "out/seed": ENTRY}


def rules(*allowed: str) -> EnclaveRules:
    return EnclaveRules(TRUSTED.get, allowed, TRUSTED)


@pytest.mark.parametrize(
    ("path", "intent", "granted"),
    [
        ("lib/a.so", Intent.READ, True),
        ("/abs/b.so", Intent.READ, True),
        ("/lib/a.so", Intent.READ, False),  # relative and absolute are different names
        ("abs/b.so", Intent.READ, False),
        ("lib", Intent.READ, False),
        ("lib/a.so", Intent.WRITE, False),
        ("lib/a.so", Intent.REMOVE, False),
        ("lib/a.so", Intent.RENAME, False),
        ("lib/a.so", Intent.CREATE, False),  # an allowed file cannot take a trusted name
        ("logs/x", Intent.CREATE, True),
        ("logs/deep/er/x", Intent.WRITE, True),
        ("logs", Intent.WRITE, True),
        ("logs2/x", Intent.READ, False),  # a prefix of the text is not a directory above
        ("one.txt", Intent.REMOVE, True),
        ("one.txt.bak", Intent.READ, False),
        ("other", Intent.READ, False),
        ("other", Intent.CREATE, False),
    ],
)
def test_table(path: str, intent: Intent, granted: bool) -> None:
    strict = rules("logs/", "./one.txt")
    if granted:
        strict.check(path, intent)
    else:
        with pytest.raises(DeniedError) as caught:
            strict.check(path, intent)
        assert f"file:{path}" in caught.value.mend


def test_a_denied_read_says_which_line_would_permit_it() -> None:
    with pytest.raises(DeniedError) as caught:
        rules().check("data/x", Intent.READ)
    assert 'add "file:data/x" to sgx.trusted_files' in caught.value.mend


@pytest.mark.parametrize(
    ("listed", "asked"),
    [("/home/x/app/data/y", "data/y"), ("data/y", "/home/x/app/data/y"), ("../y", "/home/x/y")],
)
def test_a_file_that_is_listed_by_its_other_name_is_denied_and_told_so(
    listed: str, asked: str
) -> None:
    known = {listed: ENTRY}
    with pytest.raises(DeniedError) as caught:
        EnclaveRules(known.get, [], known, base="/home/x/app").check(asked, Intent.READ)
    assert f'lists it as "file:{listed}"' in caught.value.mend


def test_a_denied_pyc_is_no_reason_to_worry() -> None:
    with pytest.raises(DeniedError) as caught:
        rules().check("data/__pycache__/x.pyc", Intent.READ)
    assert "Python goes on with the source" in caught.value.mend
    assert 'add "file:data/__pycache__/x.pyc"' in caught.value.mend


def test_allowed_wins_over_trusted() -> None:
    both = rules("out")
    assert both.trusted("out/seed") is None
    both.check("out/seed", Intent.WRITE)
    assert both.changes_on_host("out/seed")
    assert not both.changes_on_host("lib/a.so")


def test_let_through_is_told() -> None:
    told: list[tuple[str, Intent]] = []
    loose = EnclaveRules(
        TRUSTED.get, [], TRUSTED, let_through=lambda path, intent: told.append((path, intent))
    )
    loose.check("unknown", Intent.READ)
    loose.check("lib/a.so", Intent.READ)
    with pytest.raises(DeniedError):
        loose.check("lib/a.so", Intent.WRITE)
    assert told == [("unknown", Intent.READ)]


def test_direct_and_read_only_rules() -> None:
    DirectRules().check("anything", Intent.REMOVE)
    ReadOnlyRules().check("/sys/devices/system/cpu/online", Intent.READ)
    with pytest.raises(DeniedError):
        ReadOnlyRules().check("/sys/devices/system/cpu/online", Intent.WRITE)


@given(st.lists(st.sampled_from(["a", "b", "..", ".", ""]), max_size=6))
def test_nothing_outside_an_allowed_directory_is_allowed(parts: list[str]) -> None:
    path = posixpath.normpath("/".join(parts) or ".")
    inside = path == "a/b" or path.startswith("a/b/")
    try:
        rules("a/b").check(path, Intent.WRITE)
        granted = True
    except DeniedError:
        granted = False
    assert granted == inside
