"""What a device has measured before, so that it need not measure the same bytes again. SIMULATED.

MRENCLAVE follows from what is loaded alone. Measuring 4 GiB means hashing a record for each of a
million pages; recognising manifest and image by one digest of their bytes takes a tenth of it. The
results lie beside the device's keys, under a MAC with one of them: what was damaged is measured
anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import struct
from pathlib import Path

from cloister import __version__
from cloister.files import make_private_directory, write_atomically

_LABEL = b"cloister: simulated measurements\0"
_SIZES = struct.Struct("<QQQQ?")  # manifest, image, enclave, threads, EDMM
_MRENCLAVE_SIZE = 32
_MOST = 64


class Measurements:
    """The measurements of one device.

    Args:
        directory: where they are kept.
        key: a secret of the device.
    """

    def __init__(self, directory: Path, key: bytes | bytearray) -> None:
        self._directory = directory
        self._key = hmac.digest(bytes(key), _LABEL, "sha256")

    def of(
        self,
        manifest: bytes,
        image: bytes,
        *,
        enclave_size: int,
        max_threads: int,
        edmm: bool,
    ) -> bytes:
        """Return the MRENCLAVE (32 bytes) of an enclave that is loaded with these.

        Args, raises: as :func:`cloister.sgx.measurement.measure`.
        """
        sizes = _SIZES.pack(len(manifest), len(image), enclave_size, max_threads, edmm)
        loaded = hashlib.sha256(_LABEL + __version__.encode() + b"\0" + sizes)
        loaded.update(manifest)
        loaded.update(image)
        path = self._directory / loaded.hexdigest()
        known = self._recall(path, loaded.digest())
        if known is not None:
            return known
        from cloister.sgx.measurement import measure

        measured = measure(
            manifest, image, enclave_size=enclave_size, max_threads=max_threads, edmm=edmm
        ).mrenclave
        with contextlib.suppress(OSError):  # a full disk keeps nothing
            make_private_directory(self._directory)
            write_atomically(path, measured + self._mac(loaded.digest(), measured), mode=0o600)
            self._forget_old_ones()
        return measured

    def _recall(self, path: Path, loaded: bytes) -> bytes | None:
        try:
            kept = path.read_bytes()
        except OSError:
            return None
        measured, mac = kept[:_MRENCLAVE_SIZE], kept[_MRENCLAVE_SIZE:]
        return measured if hmac.compare_digest(mac, self._mac(loaded, measured)) else None

    def _mac(self, loaded: bytes, measured: bytes) -> bytes:
        return hmac.digest(self._key, loaded + measured, "sha256")

    def _forget_old_ones(self) -> None:
        kept = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_MOST]:
            path.unlink(missing_ok=True)
