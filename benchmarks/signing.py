"""How long building an enclave takes: nothing known, nothing changed, and loading the result.

    python benchmarks/signing.py [--interpreter PYTHON] [--rounds N]

The manifest trusts a whole Python environment; by default the one that runs this, which should have
PyTorch. Every figure is the median of whole commands, as a person waits for them, Python's start
included. For comparison, two processes of plain hashlib.sha256 read the same files. Processor time
is of all processes together: it says more than the clock where others use the machine too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cloister.manifest.index import TrustedIndex
from cloister.manifest.signed import load_signed

TEMPLATE = """\
{% set python = python_environment(interpreter) %}
libos.entrypoint = "{{ python.executable }}"
sgx.enclave_size = "4G"
sgx.max_threads = 64
sgx.trusted_files = [
{% for uri in python.trusted_files %}
  "{{ uri }}",
{% endfor %}
]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpreter", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "app.manifest.template").write_text(TEMPLATE)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        os.environ["XDG_CONFIG_HOME"] = str(work / "config")
        measure(work, arguments.interpreter, arguments.rounds)


def measure(work: Path, interpreter: str, rounds: int) -> None:
    facts = build(work, interpreter)
    files = list(load_signed(work / "app").trusted)
    print(f"{facts['trusted_files']} files, {facts['trusted_bytes'] / 1e9:.2f} GB")

    plain: list[Taken] = []
    cold: list[Taken] = []
    warm: list[Taken] = []
    for _ in range(rounds):
        plain.append(taken(lambda: hash_plainly(files)))
        cold.append(taken(lambda: build(work, interpreter, "--no-cache")))
        build(work, interpreter)
        warm.append(taken(lambda: build(work, interpreter)))
    limit = 1.2 * statistics.median(value.clock for value in plain) + 0.5
    show("hashlib.sha256 alone, 2 processes", plain)
    show(f"build, nothing known (target {limit:.2f} s)", cold)
    show("build, nothing changed (target 0.50 s)", warm)

    load = [taken(lambda: load_signed(work / "app").trusted) for _ in range(rounds)]
    show("load the signed files, in a running process", load)
    index = (work / "app.index").read_bytes()
    digest = hashlib.sha256(index).digest()
    show("of which the index", [taken(lambda: TrustedIndex.load(index, digest)) for _ in load])


def build(work: Path, interpreter: str, *options: str) -> dict[str, int]:
    command = [sys.executable, "-m", "cloister", "build", "--json", *options]
    command += ["-D", f"interpreter={interpreter}", "app.manifest.template"]
    # Installed packages are compiled; those of an editable installation only where Python may.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(work / "compiled")}
    done = subprocess.run(
        command, cwd=work, env=os.environ | compiled, stdout=subprocess.PIPE, check=True
    )
    facts: dict[str, int] = json.loads(done.stdout)
    return facts


def hash_plainly(files: Sequence[str]) -> None:
    """Hash all files once, the biggest first, dealt out to two processes."""
    ordered = sorted(files, key=lambda name: -Path(name).stat().st_size)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(hash_one, ordered, chunksize=64)


def hash_one(name: str) -> None:
    digest = hashlib.sha256()
    with Path(name).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)


class Taken(NamedTuple):
    """Seconds by the clock, and of processor time."""

    clock: float
    processor: float


def taken(work: Callable[[], object]) -> Taken:
    start, before = time.perf_counter(), sum(os.times()[:4])
    work()
    return Taken(time.perf_counter() - start, sum(os.times()[:4]) - before)


def show(label: str, values: Sequence[Taken]) -> None:
    clock = [value.clock for value in values]
    processor = statistics.median(value.processor for value in values)
    spread = f"{min(clock):.3f} to {max(clock):.3f}"
    print(f"{label:<46} {statistics.median(clock):.3f} s ({spread}), processor {processor:.3f} s")


if __name__ == "__main__":
    main()
