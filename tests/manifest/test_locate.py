"""Line numbers of keys, against the text itself and against what a TOML parser sees."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cloister.manifest.locate import KeyLines, KeyPath

TEXT = '''# comment = 1
a = 1
b.c."d e" = [ 1, # [
  "x]",
  { y = """
three
lines""", 'z' = 2 },
]

[fs]
mounts = [
  { path = "/a" },

  { path = "/b" },
]
[[sgx.trusted_files]]   # first
uri = "file:a"
[[sgx.trusted_files]]
uri = 'file:b'
[sgx.trusted_files.more]
q = 2026-11-22T10:00:00
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 2),
        (("b",), 3),
        (("b", "c", "d e"), 3),
        (("b", "c", "d e", 1), 4),
        (("b", "c", "d e", 2, "y"), 5),
        (("b", "c", "d e", 2, "z"), 7),
        (("fs", "mounts", 1, "path"), 14),
        (("sgx", "trusted_files", 0), 16),
        (("sgx", "trusted_files", 0, "uri"), 17),
        (("sgx", "trusted_files", 1, "uri"), 19),
        (("sgx", "trusted_files", 1, "more", "q"), 21),
        (("sgx", "trusted_files", 1, "sha256"), 18),
        (("nowhere",), None),
    ],
)
def test_lines(path: KeyPath, line: int | None) -> None:
    assert KeyLines(TEXT).line_of(path) == line


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5), st.booleans())
def test_every_key_of_any_document_is_found(document: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    parsed = tomli.loads(text)
    assert set(KeyLines(text).keys()) == set(_paths(parsed))


def _paths(value: Any, at: KeyPath = ()) -> list[KeyPath]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    found = [at] if at else []
    for key, inner in items:
        found += _paths(inner, (*at, key))
    return found
