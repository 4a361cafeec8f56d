"""When collateral runs out: the earliest date in any of its parts."""

from __future__ import annotations

import datetime
import json

from cryptography import x509

from cloister.attestation.collateral import Collateral
from cloister.errors import CollateralError

_UNREADABLE = (
    *(ValueError, KeyError, TypeError, OverflowError, RecursionError),
    x509.InvalidVersion,
)


def expires(collateral: Collateral) -> datetime.datetime:
    """Return the first moment at which a part of the collateral is no longer valid (aware).

    Nothing is verified: the date serves to fetch in time, not to trust.

    Raises:
        CollateralError: a part cannot be read.
    """
    try:
        texts = [json.loads(text) for text in (collateral.tcb_info, collateral.qe_identity)]
        dates = [parse_time(text["nextUpdate"]) for text in texts]
        for der in (collateral.root_ca_crl, collateral.pck_crl):
            update = x509.load_der_x509_crl(der).next_update_utc
            dates += [update] if update else []
        for chain in (
            collateral.pck_crl_issuer_chain,
            collateral.tcb_info_issuer_chain,
            collateral.qe_identity_issuer_chain,
        ):
            certificates = x509.load_pem_x509_certificates(chain.encode())
            dates += [certificate.not_valid_after_utc for certificate in certificates]
    except _UNREADABLE as error:
        raise CollateralError("collateral: a part cannot be read") from error
    return min(dates)


def parse_time(text: object) -> datetime.datetime:
    """Read an RFC 3339 time with zone, as the service writes it.

    Raises:
        ValueError, TypeError: not such a time.
    """
    if not isinstance(text, str):  # JSON may hold anything there
        raise TypeError(f"{text!r}: not a time")
    time = datetime.datetime.fromisoformat(text.removesuffix("Z") + "+00:00" * text.endswith("Z"))
    if time.tzinfo is None:
        raise ValueError(f"{text}: no time zone")
    return time
