"""A cache before Intel's service: asks once, keeps the answer until it runs out.

The API key, which the service wants for PCK certificates, stays here; clients need none. What
has run out is never given out, so that an owner who relies on this service notices when Intel's
cannot be reached for too long.
"""

from __future__ import annotations

import datetime
import json
import threading
import urllib.parse
from collections.abc import Callable, Mapping

import httpx
import sqlalchemy as sa
from cryptography import x509

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.expiry import parse_time
from cloister.attestation.pcs import (
    PCK_CRL_CHAIN,
    QE_IDENTITY_CHAIN,
    TCB_INFO_CHAIN,
    Answer,
    signed_member,
)
from cloister.attestation.service import (
    INTEL_PCS,
    RETRY_AFTER,
    TIMEOUT,
    crl_location,
    fetch,
)
from cloister.attestation.signatures import (
    QE_IDS,
    list_issuer,
    qe_id,
    require_root_list,
    require_signed_text,
)
from cloister.attestation.supplement import require_crl_issuer
from cloister.errors import AttestationError, CollateralFetchError, CollateralNotFoundError

REFRESH_SECONDS = 3.0
"""How long a service has to answer where what is kept would do."""
REFRESH_BEFORE = datetime.timedelta(days=7)
CERTIFICATE_LIFETIME = datetime.timedelta(days=1)
"""PCK certificates have no next update; they are asked for again after a day."""

