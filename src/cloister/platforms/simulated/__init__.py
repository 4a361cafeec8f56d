"""The simulated platform: a software processor with its own root. SIMULATED.

Its quotes have the real format and are checked by the real code, under a root that no verifier
trusts unless it is told to by name. Nothing here protects anything from this machine's keeper.
"""

from cloister.platforms.simulated.platform import SimulatedEnclave, SimulatedPlatform

__all__ = ["SimulatedEnclave", "SimulatedPlatform"]
