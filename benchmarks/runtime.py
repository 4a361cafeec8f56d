"""Whole programs natively, in direct mode and in a SIMULATED enclave, interleaved in one run.

Every mode runs once a round, in turn, so that noise hits all alike. Times are those of whole
commands as a person waits for them: start, attestation and key release included. The job
``transfers`` times its own reads and writes instead. Medians and ratios to native are printed.
"First run" is an enclave that keeps nothing of an earlier run yet.

    python benchmarks/runtime.py [--rounds N] [--only JOB ...] [--directory DIR] [--json FILE]

One enclave holds all jobs: the Python environment that runs this (with PyTorch), filled up to
27,000 trusted files, and an encrypted directory whose key a key server releases.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "pytorch"
JOBS = Path(__file__).resolve().parent / "jobs"
CLOISTER = (sys.executable, "-m", "cloister")
TRUSTED_FILES = 27_000
IMAGES = 2_000
IMAGE_SIDE = 96
TRANSFER_BYTES = 128 << 20
SERVER_SECONDS = 30

TEMPLATE = """\
{% set python = python_environment() %}
libos.entrypoint = "{{ python.executable }}"
loader.insecure__use_cmdline_argv = true
loader.env.PYTHONDONTWRITEBYTECODE = "1"
cloister.terminals = false
sgx.enclave_size = "4G"
sgx.max_threads = 16
sgx.remote_attestation = "dcap"
loader.env.SECRET_PROVISION_CONSTRUCTOR = "true"
loader.env.SECRET_PROVISION_SET_KEY = "default"
loader.env.SECRET_PROVISION_SERVERS = "{{ key_server }}"
loader.env.SECRET_PROVISION_CA_CHAIN_PATH = "/certs/ca.crt"
fs.start_dir = "/data"
fs.mounts = [
  { path = "/jobs", uri = "file:jobs" },
  { path = "/trusted", uri = "file:trusted" },
  { path = "/certs", uri = "file:certs" },
  { path = "/data", uri = "file:{{ data }}", type = "{{ kind }}" },
  { path = "/tmp", type = "tmpfs" },
{% for directory in python.directories %}
  { path = "{{ directory }}", uri = "file:{{ directory }}" },
{% endfor %}
]
sgx.trusted_files = [
  "file:jobs/", "file:trusted/", "file:certs/",
{% for uri in python.trusted_files %}
  "{{ uri }}",
{% endfor %}
]
"""


class Job(NamedTuple):
    """A program: words after the interpreter, ``{root}`` standing for where the files are."""

    words: tuple[str, ...]
    target: str = ""
    times_itself: bool = False


_CLASSIFY = ("{root}/jobs/at.py", "{root}/data/{network}", "{root}/jobs/pytorchexample.py")
WORK = {
    "pass": Job(("-c", "pass")),
    "import-torch": Job(("-c", "import torch"), "1.35"),
    "example": Job(tuple(w.replace("{network}", "example") for w in _CLASSIFY)),
    "alexnet": Job(tuple(w.replace("{network}", "alexnet") for w in _CLASSIFY), "1.30"),
    "training": Job(("{root}/jobs/training.py", "{root}/data/images"), "1.15"),
    "transfers": Job(
        (
            "{root}/jobs/transfers.py",
            "{root}/trusted/large",
            "{root}/data/large",
            "{root}/data/new",
        ),
        "read through, again: 1.11",
        times_itself=True,
    ),
}


# --- Preparing ----------------------------------------------------------------------------------


def prepare(work: Path, jobs: Sequence[str], key_server: str) -> None:
    """Make the programs, the data in the clear and encrypted, and the signed enclave."""
    for name in ("jobs", "trusted", "data"):
        (work / name).mkdir()
    for program in (
        *JOBS.glob("*.py"),
        *(EXAMPLE / n for n in ("pytorchexample.py", "networks.py")),
    ):
        shutil.copy(program, work / "jobs")
    make_data(work, jobs)
    cloister(work, "key", "new", "wrap-key")
    cloister(work, "encrypt", "-k", "wrap-key", "data", "encrypted")
    cloister(work, "certs", "new", "certs")
    (work / "certs" / "server.key").rename(work / "server.key")
    (work / "bench.manifest.template").write_text(TEMPLATE)
    define = ("-D", f"key_server={key_server}", "-D", "data=data", "-D", "kind=chroot")
    cloister(work, "build", "--mode", "direct", *define, "bench.manifest.template")
    (work / "bench.manifest").rename(work / "direct.manifest")
    define = ("-D", f"key_server={key_server}", "-D", "data=encrypted", "-D", "kind=encrypted")
    fill_up(
        work, trusted_files(cloister(work, "build", "--json", *define, "bench.manifest.template"))
    )
    built = cloister(work, "build", "--json", *define, "bench.manifest.template")
    print(f"{trusted_files(built)} trusted files", file=sys.stderr)
    cloister(work, "platform", "export", "platform.json")


def cloister(work: Path, *arguments: str) -> str:
    return subprocess.run(
        [*CLOISTER, *arguments], cwd=work, env=environment(work), check=True, text=True,
        stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def environment(work: Path) -> dict[str, str]:
    """The roles' own keys live and die with the measurement."""
    names = {"XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "share", "XDG_CACHE_HOME": "cache"}
    own = {variable: str(work / name) for variable, name in names.items()}
    # Cloister starts compiled, as it is installed: not from sources that were edited since.
    return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": ""}


def trusted_files(built: str) -> int:
    return int(json.loads(built)["trusted_files"])


def fill_up(work: Path, there: int) -> None:
    """Add small trusted files up to the number that is to be measured."""
    directory = work / "trusted" / "filling"
    directory.mkdir()
    for number in range(TRUSTED_FILES - there):
        (directory / f"{number}").write_text(f"{number}\n")


def make_data(work: Path, jobs: Sequence[str]) -> None:
    data = work / "data"
    if "example" in jobs:
        make_classifier(data / "example", None)
    if "alexnet" in jobs:
        make_classifier(data / "alexnet", "AlexNet")
    if "training" in jobs:
        make_images(data / "images")
    if "transfers" in jobs:
        for directory in (work / "trusted", data):
            for name in ("large", "large-2"):
                (directory / name).write_bytes(os.urandom(TRANSFER_BYTES))


def make_classifier(directory: Path, architecture: str | None) -> None:
    """Inputs of the example's program: the example's own model, or a network of random weights."""
    plaintext = EXAMPLE / "plaintext"
    directory.mkdir()
    for name in ("input.jpg", "classes.txt"):
        shutil.copy(plaintext / name, directory)
    output = directory / "model.pt"
    if architecture is None:
        download = EXAMPLE / "download-pretrained-model.py"
        subprocess.run(
            [sys.executable, download, "-o", output], check=True, stdout=subprocess.DEVNULL
        )
        return
    sys.path.insert(0, str(EXAMPLE))
    torch.save(getattr(importlib.import_module("networks"), architecture)().state_dict(), output)


def make_images(directory: Path) -> None:
    directory.mkdir()
    dice = numpy.random.default_rng(1)
    for number in range(IMAGES):
        pixels = dice.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(directory / f"{number % 10}-{number}.jpg", quality=90)


@contextlib.contextmanager
def key_server(work: Path, address: str) -> Iterator[None]:
    """Release the key to the built enclave while the block runs."""
    command = [
        *CLOISTER, "serve", "--key", "wrap-key", "--enclave", "bench", "--listen", address,
        "--cert", "certs/server.crt", "--cert-key", "server.key",
        "--trust-simulated", "platform.json",
    ]  # fmt: skip
    with (work / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=work, env=environment(work), stdout=log, stderr=log)
        try:
            wait_for(address, server, work / "serve.log")
            yield
        finally:
            server.terminate()
            server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.05)
    sys.exit(f"the key server does not answer on {address}:\n{log.read_text()}")


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


