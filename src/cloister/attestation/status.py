"""TCB statuses: their names, and what two of them make together.

The names are those of the Intel SGX PCS API, version 4. dcap-qvl 0.7.0 forgets a quoting
enclave's ConfigurationNeeded and OutOfDateConfigurationNeeded when it joins its status with the
platform's (a platform that is UpToDate stays so), so that the joining is done here once more.
"""

from __future__ import annotations

import enum


class _Flaw(enum.Flag):
    NONE = 0
    SW_HARDENING = enum.auto()
    CONFIGURATION = enum.auto()
    RELAUNCH = enum.auto()
    OUT_OF_DATE = enum.auto()


UP_TO_DATE = "UpToDate"
REVOKED = "Revoked"
_FLAWS = {
    UP_TO_DATE: _Flaw.NONE,
    "SWHardeningNeeded": _Flaw.SW_HARDENING,
    "ConfigurationNeeded": _Flaw.CONFIGURATION,
    "ConfigurationAndSWHardeningNeeded": _Flaw.CONFIGURATION | _Flaw.SW_HARDENING,
    "TDRelaunchAdvised": _Flaw.RELAUNCH,
    "TDRelaunchAdvisedConfigurationNeeded": _Flaw.RELAUNCH | _Flaw.CONFIGURATION,
    "OutOfDate": _Flaw.OUT_OF_DATE,
    "OutOfDateConfigurationNeeded": _Flaw.OUT_OF_DATE | _Flaw.CONFIGURATION,
}
TCB_STATUSES = tuple(_FLAWS)
"""Statuses that a policy may accept; REVOKED is never one of them."""
_NAMES = {flaw: name for name, flaw in _FLAWS.items()}


def joined(one: str, other: str) -> str:
    """Return the status that has the flaws of both.

    A graver flaw hides a lighter one of its kind, as in Intel's own names: OutOfDate stands for
    SWHardeningNeeded and TDRelaunchAdvised too.

    Raises:
        KeyError: an unknown status.
    """
    flaws = _FLAWS[one] | _FLAWS[other]
    for grave in (_Flaw.OUT_OF_DATE, _Flaw.RELAUNCH):
        if flaws & grave:
            flaws &= grave | _Flaw.CONFIGURATION
    return _NAMES[flaws]
