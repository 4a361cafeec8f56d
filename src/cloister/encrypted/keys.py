"""Wrap keys: the 16-byte AES key that opens a set of encrypted files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from cloister.encrypted.constants import KEY_SIZE, NONCE_SIZE
from cloister.errors import WrapKeyError

_HEX: Final = re.compile(rb"[0-9a-fA-F]{32}")
_READ_LIMIT: Final = 256  # more than any key file needs; a wrong path may name a huge file


class KeySource(Protocol):
    """Where fresh node keys and nonces come from; tests give a deterministic one."""

    def keys(self, count: int) -> bytes:
        """Return ``count`` fresh 16-byte keys, one after the other."""

    def nonce(self) -> bytes:
        """Return a fresh 32-byte nonce for a metadata node."""


class SystemKeys:
    """Keys and nonces from the operating system's random generator."""

    def keys(self, count: int) -> bytes:
        """Return ``count`` fresh 16-byte keys, one after the other."""
        return os.urandom(count * KEY_SIZE)

    def nonce(self) -> bytes:
        """Return a fresh 32-byte nonce."""
        return os.urandom(NONCE_SIZE)


class RandomKeys:
    """Keys and nonces from a function that returns as many random bytes as it is asked for."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random

    def keys(self, count: int) -> bytes:
        """Return ``count`` keys, each drawn by its own call."""
        return b"".join(self._random(KEY_SIZE) for _ in range(count))

    def nonce(self) -> bytes:
        """Return a nonce, drawn by one call."""
        return self._random(NONCE_SIZE)


def generate(random: Callable[[int], bytes] = os.urandom) -> bytes:
    """Return a new wrap key, 16 bytes from ``random``."""
    return random(KEY_SIZE)


def fingerprint(key: bytes) -> str:
    """Return a name for a key that does not betray it: 16 hex digits of a SHA-256.

    The digest is of a fixed label and the key, so that it is no digest anyone else publishes.
    """
    import hashlib  # loads a library of its own: most commands need no fingerprint

    return hashlib.sha256(b"cloister wrap key fingerprint\0" + key).hexdigest()[:16]


def read_wrap_key(path: str | os.PathLike[str]) -> bytes:
    """Read a wrap key: 16 raw bytes (Gramine, Graphene tools) or 32 hex digits, one per file.

    A final newline behind the hex digits is ignored.

    Returns:
        the 16 bytes of the key.

    Raises:
        WrapKeyError: the file is missing, empty or holds something else.
    """
    if _HEX.fullmatch(os.fsencode(path)) and not os.path.lexists(path):
        raise WrapKeyError(  # not a word of it: it may well be a key
            "32 hex digits were given where the name of a key file is expected",
            hint="write them to a file with permissions 0600, and give its name",
        )
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(_READ_LIMIT)
    except FileNotFoundError as error:
        raise WrapKeyError(
            f"{path}: no such key file", hint=f"make a new key: cloister key new {path}"
        ) from error
    except OSError as error:
        raise WrapKeyError(f"{path}: the key file cannot be read: {error.strerror}") from error
    return parse_wrap_key(content, name=str(path))


def parse_wrap_key(content: bytes, *, name: str) -> bytes:
    """Return the key in ``content``: 16 raw bytes or 32 hex digits.

    Args:
        content: what a key file or a device holds.
        name: where it came from, for the error.

    Raises:
        WrapKeyError: it is neither.
    """
    if len(content) == KEY_SIZE:
        return content
    if _HEX.fullmatch(content.strip()):
        return bytes.fromhex(content.strip().decode())
    if not content:
        raise WrapKeyError(f"{name}: the key file is empty, expected 16 bytes")
    size = f"more than {_READ_LIMIT - 1}" if len(content) >= _READ_LIMIT else str(len(content))
    raise WrapKeyError(f"{name}: not a wrap key: {size} bytes, expected 16 (or 32 hex digits)")
