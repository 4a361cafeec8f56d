"""Quotes from the kernel, through configfs (Linux 6.7 and above).

Source: Linux, Documentation/ABI/testing/configfs-tsm-report. A directory made below
``/sys/kernel/config/tsm/report`` is one request: ``inblob`` takes the 64 bytes of report data,
``outblob`` gives the quote, and ``generation`` counts the writes, so that a reader knows whether
the quote answers its own. ``provider`` names the kind of machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cloister.errors import PlatformError
from cloister.platforms.tdx.presence import REPORTS
from cloister.sgx.quote import MAX_QUOTE_SIZE

PROVIDER = "tdx_guest"
_MAX_BLOB = 131_072  # bytes: the driver's buffer for a quote
_MAX_TEXT = 4096
_PREFIX = "cloister-"

_HOST_FAILED = (errno.EBUSY, errno.EIO, errno.ETIMEDOUT)
BUSY_SECONDS = 30.0
"""How long to wait for the host's answer to somebody who did not: the driver's own patience."""
_PAUSE = 0.2
_ABANDONED_SECONDS = 600.0
"""No request takes as long: it was left by a process that was killed."""


class Reports:
    """The kernel's attestation reports.

    Args:
        directory: where configfs offers them.
        sleep: waits so many seconds.
    """

    def __init__(
        self, directory: Path = REPORTS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._directory = directory
        self._sleep = sleep

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote with these 64 bytes, as the kernel gave it.

        Raises:
            PlatformError: the kernel has no TDX reports, refuses, or answered another request.
        """
        with self._request() as request:
            provider = self._text(request, "provider")
            if provider != PROVIDER:
                raise PlatformError(
                    f"{request.parent}: reports of {provider}, expected {PROVIDER}",
                    hint="this virtual machine is protected by something else than TDX",
                )
            before = self._generation(request)
            self._write(request / "inblob", report_data)
            quote = self._answer(request / "outblob")
            after = self._generation(request)
        if after != before + 1:
            raise PlatformError(
                f"{request}: generation {after} after one write to generation {before},"
                f" expected {before + 1}: the quote answers somebody else's request",
                hint="nobody but this process may write there; try again",
            )
        return quote if any(quote[MAX_QUOTE_SIZE:]) else quote[:MAX_QUOTE_SIZE]

    def _answer(self, outblob: Path) -> bytes:
        """Return what the host's quoting service answered, with zeros behind it if it pads.

        While the host still owes an answer to a process that was killed or interrupted meanwhile,
        the driver is busy for everybody.
        """
        waited = 0.0
        while True:
            try:
                answer = _contents(outblob, _MAX_BLOB)
            except OSError as error:
                what = f"{outblob}: {error.strerror}"
                if error.errno not in _HOST_FAILED:
                    raise PlatformError(what) from error
                if error.errno != errno.EBUSY or waited >= BUSY_SECONDS:
                    raise _unanswered(what) from error
                self._sleep(_PAUSE)
                waited += _PAUSE
            else:
                if not answer:
                    raise _unanswered(f"{outblob}: empty")
                return answer

    @contextlib.contextmanager
    def _request(self) -> Iterator[Path]:
        request = self._directory / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._remove_abandoned()
        try:
            request.mkdir()
        except OSError as error:
            raise PlatformError(
                f"{request}: {error.strerror}; expected the kernel's reports of TDX there",
                hint="run as root, with configfs mounted and the tdx_guest driver loaded"
                " (modprobe tdx_guest)",
            ) from error
        try:
            yield request
        finally:
            with contextlib.suppress(OSError):  # the next process removes what is left behind
                request.rmdir()

    def _remove_abandoned(self) -> None:
        """Remove requests of processes that were killed: the driver cannot be unloaded with them.

        Processes of another PID namespace cannot be seen; their requests are judged by the age.
        """
        for request in self._directory.glob(f"{_PREFIX}*"):
            number = request.name.removeprefix(_PREFIX).partition("-")[0]
            with contextlib.suppress(OSError):  # it is in use, or somebody else was faster
                age = time.time() - request.stat().st_mtime
                if age > _ABANDONED_SECONDS and not Path("/proc", number).exists():
                    request.rmdir()

    def _generation(self, request: Path) -> int:
        text = self._text(request, "generation")
        if not text.isdecimal():
            raise PlatformError(f"{request}/generation: {text[:40]!r}, expected a number")
        return int(text)

    def _text(self, request: Path, name: str) -> str:
        return self._read(request / name, _MAX_TEXT).decode("ascii", "replace").strip()

    def _read(self, path: Path, limit: int) -> bytes:
        try:
            return _contents(path, limit)
        except OSError as error:
            raise PlatformError(f"{path}: {error.strerror}") from error

    def _write(self, path: Path, data: bytes) -> None:
        try:
            with path.open("wb", buffering=0) as stream:
                written = stream.write(data)
        except OSError as error:
            raise PlatformError(f"{path}: {error.strerror}") from error
        if written != len(data):
            raise PlatformError(f"{path}: took {written} bytes, expected {len(data)}")


def _contents(path: Path, limit: int) -> bytes:
    """Read a file of configfs, which refuses to be asked for 0 bytes.

    Raises:
        PlatformError: it has more than ``limit`` bytes.
    """
    data = b""
    with path.open("rb", buffering=0) as stream:
        while len(data) <= limit and (piece := stream.read(limit + 1 - len(data))):
            data += piece
    if len(data) > limit:
        raise PlatformError(f"{path}: more than {limit} bytes")
    return data


def _unanswered(what: str) -> PlatformError:
    return PlatformError(
        f"{what}; expected a quote from the host",
        hint="the quoting service (QGS) of the host that runs this virtual machine does not answer:"
        " whoever runs the host can start it; then try again",
    )
