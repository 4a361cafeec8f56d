"""Undoing an interrupted write: what the recovery file holds, judged before it is believed.

A recovery file is a sequence of records (u64 node number, 4096 bytes of old content), the same for
Gramine and for us. Records carry no authentication of their own, so node 0 of the recovery file
must authenticate under the wrap key, and any other record counts only if it authenticates under
the tree that hangs on that node 0; the rest (a torn end, new nodes that Gramine logs with no
content) is left alone. Nothing is written before that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cloister.encrypted import checks
from cloister.encrypted.backing import Backing, Buffer, RecoveryStore
from cloister.encrypted.constants import NODE_SIZE, RECOVERY_NUMBER, RECOVERY_RECORD_SIZE, VERSIONS
from cloister.encrypted.layout import (
    PENDING_MARK,
    Metadata,
    NodeAuthenticationError,
    clear_pending,
    host_nodes,
    mark_pending,
    mht_count,
    mht_node,
    node_role,
    open_node,
    parse_header,
)
from cloister.encrypted.tree import MhtTree
from cloister.errors import RecoveryError

_SCAN_RECORDS = 256  # records read at a time, 1 MiB


class Undo(NamedTuple):
    """What puts a file back to its last complete state.

    ``node0`` is the node 0 of that state, ``metadata`` its content, ``tree`` its hash tree, read
    from the recovery file as far as it is there; ``mht_places`` says where in the recovery file
    MHT nodes begin, by physical node.
    """

    log: Backing
    node0: bytes
    metadata: Metadata
    tree: MhtTree
    mht_places: dict[int, int]


def load_undo(main: Backing, store: RecoveryStore, wrap_key: bytes, name: str) -> Undo:
    """Read the recovery file of a file that is marked as being written; judge its node 0.

    Raises:
        RecoveryError: it is missing, or holds no node 0.
        WrongKeyError: its node 0 does not authenticate.
    """
    log = store.open()
    if log is None:
        raise RecoveryError(f"{name}: a write was interrupted and the recovery file is missing")
    try:
        return _judge(main, log, wrap_key, name)
    except BaseException:
        log.close()
        raise


def _judge(main: Backing, log: Backing, wrap_key: bytes, name: str) -> Undo:
    node0_place: int | None = None
    mht_places: dict[int, int] = {}
    for node, place in _records(log):
        if node == 0 and node0_place is None:
            node0_place = place
        elif node_role(node)[0] == "mht":
            mht_places.setdefault(node, place)
    if node0_place is None:
        raise RecoveryError(f"{name}: a write was interrupted and the recovery file is empty")
    node0 = clear_pending(log.pread(node0_place, NODE_SIZE))
    if parse_header(node0).major not in VERSIONS:
        raise RecoveryError(f"{name}: the recovery file holds no node of an encrypted file")
    metadata = checks.authenticate(node0, wrap_key, f"{name} (recovery file)")
    return Undo(log, node0, metadata, _old_tree(main, log, metadata, mht_places), mht_places)


def _records(log: Backing) -> Iterator[tuple[int, int]]:
    """Yield the node number of each whole record, and where its content begins."""
    whole = log.size() // RECOVERY_RECORD_SIZE
    for start in range(0, whole, _SCAN_RECORDS):
        count = min(_SCAN_RECORDS, whole - start)
        chunk = log.pread(start * RECOVERY_RECORD_SIZE, count * RECOVERY_RECORD_SIZE)
        for i in range(len(chunk) // RECOVERY_RECORD_SIZE):
            (node,) = RECOVERY_NUMBER.unpack_from(chunk, i * RECOVERY_RECORD_SIZE)
            yield node, (start + i) * RECOVERY_RECORD_SIZE + RECOVERY_NUMBER.size


def _old_tree(
    main: Backing, log: Backing, metadata: Metadata, mht_places: dict[int, int]
) -> MhtTree:
    """Return the tree under the recovered node 0; its nodes lie in the recovery file or in main.

    A record that does not authenticate is forgotten: it is not of this state.
    """

    def load(index: int, entry: bytes) -> bytes:
        node = mht_node(index)
        place = mht_places.get(node)
        if place is not None:
            try:
                return open_node(entry, log.pread(place, NODE_SIZE))
            except NodeAuthenticationError:
                del mht_places[node]
        return open_node(entry, main.pread(node * NODE_SIZE, NODE_SIZE))

    return MhtTree(load, metadata.root_key + metadata.root_tag, mht_count(metadata.size))


def authentic_records(state: Undo) -> Iterator[tuple[int, int, bytes]]:
    """Yield those records, without node 0, that belong to the recovered state.

    Yields:
        the physical node, where in the recovery file its content begins, and the content.
    """
    limit = host_nodes(state.metadata.size)
    for node, place in _records(state.log):
        role, index = node_role(node)
        if role == "metadata" or node >= limit:
            continue
        content = state.log.pread(place, NODE_SIZE)
        try:
            if role == "mht":
                state.tree.page(index)
                if state.mht_places.get(node) != place:
                    continue
            else:
                open_node(state.tree.data_entries(index, 1), content)
        except NodeAuthenticationError:
            continue
        yield node, place, content


def undo(main: Backing, store: RecoveryStore, wrap_key: bytes, name: str) -> None:
    """Put the file back to its last complete state; a crash meanwhile changes nothing.

    Raises:
        RecoveryError: the recovery file is missing or useless; the file is left as it is.
        WrongKeyError: the key does not open it; the file is left as it is.
    """
    state = load_undo(main, store, wrap_key, name)
    try:
        for node, _, content in authentic_records(state):
            main.pwrite(node * NODE_SIZE, content)
        size = host_nodes(state.metadata.size) * NODE_SIZE
        if main.size() > size:
            main.truncate(size)
        main.pwrite(0, mark_pending(state.node0))
        main.fsync()
        start, end = PENDING_MARK.offset, PENDING_MARK.end
        main.pwrite(start, state.node0[start:end])
        main.fsync()
        store.remove()
    finally:
        state.log.close()


def clear_mark(main: Backing) -> None:
    """Take the mark off a file of which every node authenticates as it is."""
    main.fsync()
    start, end = PENDING_MARK.offset, PENDING_MARK.end
    main.pwrite(start, clear_pending(main.pread(0, NODE_SIZE))[start:end])
    main.fsync()


class RecoveredView:
    """The last complete state of a file that is marked as being written, without touching it."""

    def __init__(self, main: Backing, state: Undo) -> None:
        self._main = main
        self._state = state

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes."""
        buffer = bytearray(length)
        return bytes(buffer[: self.preadv(offset, [memoryview(buffer)])])

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers``, with nodes of the recovery file for those that replaced them."""
        done = 0
        for buffer in buffers:
            count = self._fill(offset + done, buffer)
            done += count
            if count < len(buffer):
                break
        return done

    def _fill(self, offset: int, buffer: memoryview) -> int:
        done = self._main.preadv(offset, [buffer])
        first, last = offset // NODE_SIZE, (offset + len(buffer) - 1) // NODE_SIZE
        for node in range(first, last + 1):
            old = self._old(node)
            if old is None:
                continue
            start = node * NODE_SIZE - offset
            low, high = max(0, start), min(start + NODE_SIZE, len(buffer))
            buffer[low:high] = old[low - start : high - start]
            done = max(done, high)
        return done

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        """Where the recovery file holds old nodes; a look at node 0 alone does not need it."""
        return {node: place for node, place, _ in authentic_records(self._state)}

    def _old(self, node: int) -> bytes | None:
        if node == 0:
            return self._state.node0
        place = self._places.get(node)
        return None if place is None else self._state.log.pread(place, NODE_SIZE)

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Refuse: the view is for reading."""
        raise NotImplementedError("a recovered view is for reading")

    def truncate(self, size: int) -> None:
        """Refuse: the view is for reading."""
        raise NotImplementedError("a recovered view is for reading")

    def size(self) -> int:
        """Return the size of the file as it will be after recovery."""
        return host_nodes(self._state.metadata.size) * NODE_SIZE

    def fsync(self) -> None:
        """Do nothing: nothing is written."""

    def is_disturbed(self) -> bool:
        """Tell whether others change the file."""
        return self._main.is_disturbed()

    def close(self) -> None:
        """Close both files."""
        self._state.log.close()
        self._main.close()
