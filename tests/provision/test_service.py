"""The key server with a store, as processes: several secrets, hot reload, audit, metrics."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloister.cli.main import run
from cloister.platforms.simulated import SimulatedPlatform
from cloister.provision.audit import AuditLog
from cloister.provision.database import open_database
from cloister.provision.protocol import REQUEST
from cloister.ratls.certificate import create_identity
from key_server import KEY, Server, Setting, received
from key_store import Store, admin_url, eventually

Serve = Callable[..., Server]


def test_each_enclave_gets_its_own_secret(
    setting: Setting, store: Store, serve_store: Serve
) -> None:
    one, two = setting.enclave(b"one"), setting.enclave(b"two")
    assert store.put("first", b"1" * 16, one.mrenclave) == 0
    assert store.put("second", b"2" * 16, two.mrenclave) == 0
    server = serve_store(*store.options)
    assert set(server.announced["secrets"]) == {"first", "second"}
    assert setting.fetch(server.port, manifest="one")["key"] == (b"1" * 16).hex()
    assert setting.fetch(server.port, manifest="two")["key"] == (b"2" * 16).hex()
    refused = setting.fetch(server.port, manifest="three")
    assert refused["error"] == "ProvisioningRefusedError"
    outcomes = [(item["outcome"], item["secret"]) for item in server.decisions(3)]
    assert outcomes == [("released", "first"), ("released", "second"), ("refused", None)]
    recorded = [record.decision for record in store.log().records()]
    assert [(item["outcome"], item["secret"]) for item in recorded] == outcomes
    assert store.log().verify().sealed == 3
    assert "first: MRENCLAVE" in recorded[2]["reason"]
    assert "second: MRENCLAVE" in recorded[2]["reason"]


def test_changes_are_noticed_while_it_runs(
    setting: Setting, store: Store, serve_store: Serve
) -> None:
    enclave = setting.enclave()
    server = serve_store(*store.options)
    assert setting.fetch(server.port)["error"] == "ProvisioningRefusedError"
    store.put("key", KEY, enclave.mrenclave)
    eventually(lambda: setting.fetch(server.port).get("key") == KEY.hex())
    store.put("key", b"n" * 16, enclave.mrenclave)
    eventually(lambda: setting.fetch(server.port).get("key") == (b"n" * 16).hex())
    assert run(["secret", "remove", "key", *store.options]) == 0
    eventually(lambda: "error" in setting.fetch(server.port))


def test_two_policies_that_accept_one_enclave_release_nothing(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    enclave = setting.enclave()
    sqlite_store.put("a", b"a" * 16, enclave.mrenclave)
    sqlite_store.put("b", b"b" * 16, enclave.mrenclave)
    server = serve_store(*sqlite_store.options)
    assert "secret" not in setting.fetch(server.port)
    assert "the policies of a, b" in server.decisions(1)[0]["reason"]


def test_a_store_that_somebody_else_changed_releases_nothing(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    enclave = setting.enclave()
    sqlite_store.put("key", KEY, enclave.mrenclave)
    server = serve_store(*sqlite_store.options, "--admin", "localhost:0")
    with open_database(sqlite_store.url).begin() as connection:
        connection.exec_driver_sql("UPDATE secrets SET policy = 'version = 1'")
        connection.exec_driver_sql("UPDATE secrets_changes SET number = number + 1")
    assert server.process.stdout is not None
    assert "changed" in json.loads(server.process.stdout.readline())["reason"]
    assert "error" in setting.fetch(server.port)
    health = httpx.get(admin_url(server) + "/healthz")
    assert health.status_code == 503
    assert "changed" in health.json()["problems"][0]


def test_without_its_key_it_does_not_start(
    setting: Setting, sqlite_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    sqlite_store.put("key", KEY, bytes(32))
    (setting.directory / "store.key").unlink()
    assert run(["secret", "new-key", str(setting.directory / "store.key")]) == 0
    bundle = setting.write_bundle(setting.platform)
    arguments = ["serve", "--cert", str(setting.directory / "server.crt")]
    arguments += ["--cert-key", str(setting.directory / "server.key")]
    arguments += ["--trust-simulated", str(bundle), "--listen", "localhost:0"]
    assert run([*arguments, *sqlite_store.options]) == 1
    assert "another key" in capsys.readouterr().err


def test_dropped_connections_are_not_decisions(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options)
    with socket.create_connection(("localhost", server.port)):
        pass
    assert server.decisions(1)[0]["outcome"] == "dropped"
    assert sqlite_store.log().verify().records == 0


def test_if_the_decision_cannot_be_recorded_nothing_is_released(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options)
    with open_database(sqlite_store.url).begin() as connection:
        connection.exec_driver_sql("DROP TABLE audit")
    context = setting.context(create_identity(setting.enclave().quote))
    assert received(server.port, context, context.maximum_version) == b""
    (failure,) = server.decisions(1)
    assert failure["event"] == "failure"
    assert "audit" in failure["reason"]
    assert "error" in setting.fetch(server.port, manifest="another")
    assert server.decisions(1)[0]["event"] == "failure"


def test_each_decision_is_reported_with_its_place_in_the_log(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options)
    setting.fetch(server.port)
    setting.fetch(server.port, manifest="another")
    reported = [item["audit"] for item in server.decisions(2)]
    recorded = [
        {"sequence": record.sequence, "hash": record.hash}
        for record in sqlite_store.log().records()
    ]
    assert reported == recorded
    for item in reported:
        assert sqlite_store.log().verify(known=item["hash"]).records == 2


def test_a_hangup_reads_the_trust_again(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    other = SimulatedPlatform(setting.directory / "other-platform")
    sqlite_store.root = other.trust_anchor().fingerprint
    sqlite_store.put("key", KEY, setting.start_enclave(other).mrenclave)
    server = serve_store(*sqlite_store.options)
    path = setting.directory / "other-platform"
    assert "error" in setting.fetch(server.port, platform=path)
    setting.write_bundle(other)  # in place of the bundle that the server was started with
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: setting.fetch(server.port, platform=path).get("key") == KEY.hex())


def test_a_hangup_with_a_damaged_file_leaves_the_trust(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options)
    (setting.directory / "bundle.json").write_text("{}")
    server.process.send_signal(signal.SIGHUP)
    assert server.process.stdout is not None
    assert json.loads(server.process.stdout.readline())["event"] == "failure"
    assert setting.fetch(server.port)["key"] == KEY.hex()


def test_one_key_with_an_audit_log(setting: Setting, serve: Serve, tmp_path: Path) -> None:
    database = str(tmp_path / "audit.db")
    server = serve("--audit", database)
    assert setting.fetch(server.port)["key"] == KEY.hex()
    assert AuditLog(open_database(database), None).verify().records == 1


def test_the_audit_commands(
    setting: Setting,
    sqlite_store: Store,
    serve_store: Serve,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options)
    setting.fetch(server.port)
    setting.fetch(server.port, manifest="another")
    capsys.readouterr()
    where = ["--store", sqlite_store.url]
    assert run(["audit", "show", *where]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "released key to" in shown[0]
    assert "SIMULATED" in shown[0]
    assert "refused" in shown[1]
    assert run(["audit", "show", "--json", "--after", "1", *where]) == 0
    assert json.loads(capsys.readouterr().out)["sequence"] == 2
    assert run(["audit", "verify", *sqlite_store.options, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["records"], summary["sealed"]) == (2, 2)
    assert run(["audit", "verify", *where, "--known", summary["head"]]) == 0
    assert run(["audit", "verify", *where, "--known", "0" * 64]) == 3
    assert "cut off" in capsys.readouterr().err


def test_the_secret_commands(
    setting: Setting, sqlite_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    enclave = setting.enclave()
    assert sqlite_store.put("hex", KEY, enclave.mrenclave, "--hex") == 0
    assert "33 bytes" in capsys.readouterr().out
    assert run(["secret", "list", "--store", sqlite_store.url, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["name"] == "hex"
    assert enclave.mrenclave.hex() in listed["accepts"]
    assert run(["secret", "list", "--store", sqlite_store.url]) == 0
    assert KEY.hex() not in capsys.readouterr().out
    assert run(["secret", "remove", "none", *sqlite_store.options]) == 2
    assert run(["secret", "new-key", str(setting.directory / "store.key")]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--key", "wrap-key", "--store", "keys.db"],
        ["--store", "keys.db"],
        ["--store", "keys.db", "--store-key", "file:store.key", "--mrenclave", "00" * 32],
        ["--store", "keys.db", "--store-key", "file:store.key", "--audit", "audit.db"],
        ["--store", "keys.db", "--store-key", "file:store.key", "--accept-tcb", "OutOfDate"],
    ],
)
def test_wrong_usage(
    setting: Setting,
    sqlite_store: Store,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(setting.directory)
    setting.write_bundle(setting.platform)
    fixed = ["serve", "--cert", "server.crt", "--cert-key", "server.key", "--listen", "localhost:0"]
    assert run([*fixed, "--trust-simulated", "bundle.json", *arguments]) == 2
    assert "hint:" in capsys.readouterr().err


def test_an_address_that_comes_too_often_waits(setting: Setting, serve: Serve) -> None:
    """It is not turned away: honest clients may share the address of hostile ones."""
    server = serve("--rate", "0.5", "--burst", "2")
    context = setting.context(create_identity(setting.enclave().quote))
    begun = time.monotonic()
    for _ in range(2):
        assert received(server.port, context, ssl.TLSVersion.TLSv1_3).endswith(KEY)
    assert time.monotonic() - begun < 1.5
    for _ in range(2):
        assert received(server.port, context, ssl.TLSVersion.TLSv1_3).endswith(KEY)
    assert time.monotonic() - begun > 2.5


def test_a_byte_when_the_time_is_over_does_no_harm(setting: Setting, serve: Serve) -> None:
    """It once ended the server: the exchange was resumed by its socket and by its deadline."""
    server = serve("--client-timeout", "0.5")
    begun = time.monotonic()
    idle = [socket.create_connection(("localhost", server.port), 10) for _ in range(60)]
    time.sleep(max(0, begun + 0.5 - time.monotonic()))
    for connection in idle:
        with contextlib.suppress(OSError):
            connection.send(b"\x16")
    for connection in idle:
        with contextlib.suppress(OSError):
            assert connection.recv(10) == b""
        connection.close()
    assert time.monotonic() - begun < 5
    assert setting.fetch(server.port)["key"] == KEY.hex()


def test_a_client_may_not_send_without_end(setting: Setting, serve: Serve) -> None:
    """Records of one byte, of a ClientHello that does not end, cost a processor much."""
    server = serve()
    with socket.create_connection(("localhost", server.port), 10) as raw:
        raw.sendall(b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x03\x00\xff\xff")
        with contextlib.suppress(OSError):
            for _ in range(100):
                raw.sendall(b"\x16\x03\x01\x00\x01\x00" * 2000)
    (decision,) = server.decisions(1)
    assert decision["outcome"] != "released"
    assert "bytes" in decision["reason"] or "TLS failed" in decision["reason"]
    assert setting.fetch(server.port)["key"] == KEY.hex()


def test_a_database_that_is_locked_stops_neither_deadlines_nor_the_end(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options, "--client-timeout", "2", "--admin", "localhost:0")
    context = setting.context(create_identity(setting.enclave().quote))
    with sqlite3.connect(sqlite_store.url.removeprefix("sqlite:///"), isolation_level=None) as lock:
        lock.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        assert received(server.port, context, ssl.TLSVersion.TLSv1_3) == b""
        assert time.monotonic() - begun < 4
        begun = time.monotonic()
        with socket.create_connection(("localhost", server.port), 10) as idle:
            idle.sendall(b"\x16")
            assert idle.recv(1) == b""
        assert 1 < time.monotonic() - begun < 4
        eventually(lambda: httpx.get(admin_url(server) + "/healthz").status_code == 503)
        lock.execute("ROLLBACK")
    eventually(lambda: httpx.get(admin_url(server) + "/healthz").status_code == 200)
    eventually(lambda: len(list(sqlite_store.log().records())) >= 2)
    outcomes = [record.decision["outcome"] for record in sqlite_store.log().records()]
    assert outcomes[:2] == ["released", "refused"]  # the second one takes the first one back
    assert received(server.port, context, ssl.TLSVersion.TLSv1_3).endswith(KEY)
    server.process.terminate()
    assert server.process.wait(20) == 0


def test_a_server_ends_though_its_database_is_locked(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options, "--client-timeout", "1")
    context = setting.context(create_identity(setting.enclave().quote))
    with sqlite3.connect(sqlite_store.url.removeprefix("sqlite:///"), isolation_level=None) as lock:
        lock.execute("BEGIN IMMEDIATE")
        assert received(server.port, context, ssl.TLSVersion.TLSv1_3) == b""
        begun = time.monotonic()
        server.process.terminate()
        server.process.wait(20)
        assert time.monotonic() - begun < 15


def test_clients_above_the_limit_wait_for_their_turn(setting: Setting, serve: Serve) -> None:
    server = serve("--max-clients", "2")
    silent = [socket.create_connection(("localhost", server.port), 10) for _ in range(3)]
    started = time.monotonic()
    assert setting.fetch(server.port)["key"] == KEY.hex()
    assert time.monotonic() - started > 2  # until a silent one was dropped
    for connection in silent:
        connection.close()


def test_a_client_may_connect_long_before_it_speaks(setting: Setting, serve: Serve) -> None:
    """As Gramine's library does, which makes its quotes in between."""
    server = serve("--client-timeout", "2")
    context = setting.context(create_identity(setting.enclave().quote))
    with socket.create_connection(("localhost", server.port), 10) as raw:
        time.sleep(5)  # longer than where others wait, and than what it has from then on
        with context.wrap_socket(raw, server_hostname="localhost") as tls:
            tls.sendall(REQUEST)
            assert server.decisions(1)[0]["outcome"] == "released"
            assert tls.recv(100)


