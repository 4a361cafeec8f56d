"""Wrap keys from files: raw or hex, and every way in which a key file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.encrypted.keys import fingerprint, generate, parse_wrap_key, read_wrap_key
from cloister.errors import WrapKeyError

KEYS = st.binary(min_size=16, max_size=16)


@given(KEYS, st.sampled_from(["", "\n", "\r\n", "  \n"]), st.booleans())
def test_hex_and_raw_are_the_same_key(key: bytes, end: str, upper: bool) -> None:
    digits = key.hex().upper() if upper else key.hex()
    assert parse_wrap_key((digits + end).encode(), name="k") == key
    assert parse_wrap_key(key, name="k") == key


@given(st.binary(max_size=300))
def test_anything_else_is_refused_without_showing_it(content: bytes) -> None:
    try:
        key = parse_wrap_key(content, name="key-file")
    except WrapKeyError as error:
        assert error.exit_code == 2
        assert "key-file" in error.message
        if len(content) > 4:
            assert content.hex() not in error.message
    else:
        assert len(key) == 16
        assert content == key or bytes.fromhex(content.decode().strip()) == key


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"x" * 15, "15 bytes"), (b"x" * 17, "17 bytes"), (b"x" * 5000, "more than")],
)
def test_errors_say_what_was_found(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(WrapKeyError, match=said) as caught:
        read_wrap_key(path)
    assert "cloister key new" in (caught.value.hint or "")


def test_a_missing_or_impossible_key_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(WrapKeyError, match="no such key file"):
        read_wrap_key(tmp_path / "none")
    with pytest.raises(WrapKeyError, match="cannot be read"):
        read_wrap_key(tmp_path)


def test_generated_keys_differ_and_come_from_the_source_given() -> None:
    assert generate() != generate()
    assert generate(lambda size: b"r" * size) == b"r" * 16


@given(KEYS, KEYS)
def test_fingerprints_tell_keys_apart_and_do_not_contain_them(one: bytes, other: bytes) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (one == other)
    assert len(fingerprint(one)) == 16
    assert one.hex()[:16] != fingerprint(one)
