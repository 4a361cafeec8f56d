"""TDX: programs measured into RTMR 3, quotes through configfs, verdicts by replay of the log.

The kernel's interfaces are imitated by a file system (``tdx_kernel.py``), quotes are signed by a
simulated device; the hash of the register is computed anew here, with hashlib alone.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation.policy_file import parse_policy
from cloister.attestation.trust import Authenticator, Trust
from cloister.attestation.verify import authenticate_quote
from cloister.errors import EventLogError, PlatformError, WrongMeasurementError
from cloister.platforms.base import choose_name, choose_platform
from cloister.platforms.tdx.register import EXTEND_RTMR, GET_REPORT0, DeviceRegister
from cloister.platforms.tdx.reports import Reports
from cloister.ratls.verify import authenticate_certificate
from cloister.sgx.sigstruct import Sigstruct
from cloister.tdx.event_log import ProgramEvent, decode_log, encode_log, replay
from signing import signed
from worlds import TD_REPORT, World, new_quote, tdx_collateral

NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
PROGRAM = Path(__file__).parent / "programs" / "in_tdx.py"
REPORT_DATA = bytes(range(64))
Machine = Callable[..., dict[str, Any]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Start programs in an imitated virtual machine; each call is a boot, with an empty log."""

    def run(*manifests: str, keep_log: bool = False, **arguments: Any) -> dict[str, Any]:
        if not keep_log:
            (tmp_path / "run" / "tdx-programs").unlink(missing_ok=True)
        given: dict[str, Any] = {
            "directory": str(tmp_path),
            "manifests": manifests or ["manifest"],
            "report_data": REPORT_DATA.hex(),
            "now": NOW.isoformat(),
        }
        command = [sys.executable, str(PROGRAM), json.dumps(given | arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "device", NOW)


def digest_of(sigstruct: Sigstruct) -> bytes:
    """The digest of a program, written down once more."""
    fields = struct.pack("<QHH", sigstruct.flags, sigstruct.isv_prod_id, sigstruct.isv_svn)
    packed = sigstruct.mr_enclave + sigstruct.mr_signer + fields
    return hashlib.sha384(b"Cloister TDX event: program\0" + packed).digest()


def extended(*digests: bytes) -> bytes:
    register = bytes(48)
    for digest in digests:
        register = hashlib.sha384(register + digest).digest()
    return register


REGISTERS = f'rtmr1 = "{TD_REPORT.rtmr1.hex()}"\nrtmr2 = "{TD_REPORT.rtmr2.hex()}"\n'


def policy(world: World, *programs: str, mrtd: bytes = TD_REPORT.mr_td) -> str:
    machine = f'mrtd = "{mrtd.hex()}"\n{REGISTERS}'
    return f'version = 1\nroots = ["{world.anchor.fingerprint}"]\n{machine}' + (
        f"program = {json.dumps(list(programs))}\n" if programs else ""
    )


def mrenclave(manifest: str) -> str:
    return signed(manifest.encode()).mr_enclave.hex()


# Measuring


def test_a_program_is_measured_before_its_quote(machine: Machine) -> None:
    answer = machine("manifest")
    assert "error" not in answer
    expected = extended(digest_of(signed(b"manifest")))
    assert answer["register"] == expected.hex()
    assert replay(decode_log(bytes.fromhex(answer["event_log"]))) == expected
    assert answer["requests_left"] == []


def test_each_program_is_measured_once(machine: Machine) -> None:
    answer = machine("one", "two", "one")
    one, two = (digest_of(signed(text)) for text in (b"one", b"two"))
    assert answer["register"] == extended(one, two).hex()


def test_a_register_that_others_extend_stops_the_start(machine: Machine) -> None:
    name, message, hint = machine(extend=True)["error"]
    assert name == "PlatformError"
    assert "somebody else has extended it" in message
    assert "restart the virtual machine" in hint


def test_a_log_of_another_boot_stops_the_start(machine: Machine) -> None:
    machine("one", "two")
    assert "somebody else" in machine("one", keep_log=True)["error"][1]


def test_a_start_that_was_cut_short_is_completed(machine: Machine, tmp_path: Path) -> None:
    event = ProgramEvent(b"e" * 32, b"s" * 32, 4, 1, 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tdx-programs").write_bytes(encode_log([event]))
    answer = machine("manifest", keep_log=True)
    assert answer["register"] == extended(event.digest(), digest_of(signed(b"manifest"))).hex()


def test_a_changed_manifest_is_refused_before_it_is_measured(machine: Machine) -> None:
    answer = machine(changed="x")
    assert answer["error"][0] == "MeasurementMismatchError"
    assert answer["register"] == bytes(48).hex()


def test_a_debug_enclave_is_refused_before_it_is_measured(machine: Machine) -> None:
    answer = machine(fields={"flags": 6})
    assert answer["error"][0] == "EnclaveStartError"
    assert answer["register"] == bytes(48).hex()


def test_there_are_no_sealing_keys(machine: Machine) -> None:
    name, message, hint = machine(seal=True)["error"]
    assert name == "UnsupportedByPlatformError"
    assert "no sealing keys (_sgx_mrenclave)" in message
    assert "key server" in hint


# A kernel that does not keep its word


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("generation", "generation 2 after one write to generation 0, expected 1"),
        ("short", "the kernel's quote: "),
        ("nonce", "for other report data"),
        ("register", "the kernel's quote has RTMR 3"),
        ("provider", "reports of sev_guest, expected tdx_guest"),
        ("sgx", "one of SGX, expected TDX"),
        ("stuck", "somebody else has extended it"),
        ("refuses", "Input/output error; RTMR 3 cannot be read or extended"),
        ("long", "more than 131072 bytes"),
    ],
)
def test_faults_of_the_kernel(machine: Machine, fault: str, words: str) -> None:
    name, message, _ = machine(fault=fault)["error"]
    assert name == "PlatformError"
    assert words in message


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"fault": "silent"}, "Input/output error"),
        ({"fault": "empty"}, "empty"),
        ({"busy": 10_000}, "Device or resource busy"),
    ],
)
def test_a_host_that_gives_no_quote_is_named(
    machine: Machine, arguments: dict[str, Any], reason: str
) -> None:
    answer = machine(**arguments)
    name, message, hint = answer["error"]
    assert name == "PlatformError"
    assert f"outblob: {reason}; expected a quote from the host" in message
    assert "quoting service (QGS)" in hint
    assert answer["requests_left"] == []


