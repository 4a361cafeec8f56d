"""The store's key: what it seals, and where it may come from."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, InputError, StoreKeyError
from cloister.provision.store_key import LocalStoreKey, load_store_key

KEY = bytes(range(32))


@given(st.binary(max_size=1000), st.binary(max_size=100))
def test_what_is_sealed_is_opened(plaintext: bytes, context: bytes) -> None:
    sealed = LocalStoreKey(KEY).seal(plaintext, context)
    assert LocalStoreKey(KEY).open(sealed, context) == plaintext
    assert len(plaintext) < 8 or plaintext not in sealed


def test_each_sealing_is_another() -> None:
    key = LocalStoreKey(KEY)
    assert key.seal(b"secret", b"") != key.seal(b"secret", b"")


@pytest.mark.parametrize("change", ["key", "context", "nonce", "ciphertext", "tag", "cut", "empty"])
def test_anything_else_is_refused(change: str) -> None:
    key, context = LocalStoreKey(KEY), b"name and policy"
    sealed = bytearray(key.seal(b"secret", context))
    if change == "key":
        key = LocalStoreKey(bytes(32))
    elif change == "context":
        context = b"name and another policy"
    elif change in ("nonce", "ciphertext", "tag"):
        sealed[{"nonce": 0, "ciphertext": 12, "tag": -1}[change]] ^= 1
    else:
        del sealed[5 if change == "cut" else 0 :]
    with pytest.raises(StoreKeyError) as caught:
        key.open(bytes(sealed), context)
    assert "secret:" in caught.value.message
    assert caught.value.hint


def test_vouching_needs_the_key() -> None:
    assert LocalStoreKey(KEY).vouch(b"x") == LocalStoreKey(KEY).vouch(b"x")
    assert LocalStoreKey(KEY).vouch(b"x") != LocalStoreKey(bytes(32)).vouch(b"x")
    assert LocalStoreKey(KEY).vouch(b"x") != LocalStoreKey(KEY).vouch(b"y")


def opens(source: str) -> bool:
    return load_store_key(source).open(LocalStoreKey(KEY).seal(b"s", b"c"), b"c") == b"s"


@pytest.mark.parametrize("content", [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\n"])
def test_from_a_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.key"
    path.write_bytes(content)
    path.chmod(0o600)
    assert opens(f"file:{path}")


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    path.write_bytes(KEY)
    path.chmod(0o640)
    with pytest.raises(StoreKeyError, match="others may read"):
        load_store_key(f"file:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_KEY", KEY.hex())
    assert opens("env:STORE_KEY")


def test_from_a_command(tmp_path: Path) -> None:
    path = tmp_path / "a key"
    path.write_text(KEY.hex())
    assert opens(f"command:cat '{path}'")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("", InputError),
        ("file:", InputError),
        ("vault:x", InputError),
        ("file:/no/such/file", StoreKeyError),
        ("env:NO_SUCH_VARIABLE", StoreKeyError),
        ("command:false", StoreKeyError),
        ("command:no-such-program", StoreKeyError),
        ("command:'", StoreKeyError),
        ("command:echo 00", StoreKeyError),
    ],
)
def test_sources_without_a_key(source: str, error: type[CloisterError]) -> None:
    with pytest.raises(error):
        load_store_key(source)


def test_a_failing_commands_output_is_not_shown() -> None:
    command = f"sh -c 'echo {KEY.hex()}; exit 1'"
    with pytest.raises(StoreKeyError) as caught:
        load_store_key(f"command:{command}")
    assert KEY.hex() not in caught.value.message
    assert str(caught.value.__cause__)


def test_the_key_does_not_show_in_text() -> None:
    assert KEY.hex() not in repr(LocalStoreKey(KEY))
    assert os.environ.get("STORE_KEY") is None
