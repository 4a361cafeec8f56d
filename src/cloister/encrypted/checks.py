"""Judges node 0 of a file: what is wrong with it, told apart as far as the format lets one."""

from __future__ import annotations

from cloister.encrypted.backing import Backing
from cloister.encrypted.constants import KEY_SIZE, MAGIC, MAX_PATH, NODE_SIZE, VERSIONS
from cloister.encrypted.keys import fingerprint
from cloister.encrypted.layout import (
    Metadata,
    NodeAuthenticationError,
    host_nodes,
    open_metadata,
    parse_header,
)
from cloister.errors import (
    EmbeddedPathError,
    EncryptedFileError,
    InUseError,
    NotEncryptedError,
    RenamedError,
    TruncatedError,
    UnsupportedVersionError,
    WrapKeyError,
    WrongKeyError,
)


def read_node0(backing: Backing, name: str) -> bytes:
    """Return node 0 of an encrypted file.

    Raises:
        NotEncryptedError: the file is empty or begins with something else.
        TruncatedError: it begins well, but is not a whole number of nodes (which the host file of
            an interrupted write need not be).
        UnsupportedVersionError: its major version is neither 1 nor 2.
    """
    node0 = backing.pread(0, NODE_SIZE)
    if not node0:
        raise NotEncryptedError(f"{name}: not an encrypted file: it is empty")
    if not node0.startswith(MAGIC[: len(node0)]):
        raise NotEncryptedError(f"{name}: not an encrypted file: it does not begin with GRAFS_PF")
    size = backing.size()
    if size < NODE_SIZE or (size % NODE_SIZE and not pending(node0)):
        raise TruncatedError(
            f"{name}: truncated or extended: {size} bytes, expected a multiple of {NODE_SIZE}"
        )
    major = parse_header(node0).major
    if major not in VERSIONS:
        raise UnsupportedVersionError(f"{name}: encrypted file of version {major}, expected 1 or 2")
    return node0


def authenticate(node0: bytes, wrap_key: bytes, name: str) -> Metadata:
    """Decrypt node 0.

    Raises:
        WrongKeyError: it does not authenticate.
    """
    try:
        return open_metadata(node0, wrap_key)
    except NodeAuthenticationError:
        raise WrongKeyError(
            f"{name}: does not open with the key {fingerprint(wrap_key)}: another key, or the "
            "first node was changed"
        ) from None


def compare_path(metadata: Metadata, expected: str | None, name: str) -> None:
    """Compare the embedded path with the expected one; None does not compare.

    Raises:
        RenamedError: they differ by a byte.
    """
    if expected is None or metadata.path == encode_path(expected):
        return
    raise RenamedError(
        f"{name}: encrypted for another path: expected {expected!r}, "
        f"found {decode_path(metadata.path)!r}"
    )


def compare_size(metadata: Metadata, host_size: int, name: str) -> None:
    """Check that the host file has all the nodes of its content.

    Raises:
        TruncatedError: it has fewer.
    """
    needed = host_nodes(metadata.size) * NODE_SIZE
    if host_size < needed:
        raise TruncatedError(
            f"{name}: truncated: {host_size} bytes, expected {needed} for a content of "
            f"{metadata.size} bytes"
        )


def blamed(error: EncryptedFileError, backing: Backing, name: str) -> EncryptedFileError:
    """Return ``error``, or what explains it as well: that others write to the file meanwhile."""
    if not backing.is_disturbed():
        return error
    return InUseError(f"{name}: another process writes to the file, or did while it was read")


def is_marked(backing: Backing) -> bool:
    """Tell whether the bytes are an encrypted file with an unfinished write."""
    node0 = backing.pread(0, NODE_SIZE)
    return len(node0) == NODE_SIZE and node0.startswith(MAGIC) and pending(node0)


def pending(node0: bytes) -> bool:
    """Tell whether a write to the file was begun and not finished."""
    header = parse_header(node0)
    return header.major in VERSIONS and header.pending_write


def encode_path(path: str) -> bytes:
    """Return an embedded path as the format stores it.

    Raises:
        EmbeddedPathError: it is empty, longer than 771 bytes, or contains a NUL.
    """
    encoded = path.encode("utf-8", "surrogateescape")
    if not encoded or b"\0" in encoded:
        raise EmbeddedPathError(f"{path!r}: an embedded path cannot be empty or contain a NUL")
    if len(encoded) > MAX_PATH:
        raise EmbeddedPathError(
            f"{path}: the path has {len(encoded)} bytes; an encrypted file holds {MAX_PATH}",
            hint="use a shorter, relative path (--as PATH)",
        )
    return encoded


def decode_path(path: bytes) -> str:
    """Return a stored path as text; bytes that are not UTF-8 survive a round trip."""
    return path.decode("utf-8", "surrogateescape")


def check_key(wrap_key: bytes) -> None:
    """Check the size of a key.

    Raises:
        WrapKeyError: it is not 16 bytes.
    """
    if len(wrap_key) != KEY_SIZE:
        raise WrapKeyError(f"a wrap key of {len(wrap_key)} bytes, expected {KEY_SIZE}")
