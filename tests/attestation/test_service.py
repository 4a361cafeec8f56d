"""Collateral from a service: a PCCS with Intel's real collateral, and one that misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gzip
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation import Collateral, intel
from cloister.attestation.dcap import kind_of
from cloister.attestation.expiry import expires, parse_time
from cloister.attestation.pcs import Answer, PlatformKind, signed_member
from cloister.attestation.policy import AnyEnclave, TcbStatus, all_of
from cloister.attestation.service import (
    CollateralCache,
    CollateralService,
    crl_location,
)
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    CollateralError,
    CollateralFetchError,
    QuoteSignatureError,
)
from cloister.sgx.quote import parse_quote

UTC = datetime.timezone.utc
DATA = Path(__file__).parent.parent / "data" / "quotes"
NOW = datetime.datetime(2025, 6, 20, 12, tzinfo=UTC)
KINDS = {
    "sgx": PlatformKind("sgx", "00A067110000", "processor"),
    "tdx": PlatformKind("tdx", "B0C06F000000", "platform"),
}


def collateral(name: str) -> Collateral:
    return Collateral.from_json((DATA / f"{name}_quote_collateral.json").read_text())


def quote(name: str) -> bytes:
    return (DATA / f"{name}_quote").read_bytes()


class Pccs:
    """A web server that answers from a table and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        for name, kind in KINDS.items():
            self.serve(kind, collateral(name))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, headers, body = outer.answers.get(self.path, (404, {}, b"not found"))
                self.send_response(status)
                for header, value in headers.items():
                    self.send_header(header, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, kind: PlatformKind, served: Collateral) -> None:
        def chain(name: str, pem: str) -> dict[str, str]:
            return {name: urllib.parse.quote(pem)}

        info = f'{{"tcbInfo":{served.tcb_info},"signature":"{served.tcb_info_signature.hex()}"}}'
        identity = (
            f'{{"enclaveIdentity":{served.qe_identity},'
            f'"signature":"{served.qe_identity_signature.hex()}"}}'
        )
        tcb_chain = chain("TCB-Info-Issuer-Chain", served.tcb_info_issuer_chain)
        qe_chain = chain("SGX-Enclave-Identity-Issuer-Chain", served.qe_identity_issuer_chain)
        crl_chain = chain("SGX-PCK-CRL-Issuer-Chain", served.pck_crl_issuer_chain)
        self.answers |= {
            kind.tcb_info_path: (200, tcb_chain, info.encode()),
            kind.qe_identity_path: (200, qe_chain, identity.encode()),
            kind.pck_crl_path: (200, crl_chain, served.pck_crl),
            "/sgx/certification/v4/rootcacrl": (200, {}, served.root_ca_crl.hex().encode()),
        }


@pytest.fixture
def pccs() -> Iterator[Pccs]:
    made = Pccs()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize("name", ["sgx", "tdx"])
def test_what_is_fetched_is_what_was_published(pccs: Pccs, name: str) -> None:
    kind = kind_of(parse_quote(quote(name)))
    assert kind == KINDS[name]
    assert CollateralService(pccs.url + "/", intel()).get(kind) == collateral(name)


@pytest.mark.parametrize(
    ("name", "status"), [("sgx", "ConfigurationAndSWHardeningNeeded"), ("tdx", "UpToDate")]
)
def test_a_real_quote_is_accepted_with_fetched_collateral(
    pccs: Pccs, name: str, status: str
) -> None:
    trust = Trust(sources=((intel(), CollateralService(pccs.url, intel())),))
    authentication = Authenticator(trust, lambda: NOW).authenticate(quote(name))
    assert authentication.judge(all_of(AnyEnclave(), TcbStatus(status))).accepted


def test_without_an_answer_nothing_is_accepted(pccs: Pccs) -> None:
    pccs.answers.clear()
    trust = Trust(sources=((intel(), CollateralService(pccs.url, intel())),))
    verdict = Authenticator(trust, lambda: NOW).authenticate(quote("sgx")).judge(AnyEnclave())
    with pytest.raises(CollateralFetchError, match="HTTP status 404"):
        verdict.require()


def broken(pccs: Pccs, part: str, answer: tuple[int, dict[str, str], bytes]) -> CollateralService:
    (path,) = [path for path in pccs.answers if part in path and "tdx" not in path]
    pccs.answers[path] = answer
    return CollateralService(pccs.url, intel())


