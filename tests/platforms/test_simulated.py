"""The simulated platform: EINIT's refusals, reports, quotes, sealing keys, keys on disk."""

from __future__ import annotations

import dataclasses
import datetime
import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dcap_qvl  # type: ignore[import-untyped]
import pytest
from cryptography import x509

from cloister.attestation import SimulatedBundle, intel
from cloister.errors import (
    CloisterError,
    EnclaveStartError,
    InputError,
    MeasurementMismatchError,
    PlatformError,
    ReportMacError,
)
from cloister.platforms.base import Enclave, Platform, SealingPolicy, choose_platform
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.platforms.simulated.cpu import CPU_SVN
from cloister.sgx.quote import parse_quote
from cloister.sgx.report import Report, ReportBody
from cloister.sgx.sigstruct import Sigstruct

Start = Callable[..., SimulatedEnclave]
UTC = datetime.timezone.utc
NO_COLLATERAL = json.dumps(
    {
        "format": "cloister simulated device 1",
        "collateral": {},
        "this_update": "2026-01-01T00:00:00+00:00",
        "next_update": "2026-01-01T00:00:00+00:00",
    }
).encode()


def qvl(quote: bytes, bundle: SimulatedBundle, root: bytes | None = None) -> Any:
    """Verify with dcap-qvl alone, as any other verifier would."""
    collateral = dcap_qvl.QuoteCollateralV3(**dataclasses.asdict(bundle.collateral))
    now = int(datetime.datetime.now(UTC).timestamp())
    return dcap_qvl.verify_with_root_ca(quote, collateral, root or bundle.anchor.der, now)