# --- Measuring ----------------------------------------------------------------------------------

Times = dict[str, dict[str, list[float]]]
"""What was timed -> mode -> seconds, one for each round."""

NATIVE, DIRECT, FIRST, ENCLAVE = "native", "direct", "SIMULATED, first run", "SIMULATED enclave"


def commands(work: Path, job: Job) -> dict[str, list[str]]:
    inside = [word.format(root="") for word in job.words]
    return {
        NATIVE: [sys.executable, *(word.format(root=work) for word in job.words)],
        DIRECT: [*CLOISTER, "run", "--mode", "direct", "direct", *inside],
        FIRST: [*CLOISTER, "run", "bench", *inside],
        ENCLAVE: [*CLOISTER, "run", "bench", *inside],
    }


def run(work: Path, mode: str, command: list[str]) -> tuple[float, str]:
    """Run a command; return its wall time in seconds and what it printed."""
    variables = environment(work)
    if mode == NATIVE:  # as in the enclave, whose trusted directories get no files either
        variables["PYTHONDONTWRITEBYTECODE"] = "1"
    if mode == FIRST:  # what the enclave keeps for its next run
        for kept in ("cache/cloister/reads", "share/cloister/manifests"):
            shutil.rmtree(work / kept, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=work, env=variables, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return seconds, done.stdout


def measure(work: Path, names: Sequence[str], rounds: int) -> Times:
    """Run every job in every mode once a round; the first round only warms up."""
    times: Times = {}
    for number in range(rounds + 1):
        for name in names:
            for mode, command in commands(work, WORK[name]).items():
                seconds, printed = run(work, mode, command)
                found = json.loads(printed) if WORK[name].times_itself else {name: seconds}
                for what, value in found.items() if number else ():
                    times.setdefault(what, {}).setdefault(mode, []).append(value)
        print(f"  round {number} of {rounds}", file=sys.stderr)
    return times


def report(times: Times) -> None:
    """Print the median of each mode, and the median of the ratios within the rounds."""
    others = {DIRECT: "direct", FIRST: "first run", ENCLAVE: "enclave"}
    heads = "".join(
        f"{head:>11}" for head in ("native s", *(f"{name} s" for name in others.values()))
    )
    print(f"{'':<34}{heads}  ratios to native")
    for what, modes in times.items():
        shown = "".join(f"{statistics.median(modes[mode]):11.3f}" for mode in (NATIVE, *others))
        ratios = " ".join(f"{ratio(modes, mode):6.2f}" for mode in others)
        target = WORK[what].target if what in WORK else ""
        print(f"{what:<34}{shown}  {ratios}  {f'target {target}' if target else ''}".rstrip())


def ratio(modes: dict[str, list[float]], mode: str) -> float:
    """The median over the rounds of a mode's time divided by the native one of the same round."""
    return statistics.median(a / b for a, b in zip(modes[mode], modes[NATIVE], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--directory", type=Path, help="where to work [default: a temporary one]")
    parser.add_argument("--json", type=Path, help="write all times there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cloister-bench-", dir=options.directory) as name:
        work, address = Path(name), free_address()
        prepare(work, options.only, address)
        with key_server(work, address):
            times = measure(work, options.only, options.rounds)
    report(times)
    if options.json:
        options.json.write_text(json.dumps(times))


if __name__ == "__main__":
    main()
