"""Someone between enclave and key server, with a genuine enclave of its own: gets nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.ratls.certificate import RaTlsIdentity, create_identity
from key_server import KEY, Server, Setting, received


def pem_of(identity: RaTlsIdentity, path: Path) -> Path:
    path.write_bytes(
        identity.certificate.public_bytes(Encoding.PEM)
        + identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


class Middle:
    """Takes the enclave's connection with its own certificate and remembers what it is told."""

    def __init__(self, certificate: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        raw, _ = self._listener.accept()
        with (
            raw,
            contextlib.suppress(OSError),
            self._context.wrap_socket(raw, server_side=True) as tls,
        ):
            self.heard = tls.recv(100)

    def finish(self) -> None:
        self._thread.join(20)
        self._listener.close()


def test_the_enclave_does_not_talk_to_another_enclave_in_the_middle(setting: Setting) -> None:
    """A genuine RA-TLS certificate is no certificate of the owner's server."""
    genuine = create_identity(setting.enclave(b"in the middle").quote)
    middle = Middle(pem_of(genuine, setting.directory / "middle.pem"))
    answer = setting.fetch(middle.port)
    middle.finish()
    assert answer["error"] == "ProvisioningError"
    assert "its certificate is not believed" in answer["message"]
    assert middle.heard == b""


def test_the_server_does_not_release_to_the_enclave_in_the_middle(
    setting: Setting, serve: Callable[..., Server]
) -> None:
    """It can show the server its own genuine certificate, which is of another measurement."""
    server = serve()
    own = create_identity(setting.enclave(b"in the middle").quote)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert received(server.port, setting.context(own), version) == b""
        (decision,) = server.decisions(1)
        assert (decision["outcome"], decision["check"]) == ("refused", "MRENCLAVE")


def test_what_goes_through_untouched_is_only_ciphertext(
    setting: Setting, serve: Callable[..., Server]
) -> None:
    """It may pass the bytes on as they are; the key goes to the enclave, and it reads nothing."""
    server = serve()
    seen = bytearray()
    listener = socket.create_server(("localhost", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(4096):
                seen.extend(piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def relay() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("localhost", server.port), 10) as far:
            back = threading.Thread(target=pump, args=(far, near), daemon=True)
            back.start()
            pump(near, far)
            back.join(10)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    assert setting.fetch(listener.getsockname()[1])["key"] == KEY.hex()
    thread.join(20)
    listener.close()
    assert len(seen) > 5000
    assert KEY not in seen
    assert b"SECRET_PROVISION" not in seen
