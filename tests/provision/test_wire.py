"""Both ends against independent ones that behave, to the byte, as Gramine 1.9's were observed to.

Nothing of the protocol is imported here: the other end is written down once more, from what the
real libraries send and accept.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto

from cloister.ratls.certificate import create_identity
from key_server import Server, Setting

REQUEST = b"SECRET_PROVISION_RA_TLS_REQUEST_V1\x00"
MAGIC = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\x00"
WRAP_KEY = bytes(range(16))
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SUITES_12 = [
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
]


def test_sizes() -> None:
    assert (len(REQUEST), len(MAGIC)) == (35, 37)


# A client like libsecret_prov_attest.so, against `cloister serve`.


def gramine_client(setting: Setting, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(setting.directory / "ca.crt")
    identity = create_identity(setting.enclave().quote)
    path = setting.directory / "client.pem"
    path.write_bytes(
        identity.certificate.public_bytes(Encoding.PEM)
        + identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context.load_cert_chain(path)
    return context


def exactly(tls: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = tls.recv(size - len(data))
        assert piece, f"closed after {len(data)} of {size} bytes"
        data += piece
    return data


def gramine_exchange(port: int, context: ssl.SSLContext) -> bytes:
    """Ask as the library does: 35 bytes, then exactly 41, then exactly the size, then goodbye."""
    with (
        socket.create_connection(("localhost", port), 20) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(REQUEST)
        head = exactly(tls, 41)
        assert head[:37] == MAGIC
        secret = exactly(tls, int.from_bytes(head[37:], "big"))
        assert tls.recv(1) == b""  # close_notify: Python raises where the connection is only cut
        tls.unwrap()
        return secret


@pytest.fixture
def served(setting: Setting, serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_gramines_client_gets_the_key(
    setting: Setting, served: Server, version: ssl.TLSVersion
) -> None:
    assert gramine_exchange(served.port, gramine_client(setting, version)) == WRAP_KEY


@pytest.mark.parametrize("suite", SUITES_12)
def test_each_cipher_suite_of_tls_12(setting: Setting, served: Server, suite: str) -> None:
    context = gramine_client(setting, TLS12)
    context.set_ciphers(suite)
    assert gramine_exchange(served.port, context) == WRAP_KEY


# X25519 is what OpenSSL takes by itself, so all other tests have it; not every Python can name it.
@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1", "secp521r1"])
def test_each_curve_also_after_a_retry(setting: Setting, served: Server, curve: str) -> None:
    context = gramine_client(setting, TLS13)
    context.set_ecdh_curve(curve)
    assert gramine_exchange(served.port, context) == WRAP_KEY


def test_a_request_in_pieces(setting: Setting, served: Server) -> None:
    context = gramine_client(setting, TLS13)
    with (
        socket.create_connection(("localhost", served.port), 20) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        for byte in REQUEST:
            tls.sendall(bytes([byte]))
        assert exactly(tls, 57) == MAGIC + b"\0\0\0\x10" + WRAP_KEY


def test_old_tls_is_refused_before_anything(setting: Setting, served: Server) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_1_VERSION)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    with socket.create_connection(("localhost", served.port), 20) as raw:
        raw.settimeout(None)
        connection = SSL.Connection(context, raw)
        connection.set_connect_state()
        with pytest.raises(SSL.Error):
            connection.do_handshake()


# A server like libsecret_prov_verify_dcap.so, against our client.


def rsa_certificates() -> tuple[bytes, bytes]:
    """Return a CA (PEM), and a server certificate with its key (PEM), of the examples' kind.

    RSA-2048 with SHA-256, and the name in the subject only.
    """
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in ("Test CA", "localhost")
    ]
    made = []
    now = datetime.datetime.now(datetime.timezone.utc)
    for subject in (0, 1):
        constraints = x509.BasicConstraints(ca=subject == 0, path_length=None)
        made.append(
            x509.CertificateBuilder(names[0], names[subject], keys[subject].public_key())
            .serial_number(subject + 1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(constraints, critical=False)
            .sign(keys[0], hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )
    private = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made[0], made[1] + private


class GramineServer:
    """One exchange, as the library does it; then what it saw of the client."""

    def __init__(self, directory: Path, version: int) -> None:
        ca, pair = rsa_certificates()
        (directory / "ca.crt").write_bytes(ca)
        (directory / "gramine.pem").write_bytes(pair)
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.use_certificate_file(str(directory / "gramine.pem"))
        context.use_privatekey_file(str(directory / "gramine.pem"))
        # The client certificate is mandatory; the request names no CA; nothing else is looked at.
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        context.set_options(SSL.OP_NO_TICKET)
        self._context = context
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self.request = b""
        self.name: bytes | None = None
        self.chain: list[bytes] = []
        self.said_goodbye = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        raw, _ = self._listener.accept()
        with raw:
            connection = SSL.Connection(self._context, raw)
            connection.set_accept_state()
            connection.do_handshake()
            self.name = connection.get_servername()
            # On a server's side, OpenSSL's chain is what came beside the certificate.
            leaf, others = connection.get_peer_certificate(), connection.get_peer_cert_chain()
            assert leaf is not None
            self.chain = [
                crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
                for certificate in (leaf, *(others or []))
            ]
            self.request = connection.recv(4096)
            connection.sendall(MAGIC)
            connection.sendall(b"\0\0\0\x10")
            connection.sendall(WRAP_KEY)
            connection.shutdown()
            try:
                connection.recv(1)
            except SSL.ZeroReturnError:
                self.said_goodbye = True
            except SSL.Error:
                pass  # cut off: the flag stays down

    def finish(self) -> None:
        self._thread.join(20)
        self._listener.close()


@pytest.fixture(params=[SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def gramine_server(request: pytest.FixtureRequest, setting: Setting) -> Iterator[GramineServer]:
    server = GramineServer(setting.directory, request.param)
    yield server
    with contextlib.suppress(OSError):
        server.finish()


def test_our_client_at_gramines_server(setting: Setting, gramine_server: GramineServer) -> None:
    assert setting.fetch(gramine_server.port)["key"] == WRAP_KEY.hex()
    gramine_server.finish()
    assert gramine_server.request == REQUEST  # in one record
    assert gramine_server.name == b"localhost"
    assert len(gramine_server.chain) == 1
    assert gramine_server.said_goodbye
    certificate = x509.load_der_x509_certificate(gramine_server.chain[0])
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"
    assert certificate.signature_algorithm_oid.dotted_string == "1.2.840.10045.4.3.2"
    assert certificate.version is x509.Version.v3
    assert certificate.serial_number == 1
    assert certificate.subject == certificate.issuer
    assert not any(extension.critical for extension in certificate.extensions)
    found = [extension.oid.dotted_string for extension in certificate.extensions]
    assert found == [
        "2.5.29.19",
        "2.5.29.14",
        "2.5.29.35",
        "0.6.9.42.840.113741.1337.6",
        "2.23.133.5.4.9",
    ]
    # What Gramine's verifier looks for: two-byte lengths, at most 8192, 16 KiB in all.
    assert len(gramine_server.chain[0]) < 16384
    legacy = certificate.extensions[3].value
    evidence = certificate.extensions[4].value
    assert isinstance(legacy, x509.UnrecognizedExtension)
    assert isinstance(evidence, x509.UnrecognizedExtension)
    assert 436 <= len(legacy.value) <= 8192
    assert evidence.value.startswith(b"\xd9\xea\x60\x82\x59")
