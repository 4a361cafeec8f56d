"""TLS with a judged client: nobody gets through unjudged, and nobody holds the server for long."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import selectors
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL

from cloister.errors import InputError, RaTlsError
from cloister.provision.certificates import make_server_certificates
from cloister.ratls.certificate import RaTlsIdentity
from cloister.ratls.client import client_context
from cloister.ratls.deadline import Deadline
from cloister.ratls.programs import connect
from cloister.ratls.server import Channel, RaTlsServer, Waiting

UTC = datetime.timezone.utc
NOW = datetime.datetime.now(UTC)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Opinion:
    accepted: bool


def self_signed(issuer: RaTlsIdentity | None = None) -> RaTlsIdentity:
    """Return an ordinary client identity, expired on purpose: dates must not matter."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    ca_name = issuer.certificate.subject if issuer else name
    builder = (
        x509.CertificateBuilder(ca_name, name, key.public_key(), 1)
        .not_valid_before(NOW - datetime.timedelta(days=9))
        .not_valid_after(NOW - datetime.timedelta(days=8))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return RaTlsIdentity(key, builder.sign(issuer.key if issuer else key, hashes.SHA256()))


@dataclasses.dataclass
class Running:
    """A server that echoes one message of five bytes to accepted clients."""

    port: int
    ca: bytes
    judged: list[bytes]
    outcomes: list[BaseException | None]
    done: threading.Semaphore

    def outcome(self) -> BaseException | None:
        assert self.done.acquire(timeout=20)
        return self.outcomes[-1]


Serve = Callable[..., Running]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, bytes]:
    made = make_server_certificates(["localhost"], now=NOW, lifetime=datetime.timedelta(days=1))
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    return certificate, key, made.ca


@pytest.fixture
def serve(files: tuple[Path, Path, bytes]) -> Iterator[Serve]:
    certificate, key, ca = files
    with contextlib.ExitStack() as stack:

        def start(judge: Callable[[bytes], Opinion], seconds: float = 10) -> Running:
            judged: list[bytes] = []

            def remembering(der: bytes) -> Opinion:
                judged.append(der)
                return judge(der)

            listener = stack.enter_context(socket.create_server(("localhost", 0)))
            server = RaTlsServer.from_files(certificate, key, remembering)
            running = Running(listener.getsockname()[1], ca, judged, [], threading.Semaphore(0))
            threading.Thread(
                target=accept_all, args=(listener, server, running, seconds), daemon=True
            ).start()
            return running

        yield start


def accept_all(
    listener: socket.socket, server: RaTlsServer[Opinion], running: Running, seconds: float
) -> None:
    while True:
        try:
            connected, _ = listener.accept()
        except OSError:
            return
        deadline = Deadline(seconds)
        channel = server.channel(connected, deadline)
        try:
            wait_for(echo(channel), connected, deadline)
            running.outcomes.append(None)
        except (SSL.Error, RaTlsError, OSError, EOFError, ZeroDivisionError) as error:
            running.outcomes.append(error)
        finally:
            channel.close()
            running.done.release()


def echo(channel: Channel[Opinion]) -> Waiting[None]:
    judgement = yield from channel.handshake()
    assert judgement is not None
    assert judgement.accepted
    yield from channel.write((yield from channel.read_exactly(5)))


def wait_for(waiting: Waiting[T], connected: socket.socket, deadline: Deadline) -> T:
    with selectors.DefaultSelector() as selector:
        selector.register(connected, selectors.EVENT_READ)
        while True:
            try:
                selector.modify(connected, next(waiting))
            except StopIteration as done:
                return cast("T", done.value)
            selector.select(max(0, deadline.end - time.monotonic()))


