"""The enclave's side: variables of both generations, and servers that behave badly.

Servers here are Python's own ssl module, a second implementation of the protocol's other end.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.errors import (
    CloisterError,
    InputError,
    ProvisioningError,
    ProvisioningRefusedError,
)
from cloister.provision.certificates import ServerCertificates, make_server_certificates
from cloister.provision.client import fetch_secret
from cloister.provision.protocol import REQUEST
from cloister.provision.request import ProvisioningRequest, ServerAddress, parse_servers
from cloister.provision.variables import without_provisioning
from cloister.sgx.quote import QuoteSignature, pack_quote_v3

UTC = datetime.timezone.utc
NOW = datetime.datetime.now(UTC)
CA = {"SECRET_PROVISION_CONSTRUCTOR": "1", "SECRET_PROVISION_CA_CHAIN_PATH": "ca.crt"}
HEAD = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0"


class FakeEnclave:
    """Makes quotes of the right form that nobody signed; these servers do not look."""

    event_log = b""

    def quote(self, report_data: bytes) -> bytes:
        header = struct.pack("<HHIHH", 3, 2, 0, 1, 2) + bytes(36)
        empty = QuoteSignature(bytes(64), bytes(64), bytes(384), bytes(64), bytes(32), 5, b"")
        return pack_quote_v3(header + bytes(320) + report_data, empty)


def from_environment(**variables: str) -> ProvisioningRequest | None:
    return ProvisioningRequest.from_environment(CA | variables, lambda path: path.encode())


def request_of(**variables: str) -> ProvisioningRequest:
    request = from_environment(**variables)
    assert request is not None
    return request


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_the_constructor_variable_asks(value: str) -> None:
    assert from_environment(SECRET_PROVISION_CONSTRUCTOR=value) is not None


@pytest.mark.parametrize("value", ["0", "", "yes", "True", "11"])
def test_other_values_do_not(value: str) -> None:
    assert from_environment(SECRET_PROVISION_CONSTRUCTOR=value) is None


def test_no_variable_does_not_ask() -> None:
    assert ProvisioningRequest.from_environment({}, lambda _: b"") is None
    preload = {"LD_PRELOAD": "libsecret_prov_attest.so"}
    assert ProvisioningRequest.from_environment(preload, lambda _: b"") is None


def test_the_ca_file_is_read_through_the_callers_reader() -> None:
    assert request_of().ca == b"ca.crt"

    def denied(path: str) -> bytes:
        raise InputError(f"{path}: not a trusted file")

    with pytest.raises(InputError, match="not a trusted file"):
        ProvisioningRequest.from_environment(CA, denied)


@pytest.mark.parametrize("value", ["", None])
def test_a_missing_ca_is_named(value: str | None) -> None:
    variables = {**CA, "SECRET_PROVISION_CA_CHAIN_PATH": value}
    present = {name: text for name, text in variables.items() if text is not None}
    with pytest.raises(InputError, match="SECRET_PROVISION_CA_CHAIN_PATH"):
        ProvisioningRequest.from_environment(present, lambda _: b"")


def test_the_default_server() -> None:
    assert request_of().servers == (ServerAddress("localhost", 4433),)


def test_lists_of_servers() -> None:
    text = "a:1,b:2;c:3 d.example.org:65535, ;[::1]:4433"
    assert [str(server) for server in parse_servers(text, "list")] == [
        "a:1",
        "b:2",
        "c:3",
        "d.example.org:65535",
        "[::1]:4433",
    ]


@pytest.mark.parametrize("text", ["", " ,;", "a", "a:", ":1", "a:0", "a:65536", "a:b", "::1:4433"])
def test_lists_that_name_no_server_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="SECRET_PROVISION_SERVERS"):
        request_of(SECRET_PROVISION_SERVERS=text)


def test_a_key_of_the_manifest() -> None:
    request = ProvisioningRequest.for_key("model", "a:1,b:2", b"ca")
    assert [str(server) for server in request.servers] == ["a:1", "b:2"]
    assert (request.key_name, request.ca, request.accepts_hex) == ("model", b"ca", False)
    with pytest.raises(InputError, match=r"cloister\.keys: model: servers"):
        ProvisioningRequest.for_key("model", "a", b"ca")


def test_both_generations_of_key_variables() -> None:
    assert request_of().key_name is None
    gramine = request_of(SECRET_PROVISION_SET_KEY="model")
    assert (gramine.key_name, gramine.accepts_hex) == ("model", False)
    graphene = request_of(SECRET_PROVISION_SET_PF_KEY="true")
    assert (graphene.key_name, graphene.accepts_hex) == ("default", True)
    both = request_of(SECRET_PROVISION_SET_KEY="k", SECRET_PROVISION_SET_PF_KEY="1")
    assert (both.key_name, both.accepts_hex) == ("k", False)
    assert request_of(SECRET_PROVISION_SET_PF_KEY="0").key_name is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", "..", "."])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="SECRET_PROVISION_SET_KEY"):
        request_of(SECRET_PROVISION_SET_KEY=name)


def test_the_certificates_validity() -> None:
    request = request_of(
        RA_TLS_CERT_TIMESTAMP_NOT_BEFORE="20260102030405",
        RA_TLS_CERT_TIMESTAMP_NOT_AFTER="20270102030405",
    )
    assert request.not_before == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert request.not_after == datetime.datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "2026", "20261301000000", "2026010203040x", "202601020304055"]
)
def test_malformed_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="YYYYMMDDhhmmss"):
        request_of(RA_TLS_CERT_TIMESTAMP_NOT_BEFORE=text)


@pytest.mark.parametrize(
    ("preload", "left"),
    [
        ("libsecret_prov_attest.so", None),
        ("/lib/libsecret_prov_attest.so", None),
        ("a.so:libsecret_prov_attest.so", "a.so"),
        ("a.so libsecret_prov_attest.so b.so", "a.so:b.so"),
        ("a.so b.so", "a.so b.so"),
    ],
)
def test_the_program_gets_a_clean_environment(preload: str, left: str | None) -> None:
    before = CA | {"LD_PRELOAD": preload, "SECRET_PROVISION_SECRET_STRING": "old", "X": "y"}
    after = without_provisioning(before)
    expected = {"SECRET_PROVISION_CA_CHAIN_PATH": "ca.crt", "X": "y"}
    assert after == expected | ({"LD_PRELOAD": left} if left else {})


def test_where_nothing_is_asked_for_the_variables_stay() -> None:
    before = {"SECRET_PROVISION_CONSTRUCTOR": "0", "SECRET_PROVISION_SECRET_STRING": "mine"}
    preload = {"LD_PRELOAD": "libsecret_prov_attest.so"}
    assert without_provisioning(before | preload) == before


class Peer:
    """A server of Python's ssl module with one scripted behaviour."""

    def __init__(self, certificates: ServerCertificates, directory: Path) -> None:
        (directory / "server.pem").write_bytes(certificates.certificate + certificates.key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "server.pem")
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received = b""
        self.sni: str | None = None

        def remember(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
            self.sni = name

        self._context.sni_callback = remember

    def maximum(self, version: ssl.TLSVersion) -> None:
        self._context.maximum_version = version

    def run(self, behave: Callable[[ssl.SSLSocket], None]) -> None:
        threading.Thread(target=self._one, args=(behave,), daemon=True).start()

    def run_raw(self, behave: Callable[[socket.socket], None]) -> None:
        def one() -> None:
            connected, _ = self._listener.accept()
            with connected:
                behave(connected)

        threading.Thread(target=one, daemon=True).start()

    def _one(self, behave: Callable[[ssl.SSLSocket], None]) -> None:
        connected, _ = self._listener.accept()
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(connected, server_side=True) as tls,
        ):
            behave(tls)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def certificates() -> ServerCertificates:
    return make_server_certificates(["localhost"], now=NOW, lifetime=datetime.timedelta(days=1))


