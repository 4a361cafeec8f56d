"""The data nodes of one open file: decrypted when read, kept when changed, sealed when written.

Offsets count from the start of data node 0, that is from byte 3072 of the content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cloister.encrypted import checks
from cloister.encrypted.backing import Backing, Buffer
from cloister.encrypted.constants import (
    DATA_PER_MHT,
    ENTRY_SIZE,
    HEAD_SIZE,
    KEY_SIZE,
    NODE_SIZE,
)
from cloister.encrypted.journal import Journal, runs
from cloister.encrypted.keys import KeySource
from cloister.encrypted.layout import (
    NodeAuthenticationError,
    data_node,
    mht_node,
    open_node,
    seal_node,
)
from cloister.encrypted.runs import RUN_NODES, run_buffer
from cloister.encrypted.tree import DIRTY_LIMIT, MhtTree
from cloister.errors import EncryptedFileError, TamperedError, TruncatedError

CACHE_LIMIT: Final = 1024  # decrypted data nodes kept: 4 MiB
WAITING_LIMIT: Final = 2560  # changed data nodes kept before they are written out: 10 MiB
SMALL_READ: Final = 4  # reads of at most so many nodes are kept in the cache
_ZERO_NODE: Final = bytes(NODE_SIZE)


class DataNodes:
    """The content behind the first 3072 bytes.

    Args:
        main: the ciphertext.
        name: how errors call the file.
        root_entry: key and tag of MHT node 0.
        count: how many data nodes exist.
        journal: how nodes are written, None if never.
        keys: where fresh node keys come from.
        waiting_limit: changed data nodes kept before they are written out.
    """

    def __init__(
        self,
        main: Backing,
        *,
        name: str,
        root_entry: bytes,
        count: int,
        journal: Journal | None,
        keys: KeySource,
        waiting_limit: int = WAITING_LIMIT,
    ) -> None:
        self._main = main
        self._name = name
        self._journal = journal
        self._keys = keys
        self._tree = MhtTree(self._load_mht, root_entry, -(-count // DATA_PER_MHT))
        self._waiting: dict[int, bytes | bytearray] = {}
        self._cache: dict[int, bytes] = {}
        self._waiting_limit = waiting_limit
        self.count = count

    @property
    def root_entry(self) -> bytes:
        """Key and tag of MHT node 0, as of the last :meth:`seal`."""
        return self._tree.root_entry

    # --- Reading ------------------------------------------------------------------------------

    def node(self, index: int) -> bytes | bytearray:
        """Return the 4096 bytes of one data node, not to be changed.

        Raises:
            TamperedError: it does not authenticate.
            TruncatedError: the host file ends before it.
        """
        node = self._at_hand(index)
        if node is None:
            cipher = self._main.pread(data_node(index) * NODE_SIZE, NODE_SIZE)
            node = self._opened(index, cipher, self._tree.data_entries(index, 1))
        return node

    def pair(self, index: int) -> tuple[bytes | bytearray, bytes | bytearray]:
        """Return two data nodes, not to be changed: what a small request that straddles needs.

        Raises:
            TamperedError, TruncatedError: as :meth:`node`.
        """
        first, second = self._at_hand(index), self._at_hand(index + 1)
        if first is None and second is None and (index + 1) % DATA_PER_MHT:
            cipher = self._main.pread(data_node(index) * NODE_SIZE, 2 * NODE_SIZE)
            entries = self._tree.data_entries(index, 2)
            return (
                self._opened(index, cipher[:NODE_SIZE], entries[:ENTRY_SIZE]),
                self._opened(index + 1, cipher[NODE_SIZE:], entries[ENTRY_SIZE:]),
            )
        return (
            self.node(index) if first is None else first,
            self.node(index + 1) if second is None else second,
        )

    def _opened(self, index: int, cipher: bytes, entry: bytes) -> bytes:
        if len(cipher) < NODE_SIZE:
            raise self._cut_short(data_node(index))
        try:
            node = open_node(entry, cipher)
        except NodeAuthenticationError:
            raise self._tampered(index) from None
        self._keep(index, node)
        return node

    def fill(self, start: int, target: memoryview) -> None:
        """Fill ``target`` from ``start``; all of it must exist.

        Raises:
            TamperedError: a node does not authenticate; ``target`` then holds only authentic
                bytes and what was there before.
            TruncatedError: the host file ends too early.
        """
        index, last = start // NODE_SIZE, (start + len(target) - 1) // NODE_SIZE
        keep = last - index < SMALL_READ
        place = index * NODE_SIZE - start
        while index <= last:
            node = self._at_hand(index)
            if node is not None:
                _copy_node(node, target, place)
                count = 1
            else:
                count = self._missing(index, min(last + 1, _run_end(index)))
                self._fetch(index, count, target, place, keep=keep)
            index += count
            place += count * NODE_SIZE

    def run(self, start: int, length: int) -> memoryview:
        """Return ``length`` bytes from ``start``, a multiple of 98304, on; at most so many.

        The bytes are valid until the next call of any method. Nothing is kept in the cache.

        Raises:
            TamperedError, TruncatedError: as :meth:`fill`.
        """
        buffer = run_buffer()
        if self._waiting:
            self.fill(start, buffer.plain[:length])
        else:
            self._decrypt(start // NODE_SIZE, -(-length // NODE_SIZE), buffer.plain_nodes)
        return buffer.plain[:length]

    def _at_hand(self, index: int) -> bytes | bytearray | None:
        node = self._waiting.get(index)
        return node if node is not None else self._cache.get(index)

    def _missing(self, first: int, end: int) -> int:
        """Return how many nodes from ``first`` on, before ``end``, must come from the host."""
        whole = range(first, end)
        if self._waiting.keys().isdisjoint(whole) and self._cache.keys().isdisjoint(whole):
            return end - first
        index = first + 1
        while index < end and index not in self._waiting and index not in self._cache:
            index += 1
        return index - first

    def _fetch(self, first: int, count: int, target: memoryview, place: int, *, keep: bool) -> None:
        """Decrypt neighbouring nodes of one run; node ``first`` begins at ``target[place]``.

        Nodes that fit into the target are decrypted there. Nodes that stick out at an end are
        kept, because a sequential reader asks for the rest of them next.
        """
        end = place + count * NODE_SIZE
        places = range(place, end, NODE_SIZE)
        if not keep and place >= 0 and end <= len(target):
            self._decrypt(first, count, [target[at : at + NODE_SIZE] for at in places])
            return
        kept = {
            i: bytearray(NODE_SIZE)
            for i, at in enumerate(places)
            if keep or at < 0 or at + NODE_SIZE > len(target)
        }
        targets = [
            memoryview(kept[i]) if i in kept else target[at : at + NODE_SIZE]
            for i, at in enumerate(places)
        ]
        self._decrypt(first, count, targets)
        for i, node in kept.items():
            _copy_node(node, target, place + i * NODE_SIZE)
            self._keep(first + i, bytes(node))

    def _decrypt(self, first: int, count: int, targets: list[memoryview]) -> None:
        """Read and decrypt ``count`` nodes of one run from the host."""
        entries = self._tree.data_entries(first, count)
        buffer = run_buffer()
        got = self._main.preadv(data_node(first) * NODE_SIZE, buffer.slots[:count])
        if got < count * NODE_SIZE:
            raise self._cut_short(data_node(first) + got // NODE_SIZE)
        try:
            buffer.open(entries, targets)
        except NodeAuthenticationError as error:
            raise self._tampered(first + error.index) from None

    def _keep(self, index: int, node: bytes) -> None:
        while len(self._cache) >= CACHE_LIMIT:
            del self._cache[next(iter(self._cache))]
        self._cache[index] = node

    def _load_mht(self, index: int, entry: bytes) -> bytes:
        node = mht_node(index)
        cipher = self._main.pread(node * NODE_SIZE, NODE_SIZE)
        if len(cipher) < NODE_SIZE:
            raise self._cut_short(node)
        try:
            return open_node(entry, cipher)
        except NodeAuthenticationError:
            raise self._blamed(
                TamperedError(
                    f"{self._name}: tampered: hash tree node {index} (bytes {node * NODE_SIZE} to "
                    f"{(node + 1) * NODE_SIZE - 1} of the encrypted file) does not authenticate"
                )
            ) from None

    def _tampered(self, index: int) -> EncryptedFileError:
        content, host = HEAD_SIZE + index * NODE_SIZE, data_node(index) * NODE_SIZE
        return self._blamed(
            TamperedError(
                f"{self._name}: tampered: content from byte {content} (bytes {host} to "
                f"{host + NODE_SIZE - 1} of the encrypted file) does not authenticate"
            )
        )

    def _cut_short(self, node: int) -> EncryptedFileError:
        return self._blamed(
            TruncatedError(
                f"{self._name}: truncated: ends before byte {(node + 1) * NODE_SIZE}, which its "
                "content needs"
            )
        )

    def _blamed(self, error: EncryptedFileError) -> EncryptedFileError:
        return checks.blamed(error, self._main, self._name)

    # --- Changing -----------------------------------------------------------------------------

    def write(self, start: int, data: memoryview) -> None:
        """Write ``data`` at ``start``, which is at most the end of the last node."""
        while len(data) > 0:
            index, offset = divmod(start, NODE_SIZE)
            length = min(len(data), NODE_SIZE - offset)
            self._write_node(index, offset, data[:length])
            self.count = max(self.count, index + 1)
            data = data[length:]
            start += length

    def _write_node(self, index: int, offset: int, data: memoryview) -> None:
        if len(data) == NODE_SIZE:
            self._wait(index, data.tobytes())
            return
        node = self._waiting.get(index)
        if not isinstance(node, bytearray):
            node = bytearray(self.node(index) if index < self.count else NODE_SIZE)
            self._wait(index, node)
        node[offset : offset + len(data)] = data

    def adopt(self, entries: bytes | bytearray) -> None:
        """Append nodes of one group that were sealed and written to their places elsewhere."""
        self._tree.set_data_entries(self.count, entries)
        self.count += len(entries) // ENTRY_SIZE
        if len(self._tree.dirty) > DIRTY_LIMIT:
            self._protect(self._tree.with_ancestors(self._tree.dirty) - {0})
            self._seal_tree(keep_root=True)

    def extend(self, count: int) -> None:
        """Append zero nodes until there are ``count``."""
        while self.count < count:
            self._wait(self.count, _ZERO_NODE)
            self.count += 1

    def _wait(self, index: int, node: bytes | bytearray) -> None:
        self._cache.pop(index, None)
        if len(self._waiting) >= self._waiting_limit and index not in self._waiting:
            self._write_out()
        self._waiting[index] = node

    def cut(self, count: int) -> None:
        """Forget all nodes behind the first ``count``."""
        for index in [i for i in self._waiting if i >= count]:
            del self._waiting[index]
        for index in [i for i in self._cache if i >= count]:
            del self._cache[index]
        self._tree.cut(count)
        self.count = count

    def forget(self) -> None:
        """Drop all plaintext and keys."""
        self._waiting.clear()
        self._cache.clear()
        self._tree.forget()

    # --- Reaching the disk ----------------------------------------------------------------------

    def seal(self) -> None:
        """Encrypt and write all that changed, under fresh keys; then :attr:`root_entry` is new.

        Raises:
            OSError: the disk refused; nothing is lost, it can be done again.
        """
        self._protect(self._tree.with_ancestors(self._changed_groups()))
        self._seal_waiting()
        self._seal_tree(keep_root=False)

    def _write_out(self) -> None:
        """Write waiting data nodes, and MHT nodes when there are many; the root stays."""
        groups = self._changed_groups()
        many = len(groups) > DIRTY_LIMIT
        self._protect(self._tree.with_ancestors(groups) - {0} if many else set())
        self._seal_waiting()
        if many:
            self._seal_tree(keep_root=True)

    def _changed_groups(self) -> set[int]:
        return {index // DATA_PER_MHT for index in self._waiting} | self._tree.dirty.keys()

    def _protect(self, groups: Iterable[int]) -> None:
        nodes = [data_node(index) for index in self._waiting]
        nodes += [mht_node(index) for index in groups]
        if nodes:
            self._writer().protect(sorted(nodes))

    def _seal_waiting(self) -> None:
        """Encrypt and write the waiting data nodes, in ascending order."""
        order = sorted(self._waiting)
        keys = self._keys.keys(len(order))
        done = 0
        buffer = run_buffer()
        for first, count in _split_runs(order):
            nodes = [self._waiting[index] for index in range(first, first + count)]
            entries = buffer.seal(keys[done * KEY_SIZE : (done + count) * KEY_SIZE], nodes)
            self._writer().write(data_node(first), buffer.cipher[: count * NODE_SIZE])
            self._tree.set_data_entries(first, entries)
            done += count
        self._waiting.clear()

    def _seal_tree(self, *, keep_root: bool) -> None:
        """Encrypt and write the changed MHT nodes, children before their parents."""
        for index in sorted(self._tree.with_ancestors(self._tree.dirty), reverse=True):
            if index == 0 and keep_root:
                return
            key = self._keys.keys(1)
            sealed = seal_node(key, self._tree.edit(index))
            self._writer().write(mht_node(index), sealed[:NODE_SIZE])
            self._tree.set_mht_entry(index, key + sealed[NODE_SIZE:])

    def _writer(self) -> Journal:
        if self._journal is None:
            raise AssertionError("a read-only file was changed")
        return self._journal


def _copy_node(node: Buffer, target: memoryview, place: int) -> None:
    """Copy the part of ``node`` that lies inside ``target``, where it begins at ``place``."""
    low, high = max(0, place), min(place + NODE_SIZE, len(target))
    target[low:high] = memoryview(node)[low - place : high - place]


def _run_end(index: int) -> int:
    """Return where the run of ``index`` ends; runs divide groups, whose nodes are neighbours."""
    return (index // RUN_NODES + 1) * RUN_NODES


def _split_runs(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Group ascending data nodes into neighbours of one run."""
    for start, count in runs(indices, RUN_NODES):
        split = min(count, _run_end(start) - start)
        yield start, split
        if split < count:
            yield start + split, count - split
