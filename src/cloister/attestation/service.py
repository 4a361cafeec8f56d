"""Fetching collateral from Intel's PCS or any PCCS, and keeping it on disk until it runs out.

The answers are signed by the vendor, so that neither the service nor the cache has to be trusted:
whatever they say is verified with each quote.
"""

from __future__ import annotations

import datetime
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
from cryptography import x509

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import MAX_COLLATERAL_SIZE, Collateral
from cloister.attestation.expiry import expires
from cloister.attestation.pcs import ROOT_CRL_PATH, Answer, PlatformKind, Source, assemble
from cloister.attestation.signatures import require_signed
from cloister.errors import (
    AttestationError,
    CollateralError,
    CollateralFetchError,
)
from cloister.files import WRITE_ERRORS, write_atomically

INTEL_PCS = "https://api.trustedservices.intel.com"
TIMEOUT = 20.0
"""Seconds that a service has to answer."""
REFRESH_BEFORE = datetime.timedelta(days=7)
"""Collateral that runs out within this time is fetched again, if the service answers."""
RETRY_AFTER = datetime.timedelta(minutes=1)
"""A service that failed is not asked again for the same platform within this time."""


class CollateralService:
    """A PCS or PCCS, asked over HTTP.

    Args:
        url: base address, e.g. ``https://api.trustedservices.intel.com`` or a PCCS.
        anchor: the root whose revocation list belongs to the collateral.
        client: makes the requests; None takes one of its own for each.
        seconds: for the four answers together.
    """

    def __init__(
        self,
        url: str,
        anchor: TrustAnchor,
        client: httpx.Client | None = None,
        seconds: float = TIMEOUT,
    ) -> None:
        self._url = url.rstrip("/")
        self._seconds = seconds
        self._anchor = anchor
        self._client = client

    def get(
        self, kind: PlatformKind, before_asking: Callable[[], None] = lambda: None
    ) -> Collateral:
        """Fetch the collateral of a kind of platform.

        Raises:
            CollateralFetchError: the service does not answer in time, or not with success.
            CollateralError: its answer is not of the right form, or not signed under the root.
        """
        before_asking()
        end = time.monotonic() + self._seconds
        collateral = assemble(
            tcb_info=self._get(self._url + kind.tcb_info_path, end),
            qe_identity=self._get(self._url + kind.qe_identity_path, end),
            pck_crl=self._get(self._url + kind.pck_crl_path, end),
            root_crl=self._get(self._root_crl_url(), end),
        )
        require_signed(collateral, self._anchor, kind)
        return collateral

    def refresh_due(self) -> None:
        """Do nothing: nothing is kept here."""

    def _root_crl_url(self) -> str:
        # A PCCS serves the list itself; Intel's service does not, its root says where it is.
        if self._url == INTEL_PCS:
            return crl_location(self._anchor)
        return self._url + ROOT_CRL_PATH

    def _get(self, url: str, end: float) -> Answer:
        status, answer = fetch(self._client, url, seconds=end - time.monotonic())
        if status != httpx.codes.OK:
            raise CollateralFetchError(f"{url}: HTTP status {status}", hint=_HINTS.get(status))
        return answer


_HINTS: dict[int, str] = {
    httpx.codes.NOT_FOUND: "the service does not know this kind of platform (FMSPC), or is another"
    " service",
    httpx.codes.UNAUTHORIZED: "the service wants an API key",
}


def fetch(
    client: httpx.Client | None,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    seconds: float = TIMEOUT,
) -> tuple[int, Answer]:
    """Return the status and the answer of a GET request, bounded in size and in time.

    Args:
        client: makes the request; None takes one of its own, which is closed in any case, so that
            nothing of a service that never ends stays behind.
        url: what to ask for.
        headers: sent with the request.
        seconds: for the whole answer, however slowly it trickles.

    Raises:
        CollateralFetchError: no whole answer.
    """
    if seconds <= 0:
        raise CollateralFetchError(f"{url}: no whole answer in time")
    used = client or httpx.Client()
    answers: list[tuple[int, Answer] | CollateralFetchError] = []

    def ask() -> None:
        try:
            answers.append(_answer(used, url, headers, seconds))
        except CollateralFetchError as error:
            answers.append(error)
        except Exception as error:  # a name that is none, say; not its words: they quote headers
            words = f"the request cannot be made ({type(error).__name__})"
            answers.append(CollateralFetchError(f"{url}: {words}"))

    # In a thread of its own: the library's times are for single steps, and a service that sends
    # its headers byte by byte takes none of them.
    thread = threading.Thread(target=ask, daemon=True)
    try:
        thread.start()
        thread.join(seconds)
    except RuntimeError as error:
        raise CollateralFetchError(f"{url}: no thread is left to ask it") from error
    finally:
        if client is None:
            used.close()
    if not answers:
        raise CollateralFetchError(f"{url}: no whole answer in time")
    if isinstance(answers[0], CollateralFetchError):
        raise answers[0]
    return answers[0]


def _answer(
    client: httpx.Client, url: str, headers: Mapping[str, str] | None, seconds: float
) -> tuple[int, Answer]:
    end = time.monotonic() + seconds
    # Nothing is unpacked: a few hundred bytes may become gigabytes.
    asked = {**(headers or {}), "Accept-Encoding": "identity"}
    try:
        with client.stream("GET", url, headers=asked, timeout=seconds) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            if found.get("content-encoding", "identity") != "identity":
                raise CollateralFetchError(f"{url}: a packed answer, which was not asked for")
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_COLLATERAL_SIZE:
                    raise CollateralFetchError(f"{url}: more than {MAX_COLLATERAL_SIZE} bytes")
                if time.monotonic() > end:
                    raise CollateralFetchError(f"{url}: no whole answer in time")
            return response.status_code, Answer(bytes(body), found)
    except httpx.LocalProtocolError as error:  # whose text quotes headers, an API key among them
        raise CollateralFetchError(f"{url}: the request cannot be made") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CollateralFetchError(f"{url}: {error or type(error).__name__}") from error


