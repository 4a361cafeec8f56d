"""How many keys a key server releases in a second, against bare mutual-TLS handshakes.

    python benchmarks/key_server.py [--rounds N] [--clients N] [--each N] [--postgresql URL]
                                    [--share PERCENT]

Both servers are one thread that serves all clients and use pyOpenSSL; both see a P-384 client
certificate. The bare one lets OpenSSL verify it against a CA and closes; `cloister serve --store`
verifies the quote, asks the policy, has the decision on the disk, prints it and sends the key.
The clients are processes of their own that run the same code against both. They use the same
processors as the servers, so that the clock says little where there are few: processor time of the
server a connection is the figure that counts. Two servers do not show there what they are worth:
with `--share 25` (as root) each may use a quarter of a processor and no more, which leaves the
clients enough, so that the clock tells how two share a database. Every round runs all servers one
after another.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL

from cloister.connect import connect_tcp
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.provision.certificates import make_server_certificates
from cloister.provision.protocol import REQUEST
from cloister.ratls.certificate import create_identity
from cloister.sgx.measurement import measure
from cloister.sgx.sigstruct import Sigstruct

SIGNING = Path(__file__).resolve().parent.parent / "tests" / "data" / "signing"
CONTROL = Path("/sys/fs/cgroup")
THREADS = 16
"""Of each client process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--each", type=int, default=200, help="connections of each of them")
    parser.add_argument("--postgresql", metavar="URL", help="an empty database, instead of SQLite")
    parser.add_argument("--share", type=int, metavar="PERCENT", help="of a processor, a server")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        serve_bare(arguments.bare)
        return
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        os.environ["XDG_DATA_HOME"] = os.environ["XDG_CONFIG_HOME"] = directory
        prepare(work, arguments.postgresql or "keys.db")
        run(work, arguments.postgresql or "keys.db", arguments)


def run(work: Path, store: str, arguments: argparse.Namespace) -> None:
    key_server = [
        *(sys.executable, "-m", "cloister", "serve", "--json"),
        *("--store", store, "--store-key", "file:store.key"),
        *("--cert", "server.crt", "--cert-key", "server.key", "--listen", "localhost:0"),
        *("--trust-simulated", "bundle.json", "--rate", "100000", "--burst", "100000"),
    ]
    bare_server = [sys.executable, __file__, "--bare", str(work)]
    bare: list[Taken] = []
    one: list[Taken] = []
    two: list[Taken] = []
    with (
        started(bare_server, work, arguments.share) as plain,
        started(key_server, work, arguments.share) as first,
        started(key_server, work, arguments.share) as second,
    ):
        amount = (arguments.clients, arguments.each)
        for name, servers in (("ordinary.pem", [plain]), ("enclave.pem", [first, second])):
            taken(work, name, servers, 1, 20)  # what is done only once
        for _ in range(arguments.rounds):
            bare.append(taken(work, "ordinary.pem", [plain], *amount))
            one.append(taken(work, "enclave.pem", [first], *amount))
            two.append(taken(work, "enclave.pem", [first, second], *amount))
    print(f"{os.cpu_count()} processors, {arguments.clients} client processes")
    show("bare mutual-TLS handshakes", bare)
    show("key releases, one server process", one)
    show("key releases, two server processes", two)
    ratio("releases to handshakes, by processor time (target 0.70)", bare, one, "processor")
    ratio("releases to handshakes, by the clock", bare, one, "clock")
    ratio("two server processes to one, by the clock", one, two, "clock")
    ratio("two server processes to one, by processor time", one, two, "processor")


class Server(NamedTuple):
    """A running server."""

    process: int
    port: int

    def processor(self) -> float:
        """Return the processor time that it has used, in seconds."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Taken(NamedTuple):
    """Seconds a connection: by the clock, and of the servers' processor time."""

    clock: float
    processor: float


def taken(work: Path, identity: str, servers: Sequence[Server], processes: int, each: int) -> Taken:
    """Let the clients run once, spread over the servers."""
    before = sum(server.processor() for server in servers)
    jobs = [(work, identity, servers[n % len(servers)].port, each) for n in range(processes)]
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.starmap(connect_often, jobs, chunksize=1)
    clock = time.perf_counter() - start
    time.sleep(0.2)  # the servers' threads end a little after their clients
    used = sum(server.processor() for server in servers) - before
    return Taken(clock / (processes * each), used / (processes * each))


