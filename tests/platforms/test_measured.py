"""What a simulated device has measured it does not measure again, and believes nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import MeasurementMismatchError
from cloister.platforms.simulated import SimulatedPlatform
from cloister.platforms.simulated.measured import Measurements
from cloister.sgx.measurement import Measurement
from signing import IMAGE, PARAMETERS, signed

KEY = bytes(16)
MEASURED = bytes(range(32))


class Measuring:
    """Counts how often something is measured."""

    def __init__(self) -> None:
        self.times = 0

    def measure(self, *_: object, **__: object) -> Measurement:
        self.times += 1
        return Measurement(MEASURED, ())


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    counting = Measuring()
    monkeypatch.setattr("cloister.sgx.measurement.measure", counting.measure)
    return counting


def of(
    directory: Path, *, key: bytes = KEY, manifest: bytes = b"manifest",
    image: bytes = b"image", enclave_size: int = 1 << 32, max_threads: int = 4, edmm: bool = False,
) -> bytes:  # fmt: skip
    return Measurements(directory, key).of(
        manifest,
        image,
        enclave_size=enclave_size,
        max_threads=max_threads,
        edmm=edmm,
    )


def test_the_same_is_measured_once(tmp_path: Path, measuring: Measuring) -> None:
    for _ in range(3):
        assert of(tmp_path / "kept") == MEASURED
    assert measuring.times == 1
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "other",
    [
        {"manifest": b"manifesto"},
        {"image": b"other image"},
        {"manifest": b"manifesti", "image": b"mage"},
        {"enclave_size": 1 << 31},
        {"max_threads": 5},
        {"edmm": True},
        {"key": b"k" * 16},
    ],
)
def test_anything_else_is_measured(
    tmp_path: Path, measuring: Measuring, other: dict[str, bytes]
) -> None:
    of(tmp_path)
    of(tmp_path, **other)  # type: ignore[arg-type]
    assert measuring.times == 2


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, MEASURED, MEASURED + bytes(32)])
def test_what_is_damaged_is_measured_anew(
    tmp_path: Path, measuring: Measuring, damage: bytes
) -> None:
    of(tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    assert of(tmp_path) == MEASURED
    assert measuring.times == 2
    assert kept.read_bytes() == whole


def test_where_nothing_can_be_kept_it_is_measured(tmp_path: Path, measuring: Measuring) -> None:
    (tmp_path / "file").write_text("no directory")
    assert of(tmp_path / "file") == MEASURED


def test_only_the_newest_are_kept(tmp_path: Path, measuring: Measuring) -> None:
    for threads in range(1, 101):
        of(tmp_path, max_threads=threads)
    assert len(list(tmp_path.iterdir())) == 64
    of(tmp_path, max_threads=100)
    assert measuring.times == 100


def test_an_enclave_that_started_before_still_has_to_be_the_signed_one(tmp_path: Path) -> None:
    platform = SimulatedPlatform(tmp_path / "device")
    sigstruct = signed(b"manifest").pack()
    for _ in range(2):
        platform.start(manifest=b"manifest", sigstruct=sigstruct, image=IMAGE, **PARAMETERS).close()
    with pytest.raises(MeasurementMismatchError):
        platform.start(manifest=b"other", sigstruct=sigstruct, image=IMAGE, **PARAMETERS)
