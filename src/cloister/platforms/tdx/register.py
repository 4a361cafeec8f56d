"""RTMR 3, the register that a virtual machine may extend at run time, through the kernel.

Linux 6.16 and above have it as a file: reading gives its value, writing a SHA-384 digest extends it
(Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest). Older kernels of distributions
have a command of the guest device instead (``TDX_CMD_EXTEND_RTMR`` of Intel's patches), and the
value is in the local report (``TDX_CMD_GET_REPORT0``, Linux 6.2 and above).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cloister.errors import PlatformError
from cloister.platforms.tdx.presence import GUEST_DEVICE, REGISTER_FILE
from cloister.tdx.event_log import REGISTER_SIZE

NUMBER = 3

GET_REPORT0 = 0xC4405401
"""_IOWR('T', 1, report data of 64 bytes and TDREPORT of 1024)."""
EXTEND_RTMR = 0x80315403, 0x40315403
"""_IOR and _IOW('T', 3, a digest of 48 bytes and the register's number as one byte).

Intel's libraries know drivers that take the one and drivers that take the other.
"""

_REPORT_REQUEST = struct.Struct("64s1024s")
_EXTEND_REQUEST = struct.Struct("48sB")
# TDREPORT_STRUCT: REPORTMACSTRUCT 256, TEE_TCB_INFO 239, reserved 17, then TDINFO_STRUCT, in which
# the registers follow attributes, XFAM and four measurements (TDX Module ABI, table "TDINFO").
_RTMR3_OFFSET = 64 + 512 + 16 + 4 * 48 + NUMBER * 48


class Register(Protocol):
    """RTMR 3 of this virtual machine."""

    def read(self) -> bytes:
        """Return its value, 48 bytes.

        Raises:
            PlatformError: the kernel refuses.
        """
        ...

    def require(self) -> None:
        """Make sure that this kernel can extend it, without doing so.

        Raises:
            PlatformError: it cannot.
        """
        ...

    def extend(self, digest: bytes) -> None:
        """Extend it by a SHA-384 digest, 48 bytes. Nothing undoes this until the next boot.

        Raises:
            PlatformError: the kernel refuses.
        """
        ...


class FileRegister:
    """The register as a file in sysfs."""

    def __init__(self, path: Path = REGISTER_FILE) -> None:
        self._path = path

    def read(self) -> bytes:
        """Return its value, 48 bytes."""
        try:
            value = self._path.read_bytes()
        except OSError as error:
            raise _refused(self._path, error) from error
        if len(value) != REGISTER_SIZE:
            raise PlatformError(f"{self._path}: {len(value)} bytes, expected {REGISTER_SIZE}")
        return value

    def require(self) -> None:
        """Make sure that this process may extend it."""
        try:
            self._path.open("r+b", buffering=0).close()
        except OSError as error:
            raise _refused(self._path, error) from error

    def extend(self, digest: bytes) -> None:
        """Extend it by a SHA-384 digest, 48 bytes."""
        try:
            with self._path.open("r+b", buffering=0) as stream:
                written = stream.write(digest)
        except OSError as error:
            raise _refused(self._path, error) from error
        if written != len(digest):
            raise PlatformError(f"{self._path}: took {written} bytes, expected {len(digest)}")


class DeviceRegister:
    """The register through the guest device's commands."""

    def __init__(self, path: Path = GUEST_DEVICE) -> None:
        self._path = path

    def read(self) -> bytes:
        """Return its value, 48 bytes, out of a local report."""
        request = bytearray(_REPORT_REQUEST.size)
        self._command(GET_REPORT0, request)
        return bytes(request[_RTMR3_OFFSET : _RTMR3_OFFSET + REGISTER_SIZE])

    def require(self) -> None:
        """Make sure that the driver has a command for it."""
        self._extending()

    def extend(self, digest: bytes) -> None:
        """Extend it by a SHA-384 digest, 48 bytes."""
        self._command(self._extending(), bytearray(_EXTEND_REQUEST.pack(digest, NUMBER)))

    def _extending(self) -> int:
        """Return the command that this driver takes.

        Given no request it fails with EFAULT; of a command that it lacks it says ENOTTY.
        """
        refused: OSError | None = None
        with self._open() as device:
            for number in EXTEND_RTMR:
                try:
                    fcntl.ioctl(device, number, 0)
                except OSError as error:
                    if error.errno == errno.EFAULT:
                        return number
                    refused = error
        raise _refused(self._path, refused or OSError(errno.EINVAL, "took an empty request"))

    def _command(self, number: int, request: bytearray) -> None:
        with self._open() as device:
            try:
                fcntl.ioctl(device, number, request)
            except OSError as error:
                raise _refused(self._path, error) from error

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        try:
            device = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(self._path, error) from error
        try:
            yield device
        finally:
            os.close(device)


def _refused(path: Path, error: OSError) -> PlatformError:
    return PlatformError(
        f"{path}: {error.strerror}; RTMR {NUMBER} cannot be read or extended",
        hint="run as root in a TDX virtual machine with Linux 6.16 or later",
    )


def register_of_this_machine() -> Register:
    """Return whichever of the two the kernel offers; its file where both are there."""
    return FileRegister() if REGISTER_FILE.exists() else DeviceRegister()
