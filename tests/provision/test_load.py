"""Five hundred clients at once, with fifty hostile ones among them."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.provision.audit import AuditLog
from cloister.provision.database import open_database
from cloister.provision.protocol import REQUEST
from cloister.ratls.certificate import create_identity
from key_server import KEY, Server, Setting

HONEST = 500
HOSTILE = 50
MAX_MEMORY = 400_000_000
"""Bytes that the server may have had in memory at most."""


class Hostile:
    """Attacks again and again until it is stopped; every kind holds or wastes something else.

    They share the honest clients' address, and what is begun with of one address in a second is
    limited; so they wait for their turn, as the honest ones do.
    """

    def __init__(self, port: int, context: ssl.SSLContext, kind: int) -> None:
        self._port = port
        self._context = context
        self._stop = threading.Event()
        kinds = (self.silent, self.slow, self.half_open, self.garbage, self.oversized)
        self._attack = kinds[kind % len(kinds)]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), 10) as raw,
            ):
                self._attack(raw)

    def silent(self, raw: socket.socket) -> None:
        self._stop.wait(2)

    def slow(self, raw: socket.socket) -> None:
        """A ClientHello of 16 KB, one byte after another."""
        for byte in b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(200):
            raw.sendall(bytes([byte]))
            if self._stop.wait(0.05):
                return

    def half_open(self, raw: socket.socket) -> None:
        """A handshake that is done, and no request."""
        with self._context.wrap_socket(raw, server_hostname="localhost") as tls:
            tls.sendall(REQUEST[:10])
            self._stop.wait(5)

    def garbage(self, raw: socket.socket) -> None:
        raw.sendall(os.urandom(5000))
        raw.recv(1)

    def oversized(self, raw: socket.socket) -> None:
        """Megabytes where 35 bytes are expected."""
        with self._context.wrap_socket(raw, server_hostname="localhost") as tls:
            while not self._stop.is_set():
                tls.sendall(b"S" * 1_000_000)


def peak_memory(process: int) -> int:
    """Return the most that a process had in memory, in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_five_hundred_at_once_with_fifty_hostile_ones(
    setting: Setting, serve_with: Callable[..., Server]
) -> None:
    database = str(setting.directory / "audit.db")
    server = serve_with(
        *("--key", "wrap-key", "--mrenclave", setting.enclave().mrenclave.hex()),
        *("--audit", database, "--client-timeout", "20"),
    )
    assert server.process.stdout is not None
    drain = threading.Thread(target=server.process.stdout.read, daemon=True)
    drain.start()
    enclave, stranger = setting.enclave(), setting.enclave(b"stranger")
    context = setting.context(create_identity(enclave.quote))
    contexts = [context, setting.context(create_identity(stranger.quote))]
    hostile = [Hostile(server.port, contexts[kind % 2], kind) for kind in range(HOSTILE)]
    time.sleep(2)
    answers: list[bytes] = []
    failures: list[str] = []
    together = threading.Barrier(HONEST)

    def ask() -> None:
        together.wait(60)
        try:
            with (
                socket.create_connection(("localhost", server.port), 120) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as tls,
            ):
                tls.sendall(REQUEST)
                answer = b""
                while piece := tls.recv(4096):
                    answer += piece
                answers.append(answer)
        except OSError as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(HONEST)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    print(f"{len(answers)} served in {time.monotonic() - started:.1f} s,", end=" ")
    print(f"peak memory {peak_memory(server.process.pid) / 1e6:.0f} MB")
    for attacker in hostile:
        attacker.stop()
    assert failures == []
    assert [answer[-16:] for answer in answers] == [KEY] * HONEST
    assert peak_memory(server.process.pid) < MAX_MEMORY
    log = AuditLog(open_database(database), None)
    log.verify()
    released = [item for item in log.records() if item.decision["outcome"] == "released"]
    assert len(released) == HONEST
    assert len({item.decision["peer"] for item in released}) == HONEST
