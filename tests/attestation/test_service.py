"""Collateral from a service: a PCCS with Intel's real collateral, and one that misbehaves."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation import intel
from cloister.attestation.dcap import kind_of
from cloister.attestation.expiry import expires, parse_time
from cloister.attestation.pcs import Answer, PlatformKind, signed_member
from cloister.attestation.policy import AnyEnclave, TcbStatus, all_of
from cloister.attestation.service import (
    CollateralService,
    crl_location,
)
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import (
    CollateralError,
    CollateralFetchError,
)
from cloister.sgx.quote import parse_quote
from pccs_double import KINDS, NOW, UTC, Pccs, broken, collateral, quote


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
