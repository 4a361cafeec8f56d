"""Collateral that is kept: memory, disk, refresh, and what a service may do to it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gzip
import json
from pathlib import Path

import pytest

from cloister.attestation import Collateral, intel
from cloister.attestation.expiry import expires
from cloister.attestation.policy import AnyEnclave
from cloister.attestation.service import (
    CollateralCache,
    CollateralService,
)
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    CollateralError,
    CollateralFetchError,
    QuoteSignatureError,
)
from pccs_double import KINDS, NOW, Pccs, broken, collateral, quote


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_of(
    pccs: Pccs, directory: Path, clock: Clock, failures: list[AttestationError] | None = None
) -> CollateralCache:
    service = CollateralService(pccs.url, intel())
    on_failure = (failures if failures is not None else []).append
    return CollateralCache(service, directory, anchor=intel(), clock=clock, on_failure=on_failure)


SGX = KINDS["sgx"]


def test_the_service_is_asked_once_and_a_new_process_reads_the_disk(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    first = cache_of(pccs, tmp_path / "cache", clock)
    assert first.get(SGX) == first.get(SGX) == collateral("sgx")
    assert len(pccs.asked) == 4
    assert cache_of(pccs, tmp_path / "cache", clock).get(SGX) == collateral("sgx")
    assert len(pccs.asked) == 4


def test_what_has_run_out_is_not_given_out(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    cache.get(SGX)
    clock.now = expires(collateral("sgx")) + datetime.timedelta(seconds=1)
    pccs.answers.clear()
    with pytest.raises(CollateralFetchError):
        cache.get(SGX)


def test_a_failure_is_remembered_for_a_minute(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    answers, pccs.answers = pccs.answers, {}
    for _ in range(3):
        with pytest.raises(CollateralFetchError):
            cache.get(SGX)
    assert len(pccs.asked) == 1
    pccs.answers = answers
    clock.now += datetime.timedelta(minutes=2)
    assert cache.get(SGX) == collateral("sgx")


def test_it_is_refreshed_ahead_of_time(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    cache.get(SGX)
    cache.refresh_due()
    assert len(pccs.asked) == 4
    clock.now = expires(collateral("sgx")) - datetime.timedelta(days=6)
    cache.refresh_due()
    assert len(pccs.asked) == 8


def test_a_failed_refresh_is_told_and_does_no_harm(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    failures: list[AttestationError] = []
    cache = cache_of(pccs, tmp_path, clock, failures)
    cache.get(SGX)
    pccs.answers.clear()
    clock.now = expires(collateral("sgx")) - datetime.timedelta(days=1)
    cache.refresh_due()
    assert [type(failure) for failure in failures] == [CollateralFetchError]
    assert cache.get(SGX) == collateral("sgx")


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage"])
def test_a_damaged_file_is_fetched_again(
    pccs: Pccs, tmp_path: Path, clock: Clock, content: bytes
) -> None:
    (tmp_path / "sgx-00A067110000-processor.json").write_bytes(content)
    failures: list[AttestationError] = []
    assert cache_of(pccs, tmp_path, clock, failures).get(SGX) == collateral("sgx")
    assert len(failures) == 1


def test_unreadable_collateral_is_not_kept(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    broken(pccs, "rootcacrl", (200, {}, b"00"))
    with pytest.raises(CollateralError):
        cache_of(pccs, tmp_path, clock).get(SGX)
    assert list(tmp_path.iterdir()) == []


def test_platforms_are_kept_apart(pccs: Pccs, tmp_path: Path, clock: Clock) -> None:
    cache = cache_of(pccs, tmp_path, clock)
    assert cache.get(KINDS["tdx"]) == collateral("tdx")
    pccs.answers["/sgx/certification/v4/rootcacrl"] = (
        200,
        {},
        collateral("sgx").root_ca_crl.hex().encode(),
    )
    assert cache.get(SGX) == collateral("sgx")
    assert cache.get(KINDS["tdx"]) == collateral("tdx")


@pytest.mark.parametrize(
    "text", ["5", "null", "[]", '""', '"now"', '"2048-01-01"', '"0001-01-01T00:00:00+23:59"']
)
def test_dates_of_any_type_are_refused_or_read(text: str) -> None:
    """JSON may hold anything where a time is expected."""
    info = json.loads(collateral("sgx").tcb_info) | {"nextUpdate": json.loads(text)}
    odd = dataclasses.replace(collateral("sgx"), tcb_info=json.dumps(info))
    with contextlib.suppress(CollateralError):
        assert expires(odd) < NOW


def changed(**fields: str | bytes) -> Collateral:
    return dataclasses.replace(collateral("sgx"), **fields)  # type: ignore[arg-type]


UNSIGNED = {
    "TCB info": changed(tcb_info=collateral("sgx").tcb_info.replace("2025", "2048")),
    "QE identity": changed(qe_identity=collateral("sgx").qe_identity.replace("2025", "2048")),
    "signature": changed(tcb_info_signature=bytes(64)),
    "short signature": changed(qe_identity_signature=b"1"),
    "issuer": changed(tcb_info_issuer_chain=collateral("sgx").pck_crl_issuer_chain),
    "root list": changed(root_ca_crl=collateral("sgx").pck_crl),
    "PCK list": changed(pck_crl=collateral("sgx").root_ca_crl),
    "kind": collateral("tdx"),
    "kind of QE": changed(
        qe_identity=collateral("tdx").qe_identity,
        qe_identity_signature=collateral("tdx").qe_identity_signature,
        qe_identity_issuer_chain=collateral("tdx").qe_identity_issuer_chain,
    ),
    "kind of list": changed(
        pck_crl=collateral("tdx").pck_crl,
        pck_crl_issuer_chain=collateral("tdx").pck_crl_issuer_chain,
    ),
}


@pytest.mark.parametrize("name", UNSIGNED)
def test_what_the_vendor_did_not_sign_is_not_kept(
    pccs: Pccs, tmp_path: Path, clock: Clock, name: str
) -> None:
    """A bad answer costs one minute, not the time until it claims to run out."""
    pccs.serve(SGX, UNSIGNED[name])
    cache = cache_of(pccs, tmp_path, clock)
    with pytest.raises((CollateralError, CertificateChainError)):
        cache.get(SGX)
    assert list(tmp_path.iterdir()) == []
    pccs.serve(SGX, collateral("sgx"))
    clock.now += datetime.timedelta(minutes=2)
    assert cache.get(SGX) == collateral("sgx")


@pytest.mark.parametrize("name", UNSIGNED)
def test_a_file_that_the_vendor_did_not_sign_is_fetched_again(
    pccs: Pccs, tmp_path: Path, clock: Clock, name: str
) -> None:
    file = tmp_path / "sgx-00A067110000-processor.json"
    file.write_text(UNSIGNED[name].to_json())
    failures: list[AttestationError] = []
    assert cache_of(pccs, tmp_path, clock, failures).get(SGX) == collateral("sgx")
    assert len(failures) == 1
    assert Collateral.from_json(file.read_text()) == collateral("sgx")


def test_a_cache_that_cannot_be_written_is_told_and_does_no_harm(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "file").touch()
    failures: list[AttestationError] = []
    cache = cache_of(pccs, tmp_path / "file" / "cache", clock, failures)
    assert cache.get(SGX) == cache.get(SGX) == collateral("sgx")
    assert any("not kept on disk" in failure.message for failure in failures)


@pytest.mark.parametrize(
    "position", [60, 500, 600, 1100], ids=["body", "key", "QE", "QE signature"]
)
def test_nobody_is_asked_on_behalf_of_a_forged_quote(
    pccs: Pccs, tmp_path: Path, clock: Clock, position: int
) -> None:
    """Anybody can send a quote with a real platform's certificates, which are public."""
    trust = Trust(sources=((intel(), cache_of(pccs, tmp_path, clock)),))
    forged = bytearray(quote("sgx"))
    forged[position] ^= 1
    verdict = Authenticator(trust, clock).authenticate(bytes(forged)).judge(AnyEnclave())
    with pytest.raises((QuoteSignatureError, CertificateChainError)):
        verdict.require()
    assert pccs.asked == []
    assert Authenticator(trust, clock).authenticate(quote("sgx")).evidence is not None