@pytest.fixture
def peer(certificates: ServerCertificates, tmp_path: Path) -> Iterator[Peer]:
    made = Peer(certificates, tmp_path)
    yield made
    made.close()


def ask(
    peer: Peer,
    certificates: ServerCertificates,
    variables: dict[str, str] | None = None,
    timeout: float = 10,
) -> bytes:
    request = ProvisioningRequest.from_environment(
        CA | {"SECRET_PROVISION_SERVERS": f"localhost:{peer.port}"} | (variables or {}),
        lambda _: certificates.ca,
    )
    assert request is not None
    return bytes(fetch_secret(FakeEnclave(), request, timeout=timeout).secret)


def answer(peer: Peer, data: bytes, piece: int | None = None) -> Callable[[ssl.SSLSocket], None]:
    def behave(tls: ssl.SSLSocket) -> None:
        peer.received = tls.recv(1000)
        step = piece or len(data) or 1
        for start in range(0, len(data), step):
            tls.sendall(data[start : start + step])
        with contextlib.suppress(OSError):
            tls.unwrap()

    return behave


@pytest.mark.parametrize("piece", [None, 1, 512])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_ordinary_server_in_any_pieces(
    peer: Peer, certificates: ServerCertificates, piece: int | None, version: ssl.TLSVersion
) -> None:
    peer.maximum(version)
    peer.run(answer(peer, HEAD + b"\0\0\0\x04abc\0", piece))
    assert ask(peer, certificates) == b"abc\0"
    assert peer.received == REQUEST
    assert peer.sni == "localhost"


