"""Native, direct and enclave runs of the PyTorch example, interleaved in one run.

Prints medians and ratios to native. Usage: python benchmarks/example.py [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cloister.demo import Command, Demonstration, Step

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "pytorch"


class Quiet:
    """Shows nothing: the steps only prepare the measurement."""

    def running(self, role: str, title: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def done(self, step: Step) -> None:
        print(f"  {step.role}: {step.title}: {step.seconds:.2f} s", file=sys.stderr)


def timed(command: Command, environment: Mapping[str, str]) -> float:
    """Run a command and return its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(
        command.words, cwd=command.directory, env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - start


def measure(modes: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every mode once a round, in turn, so that noise hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in modes}
    for number in range(rounds):
        for name, run in modes.items():
            times[name].append(run())
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    return times


def report(times: dict[str, list[float]], reference: str) -> None:
    """Print median, spread and ratio of each mode."""
    base = statistics.median(times[reference])
    print(f"{'mode':<20} {'median s':>9} {'min s':>9} {'max s':>9} {'ratio':>7}")
    for name, values in times.items():
        middle = statistics.median(values)
        ratio = middle / base
        print(f"{name:<20} {middle:9.3f} {min(values):9.3f} {max(values):9.3f} {ratio:7.2f}")


def main() -> None:
    """Prepare once, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="at least five are sensible")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        demonstration = Demonstration(EXAMPLE, Path(name), Quiet())
        with demonstration.ready() as ready:
            environment = ready.environment
            timed(ready.native, environment)  # the first read of PyTorch from the disk
            modes = {
                "native": lambda: timed(ready.native, environment),
                "direct": lambda: timed(ready.direct, environment),
                "SIMULATED enclave": lambda: timed(ready.enclave, environment),
            }
            times = measure(modes, rounds)
    report(times, "native")


if __name__ == "__main__":
    main()
