"""Encrypted files: speed of the engine and of whole commands, beside SHA-256 of the same bytes.

Everything is interleaved, round by round, in one run and on memory-backed storage. SHA-256 is timed
again right before each work, so that noise hits both; the ratio printed is the median of the
rounds' ratios. Usage: python benchmarks/encrypted_files.py [--rounds N] [--mebibytes N]
[--directory DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cloister.encrypted import bulk, whole
from cloister.encrypted.file import EncryptedFile

KEY = bytes(range(16))
COMMAND = [sys.executable, "-m", "cloister"]
REQUEST = 128 * 1024  # what the Linux kernel asks a file server for when a program reads on


class Work(NamedTuple):
    """Something to be timed beside a reference, and the ratio that it should reach.

    ``prepare`` is not timed: it removes what an earlier round left, 256 MiB of pages to be freed.
    """

    name: str
    run: Callable[[], object]
    reference: Callable[[], object]
    prepare: Callable[[], object]
    target: str = ""


class Timing(NamedTuple):
    """Seconds of one round."""

    work: float
    reference: float


class Files(NamedTuple):
    """The files of a measurement."""

    plain: Path
    sealed: Path
    output: Path
    key: Path


def prepare(directory: Path, mebibytes: int) -> Files:
    files = Files(*(directory / name for name in ("plain", "sealed", "output", "key")))
    with files.plain.open("wb") as stream:
        for _ in range(mebibytes):
            stream.write(os.urandom(1 << 20))
    files.key.write_bytes(KEY)
    whole.encrypt(files.plain, files.sealed, KEY, "sealed", jobs=2)
    return files


def read_all(files: Files, jobs: int) -> None:
    """Decrypt and authenticate every byte, into a buffer."""
    file = EncryptedFile.open_path(files.sealed, KEY, "sealed", writable=False)
    bulk.each_part(file, lambda offset, piece: None, jobs=jobs)
    file.close()


def read_requests(files: Files) -> None:
    file = EncryptedFile.open_path(files.sealed, KEY, "sealed", writable=False)
    for offset in range(0, file.size, REQUEST):
        file.read(offset, REQUEST)
    file.close()


def decrypt(files: Files, jobs: int) -> None:
    whole.decrypt(files.sealed, files.output, KEY, whole.Expected("sealed"), jobs=jobs)


def encrypt(files: Files, jobs: int) -> None:
    whole.encrypt(files.plain, files.output, KEY, "output", jobs=jobs)


def command(files: Files, *arguments: str) -> None:
    compiled = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # as it is installed
    subprocess.run(
        [*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=files.plain.parent,
        env=compiled,
    )  # fmt: skip


def mapped(path: Path) -> mmap.mmap:
    """Return the bytes of a file, which forked processes do not inherit as memory to be copied."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def works(files: Files) -> list[Work]:
    content = mapped(files.plain)

    def sha256() -> object:
        return hashlib.sha256(content).digest()

    def sha256sum() -> object:
        return subprocess.run(["sha256sum", files.plain], check=True, stdout=subprocess.DEVNULL)

    def encrypt_command() -> None:
        command(files, "encrypt", "-k", "key", "plain", "output")

    def decrypt_command() -> None:
        command(files, "decrypt", "-k", "key", "--any-path", "sealed", "output")

    def fresh() -> None:
        files.output.unlink(missing_ok=True)

    def work(
        name: str,
        run: Callable[[], object],
        target: str = "",
        reference: Callable[[], object] = sha256,
    ) -> Work:
        return Work(name, run, reference, fresh, target)

    return [
        work("decrypt", lambda: read_all(files, 1), "0.90"),
        work("decrypt, 2 processes", lambda: read_all(files, 2), "1.44"),
        work("encrypt, file to file", lambda: encrypt(files, 1), "0.45"),
        work("encrypt, file to file, 2 processes", lambda: encrypt(files, 2), "0.72"),
        work("decrypt, file to file", lambda: decrypt(files, 1)),
        work("decrypt, file to file, 2 processes", lambda: decrypt(files, 2)),
        work("decrypt by 128 KiB requests", lambda: read_requests(files)),
        work("command: cloister encrypt", encrypt_command, "1.71", sha256sum),
        work("command: cloister decrypt", decrypt_command, "1.91", sha256sum),
        work("command: cloister --help", lambda: command(files, "--help"), "0.150 s"),
    ]


def measure(all_works: list[Work], rounds: int) -> dict[str, list[Timing]]:
    """Do all works once a round, in turn, each after its reference."""
    times: dict[str, list[Timing]] = {work.name: [] for work in all_works}
    for number in range(rounds):
        for work in all_works:
            work.prepare()
            reference = _seconds(work.reference)
            times[work.name].append(Timing(_seconds(work.run), reference))
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    return times


def report(all_works: list[Work], times: dict[str, list[Timing]], mebibytes: int) -> None:
    print(f"\n{mebibytes} MiB; ratio = time of SHA-256 (commands: of sha256sum) / time of the work")
    header = ("work", "median s", "best s", "MB/s", "SHA-256", "ratio")
    print("{:<36} {:>9} {:>7} {:>6} {:>8} {:>6}  target".format(*header))
    for work in all_works:
        seconds = [timing.work for timing in times[work.name]]
        reference = statistics.median(timing.reference for timing in times[work.name])
        ratio = statistics.median(timing.reference / timing.work for timing in times[work.name])
        middle = statistics.median(seconds)
        rate = mebibytes * 1.048576 / middle
        print(
            f"{work.name:<36} {middle:9.3f} {min(seconds):7.3f} {rate:6.0f} {reference:8.3f}"
            f" {ratio:6.2f}  {work.target}"
        )


# --- Random access ------------------------------------------------------------------------------


def random_access(directory: Path, mebibytes: int, operations: int) -> None:
    """Time 4 KiB reads and writes at 4 KiB boundaries of a large file; print a table."""
    path = directory / "large"
    file = EncryptedFile.create_path(path, KEY, "large")
    piece = os.urandom(1 << 20)
    for number in range(mebibytes):
        file.write(number << 20, piece)
    file.close()
    dice = random.Random(1)
    places = [dice.randrange(mebibytes * 256) * 4096 for _ in range(operations)]
    near = [place % (512 * 4096) for place in places]
    block = os.urandom(4096)
    file = EncryptedFile.open_path(path, KEY, "large", writable=True)
    for place in near:
        file.read(place, 4096)
    print(f"\n4 KiB at a time in {mebibytes} MiB, {operations} operations")
    print(f"{'work':<36} {'us each':>9} {'per s':>9}  target")
    for name, run, target in (
        ("cached read", lambda: [file.read(place, 4096) for place in near], "12 us"),
        ("random read", lambda: [file.read(place, 4096) for place in places], ""),
        ("random write, flushed at the end", lambda: _write(file, places, block), ""),
    ):
        best = min(_seconds(run) for _ in range(3)) / operations
        print(f"{name:<36} {best * 1e6:9.2f} {1 / best:9.0f}  {target}")
    file.close()
    path.unlink()


def _write(file: EncryptedFile, places: list[int], block: bytes) -> None:
    for place in places:
        file.write(place, block)
    file.flush()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--large", type=int, default=1024, help="MiB for random access")
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} processors, {options.directory}")
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        all_works = works(prepare(directory, options.mebibytes))
        report(all_works, measure(all_works, options.rounds), options.mebibytes)
        random_access(directory, options.large, options.operations)


if __name__ == "__main__":
    main()
