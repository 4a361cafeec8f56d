"""The verdict on a TLS peer: its certificate's evidence, its binding, and the quote."""

from __future__ import annotations

import dataclasses

from cloister.attestation.trust import Authenticator
from cloister.attestation.verdict import Check
from cloister.attestation.verify import Authentication
from cloister.errors import RefusedError
from cloister.ratls.certificate import attested_key

_NAME = "key binding"
_EXPECTED = "a quote bound to the certificate's key"


def authenticate_certificate(
    der: bytes, authenticator: Authenticator, *, at_once: bool = False
) -> Authentication:
    """Find out whether a peer's certificate (DER) proves that its key lives in an enclave.

    Never raises for anything in the certificate: every failure is a check that failed.

    Args:
        der: the certificate.
        authenticator: finds out whether the quote is genuine.
        at_once: ask no service for collateral.

    Raises:
        WouldAskError: one has to be asked, and ``at_once`` was wanted.
    """
    try:
        key = attested_key(der)
    except RefusedError as error:
        failed = Check(_NAME, False, error.message, _EXPECTED, type(error), error.hint)
        return Authentication((failed,), None, None)
    found = "the legacy quote is bound to it" if key.legacy else "the evidence is bound to it"
    authentication = authenticator.authenticate(key.quote, key.event_log, at_once=at_once)
    checks = (Check(_NAME, True, found, _EXPECTED), *authentication.checks)
    return dataclasses.replace(authentication, checks=checks)
