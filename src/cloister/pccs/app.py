"""The HTTP face of the service: routes, parameters and status codes of the PCS API, version 4.

What stands behind it is a :class:`Backend`: a simulated platform, or a cache before another
service. Parameters are checked here, so that a backend is asked only for what can exist.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cloister.attestation.pcs import Answer
from cloister.errors import CollateralFetchError, CollateralNotFoundError

_V4 = "/certification/v4"
_HEX = r"[0-9A-Fa-f]"


class Backend(Protocol):
    """Something that has the answers."""

    def answer(self, path: str, parameters: Mapping[str, str]) -> Answer:
        """Return the answer for a path of the API.

        Args:
            path: e.g. ``/sgx/certification/v4/tcb``.
            parameters: the query, checked and complete; revocation lists are wanted in DER.

        Raises:
            CollateralNotFoundError: there is no such thing.
            CollateralFetchError: the service behind does not answer.
        """
        ...


_FMSPC = {"fmspc": rf"{_HEX}{{12}}"}
_UPDATE = {"update": "early|standard"}
_PCK = {
    "encrypted_ppid": rf"{_HEX}{{768}}",
    "cpusvn": rf"{_HEX}{{32}}",
    "pcesvn": rf"{_HEX}{{4}}",
    "pceid": rf"{_HEX}{{4}}",
}
# path -> (parameters that must be there, parameters that may be there)
_ROUTES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    f"/sgx{_V4}/tcb": (_FMSPC, _UPDATE),
    f"/tdx{_V4}/tcb": (_FMSPC, _UPDATE),
    f"/sgx{_V4}/qe/identity": ({}, _UPDATE),
    f"/tdx{_V4}/qe/identity": ({}, _UPDATE),
    f"/sgx{_V4}/qve/identity": ({}, _UPDATE),
    f"/sgx{_V4}/pckcrl": ({"ca": "processor|platform"}, {"encoding": "pem|der"}),
    f"/sgx{_V4}/rootcacrl": ({}, {}),
    f"/sgx{_V4}/pckcert": (_PCK, {"qeid": rf"{_HEX}{{32}}"}),
}
_SHOWN_HEADERS = {
    "tcb-info-issuer-chain": "TCB-Info-Issuer-Chain",
    "sgx-enclave-identity-issuer-chain": "SGX-Enclave-Identity-Issuer-Chain",
    "sgx-pck-crl-issuer-chain": "SGX-PCK-CRL-Issuer-Chain",
    "sgx-pck-certificate-issuer-chain": "SGX-PCK-Certificate-Issuer-Chain",
    "sgx-tcbm": "SGX-TCBm",
    "sgx-fmspc": "SGX-FMSPC",
    "sgx-pck-certificate-ca-type": "SGX-PCK-Certificate-CA-Type",
    "cloister-simulated": "Cloister-SIMULATED",
}


def create_app(backend: Backend) -> Starlette:
    """Return the ASGI application that serves ``backend``."""

    def endpoint(request: Request) -> Response:
        path = request.url.path
        parameters = _checked(path, request)
        if parameters is None:
            return PlainTextResponse("invalid or missing parameters\n", status_code=400)
        encoding = parameters.pop("encoding", "pem")
        try:
            answer = backend.answer(path, parameters)
        except CollateralNotFoundError as error:
            return PlainTextResponse(f"{error.message}\n", status_code=404)
        except CollateralFetchError as error:
            return PlainTextResponse(f"{error.message}\n", status_code=502)
        return _response(path, answer, encoding)

    return Starlette(routes=[Route(path, endpoint, methods=["GET"]) for path in _ROUTES])


def _checked(path: str, request: Request) -> dict[str, str] | None:
    required, optional = _ROUTES[path]
    patterns = required | optional
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in found or name not in patterns or not re.fullmatch(patterns[name], value):
            return None
        found[name] = value
    return found if required.keys() <= found.keys() else None


def _response(path: str, answer: Answer, encoding: str) -> Response:
    headers = {
        shown: answer.headers[name]
        for name, shown in _SHOWN_HEADERS.items()
        if name in answer.headers
    }
    body, kind = answer.body, "application/json"
    if path.endswith("/rootcacrl"):
        # A PCCS writes this one list in hexadecimal.
        body, kind = body.hex().encode(), "text/plain"
    elif path.endswith("/pckcrl"):
        kind = "application/pkix-crl" if encoding == "der" else "application/x-pem-file"
        body = body if encoding == "der" else _pem(body)
    elif path.endswith("/pckcert"):
        kind = "application/x-pem-file"
    return Response(body, media_type=kind, headers=headers)


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"