@pytest.mark.parametrize("part", ["sgx/certification/v4/tcb", "qe/identity", "pckcrl?ca=processor"])
def test_an_answer_without_its_chain_is_refused(pccs: Pccs, part: str) -> None:
    (path,) = [path for path in pccs.answers if part in path and "tdx" not in path]
    service = broken(pccs, part, (200, {}, pccs.answers[path][2]))
    with pytest.raises(CollateralError, match="lacks the header"):
        service.get(KINDS["sgx"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"nonsense",
        b'{"tcbInfo":{}}',
        b'{"tcbInfo":{},"signature":1}',
        b'{"tcbInfo":{},"signature":"0g"}',
        b'{"tcbInfo":{},"signature":"00","more":1}',
        b'{"more":1,"tcbInfo":{},"signature":"00"}',
        b'{"tcbInfo":{},"signature":"000"}',
        b"\xff\xfe",
        b"[" * 200000,
    ],
)
def test_damaged_tcb_info_is_refused(pccs: Pccs, body: bytes) -> None:
    headers = pccs.answers[KINDS["sgx"].tcb_info_path][1]
    service = broken(pccs, "sgx/certification/v4/tcb", (200, headers, body))
    with pytest.raises(CollateralError):
        service.get(KINDS["sgx"])


def test_an_endless_answer_is_cut(pccs: Pccs) -> None:
    service = broken(pccs, "rootcacrl", (200, {}, bytes(5 * 1024 * 1024)))
    with pytest.raises(CollateralFetchError, match="more than"):
        service.get(KINDS["sgx"])


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[", "gopher://x", ""])
def test_a_service_that_cannot_be_reached_is_named(url: str) -> None:
    with pytest.raises(CollateralFetchError, match="/tcb") as caught:
        CollateralService(url, intel(), httpx.Client(timeout=2)).get(KINDS["sgx"])
    assert caught.value.hint


def test_an_answer_that_trickles_for_ever_is_given_up() -> None:
    """Every byte comes in time, the whole answer never."""

    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(CollateralFetchError, match="no whole answer in time"):
        CollateralService(url, intel(), seconds=0.3).get(KINDS["sgx"])
    server.shutdown()
    server.server_close()


def test_headers_that_trickle_are_given_up_in_time() -> None:
    """No single step of them takes long."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def trickle() -> None:
        connected, _ = listener.accept()
        with connected, contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 10_000:
                connected.sendall(bytes([byte]))
                if done.wait(0.05):
                    return

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    begun = time.monotonic()
    with pytest.raises(CollateralFetchError, match="no whole answer in time"):
        CollateralService(url, intel(), seconds=0.5).get(KINDS["sgx"])
    assert time.monotonic() - begun < 10
    thread.join(10)
    assert not thread.is_alive(), "the connection is closed, so that nothing stays behind"
    done.set()
    listener.close()


def test_intels_root_says_where_its_list_is() -> None:
    assert crl_location(intel()).startswith("https://certificates.trustedservices.intel.com/")


@given(st.text(max_size=30), st.binary(max_size=40))
def test_the_signed_text_is_cut_out_untouched(value: str, signature: bytes) -> None:
    text = json.dumps({"b": value, "a": [1, 2.50]}, ensure_ascii=False, indent=2)
    body = f'{{ "tcbInfo" : {text} ,\n"signature":"{signature.hex()}" }}\n'.encode()
    assert signed_member(body, "tcbInfo") == (text, signature)


@given(st.binary(max_size=200))
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(CollateralError):
        signed_member(body, "tcbInfo")


@pytest.mark.parametrize(
    "fields", [("sev", "0" * 12, "platform"), ("sgx", "../x", "platform"), ("sgx", "0" * 12, "x")]
)
def test_kinds_that_do_not_exist(fields: tuple[str, str, str]) -> None:
    with pytest.raises(CollateralError):
        PlatformKind(*fields)


def test_chains_in_headers_are_url_encoded() -> None:
    answer = Answer(b"", {"tcb-info-issuer-chain": "-----BEGIN%20X-----%0A%2B%2F"})
    assert answer.chain("TCB-Info-Issuer-Chain") == "-----BEGIN X-----\n+/"


def test_collateral_runs_out_with_its_first_part() -> None:
    assert expires(collateral("sgx")) == datetime.datetime(2025, 7, 19, 10, 1, 18, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "2025-07-19", "2025-07-19T10:01:18"])
def test_times_without_zone_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_of(
    pccs: Pccs, directory: Path, clock: Clock, failures: list[AttestationError] | None = None
) -> CollateralCache:
    service = CollateralService(pccs.url, intel())
    on_failure = (failures if failures is not None else []).append
    return CollateralCache(service, directory, anchor=intel(), clock=clock, on_failure=on_failure)


SGX = KINDS["sgx"]


def test_the_service_is_asked_once_and_a_new_process_reads_the_disk(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    first = cache_of(pccs, tmp_path / "cache", clock)
    assert first.get(SGX) == first.get(SGX) == collateral("sgx")
    assert len(pccs.asked) == 4
    assert cache_of(pccs, tmp_path / "cache", clock).get(SGX) == collateral("sgx")
    assert len(pccs.asked) == 4


def test_what_has_run_out_is_not_given_out(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    cache.get(SGX)
    clock.now = expires(collateral("sgx")) + datetime.timedelta(seconds=1)
    pccs.answers.clear()
    with pytest.raises(CollateralFetchError):
        cache.get(SGX)


def test_a_failure_is_remembered_for_a_minute(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    answers, pccs.answers = pccs.answers, {}
    for _ in range(3):
        with pytest.raises(CollateralFetchError):
            cache.get(SGX)
    assert len(pccs.asked) == 1
    pccs.answers = answers
    clock.now += datetime.timedelta(minutes=2)
    assert cache.get(SGX) == collateral("sgx")


def test_it_is_refreshed_ahead_of_time(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    cache.get(SGX)
    cache.refresh_due()
    assert len(pccs.asked) == 4
    clock.now = expires(collateral("sgx")) - datetime.timedelta(days=6)
    cache.refresh_due()
    assert len(pccs.asked) == 8


def test_a_failed_refresh_is_told_and_does_no_harm(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    failures: list[AttestationError] = []
    cache = cache_of(pccs, tmp_path, clock, failures)
    cache.get(SGX)
    pccs.answers.clear()
    clock.now = expires(collateral("sgx")) - datetime.timedelta(days=1)
    cache.refresh_due()
    assert [type(failure) for failure in failures] == [CollateralFetchError]
    assert cache.get(SGX) == collateral("sgx")


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage"])
def test_a_damaged_file_is_fetched_again(
    pccs: Pccs, tmp_path: Path, clock: Clock, content: bytes
) -> None:
    (tmp_path / "sgx-00A067110000-processor.json").write_bytes(content)
    failures: list[AttestationError] = []
    assert cache_of(pccs, tmp_path, clock, failures).get(SGX) == collateral("sgx")
    assert len(failures) == 1


def test_unreadable_collateral_is_not_kept(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    broken(pccs, "rootcacrl", (200, {}, b"00"))
    with pytest.raises(CollateralError):
        cache_of(pccs, tmp_path, clock).get(SGX)
    assert list(tmp_path.iterdir()) == []


def test_platforms_are_kept_apart(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    assert cache.get(KINDS["tdx"]) == collateral("tdx")
    pccs.answers["/sgx/certification/v4/rootcacrl"] = (
        200,
        {},
        collateral("sgx").root_ca_crl.hex().encode(),
    )
    assert cache.get(SGX) == collateral("sgx")
    assert cache.get(KINDS["tdx"]) == collateral("tdx")


@pytest.mark.parametrize(
    "text", ["5", "null", "[]", '""', '"now"', '"2048-01-01"', '"0001-01-01T00:00:00+23:59"']
)
def test_dates_of_any_type_are_refused_or_read(text: str) -> None:
    """JSON may hold anything where a time is expected."""
    info = json.loads(collateral("sgx").tcb_info) | {"nextUpdate": json.loads(text)}
    odd = dataclasses.replace(collateral("sgx"), tcb_info=json.dumps(info))
    with contextlib.suppress(CollateralError):
        assert expires(odd) < NOW


def changed(**fields: str | bytes) -> Collateral:
    return dataclasses.replace(collateral("sgx"), **fields)  # type: ignore[arg-type]


UNSIGNED = {
    "TCB info": changed(tcb_info=collateral("sgx").tcb_info.replace("2025", "2048")),
    "QE identity": changed(qe_identity=collateral("sgx").qe_identity.replace("2025", "2048")),
    "signature": changed(tcb_info_signature=bytes(64)),
    "short signature": changed(qe_identity_signature=b"1"),
    "issuer": changed(tcb_info_issuer_chain=collateral("sgx").pck_crl_issuer_chain),
    "root list": changed(root_ca_crl=collateral("sgx").pck_crl),
    "PCK list": changed(pck_crl=collateral("sgx").root_ca_crl),
    "kind": collateral("tdx"),
    "kind of QE": changed(
        qe_identity=collateral("tdx").qe_identity,
        qe_identity_signature=collateral("tdx").qe_identity_signature,
        qe_identity_issuer_chain=collateral("tdx").qe_identity_issuer_chain,
    ),
    "kind of list": changed(
        pck_crl=collateral("tdx").pck_crl,
        pck_crl_issuer_chain=collateral("tdx").pck_crl_issuer_chain,
    ),
}


@pytest.mark.parametrize("name", UNSIGNED)
def test_what_the_vendor_did_not_sign_is_not_kept(
    pccs: Pccs, tmp_path: Path, clock: Clock, name: str
) -> None:
    """A bad answer costs one minute, not the time until it claims to run out."""
    pccs.serve(SGX, UNSIGNED[name])
    cache = cache_of(pccs, tmp_path, clock)
    with pytest.raises((CollateralError, CertificateChainError)):
        cache.get(SGX)
    assert list(tmp_path.iterdir()) == []
    pccs.serve(SGX, collateral("sgx"))
    clock.now += datetime.timedelta(minutes=2)
    assert cache.get(SGX) == collateral("sgx")


@pytest.mark.parametrize("name", UNSIGNED)
def test_a_file_that_the_vendor_did_not_sign_is_fetched_again(
    pccs: Pccs, tmp_path: Path, clock: Clock, name: str
) -> None:
    file = tmp_path / "sgx-00A067110000-processor.json"
    file.write_text(UNSIGNED[name].to_json())
    failures: list[AttestationError] = []
    assert cache_of(pccs, tmp_path, clock, failures).get(SGX) == collateral("sgx")
    assert len(failures) == 1
    assert Collateral.from_json(file.read_text()) == collateral("sgx")


def test_a_cache_that_cannot_be_written_is_told_and_does_no_harm(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "file").touch()
    failures: list[AttestationError] = []
    cache = cache_of(pccs, tmp_path / "file" / "cache", clock, failures)
    assert cache.get(SGX) == cache.get(SGX) == collateral("sgx")
    assert any("not kept on disk" in failure.message for failure in failures)


@pytest.mark.parametrize(
    "position", [60, 500, 600, 1100], ids=["body", "key", "QE", "QE signature"]
)
def test_nobody_is_asked_on_behalf_of_a_forged_quote(
    pccs: Pccs, tmp_path: Path, clock: Clock, position: int
) -> None:
    """Anybody can send a quote with a real platform's certificates, which are public."""
    trust = Trust(sources=((intel(), cache_of(pccs, tmp_path, clock)),))
    forged = bytearray(quote("sgx"))
    forged[position] ^= 1
    verdict = Authenticator(trust, clock).authenticate(bytes(forged)).judge(AnyEnclave())
    with pytest.raises((QuoteSignatureError, CertificateChainError)):
        verdict.require()
    assert pccs.asked == []
    assert Authenticator(trust, clock).authenticate(quote("sgx")).evidence is not None


def test_collateral_that_ran_out_is_a_failure_of_the_service(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    clock.now = expires(collateral("sgx")) + datetime.timedelta(days=1)
    cache = cache_of(pccs, tmp_path, clock)
    for _ in range(3):
        with pytest.raises(CollateralFetchError, match="runs out on"):
            cache.get(SGX)
    assert len(pccs.asked) == 4, "asked once in a minute"
    assert list(tmp_path.iterdir()) == []


def test_older_collateral_does_not_replace_what_is_kept(
    pccs: Pccs, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[AttestationError] = []
    cache = cache_of(pccs, tmp_path, clock, failures)
    kept = cache.get(SGX)
    clock.now = expires(kept) - datetime.timedelta(days=3)
    monkeypatch.setattr(
        "cloister.attestation.service.expires",
        lambda _: clock.now + datetime.timedelta(days=1),
    )
    cache.refresh_due()
    assert [type(failure) for failure in failures] == [CollateralFetchError]
    monkeypatch.undo()
    clock.now = expires(kept) - datetime.timedelta(days=1)
    assert cache.get(SGX) == kept
    assert cache_of(pccs, tmp_path, clock).get(SGX) == kept


def test_a_packed_answer_is_not_unpacked(pccs: Pccs) -> None:
    """A few hundred bytes may become gigabytes."""
    path = "/sgx/certification/v4/rootcacrl"
    packed = gzip.compress(gzip.compress(bytes(64 << 20)))
    pccs.answers[path] = (200, {"Content-Encoding": "gzip, gzip"}, packed)
    with pytest.raises(CollateralFetchError, match="packed"):
        CollateralService(pccs.url, intel()).get(SGX)


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "a\u00e4"])
def test_a_host_that_cannot_be_asked_is_told_at_once(
    host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CollateralFetchError) as caught:
        CollateralService(f"http://{host}", intel()).get(SGX)
    assert "no whole answer in time" not in caught.value.message
    assert "Traceback" not in capfd.readouterr().err
