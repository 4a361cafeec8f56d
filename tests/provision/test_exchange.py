"""Key release between separate processes over real TLS: who gets the key, and who gets nothing.

The server is the command ``cloister serve``; clients are a process of their own, or an OpenSSL
client (Python's ssl) with a certificate that a test forged.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.platforms.simulated import SimulatedPlatform
from cloister.platforms.simulated.collateral import Conditions
from cloister.provision.protocol import REQUEST
from cloister.ratls.certificate import EVIDENCE_OID, create_identity
from cloister.ratls.evidence import TaggedEvidence, encode_evidence, report_data_of
from key_server import KEY, UTC, Extensions, Server, Setting, received, resigned

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def test_the_right_enclave_gets_the_key(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve("--count", "1")
    answer = setting.fetch(server.port)
    assert answer["key"] == KEY.hex()
    assert answer["key_name"] == "default"
    assert answer["environment"] == {}
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "released"
    assert decision["secret"] == "default"
    assert decision["simulated"] is True
    assert decision["tcb_status"] == "UpToDate"
    assert setting.enclave().mrenclave.hex() in decision["identity"]
    assert KEY.hex() not in json.dumps(decision)
    assert server.process.wait(20) == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_client_sends_meanwhile_does_not_replace_the_record(
    setting: Setting, serve: Callable[..., Server], version: ssl.TLSVersion
) -> None:
    """Its socket is ready again before the decision is recorded."""
    server = serve("--audit", "audit.db")
    context = setting.context(create_identity(setting.enclave().quote))
    context.maximum_version = version
    for _ in range(3):
        answer = b""
        with (
            socket.create_connection(("localhost", server.port), 10) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            tls.sendall(REQUEST)
            tls.sendall(bytes(1000))
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                while piece := tls.recv(4096):
                    answer += piece
        assert answer.endswith(KEY)
    decisions = server.decisions(3)
    assert [item["outcome"] for item in decisions] == ["released"] * 3
    assert [item["audit"]["sequence"] for item in decisions] == [1, 2, 3]


def test_the_announcement_says_what_is_accepted(
    setting: Setting, serve: Callable[..., Server]
) -> None:
    announced = serve().announced
    accepts = announced["secrets"]["default"]
    assert setting.enclave().mrenclave.hex() in accepts
    assert "UpToDate" in accepts
    assert [root for root in announced["roots"] if root.startswith("SIMULATED")]


def refused(answer: dict[str, Any]) -> bool:
    return "secret" not in answer and answer["error"] == "ProvisioningRefusedError"


def test_another_measurement_gets_nothing(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve()
    assert refused(setting.fetch(server.port, manifest="another manifest"))
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "refused"
    assert "MRENCLAVE" in decision["reason"]
    assert setting.enclave().mrenclave.hex() in decision["reason"]


def test_another_root_gets_nothing(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve()
    assert refused(setting.fetch(server.port, platform=setting.directory / "other-platform"))
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "refused"
    assert "signatures" in decision["reason"] or "trust anchor" in decision["reason"]
    assert decision["identity"] is None


def test_a_debug_enclave_gets_nothing(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve()
    assert refused(setting.fetch(server.port, fields={"flags": 6}))
    (decision,) = server.decisions(1)
    assert "debug" in decision["reason"].lower()


def test_expired_collateral_releases_nothing(
    setting: Setting, serve: Callable[..., Server]
) -> None:
    longer_ago = datetime.datetime.now(UTC) - datetime.timedelta(days=40)
    past = SimulatedPlatform(setting.directory / "simulated-platform", clock=lambda: longer_ago)
    server = serve(bundle=setting.write_bundle(past, "expired.json"))
    assert refused(setting.fetch(server.port))
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "refused"
    assert "out of date" in decision["reason"] or "expired" in decision["reason"]


def test_an_outdated_tcb_gets_nothing_unless_named(
    setting: Setting, serve: Callable[..., Server]
) -> None:
    conditions = Conditions(tcb_status="OutOfDate", advisories=["INTEL-SA-00001"])
    bundle = setting.directory / "outdated.json"
    bundle.write_text(setting.platform.export(conditions).to_json())
    strict = serve(bundle=bundle)
    assert refused(setting.fetch(strict.port))
    (decision,) = strict.decisions(1)
    assert "OutOfDate (INTEL-SA-00001)" in decision["reason"]
    lenient = serve("--accept-tcb", "OutOfDate", bundle=bundle)
    assert setting.fetch(lenient.port)["key"] == KEY.hex()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_replayed_certificate_with_another_key_gets_nothing(
    setting: Setting, serve: Callable[..., Server], version: ssl.TLSVersion
) -> None:
    server = serve()
    genuine = create_identity(setting.enclave().quote)
    forged = resigned(genuine, lambda extensions: extensions)
    assert received(server.port, setting.context(forged), version) == b""
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "refused"
    assert "key binding" in decision["reason"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stolen_certificate_without_its_key_gets_nothing(
    setting: Setting, serve: Callable[..., Server], version: ssl.TLSVersion
) -> None:
    server = serve()
    genuine = create_identity(setting.enclave().quote)
    # The thief's key claims the public key of the certificate, as OpenSSL insists, but its
    # private scalar is another one, so that the handshake's signature does not fit.
    scalar = genuine.key.private_numbers().private_value.to_bytes(48, "big")
    der = genuine.key.private_bytes(
        Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    ).replace(scalar, b"\x01" * 48)
    thief = setting.directory / "thief.pem"
    thief.write_bytes(
        genuine.certificate.public_bytes(Encoding.PEM)
        + b"-----BEGIN EC PRIVATE KEY-----\n"
        + base64.encodebytes(der)
        + b"-----END EC PRIVATE KEY-----\n"
    )
    context = ssl.create_default_context(cafile=str(setting.directory / "ca.crt"))
    context.load_cert_chain(thief)
    assert received(server.port, context, version) == b""
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "dropped"
    assert "signature" in decision["reason"]


@pytest.mark.parametrize("version", VERSIONS)
def test_evidence_without_the_key_claim_gets_nothing(
    setting: Setting, serve: Callable[..., Server], version: ssl.TLSVersion
) -> None:
    enclave = setting.enclave()

    def without_claim(extensions: Extensions) -> Extensions:
        claims = cbor2.dumps({"nonce": b"n" * 32})
        evidence = TaggedEvidence(enclave.quote(report_data_of(claims)), claims)
        return extensions | {EVIDENCE_OID: encode_evidence(evidence)}

    server = serve()
    genuine = create_identity(enclave.quote)
    forged = resigned(genuine, without_claim, key=genuine.key)
    assert received(server.port, setting.context(forged), version) == b""
    (decision,) = server.decisions(1)
    assert "pubkey-hash" in decision["reason"]


def test_an_ordinary_certificate_gets_nothing(
    setting: Setting, serve: Callable[..., Server]
) -> None:
    server = serve()
    genuine = create_identity(setting.enclave().quote)
    ordinary = resigned(genuine, lambda _: {})
    assert received(server.port, setting.context(ordinary), ssl.TLSVersion.TLSv1_3) == b""
    assert "no evidence" in server.decisions(1)[0]["reason"]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_certificate_gets_nothing(
    setting: Setting, serve: Callable[..., Server], version: ssl.TLSVersion
) -> None:
    server = serve()
    context = ssl.create_default_context(cafile=str(setting.directory / "ca.crt"))
    assert received(server.port, context, version) == b""
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "refused"
    assert "certificate" in decision["reason"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_genuine_client_of_another_make_gets_the_exact_bytes(
    setting: Setting, serve: Callable[..., Server], version: ssl.TLSVersion
) -> None:
    server = serve()
    identity = create_identity(setting.enclave().quote)
    expected = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0" + b"\0\0\0\x10" + KEY
    assert received(server.port, setting.context(identity), version) == expected


def test_a_wrong_request_gets_nothing(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve()
    context = setting.context(create_identity(setting.enclave().quote))
    with (
        socket.create_connection(("localhost", server.port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"X" * len(REQUEST))
        assert tls.recv(4096) == b""
    (decision,) = server.decisions(1)
    assert decision["outcome"] == "refused"
    assert decision["identity"] == f"MRENCLAVE {setting.enclave().mrenclave.hex()}"
    assert "SECRET_PROVISION_RA_TLS_REQUEST_V1" in decision["reason"]


def test_no_more_is_released_than_was_said(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve("--count", "1")
    context = setting.context(create_identity(setting.enclave().quote))
    answers: list[bytes] = []
    together = threading.Barrier(12)

    def ask() -> None:
        together.wait(30)
        with contextlib.suppress(OSError):
            answers.append(received(server.port, context, ssl.TLSVersion.TLSv1_3))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert server.process.wait(30) == 0
    assert [answer[-16:] for answer in answers if answer] == [KEY]


def test_graphene_gets_hexadecimal(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve("--hex")
    variables: dict[str, str | None] = {
        "SECRET_PROVISION_SET_PF_KEY": "1",
        "SECRET_PROVISION_SET_KEY": None,
    }
    answer = setting.fetch(server.port, environment=variables)
    assert bytes.fromhex(answer["secret"]) == KEY.hex().encode() + b"\0"
    assert answer["key"] == KEY.hex()
    assert answer["key_name"] == "default"
    assert answer["environment"] == {"SECRET_PROVISION_SECRET_STRING": KEY.hex()}


def test_a_string_goes_to_the_environment(setting: Setting, serve: Callable[..., Server]) -> None:
    server = serve("--hex")
    answer = setting.fetch(server.port, environment={"SECRET_PROVISION_SET_KEY": None})
    assert answer["environment"] == {"SECRET_PROVISION_SECRET_STRING": KEY.hex()}
    assert answer["key"] is None


def test_sigterm_stops_the_server_gracefully(serve: Callable[..., Server]) -> None:
    server = serve()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert server.process.stdout is not None
    assert json.loads(server.process.stdout.readline()) == {"event": "stopped", "releases": 0}
