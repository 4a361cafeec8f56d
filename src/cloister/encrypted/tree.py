"""The tree of MHT nodes: which key and tag opens each data node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from cloister.encrypted.constants import DATA_PER_MHT, ENTRY_SIZE, NODE_SIZE
from cloister.encrypted.layout import mht_parent

CLEAN_LIMIT: Final = 2816  # decrypted MHT nodes kept: 11 MiB, the tree of a 1 GiB file
DIRTY_LIMIT: Final = 1024  # changed MHT nodes kept before they are written: 4 MiB
ZERO_ENTRY: Final = bytes(ENTRY_SIZE)

Load = Callable[[int, bytes], bytes]
"""Reads MHT node m and opens it with its entry: (m, entry) -> 4096 plaintext bytes."""


class MhtTree:
    """The MHT nodes of one file, decrypted when first used, bounded in memory.

    Args:
        load: reads and opens one MHT node.
        root_entry: key and tag of MHT node 0, 32 bytes.
        count: how many MHT nodes exist.
    """

    def __init__(self, load: Load, root_entry: bytes, count: int) -> None:
        self._load = load
        self._clean: dict[int, bytes] = {}
        self.root_entry = root_entry
        self.count = count
        self.dirty: dict[int, bytearray] = {}

    def page(self, index: int) -> bytes | bytearray:
        """Return the plaintext of MHT node ``index``, 4096 bytes; it must exist."""
        dirty = self.dirty.get(index)
        if dirty is not None:
            return dirty
        page = self._clean.get(index)
        if page is None:
            page = self._load(index, self.entry_of_mht(index))
            self._keep(index, page)
        return page

    def _keep(self, index: int, page: bytes) -> None:
        while len(self._clean) >= CLEAN_LIMIT:
            del self._clean[next(iter(self._clean))]
        self._clean[index] = page

    def entry_of_mht(self, index: int) -> bytes:
        """Return key and tag of MHT node ``index``."""
        if index == 0:
            return self.root_entry
        parent, slot = mht_parent(index)
        return bytes(self.page(parent)[slot * ENTRY_SIZE : (slot + 1) * ENTRY_SIZE])

    def data_entries(self, first: int, count: int) -> bytes:
        """Return keys and tags of ``count`` data nodes from ``first`` on, all of one group."""
        group, slot = divmod(first, DATA_PER_MHT)
        return bytes(self.page(group)[slot * ENTRY_SIZE : (slot + count) * ENTRY_SIZE])

    def edit(self, index: int) -> bytearray:
        """Return MHT node ``index`` to be changed; a new one is zero."""
        page = self.dirty.get(index)
        if page is None:
            if index < self.count:
                page = bytearray(self.page(index))
                self._clean.pop(index, None)
            else:
                page = bytearray(NODE_SIZE)
            self.dirty[index] = page
            self.count = max(self.count, index + 1)
        return page

    def set_data_entries(self, first: int, entries: bytes | bytearray) -> None:
        """Store keys and tags of data nodes from ``first`` on, all of one group."""
        group, slot = divmod(first, DATA_PER_MHT)
        start = slot * ENTRY_SIZE
        self.edit(group)[start : start + len(entries)] = entries

    def set_mht_entry(self, index: int, entry: bytes) -> None:
        """Store key and tag of MHT node ``index``, which is clean from now on."""
        if index == 0:
            self.root_entry = entry
        else:
            parent, slot = mht_parent(index)
            self.edit(parent)[slot * ENTRY_SIZE : (slot + 1) * ENTRY_SIZE] = entry
        # Last of all: an interruption before leaves the node dirty, to be sealed again.
        self._keep(index, bytes(self.dirty[index]))
        del self.dirty[index]

    def with_ancestors(self, indices: Iterable[int]) -> set[int]:
        """Return ``indices`` and all MHT nodes above them."""
        found: set[int] = set()
        for start in indices:
            index = start
            while index not in found:
                found.add(index)
                if index == 0:
                    break
                index = mht_parent(index)[0]
        return found

    def cut(self, data_nodes: int) -> None:
        """Forget everything behind the first ``data_nodes`` data nodes.

        Entries of removed nodes may stay in the nodes that remain: readers go by the file's size,
        and a node that comes to life again is sealed with a new key before its entry is used.
        """
        count = -(-data_nodes // DATA_PER_MHT)
        for pages in (self.dirty, self._clean):
            for index in [i for i in pages if i >= count]:
                del pages[index]
        self.count = min(count, self.count)  # nodes that wait may have no tree node yet
        if count == 0:
            self.root_entry = ZERO_ENTRY

    def forget(self) -> None:
        """Drop all keys."""
        self._clean.clear()
        self.dirty.clear()
