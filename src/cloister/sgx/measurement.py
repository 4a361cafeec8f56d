"""MRENCLAVE: the layout of an enclave and the digest of its construction.

The layout is Gramine's (enclave base 0): areas are placed from the top of the enclave downwards and
measured in that order. The digest is SHA-256 over one 64-byte record an instruction: ECREATE, EADD
for every page, and for measured pages EEXTEND with 256 bytes of content (Intel SDM vol. 3D, 38.1.2
and the operation sections of these instructions). All numbers are little endian.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cloister.errors import MeasurementError
from cloister.sgx.elf import PAGE_SIZE, PF_R, PF_W, PF_X, Elf, Segment
from cloister.sgx.structure import Structure

HEAP_MIN = 0x10000
"""Lowest address that an enclave may use."""

MAX_THREADS = 4096

_SSA_FRAME_PAGES = 4
_SSA_FRAMES = 2
_SSA_BYTES = _SSA_FRAMES * _SSA_FRAME_PAGES * PAGE_SIZE
_GPR_SIZE = 184
_STACK_BYTES = 64 * PAGE_SIZE
_SIGNAL_STACK_BYTES = 16 * PAGE_SIZE
_CHUNK = 256
_STACK_PROTECTOR_CANARY = 0xBADBADBADBAD
_MAX_IMAGE_BYTES = 1 << 30


class PageFlags(enum.IntFlag):
    """SECINFO flags (Intel SDM vol. 3D, 38.11.1): permissions and page type."""

    R = 0x1
    W = 0x2
    X = 0x4
    TCS = 0x100
    REG = 0x200


_TCS = Structure(
    "TCS",
    PAGE_SIZE,
    {
        "ossa": (16, "Q"),
        "nssa": (28, "I"),
        "oentry": (32, "Q"),
        "ogsbase": (56, "Q"),
        "fslimit": (64, "I"),
        "gslimit": (68, "I"),
    },
)

_TLS = Structure(
    "TLS",
    PAGE_SIZE,
    {
        "self": (0, "Q"),
        "canary": (8, "Q"),
        "enclave_size": (272, "Q"),
        "tcs_offset": (280, "Q"),
        "initial_stack": (288, "Q"),
        "signal_stack_low": (304, "Q"),
        "signal_stack_high": (312, "Q"),
        "ssa": (328, "Q"),
        "gpr": (336, "Q"),
        "manifest_size": (416, "Q"),
        "heap_min": (424, "Q"),
        "heap_max": (432, "Q"),
    },
)


@dataclass(frozen=True)
class Area:
    """Pages of one kind, as the signer prints them.

    Attributes:
        address: first byte, page aligned.
        size: in bytes, whole pages.
        flags: permissions and page type of every page.
        description: what it is for, one word.
        measured: whether the content is part of MRENCLAVE, and not only its place and flags.
    """

    address: int
    size: int
    flags: PageFlags
    description: str
    measured: bool = True

    @property
    def end(self) -> int:
        """First address after the area."""
        return self.address + self.size

    def __str__(self) -> str:
        """Return the line that Gramine's signer prints for this area."""
        kind = "TCS" if self.flags & PageFlags.TCS else "REG"
        rights = "".join(
            letter if self.flags & PageFlags[letter] else "-" for letter in ("R", "W", "X")
        )
        measured = " measured" if self.measured else ""
        where = f"{self.address:016x}-{self.end:016x}"
        return f"{where} [{kind}:{rights}] ({self.description}){measured}"


@dataclass(frozen=True)
class Measurement:
    """The result: MRENCLAVE (32 bytes) and the areas in the order in which they are added."""

    mrenclave: bytes
    areas: tuple[Area, ...]


class Hasher(Protocol):
    """What the digest is written to."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take more bytes."""


def measure(
    manifest: bytes, libpal: bytes, *, enclave_size: int, max_threads: int, edmm: bool
) -> Measurement:
    """Lay an enclave out and return its measurement.

    Args:
        manifest: the signed manifest, byte for byte.
        libpal: the runtime image: any x86-64 ELF file.
        enclave_size: in bytes; a power of two.
        max_threads: number of TCS pages, at least 1.
        edmm: whether free memory is added while the enclave runs (then it is not measured).

    Raises:
        ElfError: ``libpal`` is not a sound x86-64 ELF file.
        MeasurementError: the size is no power of two or too small, or the threads are out of range.
    """
    layout = _layout(manifest, libpal, enclave_size, max_threads)
    digest = hashlib.sha256()
    digest.update(struct.pack("<8sIQ44x", b"ECREATE", _SSA_FRAME_PAGES, enclave_size))
    for area, content in layout.measured():
        _add_measured(digest, area, content)
    for area in () if edmm else layout.free():
        _add_unmeasured(digest, area)
    return Measurement(digest.digest(), layout.areas(edmm=edmm))


