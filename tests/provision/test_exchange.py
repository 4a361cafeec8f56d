"""Key release between separate processes over real TLS: who gets the key, and who gets nothing.

The server is the command ``cloister serve``; clients are a process of their own, or an OpenSSL
client (Python's ssl) with a certificate that a test forged.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.platforms.simulated.collateral import Conditions
from cloister.provision.certificates import make_server_certificates
from cloister.provision.protocol import REQUEST
from cloister.ratls.certificate import EVIDENCE_OID, LEGACY_OID, RaTlsIdentity, create_identity
from cloister.ratls.client import client_context
from cloister.ratls.evidence import TaggedEvidence, encode_evidence, report_data_of

KEY = bytes(range(16))
UTC = datetime.timezone.utc
Start = Callable[..., SimulatedEnclave]
Extensions = dict[x509.ObjectIdentifier, bytes]


@dataclasses.dataclass
class Server:
    """A running ``cloister serve``."""

    process: subprocess.Popen[str]
    port: int
    announced: dict[str, Any]

    def decisions(self, count: int) -> list[dict[str, Any]]:
        """Read the next ``count`` decisions."""
        assert self.process.stdout is not None
        return [json.loads(self.process.stdout.readline()) for _ in range(count)]


@dataclasses.dataclass
class Setting:
    """An owner with certificates and key, and a platform that the owner trusts."""

    directory: Path
    platform: SimulatedPlatform
    start_enclave: Start
    data: Path

    def write_bundle(self, platform: SimulatedPlatform, name: str = "bundle.json") -> Path:
        path = self.directory / name
        path.write_text(platform.export().to_json())
        return path

    def fetch(
        self,
        port: int,
        *,
        manifest: str = "manifest",
        platform: Path | None = None,
        fields: dict[str, int] | None = None,
        environment: dict[str, str | None] | None = None,
    ) -> dict[str, Any]:
        """Ask for the secret in a process of its own."""
        variables: dict[str, str | None] = {
            "SECRET_PROVISION_CONSTRUCTOR": "1",
            "SECRET_PROVISION_SERVERS": f"localhost:{port}",
            "SECRET_PROVISION_CA_CHAIN_PATH": str(self.directory / "ca.crt"),
            "SECRET_PROVISION_SET_KEY": "default",
        }
        arguments = {
            "platform": str(platform or self.directory / "simulated-platform"),
            "manifest": manifest,
            "data": str(self.data / "signing"),
            "environment": {
                name: value
                for name, value in (variables | (environment or {})).items()
                if value is not None
            },
            "fields": fields or {},
        }
        program = Path(__file__).parent / "programs" / "fetch.py"
        done = subprocess.run(
            [sys.executable, str(program), json.dumps(arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def context(self, identity: RaTlsIdentity) -> ssl.SSLContext:
        return client_context(identity, (self.directory / "ca.crt").read_bytes())

    def enclave(self, manifest: bytes = b"manifest") -> SimulatedEnclave:
        return self.start_enclave(self.platform, manifest)


@pytest.fixture
def setting(
    tmp_path: Path, simulated: SimulatedPlatform, start_enclave: Start, data: Path
) -> Setting:
    made = make_server_certificates(
        ["localhost"], now=datetime.datetime.now(UTC), lifetime=datetime.timedelta(days=1)
    )
    (tmp_path / "ca.crt").write_bytes(made.ca)
    (tmp_path / "server.crt").write_bytes(made.certificate)
    (tmp_path / "server.key").write_bytes(made.key)
    (tmp_path / "wrap-key").write_bytes(KEY)
    return Setting(tmp_path, simulated, start_enclave, data)


@pytest.fixture
def serve(setting: Setting) -> Iterator[Callable[..., Server]]:
    """Return a function that starts ``cloister serve`` for the enclave of ``b"manifest"``."""
    running: list[subprocess.Popen[str]] = []

    def start(*extra: str, bundle: Path | None = None) -> Server:
        enclave = setting.enclave()
        bundle = bundle or setting.write_bundle(setting.platform)
        arguments = [
            *("--key", "wrap-key", "--mrenclave", enclave.mrenclave.hex()),
            *("--cert", "server.crt", "--cert-key", "server.key", "--listen", "localhost:0"),
            *("--trust-simulated", str(bundle), "--json", *extra),
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "cloister", "serve", *arguments],
            cwd=setting.directory,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        running.append(process)
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        return Server(process, announced["port"], announced)

    yield start
    for process in running:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


def received(port: int, context: ssl.SSLContext, version: ssl.TLSVersion) -> bytes:
    """Ask as an OpenSSL client would; return every byte that the server let out."""
    context.maximum_version = version
    answer = b""
    try:
        with (
            socket.create_connection(("localhost", port), 10) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            tls.sendall(REQUEST)
            while piece := tls.recv(4096):
                answer += piece
    except (ssl.SSLError, ConnectionError):
        pass  # what counts is what came before it
    return answer


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


def test_the_announcement_says_what_is_accepted(
    setting: Setting, serve: Callable[..., Server]
) -> None:
    announced = serve().announced
    assert setting.enclave().mrenclave.hex() in announced["accepts"]
    assert "UpToDate" in announced["accepts"]
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
    assert decision["outcome"] == "dropped"
    assert "SECRET_PROVISION_RA_TLS_REQUEST_V1" in decision["reason"]


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


def resigned(
    genuine: RaTlsIdentity,
    change: Callable[[Extensions], Extensions],
    key: ec.EllipticCurvePrivateKey | None = None,
) -> RaTlsIdentity:
    """Return a certificate with the evidence of ``genuine``, changed, for another key."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    values = {}
    for oid in (LEGACY_OID, EVIDENCE_OID):
        extension = genuine.certificate.extensions.get_extension_for_oid(oid).value
        assert isinstance(extension, x509.UnrecognizedExtension)
        values[oid] = extension.value
    builder = (
        x509.CertificateBuilder()
        .subject_name(genuine.certificate.subject)
        .issuer_name(genuine.certificate.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2040, 1, 1))
    )
    for oid, value in change(values).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return RaTlsIdentity(key, builder.sign(key, hashes.SHA256()))
