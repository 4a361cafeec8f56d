"""What a run with ``--record`` collects: which files, which denials, which keys, and when.

Other runs have none of this. Content and keys never come here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from hashlib import sha256

from cloister import __version__
from cloister.errors import CloisterError
from cloister.fuse.filesystem import Caller, Entry, Opened
from cloister.manifest.explain import explain
from cloister.manifest.model import Manifest
from cloister.manifest.parse import ManifestText
from cloister.platforms import base
from cloister.provision.request import Provisioned
from cloister.report.record import (
    FORMAT,
    Denial,
    Failure,
    Files,
    Kind,
    Meaning,
    Measured,
    Memory,
    Platform,
    Quotes,
    Release,
    RunRecord,
    Times,
    UsedFile,
)
from cloister.runtime.encrypted import EncryptedNode
from cloister.runtime.foresight import Trail
from cloister.runtime.host import HostFile
from cloister.runtime.nodes import Directory, Handle, Node
from cloister.runtime.plan import MemoryUse
from cloister.runtime.policy import PathSet
from cloister.runtime.pseudo import PseudoFile
from cloister.runtime.trusted import TrustedHandle
from cloister.runtime.view import View
from cloister.sgx.sigstruct import Sigstruct, decode_date
from cloister.text import printable

MOST_LISTED = 50_000
"""Files of a kind, and denials, that are kept by name; of more only the number."""


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Built:
    """What an enclave is started from.

    Attributes:
        manifest: the signed manifest's bytes.
        sigstruct: SIGSTRUCT, 1808 bytes.
        image: the measured runtime image.
        trusted_files: how many files the manifest trusts.
        time: when the signed manifest was written, by this machine's clock.
    """

    manifest: bytes
    sigstruct: bytes
    image: bytes
    trusted_files: int
    time: datetime


class Recorder:
    """Collects the facts of one run.

    Args:
        app: the application's name.
        manifest: the validated manifest.
        text: returns the manifest with its text; called when the run is over.
        platform: where its enclave will run; None is direct mode.
        begun: when the user asked for the run.
    """

    def __init__(
        self,
        app: str,
        manifest: Manifest,
        text: Callable[[], ManifestText],
        platform: base.Platform | None,
        begun: datetime,
    ) -> None:
        self._app = app
        self._manifest = manifest
        self._text = text
        self._platform = platform
        self._begun = begun
        self._measured: Measured | None = None
        self._enclave: datetime | None = None
        self._program: datetime | None = None
        self._ended: datetime | None = None
        self._exit_code: int | None = None
        self._releases: list[Release] = []
        self._quotes: Quotes | None = None
        self._denials: dict[tuple[str, str, str, str, str | None], int] = {}
        self._denials_unlisted = 0
        self._limits: list[str] = []
        self._memory: list[Memory] = []
        self._ledger = _Ledger()

    def enclave_started(self, enclave: base.Enclave, built: Built) -> None:
        """Remember the enclave and what it was measured from."""
        self._enclave = now()
        self._measured = _measured(enclave, built, self._manifest)

    def released(self, provisioned: Provisioned) -> None:
        """Remember who released a secret, and which; never the secret."""
        release = Release(
            time=now(),
            key=provisioned.key_name,
            server=printable(str(provisioned.server)),
            certificate=sha256(provisioned.certificate).hexdigest(),
        )
        self._releases.append(release)

    def denied(self, kind: str, intent: str, path: str, reason: str, mend: str | None) -> None:
        """Count a denial."""
        key = (kind, intent, path, reason, mend)
        if key in self._denials or len(self._denials) < MOST_LISTED:
            self._denials[key] = self._denials.get(key, 0) + 1
        else:
            self._denials_unlisted += 1

    def limit(self, reached: str) -> None:
        """Remember a limit that the program reached."""
        self._limits.append(printable(reached))

    def view(self, root: Directory, trail: Trail | None, quote: Node | None) -> View:
        """Return a view that counts.

        Args:
            root: the node of ``/``.
            trail: see :class:`View`.
            quote: the node from which the program takes quotes, if there is one.
        """
        uris = self._manifest.sgx.allowed_files if self._measured is not None else []
        allowed = PathSet(uri.partition(":")[2] for uri in uris)

        def opened(node: Node, handle: Handle) -> _Use | None:
            if isinstance(node, PseudoFile) and node.original is quote:
                self._quoted()
            if not isinstance(node, (HostFile, EncryptedNode)):
                return None  # it exists only in the tree
            return self._ledger.use(_kind(node, handle, allowed), node.place.path)

        return RecordedView(root, trail, opened)

    def _quoted(self) -> None:
        first = now() if self._quotes is None else self._quotes.first
        count = 1 if self._quotes is None else self._quotes.count + 1
        self._quotes = Quotes(count=count, first=first)

    def program_starts(self) -> None:
        """Remember when the program started."""
        self._program = now()

    def ended(self, exit_code: int, memory: Sequence[MemoryUse]) -> None:
        """Remember how the program ended, and what its tmpfs mounts held then."""
        self._ended = now()
        self._exit_code = exit_code
        self._memory = [Memory(path=printable(m.path), files=m.files, size=m.size) for m in memory]

    def record(self, failure: CloisterError | None) -> RunRecord:
        """Return the record.

        Args:
            failure: why the program did not start.
        """
        return RunRecord(
            format=FORMAT,
            app=printable(self._app),
            mode="direct" if self._platform is None else "sgx",
            version=__version__,
            platform=None if self._platform is None else _platform(self._platform),
            enclave=self._measured,
            meaning=_meaning(self._text()),
            times=Times(
                begun=self._begun,
                enclave=self._enclave,
                program=self._program,
                program_ended=self._ended,
                ended=now(),
            ),
            exit_code=self._exit_code,
            failure=None if failure is None else _failure(failure),
            releases=tuple(self._releases),
            quotes=self._quotes,
            files=tuple(self._ledger.files()),
            memory=tuple(self._memory),
            denials=tuple(_denial(key, count) for key, count in self._denials.items()),
            denials_unlisted=self._denials_unlisted,
            limits=tuple(self._limits),
        )


def _denial(key: tuple[str, str, str, str, str | None], count: int) -> Denial:
    kind, intent, path, reason, mend = key
    return Denial(
        kind=kind,
        intent=intent,
        path=printable(path),
        reason=printable(reason),
        mend=None if mend is None else printable(mend),
        count=count,
    )


def _failure(error: CloisterError) -> Failure:
    hint = None if error.hint is None else printable(error.hint)
    return Failure(message=printable(error.message), hint=hint)


def _platform(platform: base.Platform) -> Platform:
    return Platform(
        name=platform.name, description=platform.description, simulated=platform.simulated
    )


def _meaning(text: ManifestText) -> Meaning:
    return Meaning.model_validate(_escaped(asdict(explain(text))))


def _escaped(value: object) -> object:
    """Escape every text in lists and tables."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    if isinstance(value, dict):
        return {name: _escaped(each) for name, each in value.items()}
    return value


