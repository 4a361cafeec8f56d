"""The provisioning certification service's HTTP interface as data (PCS and PCCS API, version 4).

Requests are paths, answers are bytes and headers; nothing here touches a network. What is signed
is the exact text of a member of the answer's JSON, so that it is cut out, never written anew.
"""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Protocol

from cloister.attestation.collateral import Collateral, parse_json
from cloister.errors import CollateralError

TCB_INFO_CHAIN = "TCB-Info-Issuer-Chain"
QE_IDENTITY_CHAIN = "SGX-Enclave-Identity-Issuer-Chain"
PCK_CRL_CHAIN = "SGX-PCK-CRL-Issuer-Chain"
ROOT_CRL_PATH = "/sgx/certification/v4/rootcacrl"
"""Only a PCCS has it; Intel's service publishes the list at the root's distribution point."""


@dataclasses.dataclass(frozen=True)
class PlatformKind:
    """What collateral is asked for.

    Attributes:
        tee: ``sgx`` or ``tdx``.
        fmspc: 12 upper-case hex digits.
        ca: the CA of its PCK certificates, ``processor`` or ``platform``.
    """

    tee: str
    fmspc: str
    ca: str

    def __post_init__(self) -> None:
        known = self.tee in ("sgx", "tdx") and self.ca in ("processor", "platform")
        if not known or not re.fullmatch(r"[0-9A-F]{12}", self.fmspc):
            raise CollateralError(
                f"no such kind of platform: {self.tee}, FMSPC {self.fmspc}, {self.ca} CA"
            )

    @property
    def tcb_info_path(self) -> str:
        """Where the TCB info is."""
        return f"/{self.tee}/certification/v4/tcb?fmspc={self.fmspc}"

    @property
    def qe_identity_path(self) -> str:
        """Where the identity of the quoting enclave is."""
        return f"/{self.tee}/certification/v4/qe/identity"

    @property
    def pck_crl_path(self) -> str:
        """Where the revocation list of PCK certificates is."""
        return f"/sgx/certification/v4/pckcrl?ca={self.ca}&encoding=der"


class WouldAskError(Exception):
    """What is not at hand was wanted at once: see :meth:`Trust.collateral_at_hand`."""


class Source(Protocol):
    """Something that has collateral by kind of platform."""

    def get(
        self, kind: PlatformKind, before_asking: Callable[[], None] = lambda: None
    ) -> Collateral:
        """Return the collateral.

        Args:
            kind: of which platforms.
            before_asking: called before anybody else is asked for it, or is waited for because
                another thread asks already; prevents that by raising.

        Raises:
            CollateralError: it cannot be had.
        """
        ...

    def refresh_due(self) -> None:
        """Fetch again what is kept and runs out soon; never raises for a service that fails."""
        ...


@dataclasses.dataclass(frozen=True)
class Answer:
    """A successful HTTP answer.

    Attributes:
        body: its bytes.
        headers: its headers; names in lower case.
    """

    body: bytes
    headers: Mapping[str, str]

    def chain(self, header: str) -> str:
        """Return the PEM chain that a header carries URL-encoded.

        Raises:
            CollateralError: the header is missing.
        """
        value = self.headers.get(header.lower())
        if value is None:
            raise CollateralError(f"the service's answer lacks the header {header}")
        return urllib.parse.unquote(value)


def assemble(
    *, tcb_info: Answer, qe_identity: Answer, pck_crl: Answer, root_crl: Answer
) -> Collateral:
    """Make collateral of the four answers of a service; nothing is verified here.

    Raises:
        CollateralError: an answer is not of its form.
    """
    info, info_signature = signed_member(tcb_info.body, "tcbInfo")
    identity, identity_signature = signed_member(qe_identity.body, "enclaveIdentity")
    return Collateral(
        pck_crl_issuer_chain=pck_crl.chain(PCK_CRL_CHAIN),
        root_ca_crl=_der(root_crl.body),
        pck_crl=_der(pck_crl.body),
        tcb_info_issuer_chain=tcb_info.chain(TCB_INFO_CHAIN),
        tcb_info=info,
        tcb_info_signature=info_signature,
        qe_identity_issuer_chain=qe_identity.chain(QE_IDENTITY_CHAIN),
        qe_identity=identity,
        qe_identity_signature=identity_signature,
    )


def signed_member(body: bytes, name: str) -> tuple[str, bytes]:
    """Return the exact text of the JSON member ``name``, and the signature beside it.

    Raises:
        CollateralError: not ``{"NAME": ..., "signature": "hex"}``.
    """
    parse_json(body, f"the service's {name}")
    try:
        text = body.decode()
        start = re.match(rf'\s*{{\s*"{name}"\s*:\s*', text)
        if start is None:
            raise CollateralError(f"the service's answer does not begin with {name}")
        _, end = json.JSONDecoder().raw_decode(text, start.end())
        rest = re.fullmatch(r'\s*,\s*"signature"\s*:\s*"([0-9A-Fa-f]*)"\s*}\s*', text[end:])
        if rest is None:
            raise CollateralError(f"the service's {name} has no signature behind it")
        return text[start.end() : end], bytes.fromhex(rest[1])
    except ValueError as error:
        raise CollateralError(f"the service's {name} cannot be read") from error


def _der(body: bytes) -> bytes:
    """Return the DER of a revocation list that some services write in hexadecimal."""
    if body[:1] == b"\x30" and not re.fullmatch(rb"[0-9A-Fa-f\s]+", body):
        return body
    try:
        return bytes.fromhex(body.decode("ascii"))
    except ValueError as error:
        raise CollateralError("the service's revocation list is neither DER nor hex") from error
