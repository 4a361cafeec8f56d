"""Whether this is a TDX virtual machine; cheap to ask."""

from __future__ import annotations

from pathlib import Path

REPORTS = Path("/sys/kernel/config/tsm/report")
"""The kernel's attestation reports in configfs; other confidential machines have them, too."""
REGISTER_FILE = Path("/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384")
GUEST_DEVICE = Path("/dev/tdx_guest")


def tdx_is_here() -> bool:
    """Tell whether the kernel offers reports, and the register of a TDX virtual machine."""
    return REPORTS.is_dir() and (REGISTER_FILE.exists() or GUEST_DEVICE.exists())
