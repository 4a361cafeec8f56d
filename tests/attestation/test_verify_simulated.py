"""Verification where everything can be made: bad days, odd roots, what dcap-qvl leaves unchecked.

Quotes are made by the simulated platform, changed where a test needs a bad one, and signed again
with the right keys, so that only the one thing under test is wrong.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.attestation import Collateral, SimulatedBundle, intel, verify_quote
from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.policy import MrEnclave, TcbStatus, all_of
from cloister.attestation.policy_file import parse_policy
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    CollateralError,
    DebugEnclaveError,
    EnclaveAttributesError,
    ExpiredCollateralError,
    InputError,
    QuotingEnclaveError,
    RevokedError,
    RootValidityError,
    TcbStatusError,
    UntrustedRootError,
)
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.platforms.simulated import authority as ca
from cloister.platforms.simulated import quoting as quoting_module
from cloister.platforms.simulated.collateral import Conditions
from cloister.platforms.simulated.quoting import QUOTING_ENCLAVE
from cloister.sgx.quote import qe_report_data
from cloister.sgx.report import Attribute
from worlds import PRODUCTION, World, with_chain

UTC = datetime.timezone.utc
Start = Callable[..., SimulatedEnclave]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "device", datetime.datetime(2026, 5, 1, 12, tzinfo=UTC))


def test_the_verdict_says_simulated(world: World) -> None:
    verdict = world.verify()
    verdict.require()
    assert verdict.simulated is True
    assert "SIMULATED" in verdict.to_text().splitlines()[0]
    assert verdict.to_dict()["simulated"] is True
    assert verdict.to_dict()["evidence"]["simulated"] is True


def test_intels_root_does_not_vouch_for_it(world: World) -> None:
    with pytest.raises(UntrustedRootError, match="SIMULATED") as caught:
        world.verify(anchors=[intel()]).require()
    assert "--trust-simulated" in str(caught.value.hint)


def test_a_policy_for_hardware_says_how_a_simulated_platform_would_be_meant(world: World) -> None:
    policy = parse_policy(f'version = 1\nmrenclave = "{PRODUCTION.mr_enclave.hex()}"\n')
    with pytest.raises(UntrustedRootError, match="SIMULATED") as caught:
        world.verify(policy=policy).require()
    assert 'roots = ["SHA-256"]' in str(caught.value.hint)


def test_another_devices_root_does_not_vouch_for_it(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other", world.now)
    with pytest.raises(UntrustedRootError):
        world.verify(anchors=[other.anchor, intel()]).require()


def test_the_right_one_of_several_roots_is_found(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other", world.now)
    assert world.verify(anchors=[intel(), other.anchor, world.anchor]).accepted


def test_a_quote_that_names_a_trusted_root_it_does_not_lead_to_is_refused(
    world: World, tmp_path: Path
) -> None:
    forger = World(tmp_path / "forger", world.now)
    forged = with_chain(forger.quote(), forger.certified.chain, world.anchor.certificate)
    with pytest.raises(CertificateChainError, match="certificate 2"):
        world.verify(forged).require()


def test_the_chain_may_leave_the_root_out(world: World) -> None:
    quote = with_chain(world.quote(), world.certified.chain, None)
    assert world.verify(quote).accepted


def test_hostile_names_in_certificates_are_not_even_decoded(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIMULATED\nRELEASED key to: all")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(world.now)
        .not_valid_after(world.now)
        .sign(key, hashes.SHA256())
    )
    verdict = world.verify(with_chain(world.quote(), world.certified.chain, certificate))
    assert "RELEASED" not in verdict.to_text()
    assert "\n" not in verdict.failures[0].as_error().message


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (Attribute.INIT | Attribute.MODE64 | Attribute.DEBUG, DebugEnclaveError),
        (Attribute.MODE64, EnclaveAttributesError),
        (Attribute.INIT, EnclaveAttributesError),
        (Attribute.INIT | Attribute.MODE64 | Attribute.PROVISION_KEY, EnclaveAttributesError),
        (Attribute.INIT | Attribute.MODE64 | Attribute.EINITTOKEN_KEY, EnclaveAttributesError),
    ],
)
def test_enclaves_that_are_not_for_production_are_refused(
    world: World, flags: int, error: type[AttestationError]
) -> None:
    quote = world.quote(PRODUCTION._replace(flags=flags))
    with pytest.raises(error):
        world.verify(quote).require()


PLATFORM_STATUSES = [
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]
QE_STATUSES = ["ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"]


@pytest.mark.parametrize(
    ("whose", "status"),
    [
        *(("tcb_status", status) for status in PLATFORM_STATUSES),
        *(("qe_status", status) for status in QE_STATUSES),
    ],
)
def test_each_status_must_be_named(world: World, status: str, whose: str) -> None:
    changes: dict[str, Any] = {whose: status}
    collateral = world.collateral(Conditions(**changes))
    with pytest.raises(TcbStatusError, match=status):
        world.verify(collateral=collateral).require()
    named = all_of(MrEnclave(PRODUCTION.mr_enclave), TcbStatus(status))
    evidence = world.verify(collateral=collateral, policy=named).require()
    assert evidence.tcb_status == status


@pytest.mark.parametrize(
    ("platform", "qe", "together"),
    [
        ("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"),
        ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "ConfigurationNeeded", "OutOfDateConfigurationNeeded"),
        ("UpToDate", "OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    ],
)
def test_platform_and_quoting_enclave_are_judged_together(
    world: World, platform: str, qe: str, together: str
) -> None:
    collateral = world.collateral(Conditions(tcb_status=platform, qe_status=qe))
    with pytest.raises(TcbStatusError, match=f"{together},"):
        world.verify(collateral=collateral).require()


@pytest.mark.parametrize("whose", ["tcb_status", "qe_status"])
def test_an_unknown_status_is_refused(world: World, whose: str) -> None:
    changes: dict[str, Any] = {whose: "Splendid"}
    with pytest.raises(CollateralError, match="Splendid"):
        world.verify(collateral=world.collateral(Conditions(**changes))).require()


@pytest.mark.parametrize("whose", ["tcb_status", "qe_status"])
def test_revoked_is_never_accepted(world: World, whose: str) -> None:
    changes: dict[str, Any] = {whose: "Revoked"}
    with pytest.raises(RevokedError):
        world.verify(collateral=world.collateral(Conditions(**changes))).require()


def test_a_revoked_pck_certificate_is_refused(world: World) -> None:
    with pytest.raises(RevokedError, match="revocation list"):
        world.verify(collateral=world.collateral(Conditions(pck_revoked=True))).require()


def test_the_same_quote_expires_with_its_collateral(world: World) -> None:
    collateral = world.collateral(Conditions(lifetime=datetime.timedelta(days=1)))
    quote = world.quote()
    later = world.now + datetime.timedelta(days=1)
    # A revocation list counts as expired in the very second of its next update.
    world.verify(quote, collateral=collateral, now=later - datetime.timedelta(seconds=1)).require()
    with pytest.raises(ExpiredCollateralError):
        world.verify(
            quote, collateral=collateral, now=later + datetime.timedelta(seconds=1)
        ).require()


def test_a_clock_before_the_issue_date_is_refused(world: World) -> None:
    collateral, quote = world.collateral(), world.quote()
    with pytest.raises(ExpiredCollateralError):
        world.verify(
            quote, collateral=collateral, now=world.now - datetime.timedelta(hours=2)
        ).require()


def test_the_roots_own_validity_is_checked(world: World) -> None:
    key = world.certified.device.authority.root_key
    past = ca.make_root(key, not_before=datetime.datetime(2049, 1, 1, tzinfo=UTC))
    quote = with_chain(world.quote(), world.certified.chain, past)
    with pytest.raises(RootValidityError, match="2049"):
        world.verify(quote, anchors=[TrustAnchor(past)]).require()


def test_another_pce_id_is_refused(world: World) -> None:
    with pytest.raises(CollateralError, match="PCE id"):
        world.verify(collateral=world.edited("tcb_info", pceId="0001")).require()


def test_an_unknown_tcb_type_is_refused(world: World) -> None:
    with pytest.raises(CollateralError, match="TCB type"):
        world.verify(collateral=world.edited("tcb_info", tcbType=1)).require()


def test_qe_levels_out_of_order_are_refused(world: World) -> None:
    date = "2026-01-01T00:00:00Z"
    levels = [
        {"tcb": {"isvsvn": 1}, "tcbDate": date, "tcbStatus": "UpToDate"},
        {"tcb": {"isvsvn": 8}, "tcbDate": date, "tcbStatus": "OutOfDate"},
    ]
    with pytest.raises(CollateralError, match="order"):
        world.verify(collateral=world.edited("qe_identity", tcbLevels=levels)).require()


@pytest.mark.parametrize(
    "changes",
    [
        {"mrsigner": "00" * 32},
        {"isvprodid": 2},
        {"attributes": "00" * 16, "attributesMask": "ff" * 16},
        {"miscselect": "01000000"},
    ],
)
def test_another_quoting_enclave_is_refused(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(QuotingEnclaveError):
        world.verify(collateral=world.edited("qe_identity", **changes)).require()


def test_an_old_quoting_enclave_is_refused(world: World) -> None:
    date = "2026-01-01T00:00:00Z"
    levels = [{"tcb": {"isvsvn": 9}, "tcbDate": date, "tcbStatus": "UpToDate"}]
    with pytest.raises(QuotingEnclaveError, match="older"):
        world.verify(collateral=world.edited("qe_identity", tcbLevels=levels)).require()


def test_a_debug_quoting_enclave_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    debug = QUOTING_ENCLAVE._replace(flags=QUOTING_ENCLAVE.flags | Attribute.DEBUG)
    monkeypatch.setattr(quoting_module, "QUOTING_ENCLAVE", debug)
    quote = world.quote()
    with pytest.raises(QuotingEnclaveError):
        world.verify(quote).require()


def test_a_tcb_below_every_level_is_refused(world: World) -> None:
    levels = json.loads(world.collateral().tcb_info)["tcbLevels"]
    levels[0]["tcb"]["pcesvn"] = 60000
    with pytest.raises(TcbStatusError, match="below"):
        world.verify(collateral=world.edited("tcb_info", tcbLevels=levels)).require()


def test_another_fmspc_is_refused(world: World) -> None:
    with pytest.raises(CollateralError, match="FMSPC"):
        world.verify(collateral=world.edited("tcb_info", fmspc="000000000000")).require()


def test_a_tail_in_the_qe_report_data_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cloister.sgx.quote.qe_report_data", lambda *key: qe_report_data(*key)[:32] + b"t" * 32
    )
    quote = world.quote()
    with pytest.raises(QuotingEnclaveError, match="not zero"):
        world.verify(quote).require()


def test_a_chain_in_the_collateral_does_not_replace_the_quotes(world: World) -> None:
    data = world.collateral().to_dict() | {"pck_certificate_chain": "nonsense"}
    assert world.verify(collateral=Collateral.from_dict(data)).accepted


def test_a_self_made_chain_of_the_right_names_is_refused(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    fake_root = ca.make_root(key, not_before=world.now - datetime.timedelta(days=1))
    assert TrustAnchor(fake_root) != world.anchor
    with pytest.raises(UntrustedRootError):
        world.verify(anchors=[TrustAnchor(fake_root)]).require()


def test_an_authenticator_chooses_collateral_by_root_and_platform(
    world: World, tmp_path: Path
) -> None:
    other = World(tmp_path / "other", world.now)
    trust = Trust(((other.anchor, other.collateral()), (world.anchor, world.collateral())))
    authentication = Authenticator(trust, lambda: world.now).authenticate(world.quote())
    assert authentication.evidence is not None
    assert authentication.evidence.anchor == world.anchor


def test_the_freshest_collateral_counts(world: World) -> None:
    """A file that has run out does no harm beside a new one, in whatever order they are named."""
    old = world.collateral(Conditions(lifetime=datetime.timedelta(minutes=-1)))
    for known in ([old, world.collateral()], [world.collateral(), old]):
        trust = Trust(tuple((world.anchor, collateral) for collateral in known))
        verdict = Authenticator(trust, lambda: world.now).authenticate(world.quote())
        assert verdict.judge(MrEnclave(PRODUCTION.mr_enclave)).accepted


def test_an_authenticator_without_the_platforms_collateral_refuses(world: World) -> None:
    foreign = world.edited("tcb_info", fmspc="000000000000")
    trust = Trust(((world.anchor, foreign),))
    verdict = Authenticator(trust, lambda: world.now).authenticate(world.quote())
    with pytest.raises(CollateralError, match="no collateral"):
        verdict.judge(MrEnclave(PRODUCTION.mr_enclave)).require()


def test_a_bundle_with_intels_root_is_refused(world: World) -> None:
    data = json.loads(SimulatedBundle(world.anchor, world.collateral()).to_json())
    data |= {"root": intel().certificate_pem, "root_sha256": intel().fingerprint}
    with pytest.raises(InputError, match="Intel"):
        SimulatedBundle.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "null", "{}", "[]", '{"format": "x"}', "{" * 100000])
def test_files_that_are_no_bundles_are_refused(text: str) -> None:
    with pytest.raises((InputError, CollateralError)):
        SimulatedBundle.from_json(text)


def test_a_bundle_whose_root_was_exchanged_is_refused(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other", world.now)
    data = json.loads(SimulatedBundle(world.anchor, world.collateral()).to_json())
    data["root"] = other.anchor.certificate_pem
    with pytest.raises(CollateralError, match="root_sha256"):
        SimulatedBundle.from_json(json.dumps(data))


def test_the_platforms_own_export_is_what_a_verifier_needs(
    simulated: SimulatedPlatform, start_enclave: Start
) -> None:
    enclave, bundle = start_enclave(simulated), simulated.export()
    verdict = verify_quote(
        enclave.quote(bytes(64)),
        collateral=bundle.collateral,
        anchors=[bundle.anchor],
        now=datetime.datetime.now(UTC),
        policy=MrEnclave(enclave.mrenclave),
    )
    assert verdict.accepted