def test_an_answer_that_the_host_owes_to_others_is_waited_for(machine: Machine) -> None:
    """Whoever was interrupted while the host made a quote leaves the driver busy."""
    answer = machine(busy=20)
    assert "error" not in answer
    assert 3 < answer["slept"] < 5
    assert machine(busy=10_000)["slept"] == pytest.approx(30, abs=1)


def test_a_quote_in_a_large_buffer_is_accepted(machine: Machine, world: World) -> None:
    answer = machine(fault="padded")
    assert judge(world, answer, policy(world, mrenclave("manifest"))).accepted


def test_requests_of_killed_processes_are_removed(machine: Machine) -> None:
    dead = 1 << 30  # no process has that number
    left = {f"cloister-{dead}-new": 5, "cloister-1-alive": 3600, "somebody-else": 3600}
    assert machine(left={f"cloister-{dead}-old": 3600, **left})["requests_left"] == [*left]


def test_a_refused_start_leaves_the_others_their_quotes(machine: Machine) -> None:
    answer = machine("manifest", later_fault="refuses")
    assert answer["later_error"][0] == "PlatformError"
    assert "error" not in answer
    assert answer["register"] == extended(digest_of(signed(b"manifest"))).hex()


def test_a_machine_without_reports_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="expected the kernel's reports of TDX") as caught:
        Reports(tmp_path / "absent").quote(REPORT_DATA)
    assert "modprobe tdx_guest" in (caught.value.hint or "")


