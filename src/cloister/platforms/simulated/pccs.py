"""The simulated provisioning service behind the PCS API. SIMULATED.

It serves the collateral that the simulated platform would export, on good days and bad ones.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable, Mapping

from cloister.attestation.collateral import Collateral
from cloister.attestation.pcs import (
    PCK_CRL_CHAIN,
    QE_IDENTITY_CHAIN,
    ROOT_CRL_PATH,
    TCB_INFO_CHAIN,
    Answer,
    PlatformKind,
)
from cloister.errors import CollateralNotFoundError
from cloister.platforms.simulated.device import FMSPC


class SimulatedBackend:
    """Answers with the collateral of a simulated platform.

    Args:
        collateral: returns what is published now.
    """

    def __init__(self, collateral: Callable[[], Collateral]) -> None:
        self._collateral = collateral

    def answer(self, path: str, parameters: Mapping[str, str]) -> Answer:
        """Return the answer for a path of the API; see :class:`cloister.pccs.app.Backend`.

        Raises:
            CollateralNotFoundError: another kind of platform, or nothing that is simulated.
        """
        kind = PlatformKind("sgx", FMSPC.hex().upper(), "processor")
        present = self._collateral()
        fmspc = parameters.get("fmspc", kind.fmspc).upper()
        if fmspc != kind.fmspc or parameters.get("ca", kind.ca) != kind.ca:
            raise CollateralNotFoundError(f"the SIMULATED platform has FMSPC {kind.fmspc}")
        answers = {
            kind.tcb_info_path.partition("?")[0]: lambda: _signed(
                "tcbInfo",
                present.tcb_info,
                present.tcb_info_signature,
                {TCB_INFO_CHAIN: present.tcb_info_issuer_chain},
            ),
            kind.qe_identity_path: lambda: _signed(
                "enclaveIdentity",
                present.qe_identity,
                present.qe_identity_signature,
                {QE_IDENTITY_CHAIN: present.qe_identity_issuer_chain},
            ),
            kind.pck_crl_path.partition("?")[0]: lambda: _answer(
                present.pck_crl, {PCK_CRL_CHAIN: present.pck_crl_issuer_chain}
            ),
            ROOT_CRL_PATH: lambda: _answer(present.root_ca_crl, {}),
        }
        if path not in answers:
            raise CollateralNotFoundError(f"the SIMULATED platform has no {path}")
        return answers[path]()


def _signed(name: str, text: str, signature: bytes, chains: Mapping[str, str]) -> Answer:
    body = f'{{{json.dumps(name)}:{text},"signature":"{signature.hex()}"}}'
    return _answer(body.encode(), chains)


def _answer(body: bytes, chains: Mapping[str, str]) -> Answer:
    headers = {name.lower(): urllib.parse.quote(chain) for name, chain in chains.items()}
    return Answer(body, headers | {"cloister-simulated": "1"})