def test_a_quote_is_accepted_by_dcap_qvl_under_its_own_root(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    enclave = start_enclave(simulated)
    verified = qvl(enclave.quote(b"r" * 64), simulated.export())
    report = json.loads(verified.to_json())["report"]["SgxEnclave"]
    assert verified.status == "UpToDate"
    assert report["mr_enclave"] == enclave.mrenclave.hex()
    assert report["mr_signer"] == enclave.mrsigner.hex()
    assert (report["isv_prod_id"], report["isv_svn"]) == (7, 3)
    assert report["report_data"] == (b"r" * 64).hex()


def test_a_quote_is_accepted_by_nobody_under_intels_root(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    quote = start_enclave(simulated).quote(bytes(64))
    with pytest.raises(ValueError, match="Verification failed"):
        qvl(quote, simulated.export(), intel().der)
    bundle = simulated.export()
    collateral = dcap_qvl.QuoteCollateralV3(**dataclasses.asdict(bundle.collateral))
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(quote, collateral, int(datetime.datetime.now(UTC).timestamp()))


def test_a_quote_is_not_accepted_under_another_simulated_root(
    simulated: SimulatedPlatform, start_enclave: Start, tmp_path: Path
) -> None:
    other = SimulatedPlatform(tmp_path / "other")
    with pytest.raises(ValueError, match="Verification failed"):
        qvl(start_enclave(simulated).quote(bytes(64)), other.export())


def test_every_name_in_the_certificates_says_simulated(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    quote = parse_quote(start_enclave(simulated).quote(bytes(64)))
    collateral = simulated.export().collateral
    texts = [
        quote.signature.certification_data,
        collateral.tcb_info_issuer_chain.encode(),
        collateral.qe_identity_issuer_chain.encode(),
        collateral.pck_crl_issuer_chain.encode(),
    ]
    certificates = [item for text in texts for item in x509.load_pem_x509_certificates(text)]
    assert len(certificates) == 9
    for certificate in certificates:
        for name in (certificate.subject, certificate.issuer):
            assert all("SIMULATED" in str(part.value) for part in name)


def test_the_pck_certificate_states_the_device(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    quote = dcap_qvl.parse_quote(start_enclave(simulated).quote(bytes(64)))
    extension = quote.pck_extension()
    assert extension.cpu_svn == CPU_SVN
    assert extension.fmspc == b"SIMCPU"
    assert extension.pce_id == bytes(2)
    assert len(extension.ppid) == 16
    assert extension.sgx_type == 0
    third = extension.get_value("1.2.840.113741.1.13.1.2.5")  # component 5 of the TCB
    assert int.from_bytes(third, "big") == CPU_SVN[4]


@pytest.fixture
def signed(data: Path) -> dict[str, Any]:
    """The signed enclave of the fixture, as arguments of ``start``."""
    signing = data / "signing"
    return {
        "manifest": (signing / "app.manifest.sgx").read_bytes(),
        "sigstruct": (signing / "app.sig").read_bytes(),
        "image": (signing / "pal.so").read_bytes(),
        "enclave_size": 64 * 1024 * 1024,
        "max_threads": 8,
        "edmm": False,
    }


def test_an_enclave_signed_by_gramines_signer_starts(
    simulated: SimulatedPlatform, signed: dict[str, Any], data: Path
) -> None:
    enclave = simulated.start(**signed)
    described = json.loads((data / "signing" / "app.sig.json").read_text())
    assert enclave.mrenclave.hex() == described["mr_enclave"]
    assert enclave.mrsigner.hex() == described["mr_signer"]
    assert (enclave.isv_prod_id, enclave.isv_svn) == (7, 3)
    assert enclave.debug is False
    assert enclave.simulated is True


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": b"another manifest"},
        {"enclave_size": 32 * 1024 * 1024},
        {"max_threads": 4},
        {"edmm": True},
    ],
)
def test_another_enclave_than_the_signed_one_does_not_start(
    simulated: SimulatedPlatform, signed: dict[str, Any], change: dict[str, Any]
) -> None:
    with pytest.raises(MeasurementMismatchError) as caught:
        simulated.start(**(signed | change))
    assert Sigstruct.unpack(signed["sigstruct"]).mr_enclave.hex() in caught.value.message
    assert caught.value.hint
    assert "build" in caught.value.hint


def test_one_byte_more_in_the_manifest_is_another_enclave(
    simulated: SimulatedPlatform, signed: dict[str, Any]
) -> None:
    with pytest.raises(MeasurementMismatchError):
        simulated.start(**(signed | {"manifest": signed["manifest"] + b"\n"}))


@pytest.mark.parametrize("offset", [600, 928, 1000, 1024, 1026])
def test_a_changed_sigstruct_does_not_start(
    simulated: SimulatedPlatform, signed: dict[str, Any], offset: int
) -> None:
    changed = bytearray(signed["sigstruct"])
    changed[offset] ^= 1
    with pytest.raises(CloisterError) as caught:
        simulated.start(**(signed | {"sigstruct": bytes(changed)}))
    assert caught.value.exit_code in (2, 3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"flags": 0}, "MODE64"),
        ({"flags": 4 | 0x10}, "provisioning"),
        ({"flags": 4 | 0x20}, "provisioning or launch"),
        ({"xfrm": 0x4}, "XFRM"),
    ],
)
def test_attributes_that_are_not_permitted(
    simulated: SimulatedPlatform, start_enclave: Start, fields: dict[str, int], words: str
) -> None:
    with pytest.raises(EnclaveStartError, match=words):
        start_enclave(simulated, **fields)


