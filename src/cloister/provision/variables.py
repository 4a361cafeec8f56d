"""The variables of ``libsecret_prov_attest.so``, Graphene's and Gramine's.

Apart from the client, so that a run which asks for nothing loads none of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

CONSTRUCTOR = "SECRET_PROVISION_CONSTRUCTOR"
SERVERS = "SECRET_PROVISION_SERVERS"
CA_CHAIN_PATH = "SECRET_PROVISION_CA_CHAIN_PATH"
SET_KEY = "SECRET_PROVISION_SET_KEY"
SET_PF_KEY = "SECRET_PROVISION_SET_PF_KEY"
SECRET_STRING = "SECRET_PROVISION_SECRET_STRING"  # noqa: S105  (a variable's name)
LD_PRELOAD = "LD_PRELOAD"
LIBRARY = "libsecret_prov_attest.so"

YES = ("1", "true", "TRUE")
"""What switches something on; every other value leaves it off."""


def is_asked(environment: Mapping[str, str]) -> bool:
    """Tell whether a secret is to be fetched before the program starts."""
    return environment.get(CONSTRUCTOR) in YES


def without_provisioning(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that the application gets after key release.

    Where the constructor variable asks for anything, it and any preset secret are gone, so that
    children do not ask again. ``LD_PRELOAD`` never names the library whose work is done here.
    """
    result = dict(environment)
    if is_asked(environment):
        del result[CONSTRUCTOR]
        result.pop(SECRET_STRING, None)
    if LD_PRELOAD in result:
        entries = [item for item in re.split(r"[ :]+", result[LD_PRELOAD]) if item]
        kept = [item for item in entries if item.rpartition("/")[2] != LIBRARY]
        if kept != entries:
            del result[LD_PRELOAD]
            if kept:
                result[LD_PRELOAD] = ":".join(kept)
    return result
