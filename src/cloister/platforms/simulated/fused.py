"""The fused keys of a simulated device, as its file holds them. SIMULATED.

Apart from the rest of the device, because starting an enclave needs nothing else of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloister.errors import CollateralError, PlatformError
from cloister.sgx.keys import FusedKeys

FORMAT = "cloister simulated device 1"
DEVICE_FILE = "device.json"


def read_fused(directory: Path) -> FusedKeys | None:
    """Return the fused keys of the device in ``directory``, None if there is none yet.

    Raises:
        PlatformError: the file is damaged, or others may read it.
    """
    path = directory / DEVICE_FILE
    if not path.exists():
        return None
    refuse_open_permissions(directory)
    refuse_open_permissions(path)
    with damage_is_an_error(path):
        return parse_fused(json.loads(path.read_bytes()))


def parse_fused(data: dict[str, Any]) -> FusedKeys:
    """Return the fused keys of a device's description.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    if data["format"] != FORMAT:
        raise ValueError("format")
    return FusedKeys(**{name: bytearray(exact(text, 16)) for name, text in data["fused"].items()})


def exact(text: str, size: int) -> bytes:
    """Return the bytes that hexadecimal digits stand for.

    Raises:
        ValueError: they are no digits, or not ``size`` bytes.
    """
    value = bytes.fromhex(text)
    if len(value) != size:
        raise ValueError("length")
    return value


def refuse_open_permissions(path: Path) -> None:
    """Refuse what others may read or change.

    Raises:
        PlatformError: they may.
    """
    status = path.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PlatformError(
            f"{path}: others may read or change the simulated device's keys",
            hint=f"chmod go-rwx {path} (and let it belong to you)",
        )


@contextlib.contextmanager
def damage_is_an_error(path: Path) -> Iterator[None]:
    """Tell of a file of the device that cannot be understood."""
    try:
        yield
    except (ValueError, KeyError, TypeError, CollateralError) as error:
        raise PlatformError(
            f"{path}: damaged, or written by another version of cloister",
            hint=f"remove {path.parent} to get a new simulated device;"
            " keys sealed to the old one are then lost",
        ) from error
