"""The owner's side of attestation: is this quote genuine, and is this the expected enclave?

The names below are loaded when they are first used: a platform needs only a few of them, and the
start of every enclave would wait for the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.attestation.anchors import TrustAnchor, intel
    from cloister.attestation.bundle import SimulatedBundle
    from cloister.attestation.collateral import Collateral
    from cloister.attestation.evidence import Evidence
    from cloister.attestation.verdict import Check, Verdict
    from cloister.attestation.verify import verify_quote

_HOMES = {
    "Check": "verdict",
    "Collateral": "collateral",
    "Evidence": "evidence",
    "SimulatedBundle": "bundle",
    "TrustAnchor": "anchors",
    "Verdict": "verdict",
    "intel": "anchors",
    "verify_quote": "verify",
}

__all__ = [
    "Check",
    "Collateral",
    "Evidence",
    "SimulatedBundle",
    "TrustAnchor",
    "Verdict",
    "intel",
    "verify_quote",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
