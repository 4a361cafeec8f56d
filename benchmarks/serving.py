"""The FastAPI service of examples/serving: in a SIMULATED enclave behind RA-TLS, and natively.

Both services run all the time; in each round the same clients ask one and then the other, so that
noise hits both alike. Medians and ratios to the native service over plain TLS are printed:

    latency      one request after the other on one connection
    throughput   so many connections at once
    connection   a new connection for each request; the enclave's client verifies it each time

    python benchmarks/serving.py [--rounds N] [--requests N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx

from cloister.attestation import SimulatedBundle
from cloister.attestation.policy import MrEnclave
from cloister.attestation.trust import Authenticator, Trust
from cloister.ratls.peer import judging_context
from cloister.ratls.programs import expect

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PHOTOGRAPH = EXAMPLES / "pytorch" / "plaintext" / "input.jpg"
CLOISTER = (sys.executable, "-m", "cloister")
CONNECTIONS = 4
START_SECONDS = 60
NATIVE, ENCLAVE = "native, plain TLS", "SIMULATED enclave, RA-TLS"


class Service(NamedTuple):
    """Where a service is, and whom its clients believe."""

    url: str
    trust: ssl.SSLContext

    def client(self) -> httpx.Client:
        return httpx.Client(verify=self.trust, trust_env=False)

    def ask(self, client: httpx.Client, photograph: bytes) -> None:
        client.post(self.url, content=photograph).raise_for_status()


# --- Preparing ----------------------------------------------------------------------------------


@contextlib.contextmanager
def services(work: Path) -> Iterator[dict[str, Service]]:
    """Build and start both services."""
    directory, keys = work / "serving", free_port()
    native, inside = free_port(), free_port()
    shutil.copytree(
        EXAMPLES / "pytorch", work / "pytorch", ignore=shutil.ignore_patterns("encrypted")
    )
    directory.mkdir()
    for pattern in ("*.py", "*.template"):  # not what an earlier `make demo-serving` left there
        for path in (EXAMPLES / "serving").glob(pattern):
            shutil.copy(path, directory)
    call(directory, sys.executable, "prepare.py")
    call(directory, *CLOISTER, "key", "new", "wrap-key")
    call(directory, *CLOISTER, "encrypt", "-k", "wrap-key", "plaintext", "encrypted")
    call(directory, *CLOISTER, "certs", "new", "certs")
    define = ("-D", f"key_server=localhost:{keys}", "-D", f"listen={inside}")
    built = call(directory, *CLOISTER, "build", "--json", *define, "service.manifest.template")
    call(directory, *CLOISTER, "platform", "export", "platform.json")
    certificate, key = directory / "certs/server.crt", directory / "certs/server.key"
    bundle = SimulatedBundle.from_json((directory / "platform.json").read_text())
    trust = Authenticator(Trust(((bundle.anchor, bundle.collateral),)), now)
    judge = expect(MrEnclave(bytes.fromhex(json.loads(built)["mrenclave"])), trust)
    with (
        running(
            directory, keys,
            *CLOISTER, "serve", "--key", "wrap-key", "--enclave", "service", "--listen",
            f"localhost:{keys}", "--cert", str(certificate), "--cert-key", str(key),
            "--trust-simulated", "platform.json",
        ),
        running(
            directory / "plaintext", native,
            sys.executable, "-m", "uvicorn", "service:app", "--app-dir", "..", "--no-access-log",
            "--port", str(native), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key),
        ),
        running(directory, inside, *CLOISTER, "run", "service"),
    ):  # fmt: skip
        plain = ssl.create_default_context(cafile=directory / "certs" / "ca.crt")
        yield {
            NATIVE: Service(f"https://localhost:{native}/classify", plain),
            ENCLAVE: Service(f"https://localhost:{inside}/classify", judging_context(judge)),
        }


def call(directory: Path, *command: str) -> str:
    return subprocess.run(
        command, cwd=directory, env=environment(directory), check=True, text=True,
        stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def environment(directory: Path) -> dict[str, str]:
    """The roles' own keys live and die with the measurement."""
    own = {"XDG_CONFIG_HOME": str(directory / "config"), "XDG_DATA_HOME": str(directory / "share")}
    return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1", "ORT_DISABLE_TELEMETRY": "1"}


@contextlib.contextmanager
def running(directory: Path, port: int, *command: str) -> Iterator[None]:
    """Run a server while the block runs, which starts when it answers on its port."""
    log = directory / f"{port}.log"
    where = environment(directory.parent if directory.name == "plaintext" else directory)
    with log.open("wb") as stream:
        server = subprocess.Popen(command, cwd=directory, env=where, stdout=stream, stderr=stream)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{' '.join(command)}:\n{log.read_text()}")
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


# --- Measuring ----------------------------------------------------------------------------------


def latency(service: Service, photograph: bytes, requests: int) -> float:
    """Median seconds of a request on an open connection."""
    with service.client() as client:
        service.ask(client, photograph)
        return statistics.median(
            seconds(lambda: service.ask(client, photograph)) for _ in range(requests)
        )


def throughput(service: Service, photograph: bytes, requests: int) -> float:
    """Seconds a request when several connections are busy."""

    def share() -> None:
        with service.client() as client:
            for _ in range(requests // CONNECTIONS):
                service.ask(client, photograph)

    def together() -> None:
        with ThreadPoolExecutor(CONNECTIONS) as clients:
            for done in [clients.submit(share) for _ in range(CONNECTIONS)]:
                done.result()

    return seconds(together) / (requests // CONNECTIONS * CONNECTIONS)


def connection(service: Service, photograph: bytes, requests: int) -> float:
    """Median seconds of a request that opens its connection, verification included."""

    def ask() -> None:
        with service.client() as client:
            service.ask(client, photograph)

    return statistics.median(seconds(ask) for _ in range(requests))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


Times = dict[str, dict[str, list[float]]]


def measure(both: dict[str, Service], rounds: int, requests: int) -> Times:
    photograph = PHOTOGRAPH.read_bytes()
    times: Times = {}
    for number in range(rounds + 1):
        for ask in (latency, throughput, connection):
            for name, service in both.items():
                found = ask(service, photograph, requests)
                if number:  # the first round only warms up
                    times.setdefault(ask.__name__, {}).setdefault(name, []).append(found)
        print(f"  round {number} of {rounds}", file=sys.stderr)
    return times


def report(times: Times) -> None:
    """Print medians, and the median of the ratios within the rounds."""
    print(f"{'':<12} {NATIVE:>18} {ENCLAVE:>27} {'ratio':>7}   target 1.15")
    for what, modes in times.items():
        native, enclave = (statistics.median(modes[name]) for name in (NATIVE, ENCLAVE))
        ratio = statistics.median(a / b for a, b in zip(modes[ENCLAVE], modes[NATIVE], strict=True))
        shown = (f"{1000 * value:.1f} ms" for value in (native, enclave))
        if what == "throughput":
            shown = (f"{1 / value:.1f} requests/s" for value in (native, enclave))
        print("{:<12} {:>18} {:>27} {:>7.2f}".format(what, *shown, ratio))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=40, help="of each kind, a round")
    parser.add_argument("--json", type=Path, help="write all times (seconds) there")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="cloister-bench-") as name,
        services(Path(name)) as both,
    ):
        times = measure(both, options.rounds, options.requests)
    report(times)
    if options.json:
        options.json.write_text(json.dumps(times))


if __name__ == "__main__":
    main()
