"""The parts of an ELF file that are measured or that lead to further libraries.

64-bit little-endian x86-64 only (System V ABI, "Object Files" and "Program Loading"). The bytes are
hostile: every offset is checked against the size of the file before it is used.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import NamedTuple

from cloister.errors import ElfError

PAGE_SIZE = 4096

ET_DYN = 3
EM_X86_64 = 62
PT_LOAD = 1
PT_DYNAMIC = 2
PT_INTERP = 3
PF_X, PF_W, PF_R = 1, 2, 4

DT_NULL = 0
DT_NEEDED = 1
DT_STRTAB = 5
DT_STRSZ = 10
DT_RPATH = 15
DT_RUNPATH = 29

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
_DYN = struct.Struct("<qQ")

IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_MAX_PROGRAM_HEADERS = 4096
_MAX_STRING = 4096

Buffer = bytes | mmap.mmap


class Segment(NamedTuple):
    """One program header; offsets, addresses and sizes are in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int


class Dynamic(NamedTuple):
    """What the dynamic linker reads: names as written in the file, not yet looked up."""

    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


class Elf:
    """An x86-64 ELF file whose headers have been checked.

    Args:
        data: the whole file.
        name: what errors call it.

    Raises:
        ElfError: not an ELF file for x86-64, or its headers point outside the file.
    """

    def __init__(self, data: Buffer, name: str) -> None:
        self._data = data
        self._name = name
        if len(data) < EHDR.size:
            raise ElfError(f"{name}: {len(data)} bytes, too short for an ELF file")
        ident, self.type, machine, _, self.entry, phoff, _, _, _, phentsize, phnum, _, _, _ = (
            EHDR.unpack_from(data)
        )
        if ident[:6] != IDENT[:6] or machine != EM_X86_64:
            raise ElfError(f"{name}: not an x86-64 ELF file")
        if phentsize != PHDR.size or not 0 < phnum <= _MAX_PROGRAM_HEADERS:
            raise ElfError(f"{name}: program headers of an unknown kind")
        self._require(phoff, phnum * PHDR.size, "program headers")
        self.segments = tuple(self._segment(phoff + i * PHDR.size) for i in range(phnum))

    def loadable(self) -> tuple[Segment, ...]:
        """Return the PT_LOAD segments in file order."""
        return tuple(segment for segment in self.segments if segment.type == PT_LOAD)

    def content(self, segment: Segment) -> bytes:
        """Return the bytes that the file holds for ``segment``."""
        return bytes(self._data[segment.offset : segment.offset + segment.filesz])

    def interpreter(self) -> str | None:
        """Return the path of the ELF interpreter, None for a static program or a library."""
        for segment in self.segments:
            if segment.type == PT_INTERP:
                return self._text(self.content(segment).rstrip(b"\0"))
        return None

    def dynamic(self) -> Dynamic:
        """Return needed libraries and search paths; empty for a static program.

        Raises:
            ElfError: the dynamic section points outside the file.
        """
        entries = self._dynamic_entries()
        if DT_STRTAB not in entries:
            return Dynamic((), (), ())
        table = self._offset_of(entries[DT_STRTAB][0])
        size = entries.get(DT_STRSZ, [0])[0]
        self._require(table, size, "dynamic string table")

        def strings(tag: int) -> tuple[str, ...]:
            return tuple(self._string(table, size, offset) for offset in entries.get(tag, []))

        def paths(tag: int) -> tuple[str, ...]:
            return tuple(path for text in strings(tag) for path in text.split(":") if path)

        return Dynamic(strings(DT_NEEDED), paths(DT_RPATH), paths(DT_RUNPATH))

    def _segment(self, at: int) -> Segment:
        kind, flags, offset, vaddr, _, filesz, memsz, _ = PHDR.unpack_from(self._data, at)
        segment = Segment(kind, flags, offset, vaddr, filesz, memsz)
        if kind in (PT_LOAD, PT_DYNAMIC, PT_INTERP):
            self._require(offset, filesz, "segment")
        if kind == PT_LOAD and (filesz > memsz or vaddr + memsz > 1 << 47):
            raise ElfError(f"{self._name}: a segment of impossible size")
        return segment

    def _dynamic_entries(self) -> dict[int, list[int]]:
        entries: dict[int, list[int]] = {}
        for segment in self.segments:
            if segment.type != PT_DYNAMIC:
                continue
            whole = segment.filesz - segment.filesz % _DYN.size
            for tag, value in _DYN.iter_unpack(self.content(segment)[:whole]):
                if tag == DT_NULL:
                    break
                entries.setdefault(tag, []).append(value)
        return entries

    def _offset_of(self, address: int) -> int:
        for segment in self.loadable():
            if segment.vaddr <= address < segment.vaddr + segment.filesz:
                return address - segment.vaddr + segment.offset
        raise ElfError(f"{self._name}: an address that the file does not hold")

    def _string(self, table: int, size: int, offset: int) -> str:
        if offset >= size:
            raise ElfError(f"{self._name}: a name outside the dynamic string table")
        raw = bytes(self._data[table + offset : table + min(size, offset + _MAX_STRING)])
        text, end, _ = raw.partition(b"\0")
        if not end:
            raise ElfError(f"{self._name}: a name without end in the dynamic string table")
        return self._text(text)

    def _text(self, raw: bytes) -> str:
        return raw.decode("utf-8", "surrogateescape")

    def _require(self, offset: int, size: int, what: str) -> None:
        if offset + size > len(self._data):
            raise ElfError(
                f"{self._name}: {what} at {offset} to {offset + size}, beyond the end of the file"
                f" at {len(self._data)}"
            )


def interpreter_of(read: Callable[[int, int], bytes]) -> str | None:
    """Return the path of a program's ELF interpreter without reading the whole program.

    Args:
        read: returns up to so many bytes (second) from an offset (first).

    Returns:
        None if it is no x86-64 ELF file, or needs no interpreter.
    """
    head = read(0, EHDR.size)
    if len(head) < EHDR.size:
        return None
    ident, _, machine, _, _, phoff, _, _, _, phentsize, phnum, _, _, _ = EHDR.unpack(head)
    if ident[:6] != IDENT[:6] or machine != EM_X86_64 or phentsize != PHDR.size:
        return None
    table = read(phoff, min(phnum, _MAX_PROGRAM_HEADERS) * PHDR.size)
    whole = len(table) - len(table) % PHDR.size
    for kind, _, offset, _, _, filesz, _, _ in PHDR.iter_unpack(table[:whole]):
        if kind == PT_INTERP:
            name = read(offset, min(filesz, _MAX_STRING))
            return name.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return None