def areas_of(
    manifest: bytes, libpal: bytes, *, enclave_size: int, max_threads: int, edmm: bool
) -> tuple[Area, ...]:
    """Return only the areas that :func:`measure` would measure, which takes no time.

    Args, raises: as :func:`measure`.
    """
    return _layout(manifest, libpal, enclave_size, max_threads).areas(edmm=edmm)


def _layout(manifest: bytes, libpal: bytes, enclave_size: int, max_threads: int) -> _Layout:
    _check_arguments(enclave_size, max_threads)
    return _Layout(manifest, Elf(libpal, "runtime image"), enclave_size, max_threads)


def _check_arguments(enclave_size: int, max_threads: int) -> None:
    if enclave_size < PAGE_SIZE or enclave_size & (enclave_size - 1):
        raise MeasurementError(
            f"sgx.enclave_size: {enclave_size:#x} is not a power of two, which SGX requires",
            hint='write for example sgx.enclave_size = "4G"',
        )
    if not 1 <= max_threads <= MAX_THREADS:
        raise MeasurementError(f"sgx.max_threads: {max_threads}, expected 1 to {MAX_THREADS}")


class _Layout:
    """Where everything goes: areas from the top downwards, in the order of measurement."""

    def __init__(self, manifest: bytes, pal: Elf, enclave_size: int, threads: int) -> None:
        self._manifest_bytes = manifest + b"\0"
        self._size = enclave_size
        self._threads = threads
        self._top = enclave_size

        read_write = PageFlags.R | PageFlags.W | PageFlags.REG
        self._manifest = self._place(
            "manifest", len(self._manifest_bytes), PageFlags.R | PageFlags.REG
        )
        self._ssa = self._place("ssa", threads * _SSA_BYTES, read_write)
        self._tcs = self._place("tcs", threads * PAGE_SIZE, PageFlags.TCS)
        self._tls = self._place("tls", threads * PAGE_SIZE, read_write)
        self._stacks = [self._place("stack", _STACK_BYTES, read_write) for _ in range(threads)]
        self._signal_stacks = [
            self._place("sig_stack", _SIGNAL_STACK_BYTES, read_write) for _ in range(threads)
        ]
        self._place_pal(pal)

    def areas(self, *, edmm: bool) -> tuple[Area, ...]:
        """Return all areas in the order in which they are added."""
        return (*(area for area, _ in self.measured()), *(() if edmm else self.free()))

    def measured(self) -> Iterator[tuple[Area, bytes]]:
        """Yield the measured areas with their content; what it does not reach is zero."""
        yield self._manifest, self._manifest_bytes
        yield self._ssa, b""
        yield self._tcs, b"".join(self._tcs_page(thread) for thread in range(self._threads))
        yield self._tls, b"".join(self._tls_page(thread) for thread in range(self._threads))
        for area in (*self._stacks, *self._signal_stacks):
            yield area, b""
        for segment in self._pal.loadable():
            leading = bytes(segment.vaddr % PAGE_SIZE)
            yield self._pal_area(segment), leading + self._pal.content(segment)

    def free(self) -> tuple[Area, ...]:
        """Return the memory that the application gets: a gap above the image, then the heap."""
        flags = PageFlags.R | PageFlags.W | PageFlags.X | PageFlags.REG
        ranges = ((self._pal_end, self._top), (HEAP_MIN, self._pal_start))
        return tuple(
            Area(low, high - low, flags, "free", measured=False)
            for low, high in ranges
            if high > low
        )

    def _place(self, description: str, size: int, flags: PageFlags) -> Area:
        size = _round_up(size)
        self._top -= size
        self._require_room(self._top)
        return Area(self._top, size, flags, description)

    def _require_room(self, lowest: int) -> None:
        if lowest < HEAP_MIN:
            raise MeasurementError(
                f"sgx.enclave_size: {self._size:#x} bytes are not enough for {self._threads}"
                " threads, the manifest and the runtime image",
                hint="double sgx.enclave_size, or lower sgx.max_threads",
            )

    def _place_pal(self, pal: Elf) -> None:
        segments = pal.loadable()
        if not segments:
            raise MeasurementError("runtime image: the ELF file has no loadable segment")
        low = _round_down(min(segment.vaddr for segment in segments))
        size = _round_up(max(segment.vaddr + segment.memsz for segment in segments)) - low
        if size > _MAX_IMAGE_BYTES:
            raise MeasurementError(
                f"runtime image: {size} bytes in memory, expected at most {_MAX_IMAGE_BYTES}"
            )
        self._pal = pal
        # An image that is linked to a fixed address keeps it.
        self._pal_start = low or self._top - size
        self._pal_end = self._pal_start + size
        self._pal_shift = self._pal_start - low
        self._require_room(min(self._pal_start, self._top - self._pal_end + HEAP_MIN))

    def _pal_area(self, segment: Segment) -> Area:
        start = _round_down(segment.vaddr)
        size = _round_up(segment.vaddr + segment.memsz) - start
        flags = PageFlags.REG
        for bit, flag in ((PF_R, PageFlags.R), (PF_W, PageFlags.W), (PF_X, PageFlags.X)):
            if segment.flags & bit:
                flags |= flag
        description = "code" if segment.flags & PF_X else "data"
        return Area(self._pal_shift + start, size, flags, description)

    def _tcs_page(self, thread: int) -> bytes:
        return _TCS.pack(
            {
                "ossa": self._ssa.address + thread * _SSA_BYTES,
                "nssa": _SSA_FRAMES,
                "oentry": self._pal_shift + self._pal.entry,
                "ogsbase": self._tls.address + thread * PAGE_SIZE,
                "fslimit": 0xFFF,
                "gslimit": 0xFFF,
            }
        )

    def _tls_page(self, thread: int) -> bytes:
        ssa = self._ssa.address + thread * _SSA_BYTES
        signal_stack = self._signal_stacks[thread]
        return _TLS.pack(
            {
                "self": self._tls.address + thread * PAGE_SIZE,
                "canary": _STACK_PROTECTOR_CANARY,
                "enclave_size": self._size,
                "tcs_offset": self._tcs.address + thread * PAGE_SIZE,
                "initial_stack": self._stacks[thread].end,
                "signal_stack_low": signal_stack.address,
                "signal_stack_high": signal_stack.end,
                "ssa": ssa,
                "gpr": ssa + _SSA_FRAME_PAGES * PAGE_SIZE - _GPR_SIZE,
                "manifest_size": len(self._manifest_bytes),
                "heap_min": HEAP_MIN,
                "heap_max": self._pal_start,
            }
        )


