"""The key that protects stored secrets, and where it comes from.

A :class:`StoreKey` seals and opens; the secrets' plaintext never reaches the database. Another
place for the key (a vault, an HSM that seals by itself) is another class with these methods.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from cloister.errors import InputError, StoreKeyError

KEY_SIZE = 32
_NONCE_SIZE = 12
_COMMAND_SECONDS = 60


class StoreKey(Protocol):
    """Seals secrets, and vouches for records, under a key that this process may use."""

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt and authenticate; ``context`` is authenticated with it."""
        ...

    def open(self, sealed: bytes, context: bytes) -> bytearray:
        """Decrypt what :meth:`seal` made with the same context.

        Raises:
            StoreKeyError: another key, another context, or changed bytes.
        """
        ...

    def vouch(self, data: bytes) -> bytes:
        """Return 32 bytes that only a holder of the key can make for ``data``."""
        ...


class LocalStoreKey:
    """A key in this process's memory: AES-256-GCM and HMAC-SHA256 under keys derived from it.

    Args:
        key: 32 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise StoreKeyError(f"store key: {len(key)} bytes, expected {KEY_SIZE}")
        self._cipher = AESGCM(_derived(key, b"seal"))
        self._vouching_key = _derived(key, b"vouch")

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt and authenticate; the nonce (12 random bytes) comes first."""
        nonce = os.urandom(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, plaintext, context)

    def open(self, sealed: bytes, context: bytes) -> bytearray:
        """Decrypt what :meth:`seal` made with the same context.

        Raises:
            StoreKeyError: another key, another context, or changed bytes.
        """
        nonce, ciphertext = sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:]
        try:
            return bytearray(self._cipher.decrypt(nonce, ciphertext, context))
        except (InvalidTag, ValueError) as error:
            raise StoreKeyError(
                "stored secret: sealed under another key, or it or its policy was changed"
            ) from error

    def vouch(self, data: bytes) -> bytes:
        """Return the HMAC-SHA256 of ``data``."""
        return hmac.digest(self._vouching_key, data, hashlib.sha256)


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDFExpand(SHA256(), KEY_SIZE, b"cloister store key: " + purpose).derive(key)


def load_store_key(source: str) -> LocalStoreKey:
    """Return the store key from where ``source`` says it is.

    Args:
        source: ``file:PATH``, ``env:VARIABLE`` or ``command:PROGRAM ARGUMENT...`` (run without a
            shell; the key is what it prints). The key is 32 raw bytes or 64 hex digits.

    Raises:
        InputError: another kind of source.
        StoreKeyError: no key there.
    """
    kind, _, where = source.partition(":")
    readers = {"file": _from_file, "env": _from_environment, "command": _from_command}
    if re.fullmatch(r"(?:file:)?[0-9A-Fa-f]{32,64}", source) and not Path(where).is_file():
        raise InputError(  # not a word of it: it may well be a key
            "--store-key: hex digits were given where the place of a key is expected",
            hint="write them to a file with permissions 0600: --store-key file:PATH",
        )
    if kind not in readers or not where:
        raise InputError(
            f"--store-key {kind}: unknown",
            hint="file:PATH, env:VARIABLE, or command:PROGRAM ARGUMENT...",
        )
    return LocalStoreKey(_parse(readers[kind](where), source))


def _from_file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o077:
                raise StoreKeyError(
                    f"{path}: others may read the store key", hint=f"chmod 600 {path}"
                )
            return stream.read(4096)
    except OSError as error:
        raise StoreKeyError(
            f"{path}: {error.strerror}", hint=f"make one with: cloister secret new-key {path}"
        ) from error


def _from_environment(name: str) -> bytes:
    value = os.environ.get(name)
    if value is None:
        raise StoreKeyError(f"store key: the variable {name} is not set")
    return value.encode()


def _from_command(command: str) -> bytes:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, timeout=_COMMAND_SECONDS, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        # What the command printed may hold the key, so that it is not shown.
        raise StoreKeyError(f"store key: the command failed ({type(error).__name__})") from error
    return done.stdout


def _parse(content: bytes, source: str) -> bytes:
    if len(content) == KEY_SIZE:
        return content
    text = content.strip()
    if re.fullmatch(rb"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text.decode("ascii"))
    raise StoreKeyError(
        f"store key from {source.partition(':')[0]}: {len(content)} bytes,"
        f" expected {KEY_SIZE} raw bytes or {2 * KEY_SIZE} hex digits"
    )