def talk(running: Running, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> bytes:
    answer = b""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("localhost", running.port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost", session=session) as tls,
    ):
        tls.sendall(b"hello")
        while piece := tls.recv(100):
            answer += piece
    return answer


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def context_of(
    running: Running, identity: RaTlsIdentity, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    context = client_context(identity, running.ca)
    context.maximum_version = version
    return context


@pytest.mark.parametrize("version", VERSIONS)
def test_an_accepted_client_is_judged_once_by_its_own_certificate(
    serve: Serve, version: ssl.TLSVersion
) -> None:
    running = serve(lambda _: Opinion(True))
    identity = self_signed()
    assert talk(running, context_of(running, identity, version)) == b"hello"
    assert running.outcome() is None
    assert running.judged == [identity.der]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refused_client_gets_nothing(serve: Serve, version: ssl.TLSVersion) -> None:
    running = serve(lambda _: Opinion(False))
    assert talk(running, context_of(running, self_signed(), version)) == b""
    assert isinstance(running.outcome(), SSL.Error)
    assert len(running.judged) == 1


def test_a_judge_that_fails_refuses_and_the_failure_is_its_own(serve: Serve) -> None:
    running = serve(lambda _: Opinion(bool(1 / 0)))
    assert talk(running, context_of(running, self_signed())) == b""
    failure = running.outcome()
    assert isinstance(failure, RaTlsError)
    assert "could not be judged: internal error (ZeroDivisionError)" in failure.message
    assert isinstance(failure.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_cannot_be_judged_at_once_is_left_to_the_caller(
    files: tuple[Path, Path, bytes], version: ssl.TLSVersion
) -> None:
    certificate, key, ca = files
    server: RaTlsServer[Opinion] = RaTlsServer.from_files(certificate, key, lambda _: None)
    identity = self_signed()
    found: list[object] = []
    with socket.create_server(("localhost", 0)) as listener:

        def serve_one() -> None:
            connected, _ = listener.accept()
            deadline = Deadline(10)
            channel = server.channel(connected, deadline)
            found.append(wait_for(channel.handshake(), connected, deadline))
            found.append(channel.judgement)
            found.append(channel.certificate)
            channel.close()

        thread = threading.Thread(target=serve_one, daemon=True)
        thread.start()
        running = Running(listener.getsockname()[1], ca, [], [], threading.Semaphore(0))
        assert talk(running, context_of(running, identity, version)) == b""
        thread.join(10)
    assert found == [None, None, identity.der]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_without_certificate_gets_nothing(serve: Serve, version: ssl.TLSVersion) -> None:
    running = serve(lambda _: Opinion(True))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=running.ca.decode())
    context.maximum_version = version
    assert talk(running, context) == b""
    assert isinstance(running.outcome(), SSL.Error)
    assert running.judged == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_adds_a_second_certificate_gets_nothing(
    serve: Serve, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    running = serve(lambda _: Opinion(True))
    issuer = self_signed()
    for leaf, other in ((self_signed(issuer), issuer), (self_signed(), issuer)):
        chain = tmp_path / "chain.pem"
        chain.write_bytes(
            leaf.certificate.public_bytes(Encoding.PEM)
            + other.certificate.public_bytes(Encoding.PEM)
            + leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=running.ca.decode())
        context.load_cert_chain(chain)
        context.maximum_version = version
        assert talk(running, context) == b""
        assert isinstance(running.outcome(), (SSL.Error, RaTlsError))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_never_resumed_past_the_judge(serve: Serve, version: ssl.TLSVersion) -> None:
    opinions = iter([Opinion(True), Opinion(False)])
    running = serve(lambda _: next(opinions))
    context = context_of(running, self_signed(), version)
    with (
        socket.create_connection(("localhost", running.port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"hello")
        assert tls.recv(100) == b"hello"
        session = tls.session
    assert running.outcome() is None
    assert talk(running, context, session) == b""
    assert running.outcome() is not None
    assert len(running.judged) == 2


@pytest.mark.parametrize("option", ["-tls1", "-tls1_1"])
def test_old_versions_of_tls_are_refused(serve: Serve, option: str) -> None:
    running = serve(lambda _: Opinion(True))
    command = ["openssl", "s_client", "-connect", f"localhost:{running.port}", option]
    command += ["-cipher", "DEFAULT@SECLEVEL=0"]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False)
    assert done.returncode != 0
    assert isinstance(running.outcome(), SSL.Error)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_client_that_stalls_is_dropped_in_time(serve: Serve, sent: bytes) -> None:
    running = serve(lambda _: Opinion(True), 0.5)
    started = time.monotonic()
    with socket.create_connection(("localhost", running.port), 10) as raw:
        raw.sendall(sent)
        outcome = running.outcome()
    assert time.monotonic() - started < 5
    assert isinstance(outcome, (TimeoutError, SSL.Error))


def test_a_client_that_sends_byte_by_byte_is_dropped_in_time(serve: Serve) -> None:
    running = serve(lambda _: Opinion(True), 1)
    hello = b"\x16\x03\x01\x02\x00" + bytes(512)
    started = time.monotonic()
    with socket.create_connection(("localhost", running.port), 10) as raw:
        for byte in hello:
            try:
                raw.send(bytes([byte]))
            except OSError:
                break
            time.sleep(0.05)
        assert isinstance(running.outcome(), (TimeoutError, SSL.Error))
    assert time.monotonic() - started < 10


def test_a_client_that_says_too_little_is_told_apart(serve: Serve) -> None:
    running = serve(lambda _: Opinion(True), 5)
    context = context_of(running, self_signed())
    with (
        socket.create_connection(("localhost", running.port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"hell")
        tls.unwrap().close()
    assert isinstance(running.outcome(), EOFError)


def test_many_clients_at_once_are_told_apart(serve: Serve) -> None:
    good, bad = self_signed(), self_signed()
    running = serve(lambda der: Opinion(der == good.der))
    contexts = [context_of(running, identity) for identity in (good, bad)]
    answers: list[tuple[int, bytes]] = []

    def one(number: int) -> None:
        answers.append((number % 2, talk(running, contexts[number % 2])))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(set(answers)) == [(0, b"hello"), (1, b"")]
    assert len(answers) == 20


def test_files_that_do_not_belong_together_are_refused(
    files: tuple[Path, Path, bytes], tmp_path: Path
) -> None:
    certificate, key, _ = files
    other = make_server_certificates(["localhost"], now=NOW, lifetime=datetime.timedelta(days=1))
    (tmp_path / "other.key").write_bytes(other.key)
    for wrong in ((certificate, tmp_path / "other.key"), (key, key), (tmp_path / "none", key)):
        with pytest.raises(InputError, match="PEM"):
            RaTlsServer.from_files(*wrong, lambda _: Opinion(True))


def test_enclaves_judge_one_another() -> None:
    server_identity, client_identity = self_signed(), self_signed()
    seen: list[bytes] = []

    def judge_client(der: bytes) -> Opinion:
        seen.append(der)
        return Opinion(True)

    server = RaTlsServer.from_identity(server_identity, judge_client)
    with socket.create_server(("localhost", 0)) as listener:

        def serve_one() -> None:
            connected, _ = listener.accept()
            deadline = Deadline(10)
            channel = server.channel(connected, deadline)
            wait_for(echo(channel), connected, deadline)
            channel.close()

        thread = threading.Thread(target=serve_one, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        with connect("localhost", port, seen.append, identity=client_identity) as tls:
            tls.sendall(b"hello")
            assert tls.recv(5) == b"hello"
        thread.join(10)
    assert sorted(seen) == sorted([server_identity.der, client_identity.der])


def test_a_certificate_that_only_openssl_can_read_ends_its_own_connection(
    serve: Serve, tmp_path: Path
) -> None:
    """OpenSSL does not look at a certificate's version; the parser of the judge does."""
    mine = self_signed()
    der = mine.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
    assert der != mine.der
    pem = ssl.DER_cert_to_PEM_cert(der).encode() + mine.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "odd.pem").write_bytes(pem)

    running = serve(lambda der: Opinion(der == mine.der))
    context = ssl.create_default_context(cadata=running.ca.decode())
    context.load_cert_chain(tmp_path / "odd.pem")
    assert talk(running, context) == b""
    assert isinstance(running.outcome(), SSL.Error)
    assert running.judged == [der]
    assert talk(running, context_of(running, mine)) == b"hello"
    assert running.outcome() is None
