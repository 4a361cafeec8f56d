"""The PCS API as clients meet it: parameters, status codes, encodings, bad days."""

from __future__ import annotations

import asyncio
import datetime
import subprocess
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path

import dcap_qvl  # type: ignore[import-untyped]
import httpx
import pytest
from cryptography import x509

from cloister.attestation import Collateral, TrustAnchor
from cloister.attestation.dcap import kind_of
from cloister.attestation.pcs import Answer
from cloister.attestation.policy import MrEnclave
from cloister.attestation.service import CollateralService
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import (
    CloisterError,
    CollateralFetchError,
    CollateralNotFoundError,
    ExpiredCollateralError,
    RevokedError,
    TcbStatusError,
)
from cloister.pccs.app import Backend
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.platforms.simulated.collateral import Conditions
from cloister.platforms.simulated.pccs import SimulatedBackend
from cloister.sgx.quote import parse_quote

Start = Callable[..., SimulatedEnclave]
FMSPC = b"SIMCPU".hex().upper()
V4 = "/sgx/certification/v4"


ClientOf = Callable[[Backend], httpx.Client]


def simulated_backend(
    platform: SimulatedPlatform, conditions: Conditions | None = None
) -> SimulatedBackend:
    return SimulatedBackend(lambda: platform.export(conditions).collateral)


@pytest.fixture
def client(simulated: SimulatedPlatform, client_of: ClientOf) -> httpx.Client:
    return client_of(simulated_backend(simulated))


def service_of(client: httpx.Client, anchor: TrustAnchor) -> CollateralService:
    return CollateralService(str(client.base_url), anchor, client)


def test_dcap_qvls_own_client_gets_what_was_published(
    simulated: SimulatedPlatform, start_enclave: Start, client: httpx.Client
) -> None:
    """A client that we did not write: it knows the API of Intel's and of other people's PCCS."""
    quote = start_enclave(simulated).quote(bytes(64))

    async def fetch() -> dcap_qvl.QuoteCollateralV3:
        return await dcap_qvl.get_collateral(str(client.base_url).rstrip("/"), quote)

    fetched = Collateral.from_json(asyncio.run(fetch()).to_json())
    assert fetched == simulated.export().collateral


def test_what_is_served_is_what_is_exported(
    simulated: SimulatedPlatform, start_enclave: Start, client: httpx.Client
) -> None:
    kind = kind_of(parse_quote(start_enclave(simulated).quote(bytes(64))))
    bundle = simulated.export()
    assert service_of(client, bundle.anchor).get(kind) == bundle.collateral


@pytest.mark.parametrize(
    ("conditions", "error"),
    [
        (None, None),
        (Conditions(tcb_status="OutOfDate"), TcbStatusError),
        (Conditions(tcb_status="ConfigurationNeeded"), TcbStatusError),
        (Conditions(tcb_status="Revoked"), RevokedError),
        (Conditions(pck_revoked=True), RevokedError),
        (Conditions(qe_status="Revoked"), RevokedError),
        (Conditions(lifetime=datetime.timedelta(minutes=-1)), ExpiredCollateralError),
    ],
)
def test_bad_days_reach_the_verifier(
    simulated: SimulatedPlatform,
    start_enclave: Start,
    client_of: ClientOf,
    conditions: Conditions | None,
    error: type[CloisterError] | None,
) -> None:
    enclave, anchor = start_enclave(simulated), simulated.trust_anchor()
    client = client_of(simulated_backend(simulated, conditions))
    trust = Trust(sources=((anchor, service_of(client, anchor)),))
    now = datetime.datetime.now(datetime.timezone.utc)
    authentication = Authenticator(trust, lambda: now).authenticate(enclave.quote(bytes(64)))
    verdict = authentication.judge(MrEnclave(enclave.mrenclave))
    if error is None:
        assert verdict.accepted
        return
    with pytest.raises(error):
        verdict.require()


def test_every_answer_says_simulated(client: httpx.Client) -> None:
    for path in (f"/tcb?fmspc={FMSPC}", "/qe/identity", "/pckcrl?ca=processor", "/rootcacrl"):
        answer = client.get(V4 + path)
        assert answer.status_code == 200
        assert answer.headers["Cloister-SIMULATED"] == "1"


def test_chains_are_url_encoded_pem(client: httpx.Client) -> None:
    answer = client.get(f"{V4}/tcb?fmspc={FMSPC.lower()}")
    chain = urllib.parse.unquote(answer.headers["TCB-Info-Issuer-Chain"])
    assert len(x509.load_pem_x509_certificates(chain.encode())) == 2


@pytest.mark.parametrize("encoding", ["", "&encoding=pem", "&encoding=der"])
def test_revocation_lists_in_both_encodings(
    client: httpx.Client, tmp_path: Path, encoding: str
) -> None:
    answer = client.get(f"{V4}/pckcrl?ca=processor{encoding}")
    path = tmp_path / "crl"
    path.write_bytes(answer.content)
    form = "DER" if encoding.endswith("der") else "PEM"
    command = ["openssl", "crl", "-inform", form, "-in", str(path), "-noout", "-issuer"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "SIMULATED" in printed


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tcb", 400),
        ("/tcb?fmspc=00", 400),
        ("/tcb?fmspc=zzzzzzzzzzzz", 400),
        (f"/tcb?fmspc={FMSPC}&fmspc={FMSPC}", 400),
        (f"/tcb?fmspc={FMSPC}&more=1", 400),
        (f"/tcb?fmspc={FMSPC}&update=early", 200),
        (f"/tcb?fmspc={FMSPC}&update=never", 400),
        ("/tcb?fmspc=000000000000", 404),
        ("/pckcrl", 400),
        ("/pckcrl?ca=root", 400),
        ("/pckcrl?ca=platform", 404),
        ("/pckcrl?ca=processor&encoding=xml", 400),
        ("/pckcert", 400),
        (
            f"/pckcert?encrypted_ppid={'0' * 768}&cpusvn={'0' * 32}&pcesvn=0000&pceid=0000",
            404,
        ),
        ("/qve/identity", 404),
        ("/nothing", 404),
        ("/../../etc/passwd", 404),
    ],
)
def test_status_codes(client: httpx.Client, path: str, status: int) -> None:
    assert client.get(V4 + path).status_code == status


def test_only_get_is_served(client: httpx.Client) -> None:
    assert client.post(V4 + "/rootcacrl").status_code == 405


@pytest.mark.parametrize(
    ("error", "status"),
    [(CollateralFetchError("upstream is away"), 502), (CollateralNotFoundError("none"), 404)],
)
def test_failures_behind_are_told(client_of: ClientOf, error: CloisterError, status: int) -> None:
    class Failing:
        def answer(self, path: str, parameters: Mapping[str, str]) -> Answer:
            raise error

    answer = client_of(Failing()).get(V4 + "/rootcacrl")
    assert answer.status_code == status
    assert answer.text == f"{error.message}\n"


def test_tdx_is_not_simulated(client: httpx.Client) -> None:
    path = f"/tdx/certification/v4/tcb?fmspc={FMSPC}"
    assert client.get(path).status_code == 404
