"""MRENCLAVE against Gramine's own signer, and against a second, naive reading of the SDM."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError, ElfError, MeasurementError
from cloister.sgx.elf import PAGE_SIZE
from cloister.sgx.measurement import Measurement, areas_of, measure

ROOT = Path(__file__).resolve().parent.parent
PAL = (ROOT / "data" / "signing" / "pal.so").read_bytes()
MIB = 1 << 20


def measure_small(manifest: bytes = b"", libpal: bytes = PAL, **changes: object) -> Measurement:
    arguments = {"enclave_size": 4 * MIB, "max_threads": 1, "edmm": False} | changes
    return measure(manifest, libpal, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("manifest", "output", "edmm"),
    [("app.manifest.sgx", "app.out", False), ("app-edmm.manifest", "app-edmm.out", True)],
)
def test_equals_gramine(data: Path, manifest: str, output: str, edmm: bool) -> None:
    folder = data / "signing"
    result = measure(
        (folder / manifest).read_bytes(), PAL, enclave_size=64 * MIB, max_threads=8, edmm=edmm
    )
    printed = (folder / output).read_text()
    memory = "".join(f"    {area}\n" for area in result.areas)
    assert f"Memory:\n{memory}Measurement:\n    {result.mrenclave.hex()}\n" in printed


@pytest.mark.parametrize("size", [32 * MIB, 64 * MIB])
def test_free_memory_equals_a_naive_computation(size: int) -> None:
    """Free pages are hashed in blocks; a plain loop over the same areas must agree."""
    without = measure_small(enclave_size=size, edmm=True)
    digest = _replay(without, size)
    assert digest.digest() == without.mrenclave
    whole = measure_small(enclave_size=size)
    for area in whole.areas[len(without.areas) :]:
        for address in range(area.address, area.end, PAGE_SIZE):
            digest.update(struct.pack("<8sQQ40x", b"EADD", address, 0x207))
    assert digest.digest() == whole.mrenclave


def _replay(result: Measurement, size: int) -> hashlib._Hash:
    """Hash an enclave of one thread instruction by instruction from its printed areas."""
    places: dict[str, list[int]] = {}
    for area in result.areas:
        places.setdefault(area.description, []).append(area.address)
    (manifest,), (ssa,), (tcs,), (tls,) = (places[n] for n in ("manifest", "ssa", "tcs", "tls"))
    (stack,), (signals,) = places["stack"], places["sig_stack"]
    entry = struct.unpack_from("<Q", PAL, 24)[0]
    image = _load(PAL)
    base = stack - 16 * PAGE_SIZE - len(image)
    memory = bytearray(size)
    memory[base : base + len(image)] = image
    struct.pack_into("<QxxxxIQ", memory, tcs + 16, ssa, 2, base + entry)
    struct.pack_into("<QII", memory, tcs + 56, tls, 0xFFF, 0xFFF)
    struct.pack_into("<QQ", memory, tls, tls, 0xBADBADBADBAD)
    struct.pack_into("<QQQ", memory, tls + 272, size, tcs, stack + 64 * PAGE_SIZE)
    struct.pack_into("<QQ", memory, tls + 304, signals, stack)
    struct.pack_into("<QQ", memory, tls + 328, ssa, ssa + 4 * PAGE_SIZE - 184)
    struct.pack_into("<QQQ", memory, tls + 416, 1, 0x10000, base)
    assert manifest == size - PAGE_SIZE

    digest = hashlib.sha256(struct.pack("<8sIQ44x", b"ECREATE", 4, size))
    for area in result.areas:
        for page in range(area.address, area.end, PAGE_SIZE):
            digest.update(struct.pack("<8sQQ40x", b"EADD", page, area.flags))
            for chunk in range(page, page + PAGE_SIZE, 256):
                digest.update(struct.pack("<8sQ48x", b"EEXTEND", chunk))
                digest.update(memory[chunk : chunk + 256])
    return digest


def _load(elf: bytes) -> bytes:
    """Lay the PT_LOAD segments out as the kernel would."""
    memory = bytearray()
    offset, count = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<H", elf, 56)[0]
    for index in range(count):
        kind, _, at, vaddr, _, filesz, memsz, _ = struct.unpack_from(
            "<IIQQQQQQ", elf, offset + index * 56
        )
        if kind == 1:
            memory.extend(bytes(-(-(vaddr + memsz) // PAGE_SIZE) * PAGE_SIZE - len(memory)))
            memory[vaddr : vaddr + filesz] = elf[at : at + filesz]
    return bytes(memory)


@pytest.mark.parametrize("edmm", [False, True])
def test_areas_without_measuring(edmm: bool) -> None:
    result = measure_small(enclave_size=32 * MIB, max_threads=5, edmm=edmm)
    areas = areas_of(b"", PAL, enclave_size=32 * MIB, max_threads=5, edmm=edmm)
    assert areas == result.areas


def test_every_input_changes_the_measurement() -> None:
    digests = {
        measure_small().mrenclave,
        measure_small(manifest=b"x").mrenclave,
        measure_small(enclave_size=8 * MIB).mrenclave,
        measure_small(max_threads=2).mrenclave,
        measure_small(edmm=True).mrenclave,
        measure_small(libpal=PAL.replace(b"\x2a\x00\x00\x00", b"\x2b\x00\x00\x00")).mrenclave,
    }
    assert len(digests) == 6


def test_image_with_a_fixed_address_keeps_it() -> None:
    """The gap above the image is added to the enclave before the heap."""
    moved = bytearray(PAL)
    offset, count = struct.unpack_from("<Q", PAL, 32)[0], struct.unpack_from("<H", PAL, 56)[0]
    for index in range(count):
        at = offset + index * 56 + 16
        struct.pack_into("<Q", moved, at, struct.unpack_from("<Q", PAL, at)[0] + MIB)
    areas = measure_small(libpal=bytes(moved)).areas
    image = [area for area in areas if area.description in ("code", "data")]
    free = [area for area in areas if area.description == "free"]
    assert image[0].address == MIB
    assert [area.address for area in free] == [image[-1].end, 0x10000]
    assert free[1].end == MIB


@pytest.mark.parametrize("size", [0, 3 * MIB, 4 * MIB + 1, 2048])
def test_size_must_be_a_power_of_two(size: int) -> None:
    with pytest.raises(MeasurementError, match="power of two"):
        measure_small(enclave_size=size)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"enclave_size": 1 << 18}, "not enough"),
        ({"max_threads": 64}, "not enough"),
        ({"manifest": bytes(4 * MIB)}, "not enough"),
        ({"max_threads": 0}, "expected 1 to 4096"),
        ({"max_threads": 4097}, "expected 1 to 4096"),
    ],
)
def test_what_does_not_fit(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(MeasurementError, match=expected):
        measure_small(**changes)  # type: ignore[arg-type]


def test_not_an_elf() -> None:
    with pytest.raises(ElfError, match="not an x86-64 ELF"):
        measure_small(libpal=b"#!/bin/sh\n" + bytes(100))
    with pytest.raises(ElfError, match="too short"):
        measure_small(libpal=b"\x7fELF")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_images_are_refused_or_measured(data: st.DataObject) -> None:
    """No change of headers leads to anything but a digest or a CloisterError."""
    image = bytearray(PAL)
    for _ in range(data.draw(st.integers(1, 6))):
        image[data.draw(st.integers(0, 500))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))
    try:
        result = measure_small(libpal=bytes(image[:cut]), edmm=True)
    except CloisterError:
        return
    assert len(result.mrenclave) == 32
