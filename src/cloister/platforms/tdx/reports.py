"""Quotes from the kernel, through configfs (Linux 6.7 and above).

Source: Linux, Documentation/ABI/testing/configfs-tsm-report. A directory made below
``/sys/kernel/config/tsm/report`` is one request: ``inblob`` takes the 64 bytes of report data,
``outblob`` gives the quote, and ``generation`` counts the writes, so that a reader knows whether
the quote answers its own. ``provider`` names the kind of machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import PlatformError
from cloister.platforms.tdx.presence import REPORTS

PROVIDER = "tdx_guest"
_MAX_BLOB = 32768  # bytes, the kernel's own limit
_MAX_TEXT = 4096


class Reports:
    """The kernel's attestation reports.

    Args:
        directory: where configfs offers them.
    """

    def __init__(self, directory: Path = REPORTS) -> None:
        self._directory = directory

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
            quote = self._read(request / "outblob", _MAX_BLOB)
            after = self._generation(request)
        if after != before + 1:
            raise PlatformError(
                f"{request}: generation {after} after one write to generation {before},"
                f" expected {before + 1}: the quote answers somebody else's request",
                hint="nobody but this process may write there; try again",
            )
        return quote

    @contextlib.contextmanager
    def _request(self) -> Iterator[Path]:
        request = self._directory / f"cloister-{os.getpid()}-{secrets.token_hex(4)}"
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
            with contextlib.suppress(OSError):  # a request left behind costs a few bytes
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
            with path.open("rb", buffering=0) as stream:
                data = b""
                while piece := stream.read(limit + 1 - len(data)):
                    data += piece
        except OSError as error:
            raise PlatformError(f"{path}: {error.strerror}") from error
        if len(data) > limit:
            raise PlatformError(f"{path}: more than {limit} bytes")
        return data

    def _write(self, path: Path, data: bytes) -> None:
        try:
            with path.open("wb", buffering=0) as stream:
                written = stream.write(data)
        except OSError as error:
            raise PlatformError(f"{path}: {error.strerror}") from error
        if written != len(data):
            raise PlatformError(f"{path}: took {written} bytes, expected {len(data)}")