_METADATA = sa.MetaData()
_ANSWERS = sa.Table(
    "pccs_answers",
    _METADATA,
    sa.Column("url", sa.String, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)


class CachingBackend:
    """Answers from a database, else from a PCS, whose answers it keeps.

    Args:
        database: where answers are kept.
        anchor: the root whose revocation list is served.
        clock: gives the present time (aware).
        upstream: base address of the service.
        api_key: sent with requests for PCK certificates; None sends none.
        client: makes the requests; None takes one of its own for each.
    """

    def __init__(
        self,
        database: sa.Engine,
        *,
        anchor: TrustAnchor,
        clock: Callable[[], datetime.datetime],
        upstream: str = INTEL_PCS,
        api_key: str | None = None,
        client: httpx.Client | None = None,
    ) -> None:
        _METADATA.create_all(database)
        self._database = database
        self._anchor = anchor
        self._clock = clock
        self._upstream = upstream.rstrip("/")
        self._api_key = api_key
        self._client = client
        self._refreshed: dict[str, datetime.datetime] = {}
        self._lock = threading.Lock()

    def answer(self, path: str, parameters: Mapping[str, str]) -> Answer:
        """Return the answer for a path of the API; see :class:`cloister.pccs.app.Backend`."""
        url = self._url(path, parameters)
        kept = self._kept(url)
        now = self._clock()
        if kept is None or kept[1] < now:
            return self._fetch(path, url, parameters, until=now, seconds=TIMEOUT)
        if now + REFRESH_BEFORE < kept[1] or not self._is_due(url, now):
            return kept[0]
        try:
            return self._fetch(path, url, parameters, until=kept[1], seconds=REFRESH_SECONDS)
        except CollateralFetchError:
            return kept[0]

    def _is_due(self, url: str, now: datetime.datetime) -> bool:
        """Tell whether to ask again for what still holds; not for each client that asks."""
        with self._lock:
            before = self._refreshed.get(url)
            if before is not None and now < before + RETRY_AFTER:
                return False
            self._refreshed[url] = now
            return True

    def _url(self, path: str, parameters: Mapping[str, str]) -> str:
        if path.endswith("/rootcacrl"):
            return crl_location(self._anchor)
        wanted = {name: value for name, value in parameters.items() if name != "qeid"}
        if path.endswith("/pckcrl"):
            wanted["encoding"] = "der"
        query = urllib.parse.urlencode(sorted(wanted.items()))
        return f"{self._upstream}{path}?{query}" if query else f"{self._upstream}{path}"

    def _kept(self, url: str) -> tuple[Answer, datetime.datetime] | None:
        with self._database.connect() as connection:
            row = connection.execute(sa.select(_ANSWERS).where(_ANSWERS.c.url == url)).first()
        if row is None:
            return None
        expires = datetime.datetime.fromtimestamp(row.expires, tz=datetime.timezone.utc)
        return Answer(row.body, json.loads(row.headers)), expires

    def _fetch(
        self,
        path: str,
        url: str,
        parameters: Mapping[str, str],
        *,
        until: datetime.datetime,
        seconds: float,
    ) -> Answer:
        answer = self._ask(path, url, seconds)
        try:
            self._require_asked(path, answer, parameters)
            self._require_signed(path, answer)
            expires = self._expires(path, answer).timestamp()
        except AttestationError as error:
            raise CollateralFetchError(f"{url}: {error.message}") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise CollateralFetchError(f"{url}: an answer that cannot be read") from error
        if expires < until.timestamp():
            raise CollateralFetchError(f"{url}: an answer that runs out too early")
        values = {
            "body": answer.body,
            "headers": json.dumps(dict(answer.headers)),
            "expires": expires,
        }
        with self._database.begin() as connection:
            connection.execute(sa.delete(_ANSWERS).where(_ANSWERS.c.url == url))
            connection.execute(sa.insert(_ANSWERS).values(url=url, **values))
        return answer

    def _ask(self, path: str, url: str, seconds: float) -> Answer:
        headers = {}
        if self._api_key is not None and path.endswith("/pckcert"):
            headers["Ocp-Apim-Subscription-Key"] = self._api_key
        status, answer = fetch(self._client, url, headers=headers, seconds=seconds)
        if status in (httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST):
            raise CollateralNotFoundError(f"the service has no {path} for these parameters")
        if status != httpx.codes.OK:
            raise CollateralFetchError(f"{url}: HTTP status {status}")
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.startswith(("sgx-", "tcb-info-", "cloister-"))
        }
        return Answer(answer.body, kept)

    def _require_asked(self, path: str, answer: Answer, parameters: Mapping[str, str]) -> None:
        """Check that the answer is of the kind of platform that was asked for."""
        tee = path.split("/")[1]
        if path.endswith("/tcb"):
            info = json.loads(signed_member(answer.body, "tcbInfo")[0])
            found = (str(info["id"]).lower(), str(info["fmspc"]).upper())
            asked = (tee, parameters["fmspc"].upper())
        elif path.endswith("/identity"):
            found = (qe_id(signed_member(answer.body, "enclaveIdentity")[0]), "")
            asked = ("QVE" if "/qve/" in path else QE_IDS[tee], "")
        elif path.endswith("/pckcrl"):
            found, asked = (list_issuer(answer.body), ""), (parameters["ca"], "")
        else:
            return
        if found != asked:
            raise CollateralFetchError("the answer is of another kind of platform")

    def _require_signed(self, path: str, answer: Answer) -> None:
        """Check what the root vouches for: a bad answer would be kept until it claims to run out.

        A PCK certificate is the platform's own business, and kept for a day.
        """
        if path.endswith("/tcb"):
            chain = answer.chain(TCB_INFO_CHAIN)
            signed = signed_member(answer.body, "tcbInfo")
            require_signed_text("TCB info", *signed, chain, self._anchor)
        elif path.endswith("/identity"):
            chain = answer.chain(QE_IDENTITY_CHAIN)
            signed = signed_member(answer.body, "enclaveIdentity")
            require_signed_text("QE identity", *signed, chain, self._anchor)
        elif path.endswith("/pckcrl"):
            require_crl_issuer(answer.chain(PCK_CRL_CHAIN), answer.body, self._anchor)
        elif path.endswith("/rootcacrl"):
            require_root_list(answer.body, self._anchor)

    def _expires(self, path: str, answer: Answer) -> datetime.datetime:
        if path.endswith("/tcb"):
            return _next_update(answer.body, "tcbInfo")
        if path.endswith("/identity"):
            return _next_update(answer.body, "enclaveIdentity")
        if path.endswith("crl"):
            update = x509.load_der_x509_crl(answer.body).next_update_utc
            return update or self._clock() + CERTIFICATE_LIFETIME
        return self._clock() + CERTIFICATE_LIFETIME


def _next_update(body: bytes, name: str) -> datetime.datetime:
    return parse_time(json.loads(signed_member(body, name)[0])["nextUpdate"])
