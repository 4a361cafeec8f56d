"""The cache before Intel's service, with a transport that plays that service."""

from __future__ import annotations

import datetime
import json
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from cloister.attestation import Collateral, intel
from cloister.attestation.pcs import PlatformKind
from cloister.attestation.service import INTEL_PCS, CollateralService
from cloister.errors import CollateralFetchError
from cloister.pccs.app import Backend
from cloister.pccs.cache import CachingBackend

UTC = datetime.timezone.utc
DATA = Path(__file__).parent.parent / "data" / "quotes"
INTEL = Collateral.from_json((DATA / "sgx_quote_collateral.json").read_text())
KIND = PlatformKind("sgx", "00A067110000", "processor")
PCK = f"encrypted_ppid={'0' * 768}&cpusvn={'1' * 32}&pcesvn=0b00&pceid=0000"
V4 = "/sgx/certification/v4"
PCK_PATH = "/sgx/certification/v4/pckcert"


class Clock:
    def __init__(self) -> None:
        self.now = datetime.datetime(2025, 6, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime.datetime:
        return self.now


class Pcs:
    """Intel's service as far as a client can see."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.down = False
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self.down:
            raise httpx.ConnectError("no route to host")
        if self.status != 200:
            return httpx.Response(self.status)
        return self._answer(str(request.url))

    def _answer(self, url: str) -> httpx.Response:
        def chain(text: str) -> str:
            return urllib.parse.quote(text)

        if url == "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der":
            return httpx.Response(200, content=INTEL.root_ca_crl)
        path = url.removeprefix(INTEL_PCS)
        if path == KIND.tcb_info_path:
            body = f'{{"tcbInfo":{INTEL.tcb_info},"signature":"{INTEL.tcb_info_signature.hex()}"}}'
            headers = {"TCB-Info-Issuer-Chain": chain(INTEL.tcb_info_issuer_chain)}
        elif path == KIND.qe_identity_path:
            signature = INTEL.qe_identity_signature.hex()
            body = f'{{"enclaveIdentity":{INTEL.qe_identity},"signature":"{signature}"}}'
            headers = {"SGX-Enclave-Identity-Issuer-Chain": chain(INTEL.qe_identity_issuer_chain)}
        elif urllib.parse.urlsplit(path).path == "/sgx/certification/v4/pckcrl":
            headers = {"SGX-PCK-CRL-Issuer-Chain": chain(INTEL.pck_crl_issuer_chain)}
            return httpx.Response(200, content=INTEL.pck_crl, headers=headers)
        elif urllib.parse.urlsplit(path).path == PCK_PATH:
            return httpx.Response(200, content=b"PEM", headers={"SGX-TCBm": "00" * 18})
        else:
            return httpx.Response(404)
        return httpx.Response(200, content=body.encode(), headers=headers)


@pytest.fixture
def pcs() -> Pcs:
    return Pcs()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'pccs.db'}")
    yield engine
    engine.dispose()


ClientOf = Callable[[Backend], httpx.Client]
MakeApp = Callable[..., httpx.Client]


@pytest.fixture
def app(database: sa.Engine, clock: Clock, client_of: ClientOf) -> MakeApp:
    def make(
        pcs: Callable[[httpx.Request], httpx.Response], api_key: str | None = None
    ) -> httpx.Client:
        backend = CachingBackend(
            database,
            anchor=intel(),
            clock=clock,
            api_key=api_key,
            client=httpx.Client(transport=httpx.MockTransport(pcs)),
        )
        return client_of(backend)

    return make


def service_of(client: httpx.Client) -> CollateralService:
    return CollateralService(str(client.base_url), intel(), client)


def test_a_client_gets_intels_collateral_through_it(
    pcs: Pcs, app: MakeApp, database: sa.Engine, clock: Clock
) -> None:
    service = service_of(app(pcs))
    assert service.get(KIND) == INTEL
    assert len(pcs.asked) == 4
    assert service.get(KIND) == INTEL
    assert len(pcs.asked) == 4


def test_another_process_finds_what_was_kept(
    pcs: Pcs, app: MakeApp, database: sa.Engine, clock: Clock
) -> None:
    service_of(app(pcs)).get(KIND)
    pcs.down = True
    assert service_of(app(pcs)).get(KIND) == INTEL


def test_while_the_service_is_away_what_is_valid_is_served(
    pcs: Pcs, app: MakeApp, database: sa.Engine, clock: Clock
) -> None:
    service = service_of(app(pcs))
    service.get(KIND)
    pcs.down = True
    clock.now = datetime.datetime(2025, 7, 18, tzinfo=UTC)
    assert service.get(KIND) == INTEL
    clock.now = datetime.datetime(2025, 7, 20, tzinfo=UTC)
    with pytest.raises(CollateralFetchError, match="502"):
        service.get(KIND)


def test_near_its_end_it_is_asked_for_once_a_minute_and_given_out_meanwhile(
    pcs: Pcs, app: MakeApp, clock: Clock
) -> None:
    client = app(pcs)
    client.get(KIND.tcb_info_path)
    clock.now = datetime.datetime(2025, 7, 15, tzinfo=UTC)
    pcs.down = True
    for _ in range(5):
        assert client.get(KIND.tcb_info_path).status_code == 200
    assert len(pcs.asked) == 2
    clock.now += datetime.timedelta(minutes=2)
    assert client.get(KIND.tcb_info_path).status_code == 200
    assert len(pcs.asked) == 3


def test_an_answer_that_ran_out_is_not_kept(pcs: Pcs, app: MakeApp, clock: Clock) -> None:
    clock.now = datetime.datetime(2026, 7, 15, tzinfo=UTC)
    assert app(pcs).get(KIND.tcb_info_path).status_code == 502


def test_near_its_end_it_is_fetched_again(
    pcs: Pcs, app: MakeApp, database: sa.Engine, clock: Clock
) -> None:
    client = app(pcs)
    client.get(KIND.tcb_info_path)
    clock.now = datetime.datetime(2025, 7, 15, tzinfo=UTC)
    client.get(KIND.tcb_info_path)
    assert len(pcs.asked) == 2


def test_the_key_goes_only_where_it_is_needed(
    pcs: Pcs, app: MakeApp, database: sa.Engine, clock: Clock
) -> None:
    client = app(pcs, "secret-key")
    client.get(KIND.tcb_info_path)
    answer = client.get(f"{PCK_PATH}?{PCK}&qeid={'0' * 32}")
    assert answer.content == b"PEM"
    assert answer.headers["SGX-TCBm"] == "00" * 18
    keys = [request.headers.get("Ocp-Apim-Subscription-Key") for request in pcs.asked]
    assert keys == [None, "secret-key"]
    assert "qeid" not in str(pcs.asked[1].url)
    with database.connect() as connection:
        rows = connection.execute(sa.text("select * from pccs_answers")).all()
    assert "secret-key" not in str(rows)


@pytest.mark.parametrize(("status", "told"), [(404, 404), (400, 404), (401, 502), (500, 502)])
def test_failures_are_told_and_not_kept(pcs: Pcs, app: MakeApp, status: int, told: int) -> None:
    client = app(pcs)
    pcs.status = status
    assert client.get(KIND.tcb_info_path).status_code == told
    pcs.status = 200
    assert client.get(KIND.tcb_info_path).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{}", b'{"tcbInfo":{},"signature":"00"}', b"<html>"])
def test_answers_that_cannot_be_read_are_not_kept(
    app: MakeApp, database: sa.Engine, body: bytes
) -> None:
    client = app(lambda _: httpx.Response(200, content=body))
    assert client.get(KIND.tcb_info_path).status_code == 502
    assert client.get("/sgx/certification/v4/rootcacrl").status_code == 502
    with database.connect() as connection:
        assert connection.execute(sa.text("select count(*) from pccs_answers")).scalar() == 0


@pytest.mark.parametrize(
    "path",
    [
        KIND.tcb_info_path,
        KIND.qe_identity_path,
        "/sgx/certification/v4/pckcrl?ca=processor&encoding=der",
        "/sgx/certification/v4/rootcacrl",
    ],
)
def test_what_the_vendor_did_not_sign_is_not_kept(
    pcs: Pcs, app: MakeApp, database: sa.Engine, path: str
) -> None:
    """Else one bad answer would be given out until it claims to run out."""

    def liar(request: httpx.Request) -> httpx.Response:
        genuine = pcs(request)
        content = genuine.content.replace(b"2025-", b"2048-")
        if b"tcbInfo" not in content and b"enclaveIdentity" not in content:
            content = bytes([*content[:-1], content[-1] ^ 1])
        return httpx.Response(200, content=content, headers=genuine.headers)

    assert app(liar).get(path).status_code == 502
    with database.connect() as connection:
        assert connection.execute(sa.text("select count(*) from pccs_answers")).scalar() == 0
    assert app(pcs).get(path).status_code == 200


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (KIND.tcb_info_path.replace("00A067110000", "00A067110001"), KIND.tcb_info_path),
        (KIND.tcb_info_path.replace("/sgx/", "/tdx/"), KIND.tcb_info_path),
        (KIND.qe_identity_path.replace("/sgx/", "/tdx/"), KIND.qe_identity_path),
        (KIND.qe_identity_path.replace("/qe/", "/qve/"), KIND.qe_identity_path),
        (f"{V4}/pckcrl?ca=platform&encoding=der", f"{V4}/pckcrl?ca=processor&encoding=der"),
    ],
)
def test_what_was_not_asked_for_is_not_kept(
    pcs: Pcs, app: MakeApp, database: sa.Engine, asked: str, answered: str
) -> None:
    def confused(request: httpx.Request) -> httpx.Response:
        return pcs(httpx.Request("GET", INTEL_PCS + answered))

    assert app(confused).get(asked).status_code == 502
    with database.connect() as connection:
        assert connection.execute(sa.text("select count(*) from pccs_answers")).scalar() == 0


def test_headers_of_others_are_not_passed_on(
    pcs: Pcs, app: MakeApp, database: sa.Engine, clock: Clock
) -> None:
    client = app(pcs)
    assert json.loads(client.get(KIND.tcb_info_path).text)["signature"]
    with database.connect() as connection:
        (headers,) = connection.execute(sa.text("select headers from pccs_answers")).one()
    assert set(json.loads(headers)) == {"tcb-info-issuer-chain"}
