"""TDX virtual machines: quotes of version 4 and 5, signed with the simulated device's keys.

What a genuine TDX quote looks like, the real one in test_verify_intel.py shows; here is what no
honest platform makes.
"""

from __future__ import annotations

import copy
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Verdict
from cloister.attestation.policy import AnyEnclave, MrTd, TcbStatus, all_of
from cloister.errors import (
    AttestationError,
    CollateralError,
    DebugEnclaveError,
    EnclaveAttributesError,
    MalformedQuoteError,
    RevokedError,
    TcbStatusError,
    TdxModuleError,
    UnsupportedQuoteError,
)
from cloister.sgx.quote import TdReport, parse_quote
from worlds import TD_REPORT, TD_REPORT_15, World, new_quote, tdx_collateral

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.timezone.utc)
DATE = "2024-03-13T00:00:00Z"
MODULE_LEVELS = [{"tcb": {"isvsvn": 4}, "tcbDate": DATE, "tcbStatus": "UpToDate"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("tdx") / "device", NOW)


def judge(
    world: World, report: TdReport, version: int = 4, info: dict[str, Any] | None = None
) -> Verdict:
    quote = new_quote(world, report.pack(), version=version)
    policy = MrTd(TD_REPORT.mr_td)
    return world.verify(quote, collateral=tdx_collateral(world, **(info or {})), policy=policy)


def tcb_info(world: World) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(tdx_collateral(world).tcb_info)
    return parsed


@pytest.mark.parametrize(
    ("version", "report"), [(4, TD_REPORT), (5, TD_REPORT), (5, TD_REPORT_15)], ids=str
)
def test_good_ones_are_accepted(world: World, version: int, report: TdReport) -> None:
    evidence = judge(world, report, version=version).require()
    assert evidence.tdx == report
    assert evidence.tcb_status == "UpToDate"


@pytest.mark.parametrize("version", [4, 5])
def test_sgx_quotes_of_the_new_versions_have_their_own_error(world: World, version: int) -> None:
    quote = new_quote(world, world.quote()[48:432], version=version, tdx=False)
    assert parse_quote(quote).header.version == version
    with pytest.raises(UnsupportedQuoteError, match="version 3"):
        world.verify(quote).require()


@pytest.mark.parametrize(
    ("bit", "error"),
    [
        *((bit, DebugEnclaveError) for bit in (0, 4, 5, 6)),
        *((bit, AttestationError) for bit in (1, 2, 3, 7)),
        *((bit, EnclaveAttributesError) for bit in (8, 15, 17, 23, 28, 29, 32, 61)),
    ],
)
def test_attributes_of_no_production_machine(
    world: World, bit: int, error: type[AttestationError]
) -> None:
    report = TD_REPORT._replace(td_attributes=TD_REPORT.td_attributes ^ 1 << bit)
    with pytest.raises(error):
        judge(world, report).require()


@pytest.mark.parametrize(
    "changes", [{"seam_attributes": b"\1" + bytes(7)}, {"mr_signer_seam": b"s" * 48}]
)
def test_another_tdx_module_is_refused(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(TdxModuleError):
        judge(world, TD_REPORT._replace(**changes)).require()


def test_a_module_that_the_collateral_does_not_know(world: World) -> None:
    report = TD_REPORT._replace(tee_tcb_svn=bytes((6, 9, 3)) + bytes(13))
    with pytest.raises(CollateralError, match="TDX_09"):
        judge(world, report).require()


def test_a_module_below_every_level(world: World) -> None:
    report = TD_REPORT._replace(tee_tcb_svn=bytes((1, 1, 3)) + bytes(13))
    with pytest.raises(TcbStatusError, match="older"):
        judge(world, report).require()


def test_a_platform_below_every_level(world: World) -> None:
    report = TD_REPORT._replace(tee_tcb_svn=bytes((6, 1, 1)) + bytes(13))
    with pytest.raises(TcbStatusError, match="below"):
        judge(world, report).require()


@pytest.mark.parametrize(
    ("platform", "module", "together"),
    [
        ("UpToDate", "OutOfDate", "OutOfDate"),
        ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("SWHardeningNeeded", "UpToDate", "SWHardeningNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "UpToDate", "ConfigurationAndSWHardeningNeeded"),
    ],
)
def test_platform_and_module_are_judged_together(
    world: World, platform: str, module: str, together: str
) -> None:
    info = tcb_info(world)
    info["tcbLevels"][0] |= {"tcbStatus": platform, "advisoryIDs": ["INTEL-SA-1"]}
    level = info["tdxModuleIdentities"][0]["tcbLevels"][0]
    level |= {"tcbStatus": module, "advisoryIDs": ["INTEL-SA-2"]}
    with pytest.raises(TcbStatusError, match=f"{together} "):
        judge(world, TD_REPORT, info=info).require()
    quote = new_quote(world, TD_REPORT.pack())
    policy = all_of(AnyEnclave(), TcbStatus(together))
    collateral = tdx_collateral(world, **info)
    evidence = world.verify(quote, collateral=collateral, policy=policy).require()
    assert evidence.tcb_status == together
    assert evidence.advisories == ("INTEL-SA-1", "INTEL-SA-2")


def test_a_revoked_module_is_refused(world: World) -> None:
    info = tcb_info(world)
    info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = "Revoked"
    with pytest.raises(RevokedError):
        judge(world, TD_REPORT, info=info).require()


def test_module_levels_out_of_order_are_refused(world: World) -> None:
    info = tcb_info(world)
    levels = info["tdxModuleIdentities"][0]["tcbLevels"]
    levels.insert(0, {"tcb": {"isvsvn": 3}, "tcbDate": DATE, "tcbStatus": "UpToDate"})
    with pytest.raises(CollateralError, match="order"):
        judge(world, TD_REPORT, info=info).require()


@pytest.mark.parametrize(
    ("launch", "present", "older", "status"),
    [
        (9, 9, "OutOfDate", "UpToDate"),
        (6, 9, "OutOfDate", "TDRelaunchAdvised"),
        (6, 6, "OutOfDate", "OutOfDate"),
        (9, 6, "OutOfDate", "OutOfDate"),
        (9, 6, "OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    ],
)
def test_the_tcb_at_launch_and_the_present_one(
    world: World, launch: int, present: int, older: str, status: str
) -> None:
    info = levels_of_two_updates(world, older)
    with_status = all_of(AnyEnclave(), TcbStatus(status))
    collateral = tdx_collateral(world, **info)
    quote = new_quote(world, relaunched(launch, present).pack(), version=5)
    assert world.verify(quote, collateral=collateral, policy=with_status).accepted
    if status != "UpToDate":
        with pytest.raises(TcbStatusError, match=f"{status},"):
            world.verify(quote, collateral=collateral, policy=AnyEnclave()).require()


@pytest.mark.parametrize(("launch", "present"), [(9, 6), (6, 9)])
def test_advisories_and_the_date_of_the_present_level_count_as_its_status(
    world: World, launch: int, present: int
) -> None:
    info = levels_of_two_updates(world, "OutOfDate")
    info["tcbLevels"][0]["advisoryIDs"] = ["INTEL-SA-1"]
    info["tcbLevels"][1] |= {"advisoryIDs": ["INTEL-SA-2"], "tcbDate": "2015-01-01T00:00:00Z"}
    evidence = world.verify(
        new_quote(world, relaunched(launch, present).pack(), version=5),
        collateral=tdx_collateral(world, **info),
        policy=all_of(AnyEnclave(), TcbStatus("OutOfDate", "TDRelaunchAdvised")),
    ).require()
    assert "INTEL-SA-2" in evidence.advisories
    assert evidence.tcb_date == datetime.datetime(2015, 1, 1, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(("launch", "present"), [(9, 6), (6, 9), (6, 6)])
def test_a_revoked_level_counts_at_launch_and_now(world: World, launch: int, present: int) -> None:
    info = levels_of_two_updates(world, "Revoked")
    with pytest.raises(RevokedError):
        judge(world, relaunched(launch, present), 5, info=info).require()


def levels_of_two_updates(world: World, older: str) -> dict[str, Any]:
    info = tcb_info(world)
    new = info["tcbLevels"][0]
    old = copy.deepcopy(new) | {"tcbStatus": older, "tcbDate": DATE}
    new["tcb"]["tdxtcbcomponents"][2]["svn"] = 8
    return info | {"tcbLevels": [new, old]}


def relaunched(launch: int, present: int) -> TdReport:
    svns = [bytes((6, 1, svn)) + bytes(13) for svn in (launch, present)]
    return TD_REPORT_15._replace(tee_tcb_svn=svns[0], tee_tcb_svn2=svns[1])


@pytest.mark.parametrize("tail", [b"", b"\0", bytes(3000)])
def test_a_buffer_of_zeros_may_follow(world: World, tail: bytes) -> None:
    quote = new_quote(world, TD_REPORT.pack()) + tail
    collateral = tdx_collateral(world)
    assert world.verify(quote, collateral=collateral, policy=MrTd(TD_REPORT.mr_td)).accepted


@pytest.mark.parametrize("tail", [b"\1", bytes(100) + b"\1", b"\0" * 20000])
def test_nothing_else_may(world: World, tail: bytes) -> None:
    quote = new_quote(world, TD_REPORT.pack()) + tail
    with pytest.raises(MalformedQuoteError):
        world.verify(quote, collateral=tdx_collateral(world), policy=AnyEnclave()).require()


@pytest.mark.parametrize("kind", [0, 1, 2, 4, 65535])
def test_bodies_of_unknown_type_have_their_own_error(world: World, kind: int) -> None:
    quote = bytearray(new_quote(world, TD_REPORT_15.pack(), version=5))
    quote[48:50] = kind.to_bytes(2, "little")
    with pytest.raises(UnsupportedQuoteError, match=f"body type {kind}"):
        world.verify(bytes(quote), policy=AnyEnclave()).require()


def test_collateral_of_the_other_kind_is_refused(world: World, tmp_path: Path) -> None:
    quote = new_quote(world, TD_REPORT.pack())
    with pytest.raises(CollateralError):
        world.verify(quote, collateral=world.collateral(), policy=AnyEnclave()).require()
    with pytest.raises(CollateralError):
        world.verify(collateral=tdx_collateral(world)).require()
