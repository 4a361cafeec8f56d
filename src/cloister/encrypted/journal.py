"""How nodes reach the disk: so that a crash at any moment leaves the old or the new content.

A *transaction* replaces one committed state of a file by the next:

1. Before a node of the committed state is overwritten, its old bytes are appended to the recovery
   file, and behind them node 0; the recovery file is synced.
2. Once per transaction the file is marked: the pending-write flag is set. Synced.
3. Nodes are written, those of step 1 and those that the committed state does not use.
4. The new node 0 is written with the mark still on it. Synced.
5. The mark is taken off. Synced. This is the commit.
6. A host file that is too long now is cut, the recovery file is emptied.

The mark (steps 2 and 5) changes bytes of one 512-byte disk sector only, so it is on or off even if
the disk tears writes; a torn node 0 of step 4 is marked. Marked files are put back from the
recovery file when they are opened (:mod:`cloister.encrypted.recovery`), unmarked files never need
it. Between two syncs the disk may keep any part of what was written, in any order:

==================  =================================================================
crash in step       what is found
==================  =================================================================
1                   no mark: the old state, untouched
2, 3, 4             no mark: nothing of it was overwritten yet, the old state; or a mark: the
                    recovery file is complete for every node that may have been overwritten
5                   mark: the old state is put back; no mark: the new state is complete
6                   no mark: the new state; what is cut belonged to no state
==================  =================================================================

Steps 1 to 3 may repeat when a transaction is larger than memory. The recovery file is then still
a sequence of records, but its end may be torn while the mark is on; recovery therefore believes a
record only if it authenticates. Files of one node take the same way: a disk need not write
4096 bytes in one piece.

Records and mark are those of the Gramine encrypted files format (u64 node number, 4096 bytes of
old content; node 0 last), so that Gramine can undo our interrupted writes and we can undo its.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from cloister.encrypted.backing import Backing, Buffer, RecoveryStore
from cloister.encrypted.constants import NODE_SIZE, RECOVERY_NUMBER, RECOVERY_RECORD_SIZE
from cloister.encrypted.layout import PENDING_MARK, mark_pending
from cloister.errors import RecoveryError

_RUN_LIMIT = 96  # nodes that are copied to the recovery file at a time


class Journal(Protocol):
    """Where an :class:`~cloister.encrypted.file.EncryptedFile` writes its nodes."""

    def protect(self, nodes: Iterable[int]) -> None:
        """Announce physical nodes, ascending, that are about to be written."""

    def write(self, node: int, data: Buffer) -> None:
        """Write whole nodes from physical ``node`` on; they were announced."""

    def commit(self, node0: bytes, host_nodes: int) -> None:
        """Make ``node0`` and what was written the content of the file, of ``host_nodes`` nodes."""

    def move(
        self,
        node0: bytes,
        store: RecoveryStore,
        *,
        rename: Callable[[], None],
        sync_names: Callable[[], None],
    ) -> None:
        """Commit ``node0`` together with a new name of the host file."""

    def belong_to(self, store: RecoveryStore, name: str) -> None:
        """The host file, which has no name yet, is about to get one."""

    def forget_name(self) -> None:
        """The host file has no name any more: nothing of it needs to survive."""

    def sync(self) -> None:
        """Return when the committed state survives a power loss."""

    def close(self) -> None:
        """Forget the old nodes; nothing may be uncommitted."""


class DirectJournal:
    """Writes straight through: for memory, and for new files that have no name yet."""

    def __init__(self, main: Backing) -> None:
        self._main = main

    def protect(self, nodes: Iterable[int]) -> None:
        """Do nothing: there is no earlier state to keep."""

    def write(self, node: int, data: Buffer) -> None:
        """Write whole nodes."""
        self._main.pwrite(node * NODE_SIZE, data)

    def commit(self, node0: bytes, host_nodes: int) -> None:
        """Write node 0 and cut the host file."""
        self._main.pwrite(0, node0)
        if self._main.size() > host_nodes * NODE_SIZE:
            self._main.truncate(host_nodes * NODE_SIZE)

    def move(
        self,
        node0: bytes,
        store: RecoveryStore,
        *,
        rename: Callable[[], None],
        sync_names: Callable[[], None],
    ) -> None:
        """Rename, then write node 0."""
        rename()
        self._main.pwrite(0, node0)
        sync_names()

    def belong_to(self, store: RecoveryStore, name: str) -> None:
        """Do nothing: there is nothing to recover."""

    def forget_name(self) -> None:
        """Do nothing: there is nothing to recover."""

    def sync(self) -> None:
        """Sync the host file."""
        self._main.fsync()

    def close(self) -> None:
        """Do nothing."""


class UndoJournal:
    """Writes through the recovery file; see the module's description.

    Args:
        main: the host file, unmarked.
        store: where the recovery file is made.
        name: the file's name, for errors.
        node0: node 0 of the committed state.
        host_nodes: how many nodes the committed state uses.
    """

    def __init__(
        self, main: Backing, store: RecoveryStore, *, name: str, node0: bytes, host_nodes: int
    ) -> None:
        self._name = name
        self._main = main
        self._store = store
        self._node0 = node0
        self._host_nodes = host_nodes
        self._log: Backing | None = None
        self._log_end = 0
        self._logged = NodeSet()
        self._marked = False
        self._broken = False
        self._end = main.size()

    def protect(self, nodes: Iterable[int]) -> None:
        """Put the old content of ``nodes`` into the recovery file and mark the file."""
        self._check()
        nodes = list(nodes)
        fresh = [n for n in nodes if n < self._host_nodes and n not in self._logged]
        if self._marked and not fresh:
            return
        if not self._store.needed():
            return  # unlinked: no name, so nobody could open it after a crash
        self._append(fresh)
        for node in fresh:
            self._logged.add(node)
        if not self._marked:
            self._grow(nodes[-1] + 1 if nodes else 1)
            self._mark()

    def _grow(self, host_nodes: int) -> None:
        """Extend the host file before the mark, so that whatever is torn it ends at a node."""
        if self._end < host_nodes * NODE_SIZE:
            self._end = host_nodes * NODE_SIZE
            self._main.truncate(self._end)

    def _end_at_a_node(self) -> None:
        """Complete the last node: a write that failed may have ended inside one."""
        size = self._main.size()
        if size % NODE_SIZE:
            self._main.truncate(size + -size % NODE_SIZE)

    def _settle(self) -> None:
        """Make the state that was found last, before a recovery file that lies there goes.

        A process that was killed, or a sync that failed, while the mark was taken off leaves a file
        that looks unmarked and whose disk still holds the mark.
        """
        old = self._store.open()
        if old is not None:
            old.close()
            start, end = PENDING_MARK.offset, PENDING_MARK.end
            self._main.pwrite(start, self._node0[start:end])
            self._sync(self._main)

    def _append(self, nodes: list[int]) -> None:
        if self._log is None:
            self._settle()
            self._log = self._store.create()
        end = self._log_end
        for first, count in runs(nodes, _RUN_LIMIT):
            old = self._main.pread(first * NODE_SIZE, count * NODE_SIZE)
            records = b"".join(
                RECOVERY_NUMBER.pack(first + i) + old[i * NODE_SIZE : (i + 1) * NODE_SIZE]
                for i in range(len(old) // NODE_SIZE)
            )
            self._log.pwrite(end, records)
            end += len(records)
        self._log.pwrite(end, RECOVERY_NUMBER.pack(0) + self._node0)
        end += RECOVERY_RECORD_SIZE
        self._log.truncate(end)  # a longer attempt that failed may lie behind
        self._sync(self._log)
        self._log_end = end

    def _mark(self) -> None:
        start, end = PENDING_MARK.offset, PENDING_MARK.end
        self._main.pwrite(start, mark_pending(self._node0)[start:end])
        self._marked = True  # from here on the mark may be on the disk
        self._sync(self._main)

    def write(self, node: int, data: Buffer) -> None:
        """Write whole nodes."""
        self._check()
        self._end = max(self._end, node * NODE_SIZE + len(data))
        self._main.pwrite(node * NODE_SIZE, data)

    def commit(self, node0: bytes, host_nodes: int) -> None:
        """Steps 4 to 6."""
        self.protect(())
        if self._marked:
            self._main.pwrite(0, mark_pending(node0))
            self._end_at_a_node()
            self._sync(self._main)
            self._unmark(node0, host_nodes)
        else:
            self._main.pwrite(0, node0)
            self._node0, self._host_nodes = node0, host_nodes
        self._cut()

    def move(
        self,
        node0: bytes,
        store: RecoveryStore,
        *,
        rename: Callable[[], None],
        sync_names: Callable[[], None],
    ) -> None:
        """Commit ``node0`` together with a new name of the host file.

        While the file is marked, the recovery file beside its old name holds the old node 0 and
        the one beside its new name holds the new: under either name it opens as that name needs.

        Args:
            node0: the new node 0; nothing else may be uncommitted.
            store: the recovery store of the new name.
            rename: gives the host file its new name, or raises and changes nothing.
            sync_names: makes that survive a power loss.
        """
        self.protect(())
        log: Backing | None = None
        try:
            log = store.create()
            log.pwrite(0, RECOVERY_NUMBER.pack(0) + node0)
            self._sync(log)
            rename()
        except OSError:
            store.remove()
            if log is not None:
                log.close()
            self._unmark(self._node0, self._host_nodes)
            raise
        self._broken = True  # the file has its new name, but after a crash perhaps its old one
        sync_names()
        self._broken = False
        self.commit(node0, self._host_nodes)
        self.close()
        self._store, self._log = store, log
        log.truncate(0)

    def belong_to(self, store: RecoveryStore, name: str) -> None:
        """The host file, which has no name yet, is about to get one; nothing is uncommitted."""
        self._store, self._name = store, name

    def forget_name(self) -> None:
        """Remove the recovery file: no crash can be followed by opening the file."""
        self._store.remove()
        self._log_end = 0
        if self._log is not None:
            self._log.close()
            self._log = None

    def _unmark(self, node0: bytes, host_nodes: int) -> None:
        """End the transaction with ``node0`` as the committed state."""
        start, end = PENDING_MARK.offset, PENDING_MARK.end
        self._broken = True  # until it is done nobody knows which of two states the disk holds
        self._main.pwrite(start, node0[start:end])
        self._main.fsync()
        self._node0, self._host_nodes = node0, host_nodes
        self._marked = False
        self._logged.clear()
        self._log_end = 0
        self._broken = False

    def _cut(self) -> None:
        if self._end > self._host_nodes * NODE_SIZE:
            self._end = self._host_nodes * NODE_SIZE
            self._main.truncate(self._end)
        if self._log is not None:
            self._log.truncate(0)

    def _sync(self, backing: Backing) -> None:
        self._broken = True  # after a failed sync the kernel forgets what it could not write
        backing.fsync()
        self._broken = False

    def _check(self) -> None:
        if self._broken:
            raise RecoveryError(
                f"{self._name}: an earlier write to the disk failed; the file cannot be written "
                "any more until it is opened again",
                hint="mend the disk and open the file again: its last complete state is kept",
            )

    def sync(self) -> None:
        """Make last what was found; a commit already does, and what it cuts off is no state."""
        self._check()
        if self._log is None:
            self._settle()

    def close(self) -> None:
        """Remove the recovery file, unless an unfinished write still needs it."""
        if not self._marked and not self._broken:
            self._store.remove()
        if self._log is not None:
            self._log.close()
            self._log = None


class NodeSet:
    """A set of node numbers in one bit each: a transaction may touch every node of a huge file."""

    _SHIFT = 15  # 32768 numbers in a bitmap of 4096 bytes

    def __init__(self) -> None:
        self._maps: dict[int, bytearray] = {}

    def __contains__(self, node: int) -> bool:
        bitmap = self._maps.get(node >> self._SHIFT)
        place = node & ((1 << self._SHIFT) - 1)
        return bitmap is not None and bool(bitmap[place >> 3] & (1 << (place & 7)))

    def add(self, node: int) -> None:
        """Add ``node``."""
        bitmap = self._maps.setdefault(node >> self._SHIFT, bytearray(1 << (self._SHIFT - 3)))
        place = node & ((1 << self._SHIFT) - 1)
        bitmap[place >> 3] |= 1 << (place & 7)

    def clear(self) -> None:
        """Remove all."""
        self._maps.clear()


def runs(numbers: Iterable[int], limit: int) -> Iterator[tuple[int, int]]:
    """Group ascending numbers into (first, count) of neighbours, ``limit`` at most in each."""
    first = count = 0
    for number in numbers:
        if count and number == first + count and count < limit:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
