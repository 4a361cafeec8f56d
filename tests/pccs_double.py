"""A PCCS for tests: a web server that answers from a table, with Intel's real collateral."""

from __future__ import annotations

import datetime
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cloister.attestation import Collateral, intel
from cloister.attestation.pcs import PlatformKind
from cloister.attestation.service import CollateralService

UTC = datetime.timezone.utc
DATA = Path(__file__).parent / "data" / "quotes"
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


def broken(pccs: Pccs, part: str, answer: tuple[int, dict[str, str], bytes]) -> CollateralService:
    (path,) = [path for path in pccs.answers if part in path and "tdx" not in path]
    pccs.answers[path] = answer
    return CollateralService(pccs.url, intel())
