"""Random access to the plaintext of one encrypted file, with one state for all its handles.

Writes are kept in memory until :meth:`EncryptedContent.flush`, which makes them the file's content
in one step (:mod:`cloister.encrypted.journal`). When more than 10 MiB wait they are written out
early, but a crash before the flush is done still brings back the content of the last flush.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NoReturn

from cloister.encrypted import checks
from cloister.encrypted.backing import Backing, Buffer, RecoveryStore
from cloister.encrypted.constants import GRAMINE_VERSION, HEAD_SIZE, KEY_SIZE, NODE_SIZE
from cloister.encrypted.journal import DirectJournal, Journal, UndoJournal
from cloister.encrypted.keys import KeySource, SystemKeys
from cloister.encrypted.layout import (
    EMPTY_METADATA,
    Metadata,
    data_count,
    host_nodes,
    seal_metadata,
)
from cloister.encrypted.nodes import WAITING_LIMIT, DataNodes
from cloister.encrypted.recovery import RecoveredView, load_undo, undo
from cloister.encrypted.runs import RUN_NODES
from cloister.errors import InputError, RecoveryError, TamperedError, TruncatedError

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_SIZE: Final = 1 << 62


class EncryptedContent:
    """The plaintext of one encrypted file, on any backing.

    All handles of a file share one object, and so see each other's writes. Not thread-safe: the
    caller serves one request at a time. Make one with :meth:`open` or :meth:`create`.

    Args:
        main: the ciphertext.
        wrap_key: 16 bytes.
        metadata: the authenticated content of node 0.
        name: how errors call the file.
        journal: how nodes are written; None: the file is read only.
        keys: where fresh node keys come from.
        version: major version to write.
        waiting_limit: changed nodes, 4096 bytes each, kept before they are written out.
    """

    def __init__(
        self,
        main: Backing,
        wrap_key: bytes,
        metadata: Metadata,
        *,
        name: str,
        journal: Journal | None,
        keys: KeySource,
        version: int,
        waiting_limit: int = WAITING_LIMIT,
    ) -> None:
        self.name = name
        self._main = main
        self._wrap_key = wrap_key
        self._journal = journal
        self._keys = keys
        self._version = version
        self._path = metadata.path
        self._size = metadata.size
        self._head = bytearray(metadata.head)
        self._nodes = DataNodes(
            main,
            name=name,
            root_entry=metadata.root_key + metadata.root_tag,
            count=data_count(metadata.size),
            journal=journal,
            keys=keys,
            waiting_limit=waiting_limit,
        )
        self._changed = False
        self._closed = False

    def __reduce__(self) -> NoReturn:
        """Refuse, as open files do: a pickle would hold the key."""
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    # --- Named constructors -------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        main: Backing,
        key: bytes,
        embedded_path: str | None,
        *,
        name: str,
        store: RecoveryStore | None,
        writable: bool,
        keys: KeySource | None = None,
        version: int = GRAMINE_VERSION,
        waiting_limit: int = WAITING_LIMIT,
    ) -> Self:
        """Open an encrypted file on any backing.

        Args:
            main: the ciphertext.
            key: the wrap key, 16 bytes.
            embedded_path: the path it must be bound to; None does not compare.
            name: how errors call the file.
            store: where its recovery file lies. None is for bytes that no crash can interrupt
                (memory, files without a name yet): writes then go straight through.
            writable: False opens it for reading only.
            keys: where fresh node keys come from; None: the operating system.
            version: major version it gets when it is changed.
        """
        checks.check_key(key)
        try:
            node0 = checks.read_node0(main, name)
            if store is not None and checks.pending(node0):
                if not writable:
                    view = RecoveredView(main, load_undo(main, store, key, name))
                    return cls.open(view, key, embedded_path, name=name, store=None, writable=False)
                undo(main, store, key, name)
                node0 = checks.read_node0(main, name)
            metadata = checks.authenticate(node0, key, name)
            checks.compare_path(metadata, embedded_path, name)
            checks.compare_size(metadata, main.size(), name)
        except (RecoveryError, TamperedError, TruncatedError) as error:
            raise checks.blamed(error, main, name) from error.__cause__
        journal = _journal(main, store, name, node0, metadata.size) if writable else None
        return cls(
            main,
            key,
            metadata,
            name=name,
            journal=journal,
            keys=keys or SystemKeys(),
            version=version,
            waiting_limit=waiting_limit,
        )

    @classmethod
    def create(
        cls,
        main: Backing,
        key: bytes,
        embedded_path: str,
        *,
        name: str,
        keys: KeySource | None = None,
        version: int = GRAMINE_VERSION,
        waiting_limit: int = WAITING_LIMIT,
    ) -> Self:
        """Make an encrypted file on an empty backing that no crash can interrupt.

        Node 0 is written by the first flush; :meth:`close` flushes.
        """
        checks.check_key(key)
        metadata = EMPTY_METADATA._replace(path=checks.encode_path(embedded_path))
        file = cls(
            main,
            key,
            metadata,
            name=name,
            journal=DirectJournal(main),
            keys=keys or SystemKeys(),
            version=version,
            waiting_limit=waiting_limit,
        )
        file._changed = True
        return file

    # --- What the file is ---------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Plaintext bytes, unflushed ones included."""
        return self._size

    @property
    def embedded_path(self) -> str:
        """The path the file is bound to."""
        return checks.decode_path(self._path)

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that the content follows from: of two flushed states, only equal ones.

        What lies behind the first 3072 bytes is authenticated by the root's key and tag.
        """
        size = self._size.to_bytes(8, "little")
        return hashlib.sha256(size + self._nodes.root_entry + self._head).digest()

    @property
    def writable(self) -> bool:
        """Whether the file was opened for writing."""
        return self._journal is not None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    # --- Reading ------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer only at the end of the file.

        Raises:
            TamperedError: a node that holds some of them does not authenticate.
            TruncatedError: the host file was cut while it was open.
        """
        length = min(length, self._size - _positive(offset))
        if length <= 0:
            return b""
        if offset >= HEAD_SIZE:
            index, start = divmod(offset - HEAD_SIZE, NODE_SIZE)
            if start + length <= NODE_SIZE:
                return bytes(self._nodes.node(index)[start : start + length])
            if start + length <= 2 * NODE_SIZE:
                first, second = self._nodes.pair(index)
                return bytes(first[start:] + second[: start + length - NODE_SIZE])
        result = bytearray(length)
        self._fill(offset, memoryview(result))
        return bytes(result)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset``; return how many bytes there were.

        Raises:
            TamperedError: a node does not authenticate; the buffer then holds authentic bytes and
                what was there before.
        """
        length = max(0, min(len(buffer), self._size - _positive(offset)))
        if length:
            self._fill(offset, buffer[:length])
        return length

    def run(self, number: int) -> memoryview:
        """Return the content of a run: 98304 bytes from 3072 + number * 98304 on, fewer at the end.

        The quickest way to all of a file. The bytes are valid until the next use of any file in
        this thread.

        Raises:
            TamperedError, TruncatedError: as :meth:`read`.
        """
        start = number * RUN_NODES * NODE_SIZE
        length = min(RUN_NODES * NODE_SIZE, self._size - HEAD_SIZE - start)
        if length <= 0:
            return memoryview(b"")
        return self._nodes.run(start, length)

    def _fill(self, offset: int, target: memoryview) -> None:
        """Fill ``target``; all of it lies inside the file."""
        if offset < HEAD_SIZE:
            count = min(len(target), HEAD_SIZE - offset)
            target[:count] = self._head[offset : offset + count]
            target = target[count:]
            offset += count
        if len(target) > 0:
            self._nodes.fill(offset - HEAD_SIZE, target)

    # --- Writing ------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset``; a gap behind the end is filled with zeros.

        Raises:
            InputError: the file is read only, or would become larger than 2**62 bytes.
            OSError: the disk refused nodes that were written out early.
        """
        view = memoryview(data).cast("B")
        end = _positive(offset) + len(view)
        self._require_writable(end)
        if len(view) == 0:
            return
        if offset > self._size:
            self.truncate(offset)
        self._changed = True
        if offset < HEAD_SIZE:
            count = min(len(view), HEAD_SIZE - offset)
            self._head[offset : offset + count] = view[:count]
            view = view[count:]
            offset += count
        with self._all_or_no_growth():
            if len(view) > 0:
                self._nodes.write(offset - HEAD_SIZE, view)
            self._size = max(self._size, end)

    def truncate(self, size: int) -> None:
        """Cut the file, or extend it with zeros, to ``size`` bytes.

        Raises:
            InputError: the file is read only, or would become larger than 2**62 bytes.
        """
        self._require_writable(_positive(size))
        if size == self._size:
            return
        self._changed = True
        # Behind the end of the content a node may hold anything: other writers do not clear it.
        self._clear_from(min(size, self._size))
        with self._all_or_no_growth():
            if size > self._size:
                self._nodes.extend(data_count(size))
            else:
                self._nodes.cut(data_count(size))
            self._size = size

    @contextlib.contextmanager
    def _all_or_no_growth(self) -> Iterator[None]:
        """When the disk refuses, forget appended nodes: they must not come back by growing."""
        try:
            yield
        except BaseException:
            self._nodes.cut(data_count(self._size))
            raise

    def _clear_from(self, offset: int) -> None:
        """Zero the rest of the node that holds ``offset``."""
        if offset < HEAD_SIZE:
            self._head[offset:] = bytes(HEAD_SIZE - offset)
        elif rest := (HEAD_SIZE - offset) % NODE_SIZE:
            self._nodes.write(offset - HEAD_SIZE, memoryview(bytes(rest)))

    def adopt(self, entries: bytes | bytearray, size: int) -> None:
        """Append data nodes that were sealed and written to their places elsewhere.

        Args:
            entries: their keys and tags; nodes of one group of 96 only.
            size: plaintext bytes of the file with them; the content so far fills its last node.
        """
        self._require_writable(size)
        self._nodes.adopt(entries)
        self._size = size
        self._changed = True

    def rename(self, embedded_path: str) -> None:
        """Bind the file to another path and flush.

        Raises:
            EmbeddedPathError: the path cannot be embedded.
        """
        encoded = checks.encode_path(embedded_path)
        self._require_writable(0)
        self._path = encoded
        self._changed = True
        self.flush()

    def _require_writable(self, size: int) -> Journal:
        if self._journal is None:
            raise InputError(f"{self.name}: opened for reading only")
        if size > MAX_SIZE:
            raise InputError(f"{self.name}: {size} bytes is more than a file can hold")
        return self._journal

    # --- Reaching the disk --------------------------------------------------------------------

    def flush(self) -> None:
        """Make everything written so far the content that a crash leaves; durable on return.

        Raises:
            OSError: the disk refused; what was written stays in memory and may be flushed again.
            RecoveryError: an earlier failure left the disk in doubt; open the file again.
        """
        if self._journal is None or not self._changed:
            return
        self._nodes.seal()
        self._journal.commit(self._sealed_node0(self._path), host_nodes(self._size))
        self._changed = False

    def _sealed_node0(self, path: bytes) -> bytes:
        root = self._nodes.root_entry
        metadata = Metadata(path, self._size, root[:KEY_SIZE], root[KEY_SIZE:], bytes(self._head))
        return seal_metadata(metadata, self._wrap_key, self._keys.nonce(), self._version)

    def fsync(self) -> None:
        """Flush, and return when the content survives a power loss."""
        self.flush()
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Flush and release the file; idempotent. A failed flush still releases it."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            self._release()

    def _release(self) -> None:
        try:
            if self._journal is not None:
                self._journal.close()
        finally:
            self._main.close()
            self._nodes.forget()


def _positive(number: int) -> int:
    """Return an offset or a size that is one."""
    if number < 0:
        raise InputError(f"offset or size {number}, expected 0 or more")
    return number


def _journal(
    main: Backing, store: RecoveryStore | None, name: str, node0: bytes, size: int
) -> Journal:
    if store is None:
        return DirectJournal(main)
    return UndoJournal(main, store, name=name, node0=node0, host_nodes=host_nodes(size))
