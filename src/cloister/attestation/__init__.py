"""The owner's side of attestation: is this quote genuine, and is this the expected enclave?"""

from cloister.attestation.anchors import TrustAnchor, intel
from cloister.attestation.bundle import SimulatedBundle
from cloister.attestation.collateral import Collateral
from cloister.attestation.evidence import Evidence
from cloister.attestation.verdict import Check, Verdict
from cloister.attestation.verify import verify_quote

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