def test_reports_say_what_sigstruct_says(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    enclave = start_enclave(simulated, flags=6, misc_select=1, xfrm=0xE7, isv_svn=40)
    body = ReportBody.unpack(enclave.report(enclave.target_info(), b"d" * 64)[:384])
    assert (body.flags, body.xfrm, body.misc_select) == (7, 0xE7, 1)
    assert body.isv_svn == 40
    assert body.debug
    assert enclave.debug
    assert body.report_data == b"d" * 64


def test_a_report_is_verified_only_by_its_target(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    one, two = start_enclave(simulated, b"one"), start_enclave(simulated, b"two")
    for_two = one.report(two.target_info(), bytes(64))
    two.verify_report(for_two)
    with pytest.raises(ReportMacError):
        one.verify_report(for_two)
    with pytest.raises(ReportMacError):
        two.verify_report(one.report(one.target_info(), bytes(64)))


def test_a_forged_report_is_refused(simulated: SimulatedPlatform, start_enclave: Start) -> None:
    enclave = start_enclave(simulated)
    genuine = enclave.report(enclave.target_info(), bytes(64))
    for offset in (0, 64, 320, 390, 431):
        forged = bytearray(genuine)
        forged[offset] ^= 0x80
        with pytest.raises(ReportMacError):
            enclave.verify_report(bytes(forged))


def test_a_report_of_another_machine_is_refused(
    simulated: SimulatedPlatform, start_enclave: Start, tmp_path: Path
) -> None:
    here = start_enclave(simulated)
    elsewhere = start_enclave(SimulatedPlatform(tmp_path / "other"))
    assert here.target_info() == elsewhere.target_info()
    with pytest.raises(ReportMacError):
        here.verify_report(elsewhere.report(here.target_info(), bytes(64)))


def test_two_reports_in_one_run_share_the_key_id_and_another_run_does_not(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    one, two = start_enclave(simulated), start_enclave(simulated)
    key_ids = [
        Report.unpack(enclave.report(enclave.target_info(), bytes(64))).key_id
        for enclave in (one, one, two)
    ]
    assert key_ids[0] == key_ids[1] != key_ids[2]


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_of_another_size_is_refused(
    simulated: SimulatedPlatform, start_enclave: Start, size: int
) -> None:
    with pytest.raises(ValueError, match="64"):
        start_enclave(simulated).quote(bytes(size))


def test_sealing_keys_by_policy(simulated: SimulatedPlatform, start_enclave: Start) -> None:
    one, two = start_enclave(simulated, b"one"), start_enclave(simulated, b"two")
    again = start_enclave(simulated, b"one")
    by_enclave, by_signer = SealingPolicy.MRENCLAVE, SealingPolicy.MRSIGNER
    assert one.sealing_key(by_enclave) == again.sealing_key(by_enclave)
    assert one.sealing_key(by_enclave) != two.sealing_key(by_enclave)
    assert one.sealing_key(by_signer) == two.sealing_key(by_signer)
    assert one.sealing_key(by_signer) != one.sealing_key(by_enclave)
    assert len(one.sealing_key(by_signer)) == 16


def test_a_debug_enclave_does_not_get_the_production_sealing_key(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    production, debug = start_enclave(simulated), start_enclave(simulated, flags=6)
    for policy in SealingPolicy:
        assert production.sealing_key(policy, flags_mask=0) != debug.sealing_key(
            policy, flags_mask=0
        )


def test_a_closed_enclave_does_nothing(simulated: SimulatedPlatform, start_enclave: Start) -> None:
    enclave = start_enclave(simulated)
    processor = enclave._processor
    assert processor is not None
    enclave.close()
    assert processor.fused.seal == bytearray(16)
    calls: list[Callable[[], bytes]] = [
        lambda: enclave.quote(bytes(64)),
        lambda: enclave.report(bytes(512), bytes(64)),
        lambda: enclave.sealing_key(SealingPolicy.MRENCLAVE),
    ]
    for call in calls:
        with pytest.raises(PlatformError, match="closed"):
            call()
    enclave.close()


def test_keys_are_private_and_stay(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "platform"
    first = SimulatedPlatform(directory).trust_anchor()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SimulatedPlatform(directory).trust_anchor() == first


@pytest.mark.parametrize("name", ["", "device.json"])
def test_keys_that_others_may_read_are_not_used(tmp_path: Path, name: str) -> None:
    SimulatedPlatform(tmp_path / "platform").trust_anchor()
    (tmp_path / "platform" / name).chmod(0o755)
    with pytest.raises(PlatformError, match="others may") as caught:
        SimulatedPlatform(tmp_path / "platform").trust_anchor()
    assert "chmod" in str(caught.value.hint)


FAILING_START = """
import os, sys
from pathlib import Path
from cloister.errors import PlatformError
from cloister.platforms.simulated import SimulatedPlatform
from signing import IMAGE, PARAMETERS, signed
before = len(list(Path("/proc/self/fd").iterdir()))
try:
    SimulatedPlatform(Path(sys.argv[1])).start(
        manifest=b"", sigstruct=signed(b"").pack(), image=IMAGE, **PARAMETERS
    )
except PlatformError:
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("nothing is left")
"""


def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The measurement runs in a process of its own."""
    directory = tmp_path / "platform"
    SimulatedPlatform(directory).trust_anchor()
    directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", FAILING_START, directory],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "nothing is left\n", done.stderr


@pytest.mark.parametrize("name", ["device.json", "issued.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": "cloister simulated device 1"}']
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    platform = SimulatedPlatform(tmp_path / "platform")
    platform.trust_anchor()
    (tmp_path / "platform" / name).write_bytes(content)
    with pytest.raises(PlatformError, match=name):
        platform.trust_anchor()


def test_processes_that_start_at_once_make_one_device(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from cloister.platforms.simulated import SimulatedPlatform as P;"
        "print(P(Path(sys.argv[1])).trust_anchor().fingerprint)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "platform")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    printed = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(printed) == 1
    assert all(process.returncode == 0 for process in running)


def collateral_dates(bundle: SimulatedBundle) -> tuple[str, str]:
    info = json.loads(bundle.collateral.tcb_info)
    return info["issueDate"], info["nextUpdate"]


def test_collateral_is_kept_until_near_expiry_and_then_renewed(tmp_path: Path) -> None:
    start = datetime.datetime(2026, 3, 1, 12, tzinfo=UTC)

    def at(days: float) -> SimulatedBundle:
        now = start + datetime.timedelta(days=days)
        return SimulatedPlatform(tmp_path / "platform", clock=lambda: now).export()

    first = at(0)
    assert at(15).to_json() == first.to_json()
    renewed = at(21)
    assert collateral_dates(renewed) != collateral_dates(first)
    assert renewed.anchor == first.anchor
    assert collateral_dates(at(0)) == collateral_dates(first)  # the clock went back


def test_an_old_chain_is_renewed_in_time(tmp_path: Path, start_enclave: Start) -> None:
    start = datetime.datetime(2026, 3, 1, tzinfo=UTC)

    def pck_at(years: float) -> x509.Certificate:
        now = start + datetime.timedelta(days=365 * years)
        platform = SimulatedPlatform(tmp_path / "platform", clock=lambda: now)
        data = parse_quote(start_enclave(platform).quote(bytes(64))).signature.certification_data
        return x509.load_pem_x509_certificate(data)

    first, later, last = pck_at(0), pck_at(6), pck_at(7)
    assert first == later
    assert last != first
    assert last.public_key() == first.public_key()


def test_the_bundle_survives_its_file(simulated: SimulatedPlatform) -> None:
    bundle = simulated.export()
    assert SimulatedBundle.from_json(bundle.to_json()) == bundle
    assert "SIMULATED" in bundle.to_json()
    assert "PRIVATE" not in bundle.to_json()


def test_the_platform_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_platform().name == "simulated"
    assert "SIMULATED" in choose_platform("simulated").description
    monkeypatch.setenv("CLOISTER_PLATFORM", "no-such")
    with pytest.raises(InputError, match="no-such"):
        choose_platform()


def test_the_interfaces_hold(simulated: SimulatedPlatform, start_enclave: Start) -> None:
    platform: Platform = simulated
    enclave: Enclave = start_enclave(simulated)
    assert platform.simulated
    assert enclave.simulated


def test_keys_do_not_show_in_text(simulated: SimulatedPlatform, start_enclave: Start) -> None:
    enclave = start_enclave(simulated)
    processor = enclave._processor
    assert processor is not None
    assert repr(bytes(processor.fused.seal))[2:-1] not in repr(processor)