def test_a_device_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="cannot be read or extended"):
        DeviceRegister(tmp_path / "tdx_guest").read()


def test_command_numbers_are_those_of_the_kernel() -> None:
    """_IOC(direction, 'T', number, size) of include/uapi/asm-generic/ioctl.h."""
    assert (3 << 30 | (64 + 1024) << 16 | ord("T") << 8 | 1) == GET_REPORT0
    extend = [way << 30 | (48 + 1) << 16 | ord("T") << 8 | 3 for way in (2, 1)]
    assert extend == list(EXTEND_RTMR)


# The owner's verdict


def judge(world: World, answer: dict[str, Any], text: str, event_log: str | None = None) -> Any:
    return authenticate_quote(
        bytes.fromhex(answer["quote"]),
        anchors=[world.anchor],
        collateral_for=lambda *_: tdx_collateral(world),
        now=NOW,
        event_log=bytes.fromhex(answer["event_log"] if event_log is None else event_log),
    ).judge(parse_policy(text))


def test_the_measured_program_is_accepted_and_shown(machine: Machine, world: World) -> None:
    verdict = judge(world, machine("manifest"), policy(world, mrenclave("manifest")))
    verdict.require()
    text = verdict.to_text()
    assert f"ok   program: {mrenclave('manifest')}" in text
    assert "SIMULATED" in text
    assert verdict.to_dict()["evidence"]["programs"][0]["isv_prod_id"] == 7


def test_another_program_is_refused(machine: Machine, world: World) -> None:
    verdict = judge(world, machine("manifest"), policy(world, mrenclave("another")))
    with pytest.raises(WrongMeasurementError, match=f"program: {mrenclave('manifest')}, expected"):
        verdict.require()


def test_a_machine_that_also_ran_another_program_is_refused(machine: Machine, world: World) -> None:
    answer = machine("another", "manifest")
    assert not judge(world, answer, policy(world, mrenclave("manifest"))).accepted
    both = policy(world, mrenclave("manifest"), mrenclave("another"))
    assert judge(world, answer, both).accepted


def test_a_log_without_one_of_its_events_is_refused(machine: Machine, world: World) -> None:
    answer = machine("another", "manifest")
    shortened = encode_log(decode_log(bytes.fromhex(answer["event_log"]))[1:]).hex()
    verdict = judge(world, answer, policy(world, mrenclave("manifest")), shortened)
    with pytest.raises(EventLogError, match="its replay gives RTMR 3"):
        verdict.require()


def test_without_a_log_no_program_is_known(machine: Machine, world: World) -> None:
    verdict = judge(world, machine(), policy(world, mrenclave("manifest")), "")
    with pytest.raises(WrongMeasurementError, match="no event log beside the quote"):
        verdict.require()


def test_an_sgx_quote_with_a_log_is_refused(world: World) -> None:
    authentication = authenticate_quote(
        world.quote(),
        anchors=[world.anchor],
        collateral_for=lambda *_: world.collateral(),
        now=NOW,
        event_log=encode_log([]),
    )
    assert authentication.checks[-1].error is EventLogError


def test_a_certificate_carries_the_log_and_binds_it(machine: Machine, world: World) -> None:
    answer = machine(certificate=True)
    authenticator = Authenticator(
        Trust(known=((world.anchor, tdx_collateral(world)),)), lambda: NOW
    )
    der = bytes.fromhex(answer["certificate"])
    wanted = parse_policy(policy(world, mrenclave("manifest")))
    authenticate_certificate(der, authenticator).judge(wanted).require()
    log = bytes.fromhex(answer["event_log"])
    assert der.count(log) == 1
    changed = authenticate_certificate(
        der.replace(log, log[:-1] + bytes([log[-1] ^ 1])), authenticator
    )
    assert not changed.judge(wanted).accepted


