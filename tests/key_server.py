"""A key server and its clients for tests: an owner's directory, processes, forged clients."""

from __future__ import annotations

import dataclasses
import datetime
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.provision.protocol import REQUEST
from cloister.ratls.certificate import EVIDENCE_OID, LEGACY_OID, RaTlsIdentity
from cloister.ratls.client import client_context

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
            "environment": {
                name: value
                for name, value in (variables | (environment or {})).items()
                if value is not None
            },
            "fields": fields or {},
        }
        program = Path(__file__).parent / "provision" / "programs" / "fetch.py"
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