def test_bytes_after_the_secret_are_ignored(peer: Peer, certificates: ServerCertificates) -> None:
    peer.run(answer(peer, HEAD + b"\0\0\0\x02a\0" + b"more"))
    assert ask(peer, certificates) == b"a\0"


def test_a_server_that_never_closes_is_enough(peer: Peer, certificates: ServerCertificates) -> None:
    release = threading.Event()

    def behave(tls: ssl.SSLSocket) -> None:
        tls.recv(1000)
        tls.sendall(HEAD + b"\0\0\0\x02a\0")
        release.wait(20)

    peer.run(behave)
    assert ask(peer, certificates) == b"a\0"
    release.set()


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"X" * 41, ProvisioningError, "response magic"),
        (HEAD + b"\0\0\0\0", ProvisioningError, "secret of 0"),
        (HEAD + b"\xff\xff\xff\xff", ProvisioningError, "secret of 4294967295"),
        (HEAD + b"\x80\0\0\0", ProvisioningError, "secret of"),
        (b"", ProvisioningRefusedError, "ended the connection"),
        (HEAD[:20], ProvisioningRefusedError, "ended the connection"),
        (HEAD + b"\0\0\0\x08abc", ProvisioningRefusedError, "5 bytes before the end"),
    ],
)
def test_wrong_answers_have_a_reason(
    peer: Peer,
    certificates: ServerCertificates,
    data: bytes,
    error: type[CloisterError],
    words: str,
) -> None:
    peer.run(answer(peer, data))
    with pytest.raises(error, match=words) as caught:
        ask(peer, certificates)
    assert f"localhost:{peer.port}" in caught.value.message


@pytest.mark.parametrize(
    ("secret", "variables", "words"),
    [
        (b"k" * 15, {"SECRET_PROVISION_SET_KEY": "default"}, "15 bytes"),
        (b"k" * 17, {"SECRET_PROVISION_SET_KEY": "default"}, "17 bytes"),
        (b"00" * 16 + b"\0", {"SECRET_PROVISION_SET_KEY": "default"}, "33 bytes"),
        (b"0g" * 16 + b"\0", {"SECRET_PROVISION_SET_PF_KEY": "1"}, "33 bytes"),
        (b"00" * 16, {"SECRET_PROVISION_SET_PF_KEY": "1"}, "32 bytes"),
        (b"no end", {}, "NUL"),
        (b"x" * 4096 + b"\0", {}, "4096"),
    ],
)
def test_secrets_of_another_kind_are_refused_and_not_shown(
    peer: Peer,
    certificates: ServerCertificates,
    secret: bytes,
    variables: dict[str, str],
    words: str,
) -> None:
    peer.run(answer(peer, HEAD + struct.pack(">I", len(secret)) + secret))
    with pytest.raises(ProvisioningError, match=words) as caught:
        ask(peer, certificates, variables)
    assert secret.rstrip(b"\0").decode() not in caught.value.message


@pytest.mark.parametrize(
    ("secret", "value"),
    [(b"a\0", "a"), (b"x" * 4095 + b"\0", "x" * 4095), (b"a\0b\0", "a"), (b"\xff\n\0", "\udcff\n")],
)
def test_strings_go_to_the_environment(
    peer: Peer, certificates: ServerCertificates, secret: bytes, value: str
) -> None:
    peer.run(answer(peer, HEAD + struct.pack(">I", len(secret)) + secret))
    request = ProvisioningRequest.from_environment(
        CA | {"SECRET_PROVISION_SERVERS": f"localhost:{peer.port}"}, lambda _: certificates.ca
    )
    assert request is not None
    provisioned = fetch_secret(FakeEnclave(), request)
    assert provisioned.environment == {"SECRET_PROVISION_SECRET_STRING": value}
    provisioned.wipe()
    assert not any(provisioned.secret)


def test_a_silent_server_costs_a_bounded_time(peer: Peer, certificates: ServerCertificates) -> None:
    release = threading.Event()

    def behave(_: ssl.SSLSocket) -> None:
        release.wait(20)

    peer.run(behave)
    started = time.monotonic()
    with pytest.raises(ProvisioningError, match="in time"):
        ask(peer, certificates, timeout=0.5)
    assert time.monotonic() - started < 5
    release.set()