def test_one_policy_for_several_platforms_says_which_matched(
    machine: Machine, world: World
) -> None:
    root = world.anchor.fingerprint
    text = f"""
version = 1
roots = ["intel", "{root}"]
[[any]]
roots = ["{root}"]
mrenclave = "{b"e".hex() * 32}"
[[any]]
roots = ["intel"]
mrenclave = "{b"g".hex() * 32}"
[[any]]
mrtd = "{TD_REPORT.mr_td.hex()}"
{REGISTERS}program = "{mrenclave("manifest")}"
"""
    tdx = judge(world, machine(), text)
    assert tdx.accepted
    simulated = authenticate_quote(
        world.quote(),
        anchors=[world.anchor],
        collateral_for=lambda *_: world.collateral(),
        now=NOW,
    ).judge(parse_policy(text))
    assert simulated.accepted
    for verdict, matched in ((simulated, [True, False, False]), (tdx, [False, False, True])):
        any_of = verdict.to_dict()["checks"][-1]["parts"][0]["parts"][1]
        assert any_of["name"] == "any of"
        assert [part["passed"] for part in any_of["parts"]] == matched


def test_a_root_of_one_alternative_does_not_vouch_for_another(world: World) -> None:
    """Whoever has the simulated root's keys can quote any MRENCLAVE, also that of real SGX."""
    text = f"""
version = 1
roots = ["intel", "{world.anchor.fingerprint}"]
[[any]]
roots = ["intel"]
mrenclave = "{b"e".hex() * 32}"
"""
    verdict = authenticate_quote(
        world.quote(),
        anchors=[world.anchor],
        collateral_for=lambda *_: world.collateral(),
        now=NOW,
    ).judge(parse_policy(text))
    assert not verdict.accepted


# The log as bytes


events = st.builds(
    ProgramEvent,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**64 - 1),
    st.integers(0, 65535),
    st.integers(0, 65535),
)


@given(st.lists(events, max_size=5))
def test_logs_are_read_as_they_were_written(logged: list[ProgramEvent]) -> None:
    assert decode_log(encode_log(logged)) == tuple(logged)


@given(st.binary(max_size=200))
def test_hostile_logs_are_refused_in_one_way(data: bytes) -> None:
    for hostile in (data, b"CLOISTR1" + data):
        with contextlib.suppress(EventLogError):
            assert encode_log(decode_log(hostile)) == hostile


def test_a_long_log_is_refused() -> None:
    event = ProgramEvent(bytes(32), bytes(32), 0, 0, 0)
    with pytest.raises(EventLogError, match="65 programs, at most 64"):
        decode_log(encode_log([event] * 65))


def test_a_quote_of_the_machine_alone_still_counts(world: World) -> None:
    quote = new_quote(world, TD_REPORT._replace(rtmr3=bytes(48)).pack())
    verdict = judge(world, {"quote": quote.hex(), "event_log": ""}, policy(world))
    assert verdict.accepted


# Choosing


def test_hardware_can_be_required() -> None:
    with pytest.raises(PlatformError, match="only the SIMULATED platform"):
        choose_name(require_hardware=True)


def test_tdx_can_be_named() -> None:
    platform = choose_platform("tdx")
    assert (platform.name, platform.simulated) == ("tdx", False)
    assert "SIMULATED" not in platform.description


@pytest.mark.parametrize(
    ("register", "expected"), [(None, "simulated"), ("device", "tdx"), ("file", "tdx")]
)
def test_reports_of_another_kind_of_machine_are_no_tdx(
    register: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMD's and Arm's confidential machines have the kernel's reports as well."""
    monkeypatch.delenv("CLOISTER_PLATFORM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    presence = "cloister.platforms.tdx.presence"
    monkeypatch.setattr(f"{presence}.REPORTS", tmp_path)
    for name, constant in (("device", "GUEST_DEVICE"), ("file", "REGISTER_FILE")):
        place = tmp_path / name
        monkeypatch.setattr(f"{presence}.{constant}", place)
        if name == register:
            place.touch()
    assert choose_name() == expected
    with pytest.raises(PlatformError) if expected == "simulated" else contextlib.nullcontext():
        choose_name(require_hardware=True)