def crl_location(anchor: TrustAnchor) -> str:
    """Return the URL at which a root says its revocation list is.

    Raises:
        CollateralError: it says none.
    """
    try:
        points = anchor.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    except x509.ExtensionNotFound as error:
        raise CollateralError(f"{anchor.name} does not say where its CRL is") from error
    for point in points.value:
        for name in point.full_name or ():
            if isinstance(name, x509.UniformResourceIdentifier):
                return name.value
    raise CollateralError(f"{anchor.name} does not say where its CRL is")


class _Slot:
    """What is kept about one kind of platform; its lock is held while it is fetched."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.collateral: Collateral | None = None
        self.expires = datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)
        self.failure: AttestationError | None = None
        self.failed_at = self.expires

    def keep(self, collateral: Collateral) -> Collateral:
        self.expires = expires(collateral)
        self.collateral = collateral
        self.failure = None
        return collateral


class CollateralCache:
    """A source in front of another: memory, then disk, then the other; refreshed ahead of time.

    A service that fails does no harm while what is kept is still valid. What has run out is
    never given out. A failure is remembered for a minute, so that clients cannot make us ask a
    service over and over.

    Args:
        source: asked when nothing valid is kept.
        directory: where collateral is kept; made if it is missing.
        anchor: the root under which what is read from there must be signed.
        clock: gives the present time (aware).
        on_failure: told of damaged files, and of refreshes that failed while the kept collateral
            is still valid.
    """

    def __init__(
        self,
        source: Source,
        directory: Path,
        *,
        anchor: TrustAnchor,
        clock: Callable[[], datetime.datetime],
        on_failure: Callable[[AttestationError], None],
    ) -> None:
        self._source = source
        self._directory = directory
        self._anchor = anchor
        self._clock = clock
        self._on_failure = on_failure
        self._slots: dict[PlatformKind, _Slot] = {}
        self._lock = threading.Lock()

    def get(
        self, kind: PlatformKind, before_asking: Callable[[], None] = lambda: None
    ) -> Collateral:
        """Return valid collateral, fetched if need be.

        Raises:
            CollateralError: nothing valid is kept and it cannot be fetched.
        """
        with self._lock:
            slot = self._slots.setdefault(kind, _Slot())
        if not slot.lock.acquire(blocking=False):
            before_asking()
            slot.lock.acquire()
        try:
            return self._get(kind, slot, before_asking)
        finally:
            slot.lock.release()

    def refresh_due(self) -> None:
        """Fetch what is in use and runs out soon; failures are told, not raised."""
        limit = self._clock() + REFRESH_BEFORE
        with self._lock:
            slots = list(self._slots.items())
        for kind, slot in slots:
            if slot.collateral is None or slot.expires > limit:
                continue
            try:
                collateral = self._ask(kind, slot.expires)
            except AttestationError as error:
                self._on_failure(error)
                continue
            with slot.lock:
                slot.keep(collateral)

    def _get(
        self, kind: PlatformKind, slot: _Slot, before_asking: Callable[[], None]
    ) -> Collateral:
        if slot.collateral is None:
            self._read(kind, slot)
        now = self._clock()
        if slot.collateral is not None and now <= slot.expires:
            return slot.collateral
        if slot.failure is not None and now < slot.failed_at + RETRY_AFTER:
            raise slot.failure
        before_asking()
        return self._fetch(kind, slot)

    def _fetch(self, kind: PlatformKind, slot: _Slot) -> Collateral:
        try:
            return slot.keep(self._ask(kind, self._clock()))
        except AttestationError as error:
            slot.failure, slot.failed_at = error, self._clock()
            raise

    def _ask(self, kind: PlatformKind, until: datetime.datetime) -> Collateral:
        """Fetch collateral that holds at least ``until`` then, and keep it on disk."""
        collateral = self._source.get(kind)
        end = expires(collateral)
        if end < until:
            raise CollateralFetchError(
                f"the service's collateral runs out on {end.isoformat()}, expected"
                f" {until.isoformat()} or later",
                hint="the service is behind, or this machine's clock is ahead",
            )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(kind), collateral.to_json().encode())
        except WRITE_ERRORS as error:
            # What was fetched is as good without: it is only asked for again by the next process.
            self._on_failure(CollateralError(f"collateral is not kept on disk: {error}"))
        return collateral

    def _read(self, kind: PlatformKind, slot: _Slot) -> None:
        try:
            collateral = Collateral.from_json(self._path(kind).read_bytes())
            require_signed(collateral, self._anchor, kind)
            slot.keep(collateral)
        except FileNotFoundError:
            return
        except (AttestationError, OSError) as error:
            # A damaged file is as good as none: it is fetched again and overwritten.
            told = error if isinstance(error, AttestationError) else CollateralError(str(error))
            self._on_failure(told)

    def _path(self, kind: PlatformKind) -> Path:
        return self._directory / f"{kind.tee}-{kind.fmspc}-{kind.ca}.json"


def cache_directory(cache: Path, url: str) -> Path:
    """Return where collateral of the service ``url`` is kept below the cache directory."""
    return cache / "collateral" / hashlib.sha256(url.encode()).hexdigest()[:16]
