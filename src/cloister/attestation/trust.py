"""Whom an owner trusts: roots, each with the collateral that is known under it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral, tee_and_fmspc
from cloister.attestation.dcap import kind_of
from cloister.attestation.expiry import expires
from cloister.attestation.pcs import Source, WouldAskError
from cloister.attestation.repeated import RepeatedQuotes
from cloister.attestation.signatures import require_own_signatures
from cloister.attestation.verify import Authentication, authenticate_quote
from cloister.errors import CollateralError
from cloister.sgx.quote import Quote


@dataclasses.dataclass(frozen=True)
class Trust:
    """Roots to believe, and collateral by root and kind of platform.

    Attributes:
        known: pairs of a root and one piece of collateral under it.
        sources: pairs of a root and where more collateral under it can be had.
    """

    known: tuple[tuple[TrustAnchor, Collateral], ...] = ()
    sources: tuple[tuple[TrustAnchor, Source], ...] = ()

    @functools.cached_property
    def anchors(self) -> tuple[TrustAnchor, ...]:
        """The roots, each once."""
        return tuple(dict.fromkeys(anchor for anchor, _ in (*self.known, *self.sources)))

    def refresh_due(self) -> None:
        """Let the sources fetch what runs out soon."""
        for _, source in self.sources:
            source.refresh_due()

    def collateral_for(self, quote: Quote, anchor: TrustAnchor) -> Collateral:
        """Return the collateral for the quote's FMSPC and TEE under ``anchor``.

        Raises:
            CollateralError: there is none.
            MalformedQuoteError: the quote does not say its FMSPC.
        """
        return self._collateral(quote, anchor, lambda: require_own_signatures(quote))

    def collateral_at_hand(self, quote: Quote, anchor: TrustAnchor) -> Collateral:
        """Do the same without waiting for anybody.

        Raises:
            WouldAskError: a service has to be asked.
        """

        def refuse() -> None:
            require_own_signatures(quote)
            raise WouldAskError

        return self._collateral(quote, anchor, refuse)

    def _collateral(
        self, quote: Quote, anchor: TrustAnchor, before_asking: Callable[[], None]
    ) -> Collateral:
        wanted = kind_of(quote)
        known = [
            collateral
            for owner, collateral in self.known
            if owner == anchor and tee_and_fmspc(collateral) == (wanted.tee, wanted.fmspc)
        ]
        if known:
            # An owner who adds a fresh file may well leave the old one where it was.
            return max(known, key=expires) if len(known) > 1 else known[0]
        for owner, source in self.sources:
            if owner == anchor:
                return source.get(wanted, before_asking)
        raise CollateralError(
            f"no collateral for {wanted.tee} platforms of FMSPC {wanted.fmspc} under {anchor.name}",
            hint="pass it (--collateral FILE, --trust-simulated BUNDLE) or say where it is"
            " (--pccs URL)",
        )


class Authenticator:
    """Finds out whether quotes are genuine, by what the owner trusts and the present time.

    Args:
        trust: whom the owner trusts; may be exchanged while quotes are being checked.
        clock: gives the present time (aware).
    """

    def __init__(self, trust: Trust, clock: Callable[[], datetime.datetime]) -> None:
        self.trust = trust
        self._clock = clock
        self._repeated = RepeatedQuotes()

    def authenticate(
        self, quote: bytes, event_log: bytes = b"", *, at_once: bool = False
    ) -> Authentication:
        """Check that ``quote`` is genuine now; see :func:`authenticate_quote`.

        Args:
            quote: what the platform signed.
            event_log: what lies beside a TDX quote.
            at_once: ask no service for collateral.

        Raises:
            WouldAskError: one has to be asked, and ``at_once`` was wanted.
        """
        trust, now = self.trust, self._clock()
        anchors = trust.anchors
        collateral_for = trust.collateral_at_hand if at_once else trust.collateral_for
        if event_log:
            return authenticate_quote(
                quote,
                anchors=anchors,
                collateral_for=collateral_for,
                now=now,
                event_log=event_log,
            )
        return self._repeated.authenticate(
            quote, anchors=anchors, collateral_for=collateral_for, now=now
        )