def _measured(enclave: base.Enclave, built: Built, manifest: Manifest) -> Measured:
    signed, sgx = Sigstruct.unpack(built.sigstruct), manifest.sgx
    index = manifest.cloister.trusted_index
    return Measured(
        mrenclave=enclave.mrenclave.hex(),
        mrsigner=enclave.mrsigner.hex(),
        isv_prod_id=enclave.isv_prod_id,
        isv_svn=enclave.isv_svn,
        debug=enclave.debug,
        flags=hex(signed.flags),
        xfrm=hex(signed.xfrm),
        misc_select=hex(signed.misc_select),
        manifest=sha256(built.manifest).hexdigest(),
        index=None if index is None else index.sha256,
        trusted_files=built.trusted_files,
        image=sha256(built.image).hexdigest(),
        enclave_size=sgx.enclave_size,
        max_threads=sgx.max_threads,
        edmm=sgx.edmm_enable,
        remote_attestation=sgx.remote_attestation,
        signed_on=decode_date(signed.date),
        built=built.time,
    )


# --- files ---------------------------------------------------------------------------------------


def _kind(node: HostFile | EncryptedNode, handle: Handle, allowed: PathSet) -> Kind:
    """Return what protects an open file."""
    if isinstance(node, EncryptedNode):
        return Kind.ENCRYPTED
    if isinstance(handle, TrustedHandle):
        return Kind.TRUSTED
    if node.scene.unbuffered:
        return Kind.MACHINE
    return Kind.ALLOWED if allowed.covers(node.place.path) else Kind.UNCHECKED


