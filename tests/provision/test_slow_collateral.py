"""A client whose collateral a slow service has to be asked for holds up nobody else."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloister.attestation.collateral import Collateral
from cloister.attestation.pcs import PlatformKind
from cloister.attestation.policy_file import parse_policy
from cloister.attestation.service import CollateralCache
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import CollateralFetchError
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.provision.decision import ClientJudge, Decision, Outcome, Secret
from cloister.provision.limits import Limits
from cloister.provision.server import KeyServer
from cloister.ratls.certificate import create_identity
from key_server import KEY, UTC, Setting, received

ANSWER = 41 + len(KEY)
"""Bytes of a released key and what goes before it."""
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class HeldUp:
    """A service that answers when it is let, with what it is given."""

    def __init__(self, answer: Collateral | Exception) -> None:
        self.answer = answer
        self.asked = threading.Semaphore(0)
        self.go_on = threading.Event()

    def get(
        self, kind: PlatformKind, before_asking: Callable[[], None] = lambda: None
    ) -> Collateral:
        before_asking()
        self.asked.release()
        assert self.go_on.wait(30)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def refresh_due(self) -> None: ...


@dataclasses.dataclass
class Running:
    """A key server that knows the collateral of one platform and asks for that of another."""

    setting: Setting
    service: HeldUp
    port: int
    decisions: list[Decision]
    near: SimulatedEnclave
    far: SimulatedEnclave
    judge: ClientJudge

    def fetch(self, enclave: SimulatedEnclave, version: ssl.TLSVersion = VERSIONS[1]) -> bytes:
        return received(self.port, self.setting.context(create_identity(enclave.quote)), version)

    def outcomes(self, count: int) -> list[Outcome]:
        while len(self.decisions) < count:
            time.sleep(0.01)
        return [decision.outcome for decision in self.decisions]


Begin = Callable[..., contextlib.AbstractContextManager[Running]]


@pytest.fixture
def begin(setting: Setting, tmp_path: Path) -> Begin:
    @contextlib.contextmanager
    def serving(
        *, failure: Exception | None = None, policy_of: str = "near far", seconds: float = 10
    ) -> Iterator[Running]:
        other = SimulatedPlatform(tmp_path / "other-platform")
        near, far = setting.platform.export(), other.export()
        service = HeldUp(failure or far.collateral)
        cache = CollateralCache(
            service, tmp_path / "cache", anchor=far.anchor, clock=now, on_failure=ignore
        )
        trust = Trust(
            known=((near.anchor, near.collateral),),
            sources=((far.anchor, cache),),
        )
        enclaves = setting.enclave(), setting.start_enclave(other, b"manifest")
        anchors = {"near": near.anchor, "far": far.anchor}
        roots = ", ".join(f'"{anchors[name].fingerprint}"' for name in policy_of.split())
        text = f'version = 1\nmrenclave = "{enclaves[0].mrenclave.hex()}"\nroots = [{roots}]\n'
        secret = Secret("key", bytearray(KEY), parse_policy(text))
        decisions: list[Decision] = []
        defects: list[Exception] = []

        def record(made: Sequence[Decision]) -> list[None]:
            decisions.extend(made)
            return [None] * len(made)

        judge = ClientJudge([secret], Authenticator(trust, now))
        server = KeyServer(
            judge,
            certificate=setting.directory / "server.crt",
            key=setting.directory / "server.key",
            record=record,
            defect=defects.append,
            clock=now,
            limits=Limits(client_timeout=seconds),
        )
        _, port = server.listen("localhost", 0)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield Running(setting, service, port, decisions, *enclaves, judge)
        finally:
            service.go_on.set()
            server.stop()
            thread.join(20)
        assert not thread.is_alive()
        assert defects == []

    return serving


def now() -> datetime.datetime:
    return datetime.datetime.now(UTC)


def ignore(_: Exception) -> None: ...


@pytest.mark.parametrize("version", VERSIONS)
def test_others_are_served_meanwhile_and_it_is_served_then(
    begin: Begin, version: ssl.TLSVersion
) -> None:
    with begin() as running, ThreadPoolExecutor() as threads:
        slow = [threads.submit(running.fetch, running.far, version) for _ in range(3)]
        assert running.service.asked.acquire(timeout=10)
        for _ in range(3):
            assert len(running.fetch(running.near, version)) == ANSWER
        assert not any(each.done() for each in slow)
        running.service.go_on.set()
        assert [len(each.result(20)) for each in slow] == [ANSWER] * 3
        assert len(running.fetch(running.far, version)) == ANSWER
        assert running.outcomes(7) == [Outcome.RELEASED] * 7
        assert not running.service.asked.acquire(blocking=False)  # once was enough


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_is_judged_later_is_judged_all_the_same(
    begin: Begin, version: ssl.TLSVersion
) -> None:
    with begin(policy_of="near") as running:
        running.service.go_on.set()
        assert running.fetch(running.far, version) == b""
        assert running.outcomes(1) == [Outcome.REFUSED]
        assert "root" in running.decisions[0].reason
        assert running.decisions[0].identity is not None


def test_a_service_that_fails_refuses(begin: Begin) -> None:
    with begin(failure=CollateralFetchError("http://x: down")) as running:
        running.service.go_on.set()
        assert running.fetch(running.far) == b""
        assert running.outcomes(1) == [Outcome.REFUSED]
        assert "http://x: down" in running.decisions[0].reason


def test_a_service_that_breaks_refuses(begin: Begin) -> None:
    with begin(failure=ZeroDivisionError()) as running:
        running.service.go_on.set()
        assert running.fetch(running.far) == b""
        assert running.outcomes(1) == [Outcome.REFUSED]
        reason = running.decisions[0].reason
        assert reason == "the peer could not be judged: internal error (ZeroDivisionError)"


def test_a_secret_that_was_removed_meanwhile_is_not_released(begin: Begin) -> None:
    with begin() as running, ThreadPoolExecutor() as threads:
        slow = threads.submit(running.fetch, running.far)
        assert running.service.asked.acquire(timeout=10)
        running.judge.replace([])
        running.service.go_on.set()
        assert slow.result(20) == b""
        assert running.outcomes(1) == [Outcome.REFUSED]
        assert "no secret in the store" in running.decisions[0].reason


def test_a_client_waits_no_longer_than_it_may(begin: Begin) -> None:
    with begin(seconds=1) as running:
        begun = time.monotonic()
        assert running.fetch(running.far) == b""
        assert time.monotonic() - begun < 2.5
        assert running.outcomes(1) == [Outcome.DROPPED]
        assert "within 1 seconds" in running.decisions[0].reason
        running.service.go_on.set()
        assert len(running.fetch(running.near)) == ANSWER
        assert running.outcomes(2)[1:] == [Outcome.RELEASED]
