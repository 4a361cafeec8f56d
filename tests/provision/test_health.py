"""What a key server does, and says of itself, when something around it fails."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import httpx

from cloister.attestation.trust import Authenticator, Trust
from cloister.cli.serve import Report
from cloister.cli.trust import utc_now
from cloister.errors import CloisterError
from cloister.provision.database import open_database
from cloister.provision.decision import ClientJudge
from cloister.provision.service import Service, Settings
from cloister.provision.store_watcher import StoreWatcher
from cloister.ratls.certificate import create_identity
from key_server import KEY, Server, Setting, received
from key_store import Store, admin_url, eventually

Serve = Callable[..., Server]


def test_metrics_and_health(setting: Setting, sqlite_store: Store, serve_store: Serve) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options, "--admin", "localhost:0")
    assert "key" in setting.fetch(server.port)
    assert "error" in setting.fetch(server.port, manifest="another")
    with socket.create_connection(("localhost", server.port)):
        pass
    server.decisions(3)
    text = httpx.get(admin_url(server) + "/metrics").text
    assert 'cloister_key_server_released_total{secret="key"} 1.0' in text
    assert 'decisions_total{check="MRENCLAVE",outcome="refused"} 1.0' in text
    assert 'decisions_total{check="",outcome="dropped"} 1.0' in text
    assert "cloister_key_server_secrets 1.0" in text
    assert "cloister_key_server_turned_away 0.0" in text
    assert KEY.hex() not in text
    health = httpx.get(admin_url(server) + "/healthz")
    assert (health.status_code, health.json()["healthy"]) == (200, True)


def test_a_log_that_nobody_reads_stops_no_release_that_the_audit_log_has(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options, "--admin", "localhost:0")
    assert server.process.stdout is not None
    server.process.stdout.close()
    for _ in range(2):
        assert setting.fetch(server.port)["key"] == KEY.hex()
    assert sqlite_store.log().verify().records == 2
    health = httpx.get(admin_url(server) + "/healthz")
    assert health.status_code == 503
    assert "log: cannot be written" in health.json()["problems"][0]
    metrics = httpx.get(admin_url(server) + "/metrics").text
    assert 'internal_failures_total{part="log"} 2.0' in metrics
    server.process.terminate()
    assert server.process.wait(20) == 0


def test_where_the_log_is_the_only_record_nothing_leaves_without_it(
    setting: Setting, serve: Serve
) -> None:
    server = serve()
    assert server.process.stdout is not None
    server.process.stdout.close()
    context = setting.context(create_identity(setting.enclave().quote))
    assert received(server.port, context, context.maximum_version) == b""


def test_idle_connections_to_metrics_take_no_descriptors(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options, "--admin", "localhost:0")
    address = ("localhost", server.announced["admin"][1])
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    with contextlib.ExitStack() as idle:
        for _ in range(400):
            idle.enter_context(socket.create_connection(address, 10))
        eventually(lambda: len(list(descriptors.iterdir())) < 120)
        assert setting.fetch(server.port)["key"] == KEY.hex()
    assert httpx.get(admin_url(server) + "/healthz").status_code == 200


def test_an_audit_log_that_fails_is_no_health(
    setting: Setting, sqlite_store: Store, serve_store: Serve
) -> None:
    sqlite_store.put("key", KEY, setting.enclave().mrenclave)
    server = serve_store(*sqlite_store.options, "--admin", "localhost:0")
    with open_database(sqlite_store.url).begin() as connection:
        connection.exec_driver_sql("DROP TABLE audit")
    assert "error" in setting.fetch(server.port)
    health = httpx.get(admin_url(server) + "/healthz")
    assert health.status_code == 503
    assert "audit" in health.json()["problems"][0]


def test_whatever_fails_in_it_the_keeper_goes_on(setting: Setting) -> None:
    """Otherwise removed secrets would be released for ever."""
    told: list[CloisterError] = []
    looked = threading.Event()

    class Watcher:
        problem = None

        def poll(self) -> None:
            if told:
                looked.set()
            raise ZeroDivisionError("in the test")

    class Silent(Report):
        def failed(self, error: CloisterError) -> None:
            told.append(error)
            raise BrokenPipeError

    trust = Trust(((setting.platform.trust_anchor(), setting.platform.export().collateral),))
    authenticator = Authenticator(trust, utc_now)
    report = Silent(as_json=True)
    report.introduce((), trust)
    certificates = (setting.directory / "server.crt", setting.directory / "server.key")
    service = Service(
        Settings(*certificates, ("localhost", 0)),
        ClientJudge((), authenticator),
        authenticator,
        load_trust=lambda: trust,
        observer=report,
        clock=utc_now,
        watcher=cast("StoreWatcher", Watcher()),
    )
    running = threading.Thread(target=service.run)
    running.start()
    assert looked.wait(10)
    service.stop()
    running.join(10)
    assert "internal error (ZeroDivisionError: in the test)" in told[0].message