_EADD = struct.Struct("<8sQQ40x")
_EXTENDED_CHUNK = struct.Struct(f"<8sQ48x{_CHUNK}s")
_CHUNK_STARTS = range(0, PAGE_SIZE, _CHUNK)


def _add_measured(digest: Hasher, area: Area, content: bytes) -> None:
    """Add EADD of every page, each followed by EEXTEND of its 16 chunks."""
    for page in range(0, _round_up(len(content)), PAGE_SIZE):
        padded = content[page : page + PAGE_SIZE].ljust(PAGE_SIZE, b"\0")
        digest.update(_measured_page(area.address + page, area.flags, padded))
    # Stacks are most of what is measured, and are empty.
    digest_empty = _Records(area.flags, _EMPTY_PAGES, _measured_page)
    for records in digest_empty.between(area.address + _round_up(len(content)), area.end):
        digest.update(records)


def _measured_page(address: int, flags: int, content: bytes = bytes(PAGE_SIZE)) -> bytes:
    records = [_EADD.pack(b"EADD", address, flags)]
    records += (
        _EXTENDED_CHUNK.pack(b"EEXTEND", address + start, content[start : start + _CHUNK])
        for start in _CHUNK_STARTS
    )
    return b"".join(records)


def _add_unmeasured(digest: Hasher, area: Area) -> None:
    """Add EADD of every page. Free memory is most of an enclave: a million pages in 4 GiB."""
    for records in _Records(area.flags, _FREE_PAGES, _free_page).between(area.address, area.end):
        digest.update(records)


def _free_page(address: int, flags: int) -> bytes:
    return _EADD.pack(b"EADD", address, flags)


_FREE_PAGES = 4096
_EMPTY_PAGES = 16
_OFFSET_AT = 8  # the page or chunk offset in every record


class _Records:
    """The records of equal pages, many at a time.

    A block of ``pages`` pages, a power of two, is made once; to move it, only the bytes of its
    offsets above the block's own size have to be written, each byte for all records at once.

    Args:
        flags: of every page.
        pages: how many at a time.
        page: makes the records of the page at an offset: EADD, and EEXTEND where it is measured.
    """

    def __init__(self, flags: int, pages: int, page: Callable[[int, int], bytes]) -> None:
        self._span = pages * PAGE_SIZE
        self._block = bytearray(b"".join(page(n * PAGE_SIZE, flags) for n in range(pages)))
        self._page_size = len(self._block) // pages
        chunks = range(_EADD.size, self._page_size, _EXTENDED_CHUNK.size)
        self._records = [0, *chunks]

    def between(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the records of the pages from ``start`` to ``end``, a block at a time."""
        fixed = (self._span - 1).bit_length() // 8
        pages = self._span // PAGE_SIZE
        for base in range(start - start % self._span, end, self._span):
            for number, byte in enumerate(struct.pack("<Q", base)[fixed:], start=fixed):
                for record in self._records:
                    at = record + _OFFSET_AT + number
                    self._block[at :: self._page_size] = bytes([byte]) * pages
            first = max(start - base, 0) // PAGE_SIZE * self._page_size
            last = min(end - base, self._span) // PAGE_SIZE * self._page_size
            yield memoryview(self._block)[first:last].toreadonly()


def _round_down(value: int) -> int:
    return value - value % PAGE_SIZE


def _round_up(value: int) -> int:
    return _round_down(value + PAGE_SIZE - 1)
