"""Policies: what each accepts, how they combine, and that nothing unnamed is accepted."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from cloister.attestation import Collateral, Evidence, intel, verify_quote
from cloister.attestation.anchors import INTEL_ROOT_SHA256
from cloister.attestation.conditions import (
    Advisories,
    Attributes,
    MinimumTcbDate,
    ReportData,
    Root,
)
from cloister.attestation.policy import (
    AnyEnclave,
    MrEnclave,
    MrSigner,
    MrTd,
    Policy,
    Subject,
    TcbStatus,
    all_of,
    any_of,
    completed,
)
from cloister.errors import (
    EnclaveAttributesError,
    PolicyError,
    RefusedError,
    ReportDataError,
    TcbStatusError,
    UntrustedRootError,
    WrongMeasurementError,
    WrongSignerError,
)

UTC = datetime.timezone.utc
NOW = datetime.datetime(2025, 6, 20, 12, tzinfo=UTC)
DATA = Path(__file__).parent.parent / "data" / "quotes"
STATUS = "ConfigurationAndSWHardeningNeeded"
MRENCLAVE = bytes.fromhex("33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb")
MRSIGNER = bytes.fromhex("815f42f11cf64430c30bab7816ba596a1da0130c3b028b673133a66cf9a3e0e6")
SOMETHING_ELSE = bytes(32)


def genuine(name: str, status: str) -> Evidence:
    return verify_quote(
        (DATA / f"{name}_quote").read_bytes(),
        collateral=Collateral.from_json((DATA / f"{name}_quote_collateral.json").read_text()),
        anchors=[intel()],
        now=NOW,
        policy=all_of(AnyEnclave(), TcbStatus(status)),
    ).require()


@pytest.fixture(scope="module")
def sgx() -> Evidence:
    return genuine("sgx", STATUS)


@pytest.fixture(scope="module")
def tdx() -> Evidence:
    return genuine("tdx", "UpToDate")


ACCEPTED = [
    MrEnclave(MRENCLAVE),
    MrEnclave(SOMETHING_ELSE, MRENCLAVE),
    MrSigner(MRSIGNER, 0, 0),
    AnyEnclave(),
    TcbStatus(STATUS),
    TcbStatus("UpToDate", STATUS),
    Advisories("INTEL-SA-00289", "intel-sa-00615", "INTEL-SA-99999"),
    MinimumTcbDate(datetime.datetime(2024, 3, 13, tzinfo=UTC)),
    Attributes(bytes.fromhex("0500000000000000e700000000000000"), b"\xff" * 16),
    Attributes(bytes(16), bytes.fromhex("02000000000000000000000000000000")),
    ReportData(b"Hello, world!".ljust(64, b"\0")),
    Root(INTEL_ROOT_SHA256),
    Root(INTEL_ROOT_SHA256.upper(), "0" * 64),
    all_of(MrEnclave(MRENCLAVE), TcbStatus(STATUS)),
    any_of(MrEnclave(SOMETHING_ELSE), MrEnclave(MRENCLAVE)),
]
REFUSED: list[tuple[Policy, type[RefusedError]]] = [
    (MrEnclave(SOMETHING_ELSE), WrongMeasurementError),
    (MrSigner(SOMETHING_ELSE, 0, 0), WrongSignerError),
    (MrSigner(MRSIGNER, 1, 0), WrongSignerError),
    (MrSigner(MRSIGNER, 0, 1), WrongSignerError),
    (MrTd(bytes(48)), WrongMeasurementError),
    (TcbStatus(), TcbStatusError),
    (TcbStatus("OutOfDate"), TcbStatusError),
    (Advisories(), TcbStatusError),
    (Advisories("INTEL-SA-00289"), TcbStatusError),
    (MinimumTcbDate(datetime.datetime(2024, 3, 14, tzinfo=UTC)), TcbStatusError),
    (Attributes(bytes(16), b"\x01" + bytes(15)), EnclaveAttributesError),
    (ReportData(bytes(64)), ReportDataError),
    (Root("0" * 64), UntrustedRootError),
    (all_of(MrEnclave(MRENCLAVE), TcbStatus()), TcbStatusError),
    (any_of(MrEnclave(SOMETHING_ELSE), MrSigner(MRSIGNER, 9, 0)), WrongMeasurementError),
]


@pytest.mark.parametrize("policy", ACCEPTED, ids=lambda policy: policy.describe()[:40])
def test_accepted(sgx: Evidence, policy: Policy) -> None:
    check = policy.verify(sgx)
    assert check.passed, check.to_lines()


@pytest.mark.parametrize(("policy", "error"), REFUSED)
def test_refused_with_its_own_error(
    sgx: Evidence, policy: Policy, error: type[RefusedError]
) -> None:
    check = policy.verify(sgx)
    assert not check.passed
    assert isinstance(check.as_error(), error)
    assert check.as_error().exit_code == 3


def test_tdx_measurements(tdx: Evidence) -> None:
    report = tdx.tdx
    assert report is not None
    assert MrTd(report.mr_td).verify(tdx).passed
    assert MrTd(report.mr_td, ((0, report.rtmr0), (3, bytes(48)))).verify(tdx).passed
    wrong = MrTd(report.mr_td, ((1, report.rtmr0),)).verify(tdx)
    assert not wrong.passed
    assert "RTMR1" in wrong.as_error().message
    for policy in (MrEnclave(MRENCLAVE), MrSigner(MRSIGNER, 0, 0)):
        assert not policy.verify(tdx).passed
    assert not Attributes(bytes(16), bytes(16)).verify(tdx).passed


def test_a_policy_must_say_which_enclave_it_means() -> None:
    for policy in (TcbStatus(), ReportData(bytes(64)), all_of(TcbStatus(), Advisories())):
        with pytest.raises(PolicyError, match="which enclave"):
            completed(policy)


def test_an_alternative_must_say_which_enclave_on_every_branch() -> None:
    with pytest.raises(PolicyError, match="which enclave"):
        completed(any_of(MrEnclave(MRENCLAVE), TcbStatus()))
    both = any_of(MrEnclave(MRENCLAVE), MrSigner(MRSIGNER, 0, 0))
    assert Subject.IDENTITY in both.names


def test_up_to_date_is_demanded_where_no_status_is_named(sgx: Evidence) -> None:
    check = completed(MrEnclave(MRENCLAVE)).verify(sgx)
    assert isinstance(check.as_error(), TcbStatusError)


def test_a_status_named_on_one_branch_only_does_not_count(sgx: Evidence) -> None:
    loose = any_of(all_of(MrEnclave(SOMETHING_ELSE), TcbStatus(STATUS)), MrEnclave(MRENCLAVE))
    assert not completed(loose).verify(sgx).passed


def test_each_alternative_keeps_its_own_status(sgx: Evidence) -> None:
    named = all_of(MrEnclave(MRENCLAVE), TcbStatus(STATUS))
    for policy in (
        any_of(named, MrEnclave(SOMETHING_ELSE)),
        all_of(Root(INTEL_ROOT_SHA256), any_of(MrEnclave(SOMETHING_ELSE), named)),
        any_of(all_of(any_of(named, MrEnclave(SOMETHING_ELSE))), MrEnclave(SOMETHING_ELSE)),
    ):
        assert completed(policy).verify(sgx).passed
        assert Subject.TCB in completed(policy).names


@pytest.mark.parametrize("status", ["Revoked", "uptodate", "OK", ""])
def test_statuses_that_cannot_be_accepted(status: str) -> None:
    with pytest.raises(PolicyError):
        TcbStatus(status)


def test_values_of_the_wrong_size_or_number_are_refused() -> None:
    for make in (
        lambda: MrEnclave(bytes(31)),
        MrEnclave,
        lambda: MrSigner(bytes(33), 0, 0),
        lambda: MrTd(bytes(32)),
        lambda: MrTd(bytes(48), ((4, bytes(48)),)),
        lambda: ReportData(bytes(32)),
        Root,
        lambda: Root("intel"),
        lambda: Attributes(bytes(8), bytes(8)),
        all_of,
        any_of,
    ):
        with pytest.raises(PolicyError):
            make()


def test_descriptions_name_what_is_accepted() -> None:
    policy = all_of(MrSigner(MRSIGNER, 7, 3), TcbStatus("UpToDate", "OutOfDate"))
    text = policy.describe()
    assert MRSIGNER.hex() in text
    assert "product id 7" in text
    assert "SVN 3 or above" in text
    assert "OutOfDate or UpToDate" in text