def test_a_server_that_drips_costs_a_bounded_time(
    peer: Peer, certificates: ServerCertificates
) -> None:
    def behave(tls: ssl.SSLSocket) -> None:
        for byte in HEAD:
            tls.sendall(bytes([byte]))
            time.sleep(0.1)

    peer.run(behave)
    started = time.monotonic()
    with pytest.raises(ProvisioningError, match="in time"):
        ask(peer, certificates, timeout=1)
    assert time.monotonic() - started < 5


def test_something_that_is_no_tls_is_told_apart(
    peer: Peer, certificates: ServerCertificates
) -> None:
    peer.run_raw(lambda raw: raw.sendall(b"220 mail.example.org ESMTP\r\n" * 20))
    with pytest.raises(ProvisioningError, match="TLS failed") as caught:
        ask(peer, certificates)
    assert not isinstance(caught.value, ProvisioningRefusedError)


def test_another_ca_is_not_believed(peer: Peer, certificates: ServerCertificates) -> None:
    other = make_server_certificates(["localhost"], now=NOW, lifetime=datetime.timedelta(days=1))
    peer.run(answer(peer, b""))
    with pytest.raises(ProvisioningError, match="not believed"):
        ask(peer, other)
    assert peer.received == b""


def test_another_name_is_not_believed(tmp_path: Path) -> None:
    elsewhere = make_server_certificates(
        ["keys.example.org"], now=NOW, lifetime=datetime.timedelta(days=1)
    )
    peer = Peer(elsewhere, tmp_path)
    peer.run(answer(peer, b""))
    with pytest.raises(ProvisioningError, match=r"[Hh]ostname"):
        ask(peer, elsewhere)
    peer.close()


@pytest.mark.parametrize("days", [(-10, -9), (9, 10)])
def test_dates_count(tmp_path: Path, days: tuple[int, int]) -> None:
    start = NOW + datetime.timedelta(days=days[0])
    made = make_server_certificates(
        ["localhost"], now=start, lifetime=datetime.timedelta(days=days[1] - days[0])
    )
    peer = Peer(made, tmp_path)
    peer.run(answer(peer, b""))
    with pytest.raises(ProvisioningError, match=r"expired|not yet valid"):
        ask(peer, made)
    peer.close()


def test_an_address_needs_an_address_in_the_certificate(tmp_path: Path) -> None:
    made = make_server_certificates(["127.0.0.1"], now=NOW, lifetime=datetime.timedelta(days=1))
    peer = Peer(made, tmp_path)
    peer.run(answer(peer, HEAD + b"\0\0\0\x02a\0"))
    servers = {"SECRET_PROVISION_SERVERS": f"127.0.0.1:{peer.port}"}
    assert ask(peer, made, servers) == b"a\0"
    peer.close()


def test_servers_are_asked_in_turn(
    peer: Peer, certificates: ServerCertificates, tmp_path: Path
) -> None:
    with socket.create_server(("localhost", 0)) as closed:
        free = closed.getsockname()[1]
    refusing = Peer(certificates, tmp_path)
    refusing.run(answer(refusing, b""))
    peer.run(answer(peer, HEAD + b"\0\0\0\x02a\0"))
    servers = f"localhost:{free};localhost:{refusing.port};localhost:{peer.port}"
    assert ask(peer, certificates, {"SECRET_PROVISION_SERVERS": servers}) == b"a\0"
    refusing.close()


def test_when_none_helps_each_has_its_reason(peer: Peer, certificates: ServerCertificates) -> None:
    with socket.create_server(("localhost", 0)) as closed:
        free = closed.getsockname()[1]
    peer.run(answer(peer, b""))
    servers = f"localhost:{free},localhost:{peer.port}"
    with pytest.raises(ProvisioningRefusedError) as caught:
        ask(peer, certificates, {"SECRET_PROVISION_SERVERS": servers})
    assert f"localhost:{free}: cannot connect" in caught.value.message
    assert f"localhost:{peer.port}: it ended the connection" in caught.value.message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_name_that_no_host_can_have(
    peer: Peer, certificates: ServerCertificates, host: str
) -> None:
    with pytest.raises(ProvisioningError, match=f"{host}:1: cannot connect"):
        ask(peer, certificates, {"SECRET_PROVISION_SERVERS": f"{host}:1"})


def test_a_ca_file_without_certificate_is_named(peer: Peer) -> None:
    broken = ServerCertificates(ca=b"nonsense", certificate=b"", key=b"")
    with pytest.raises(InputError, match="CA file"):
        ask(peer, broken)
