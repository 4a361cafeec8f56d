"""The trust bundle of a simulated platform: its root and its collateral in one JSON file.

The platform's keeper exports it (``cloister platform export``), the owner names it
(``--trust-simulated``). That act, and nothing else, makes a verifier believe the platform.
"""

from __future__ import annotations

import dataclasses
import json

from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.collateral import Collateral, parse_json
from cloister.errors import CollateralError, InputError

FORMAT = "cloister simulated platform 1"


@dataclasses.dataclass(frozen=True)
class SimulatedBundle:
    """A simulated root, and the collateral published under it."""

    anchor: TrustAnchor
    collateral: Collateral

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(
            {
                "format": FORMAT,
                "simulated": True,
                "note": "SIMULATED: no hardware protects enclaves of this platform",
                "root_sha256": self.anchor.fingerprint,
                "root": self.anchor.certificate_pem,
                "collateral": self.collateral.to_dict(),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> SimulatedBundle:
        """Read the file's text.

        Raises:
            InputError: another kind of file, or Intel's root in it.
            CollateralError: a damaged file.
        """
        data = parse_json(text, "simulated platform bundle")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(
                "not a bundle of a simulated platform",
                hint="make one on that platform: cloister platform export FILE",
            )
        root = data.get("root")
        if not isinstance(root, str):
            raise CollateralError("simulated platform bundle: field root is missing")
        anchor = TrustAnchor.from_pem(root)
        if anchor.fingerprint != data.get("root_sha256"):
            raise CollateralError("simulated platform bundle: root and root_sha256 differ")
        if not anchor.simulated:
            raise InputError("simulated platform bundle: its root is Intel's, not a simulated one")
        return cls(anchor, Collateral.from_dict(data.get("collateral", {})))
