"""The measured runtime image: deterministic, complete, and an ELF file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cloister
from cloister.platforms.image import archive_of, image_of, package_files, runtime_image
from cloister.sgx.elf import Elf
from cloister.sgx.measurement import measure

PACKAGE = Path(cloister.__file__).parent


def mrenclave(image: bytes) -> bytes:
    return measure(b"", image, enclave_size=1 << 26, max_threads=1, edmm=True).mrenclave


def test_every_source_file_is_measured() -> None:
    image = runtime_image()
    for path in PACKAGE.rglob("*.py"):
        assert path.read_bytes() in image


def test_any_change_of_the_package_changes_the_measurement() -> None:
    files = package_files(PACKAGE)
    changed = files | {"errors.py": files["errors.py"] + b"\n"}
    renamed = {("error.py" if name == "errors.py" else name): data for name, data in files.items()}
    images = [image_of(files), image_of(changed), image_of(renamed)]
    assert len({mrenclave(image) for image in images}) == 3


def test_a_copy_elsewhere_with_caches_measures_the_same(tmp_path: Path) -> None:
    copy = tmp_path / "cloister"
    shutil.copytree(PACKAGE, copy)
    (copy / "__pycache__").mkdir(exist_ok=True)
    (copy / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"other")
    (copy / ".errors.py.swp").write_bytes(b"other")
    assert image_of(package_files(copy)) == runtime_image()


def test_other_tools_read_the_image(tmp_path: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    (tmp_path / "image").write_bytes(image_of({"a": b"b"}))
    shown = subprocess.run(
        ["readelf", "-hlW", tmp_path / "image"], capture_output=True, text=True, check=True
    )
    assert not shown.stderr
    assert "DYN" in shown.stdout
    assert "LOAD" in shown.stdout


FILES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
    st.binary(max_size=10),
    max_size=5,
)


@given(FILES, FILES)
def test_archives_are_equal_only_for_equal_files(
    first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    assert (archive_of(first) == archive_of(second)) == (first == second)
    assert archive_of(dict(reversed(first.items()))) == archive_of(first)


def test_the_segment_is_the_whole_file() -> None:
    image = image_of({"a": b"b"})
    (segment,) = Elf(image, "image").loadable()
    assert Elf(image, "image").content(segment) == image