def connect_often(work: Path, identity: str, port: int, count: int) -> None:
    context = ssl.create_default_context(cafile=str(work / "ca.crt"))
    context.load_cert_chain(work / identity)
    released = identity == "enclave.pem"
    failures: list[str] = []

    def connect() -> None:
        for _ in range(count // THREADS):
            with (
                connect_tcp("localhost", port, 30) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as tls,
            ):
                if released:
                    tls.sendall(REQUEST)
                answer = b""
                while piece := tls.recv(4096):
                    answer += piece
                if len(answer) != (41 + 16 if released else 0):
                    failures.append(f"{len(answer)} bytes")

    threads = [threading.Thread(target=connect) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"not what was expected: {failures[:3]}")


@contextlib.contextmanager
def started(command: Sequence[str], work: Path, share: int | None = None) -> Iterator[Server]:
    """Start a server that announces its port as JSON; what it prints later goes to a file.

    Args:
        command: how.
        work: where.
        share: how much of a processor it may use, in percent; None sets no limit.
    """
    log = work / f"server-{time.monotonic_ns()}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=work, stdout=stream)
    try:
        while b"\n" not in log.read_bytes():
            if process.poll() is not None:
                raise SystemExit(f"{command}: exit code {process.returncode}")
            time.sleep(0.05)
        with limited(process.pid, share):
            yield Server(process.pid, json.loads(log.read_text().splitlines()[0])["port"])
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def limited(process: int, share: int | None) -> Iterator[None]:
    """Let a process use no more than that share of a processor, by a control group."""
    if share is None:
        yield
        return
    period = 10_000
    first, second = CONTROL / "cpu", CONTROL  # versions 1 and 2 of the kernel's interface
    group = (first if first.is_dir() else second) / f"cloister-benchmark-{process}"
    group.mkdir()
    try:
        if first.is_dir():
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(period * share // 100))
        else:
            (group / "cpu.max").write_text(f"{period * share // 100} {period}")
        (group / "cgroup.procs").write_text(str(process))
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(str(process))
        group.rmdir()


def serve_bare(work: Path) -> None:
    """Do mutual-TLS handshakes for ever in one thread, nothing besides."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(str(work / "server.crt"))
    context.use_privatekey_file(str(work / "server.key"))
    context.load_verify_locations(str(work / "client-ca.crt"))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    clients: dict[int, tuple[SSL.Connection, socket.socket]] = {}

    with socket.create_server(("localhost", 0), backlog=512) as listener, select.epoll() as epoll:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        epoll.register(listener, select.EPOLLIN)
        while True:
            for number, _ in epoll.poll():
                if number == listener.fileno():
                    connected, _ = listener.accept()
                    connected.setblocking(False)
                    connection = SSL.Connection(context, connected)
                    connection.set_accept_state()
                    clients[connected.fileno()] = connection, connected
                    epoll.register(connected, select.EPOLLIN)
                    continue
                connection, connected = clients[number]
                with contextlib.suppress(SSL.Error):
                    try:
                        connection.do_handshake()
                    except SSL.WantReadError:
                        continue
                    connection.shutdown()
                del clients[number]
                epoll.unregister(connected)
                connected.close()


def prepare(work: Path, store: str) -> None:
    """Make certificates, an enclave's and an ordinary identity, and a store with one key."""
    day = {"now": datetime.datetime.now(datetime.timezone.utc), "lifetime": datetime.timedelta(1)}
    made = make_server_certificates(["localhost"], **day)  # type: ignore[arg-type]
    (work / "ca.crt").write_bytes(made.ca)
    (work / "server.crt").write_bytes(made.certificate)
    (work / "server.key").write_bytes(made.key)
    write_ordinary_client(work)
    platform = SimulatedPlatform(work / "simulated-platform")
    (work / "bundle.json").write_text(platform.export().to_json())
    enclave = start_enclave(platform)
    identity = create_identity(enclave.quote)
    (work / "enclave.pem").write_bytes(
        identity.certificate.public_bytes(Encoding.PEM) + private_pem(identity.key)
    )
    (work / "wrap-key").write_bytes(bytes(16))
    (work / "policy.toml").write_text(
        f'version = 1\nmrenclave = "{enclave.mrenclave.hex()}"\n'
        f'roots = ["{platform.trust_anchor().fingerprint}"]\n'
    )
    where = ["--store", store, "--store-key", "file:store.key"]
    for words in (
        ["secret", "new-key", "store.key"],
        ["secret", "put", "key", "wrap-key", "--policy", "policy.toml", *where],
    ):
        command = [sys.executable, "-m", "cloister", *words]
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)


def write_ordinary_client(work: Path) -> None:
    """Write a CA and a P-384 client certificate of it, of the ordinary kind."""
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in ("CA", "client")]
    for subject in (0, 1):
        certificate = (
            x509.CertificateBuilder(names[0], names[subject], keys[subject].public_key())
            .serial_number(subject + 1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=subject == 0, path_length=None), critical=True)
            .sign(keys[0], hashes.SHA256())
        )
        pem = certificate.public_bytes(Encoding.PEM)
        name = ("client-ca.crt", "ordinary.pem")[subject]
        (work / name).write_bytes(pem + (private_pem(keys[1]) if subject else b""))


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def start_enclave(platform: SimulatedPlatform) -> SimulatedEnclave:
    key = load_pem_private_key((SIGNING / "key.pem").read_bytes(), password=None)
    assert isinstance(key, RSAPrivateKey)
    image, size, threads = (SIGNING / "pal.so").read_bytes(), 1 << 24, 1
    sigstruct = Sigstruct(
        mr_enclave=measure(
            b"manifest", image, edmm=True, enclave_size=size, max_threads=threads
        ).mrenclave,
        modulus=key.public_key().public_numbers().n,
        flags=4,
        xfrm=3,
        flags_mask=0xFFFF_FFFF_FFFF_FFFF,
        xfrm_mask=0xFFFF_FFFF_FFF9_FF1B,
        misc_select=0,
        misc_mask=0xFFFF_FFFF,
        isv_prod_id=0,
        isv_svn=0,
        date=0x20260102,
    ).sign(key)
    return platform.start(
        manifest=b"manifest",
        sigstruct=sigstruct.pack(),
        image=image,
        edmm=True,
        enclave_size=size,
        max_threads=threads,
    )


def show(label: str, values: Sequence[Taken]) -> None:
    clock = statistics.median(value.clock for value in values)
    processor = statistics.median(value.processor for value in values)
    print(f"{label:<40} {1 / clock:6.0f} a second, {processor * 1000:.2f} ms of the servers each")


def ratio(label: str, base: Sequence[Taken], other: Sequence[Taken], field: str) -> None:
    ratios = [getattr(a, field) / getattr(b, field) for a, b in zip(base, other, strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{label:<58} {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