def test_a_server_that_ends_does_not_wait_long_for_silent_clients(
    setting: Setting, serve: Serve
) -> None:
    server = serve()
    with socket.create_connection(("localhost", server.port), 10):
        assert setting.fetch(server.port)["key"] == KEY.hex()
        begun = time.monotonic()
        server.process.terminate()
        server.process.wait(20)
        assert time.monotonic() - begun < 10


def test_bytes_behind_the_request_do_not_cost_the_client_its_answer(
    setting: Setting, serve: Serve
) -> None:
    server = serve()
    context = setting.context(create_identity(setting.enclave().quote))
    with (
        socket.create_connection(("localhost", server.port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(REQUEST + b"x" * 20000)
        assert server.decisions(1)[0]["outcome"] == "released"
        time.sleep(0.3)  # the server has closed by now
        answer = b""
        while piece := tls.recv(4096):
            answer += piece
    assert answer.endswith(KEY)


def test_honest_clients_are_served_among_hostile_ones(setting: Setting, serve: Serve) -> None:
    server = serve("--max-clients", "64", "--client-timeout", "30")
    hostile = [Hostile(server.port, kind) for kind in range(40)]
    context = setting.context(create_identity(setting.enclave().quote))
    answers: list[bytes] = []

    def ask() -> None:
        answers.append(received(server.port, context, context.maximum_version))

    threads = [threading.Thread(target=ask) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for client in hostile:
        client.close()
    assert [answer[-16:] for answer in answers] == [KEY] * 60


class Hostile:
    """A client that holds a connection: silent, half a hello, garbage, byte by byte."""

    def __init__(self, port: int, kind: int) -> None:
        self._socket = socket.create_connection(("localhost", port), 10)
        self._stop = threading.Event()
        messages = (b"", b"\x16\x03\x01\x02\x00\x01", b"\x00" * 10000, b"GET / HTTP/1.1\r\n")
        self._thread = threading.Thread(target=self._drip, args=(messages[kind % 4],), daemon=True)
        self._thread.start()

    def _drip(self, message: bytes) -> None:
        try:
            for byte in message:
                self._socket.sendall(bytes([byte]))
                if self._stop.wait(0.05):
                    return
        except OSError:
            return

    def close(self) -> None:
        self._stop.set()
        self._socket.close()
        self._thread.join(5)


def test_two_servers_share_one_store(setting: Setting, store: Store, serve_store: Serve) -> None:
    store.put("key", KEY, setting.enclave().mrenclave)
    servers = [serve_store(*store.options) for _ in range(2)]
    results: list[Any] = []

    def ask(port: int) -> None:
        results.append(setting.fetch(port).get("key"))

    threads = [
        threading.Thread(target=ask, args=(server.port,)) for server in servers for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [KEY.hex()] * 6
    assert store.log().verify().records == 6


def test_kill_9_under_load_loses_no_recorded_release(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options)
    context = setting.context(create_identity(setting.enclave().quote))
    released: list[bytes] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = received(server.port, context, context.maximum_version)
            except OSError:
                return
            if answer.endswith(KEY):
                released.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(released) >= 40)
    server.process.send_signal(signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert sqlite_store.log().verify().records >= len(released)


def test_a_signal_that_the_waiting_thread_does_not_get_stops_the_server(
    store: Store, serve_store: Serve
) -> None:
    """As one that comes just before it begins to wait: Python's handler has to be woken for."""
    server = serve_store(*store.options)
    process = server.process.pid
    others = [int(path.name) for path in Path(f"/proc/{process}/task").iterdir()]
    others.remove(process)
    assert ctypes.CDLL(None).tgkill(process, others[0], signal.SIGTERM) == 0
    assert server.process.wait(10) == 0
