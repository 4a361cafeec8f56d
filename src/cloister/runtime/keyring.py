"""The wrap keys of one enclave, by name, in memory only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

KEY_SIZE = 16
"""Bytes of a wrap key."""

DEFAULT_KEY = "default"
"""Name of the key of encrypted mounts that name none, and of Graphene's protected files."""


class Keyring:
    """Named wrap keys; a known name may be unset. :meth:`wipe` overwrites what can be overwritten.

    Args:
        names: the names that exist, from encrypted mounts and the manifest's insecure keys.

    Attributes:
        changes: how often a key was set.
        awaited: names of keys that a key server is being asked for.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.changes = 0
        self.awaited: frozenset[str] = frozenset()
        self._keys: dict[str, bytearray | None] = dict.fromkeys(sorted(set(names)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def get(self, name: str) -> bytes | None:
        """Return the key, or None while it is not set."""
        key = self._keys.get(name)
        return None if key is None else bytes(key)

    def set(self, name: str, key: bytes | bytearray | memoryview) -> None:
        """Set a key.

        Raises:
            KeyError: no mount and no manifest line names this key.
            ValueError: the key is not 16 bytes long.
        """
        if name not in self._keys:
            raise KeyError(name)
        if len(key) != KEY_SIZE:
            raise ValueError(f"a wrap key has {KEY_SIZE} bytes, not {len(key)}")
        self._wipe_one(name)
        self._keys[name] = bytearray(key)
        self.changes += 1

    def wipe(self) -> None:
        """Overwrite and unset all keys."""
        for name in self._keys:
            self._wipe_one(name)

    def _wipe_one(self, name: str) -> None:
        key = self._keys[name]
        if key is not None:
            key[:] = bytes(len(key))
            self._keys[name] = None
