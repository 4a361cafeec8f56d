"""Whom an owner trusts: roots, each with the collateral that is known under it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable

import dcap_qvl  # type: ignore[import-untyped]

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral
from cloister.attestation.verify import Authentication, authenticate_quote
from cloister.errors import CollateralError, MalformedQuoteError
from cloister.sgx.quote import Quote


@dataclasses.dataclass(frozen=True)
class Trust:
    """Roots to believe, and collateral by root and kind of platform.

    Attributes:
        known: pairs of a root and one piece of collateral under it.
    """

    known: tuple[tuple[TrustAnchor, Collateral], ...]

    @property
    def anchors(self) -> tuple[TrustAnchor, ...]:
        """The roots, each once."""
        return tuple(dict.fromkeys(anchor for anchor, _ in self.known))

    def collateral_for(self, quote: Quote, anchor: TrustAnchor) -> Collateral:
        """Return the collateral for the quote's FMSPC and TEE under ``anchor``.

        Raises:
            CollateralError: there is none.
            MalformedQuoteError: the quote does not say its FMSPC.
        """
        wanted = ("TDX" if quote.is_tdx else "SGX", fmspc_of(quote))
        for owner, collateral in self.known:
            if owner == anchor and platform_kind(collateral) == wanted:
                return collateral
        raise CollateralError(
            f"no collateral for {wanted[0]} platforms of FMSPC {wanted[1]} under {anchor.name}",
            hint="pass the platform's collateral (--collateral FILE, or --trust-simulated BUNDLE)",
        )


@dataclasses.dataclass(frozen=True)
class Authenticator:
    """Finds out whether quotes are genuine, by what the owner trusts and the present time."""

    trust: Trust
    clock: Callable[[], datetime.datetime]

    def authenticate(self, quote: bytes) -> Authentication:
        """Check that ``quote`` is genuine now; see :func:`authenticate_quote`."""
        return authenticate_quote(
            quote,
            anchors=self.trust.anchors,
            collateral_for=self.trust.collateral_for,
            now=self.clock(),
        )


def platform_kind(collateral: Collateral) -> tuple[str, str]:
    """Return the TEE (``SGX`` or ``TDX``) and the FMSPC (upper-case hex) of its TCB info.

    Raises:
        CollateralError: the TCB info is damaged.
    """
    try:
        info = json.loads(collateral.tcb_info)
        return str(info["id"]), str(info["fmspc"]).upper()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CollateralError("collateral: the TCB info is damaged") from error


def fmspc_of(quote: Quote) -> str:
    """Return the FMSPC (upper-case hex) that the quote's PCK certificate states.

    Raises:
        MalformedQuoteError: it states none.
    """
    try:
        return str(dcap_qvl.parse_quote(quote.raw).fmspc()).upper()
    except ValueError as error:
        raise MalformedQuoteError("the quote's PCK certificate states no FMSPC") from error