@dataclass
class _Use:
    """What became of one file so far."""

    size: int = 0
    read: int = 0
    written: int = 0


class _Ledger:
    """Files by kind and URI path."""

    def __init__(self) -> None:
        self._uses: dict[Kind, dict[str, _Use]] = {kind: {} for kind in Kind}
        self._unlisted = dict.fromkeys(Kind, 0)

    def use(self, kind: Kind, path: str) -> _Use | None:
        """Return where the use of a file is counted; None if too many are listed already."""
        uses = self._uses[kind]
        if path not in uses and len(uses) >= MOST_LISTED:
            self._unlisted[kind] += 1
            return None
        return uses.setdefault(path, _Use())

    def files(self) -> list[Files]:
        """Return what was counted."""
        return [
            Files(
                kind=kind,
                unlisted=self._unlisted[kind],
                listed=tuple(
                    UsedFile(path=printable(path), **vars(use))
                    for path, use in sorted(uses.items())
                ),
            )
            for kind, uses in self._uses.items()
            if uses
        ]


class RecordedView(View):
    """A view that counts what the program opens, reads and writes.

    Args:
        root: the node of ``/``.
        trail: see :class:`View`.
        opened: told of every open file; returns where its use is counted, if it is.
    """

    def __init__(
        self,
        root: Directory,
        trail: Trail | None,
        opened: Callable[[Node, Handle], _Use | None],
    ) -> None:
        super().__init__(root, trail)
        self._tell = opened
        self._uses: dict[int, _Use] = {}

    def _count(self, node: int, opened: Opened) -> None:
        use = self._tell(self._known[node].node, self._handles[opened.handle])
        if use is not None:
            self._uses[opened.handle] = use
            self._measure(opened.handle)

    def _measure(self, handle: int) -> None:
        """Take down the size; of a file that does not tell it any more the last one stays."""
        with contextlib.suppress(OSError):
            self._uses[handle].size = self._handles[handle].attributes().size

    def open(self, node: int, flags: int, caller: Caller) -> Opened:
        """See :class:`View`."""
        opened = super().open(node, flags, caller)
        self._count(node, opened)
        return opened

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, Opened]:
        """See :class:`View`."""
        entry, opened = super().create(parent, name, flags, mode, caller)
        self._count(entry.node, opened)
        return entry, opened

    def tmpfile(self, parent: int, flags: int, mode: int, caller: Caller) -> tuple[Entry, Opened]:
        """See :class:`View`."""
        entry, opened = super().tmpfile(parent, flags, mode, caller)
        self._count(entry.node, opened)
        return entry, opened

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes | memoryview:
        """See :class:`View`."""
        data = super().read(node, handle, offset, size)
        if handle in self._uses:
            self._uses[handle].read += len(data)
        return data

    def write(self, node: int, handle: int, offset: int, data: memoryview, *, append: bool) -> int:
        """See :class:`View`."""
        count = super().write(node, handle, offset, data, append=append)
        if handle in self._uses:
            self._uses[handle].written += count
        return count

    def release(self, node: int, handle: int) -> None:
        """See :class:`View`."""
        if handle in self._uses:
            self._measure(handle)
            del self._uses[handle]
        super().release(node, handle)

    def destroy(self) -> None:
        """See :class:`View`."""
        for handle in self._uses:
            self._measure(handle)
        super().destroy()