def test_collateral_that_ran_out_is_a_failure_of_the_service(
    pccs: Pccs, tmp_path: Path, clock: Clock
) -> None:
    clock.now = expires(collateral("sgx")) + datetime.timedelta(days=1)
    cache = cache_of(pccs, tmp_path, clock)
    for _ in range(3):
        with pytest.raises(CollateralFetchError, match="runs out on"):
            cache.get(SGX)
    assert len(pccs.asked) == 4, "asked once in a minute"
    assert list(tmp_path.iterdir()) == []


def test_older_collateral_does_not_replace_what_is_kept(
    pccs: Pccs, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[AttestationError] = []
    cache = cache_of(pccs, tmp_path, clock, failures)
    kept = cache.get(SGX)
    clock.now = expires(kept) - datetime.timedelta(days=3)
    monkeypatch.setattr(
        "cloister.attestation.service.expires",
        lambda _: clock.now + datetime.timedelta(days=1),
    )
    cache.refresh_due()
    assert [type(failure) for failure in failures] == [CollateralFetchError]
    monkeypatch.undo()
    clock.now = expires(kept) - datetime.timedelta(days=1)
    assert cache.get(SGX) == kept
    assert cache_of(pccs, tmp_path, clock).get(SGX) == kept


def test_a_packed_answer_is_not_unpacked(pccs: Pccs) -> None:
    """A few hundred bytes may become gigabytes."""
    path = "/sgx/certification/v4/rootcacrl"
    packed = gzip.compress(gzip.compress(bytes(64 << 20)))
    pccs.answers[path] = (200, {"Content-Encoding": "gzip, gzip"}, packed)
    with pytest.raises(CollateralFetchError, match="packed"):
        CollateralService(pccs.url, intel()).get(SGX)


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "a\u00e4"])
def test_a_host_that_cannot_be_asked_is_told_at_once(
    host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CollateralFetchError) as caught:
        CollateralService(f"http://{host}", intel()).get(SGX)
    assert "no whole answer in time" not in caught.value.message
    assert "Traceback" not in capfd.readouterr().err
