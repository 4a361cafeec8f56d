"""Quotes of an enclave that was verified before: never accepted where a first one would not be.

Every test asks an authenticator that has seen a genuine quote, and one that has seen nothing.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation import Collateral
from cloister.attestation.policy import MrEnclave
from cloister.attestation.trust import Authenticator, Trust
from cloister.attestation.verify import Authentication
from cloister.platforms.simulated.collateral import Conditions, sign_raw
from cloister.sgx.report import Attribute
from worlds import PRODUCTION, TD_REPORT, World, new_quote, tdx_collateral

UTC = datetime.timezone.utc
POLICY = MrEnclave(PRODUCTION.mr_enclave)


class Verifier:
    """An authenticator whose trust and time a test can change."""

    def __init__(self, world: World) -> None:
        self.now = world.now
        self.trust = Trust(((world.anchor, world.collateral()),))
        self._experienced = Authenticator(self.trust, lambda: self.now)
        self._experienced.authenticate(world.quote())

    def both(self, quote: bytes) -> tuple[Authentication, Authentication]:
        """Return what the experienced one finds, and what a new one does."""
        self._experienced.trust = self.trust
        new = Authenticator(self.trust, lambda: self.now)
        return self._experienced.authenticate(quote), new.authenticate(quote)

    def agreed(self, quote: bytes) -> bool:
        """Tell whether the quote is accepted, after both have found the same."""
        experienced, new = self.both(quote)
        assert experienced == new
        return experienced.judge(POLICY).accepted


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "device", datetime.datetime(2026, 5, 1, 12, tzinfo=UTC))


@pytest.fixture
def verifier(world: World) -> Verifier:
    return Verifier(world)


def test_another_key_of_the_same_enclave(world: World, verifier: Verifier) -> None:
    """What is found is about the new quote: its key, not the one of before."""
    quote = world.quote(report_data=b"another key".ljust(64, b"\0"))
    assert verifier.agreed(quote)
    evidence = verifier.both(quote)[0].evidence
    assert evidence is not None
    assert evidence.report_data == b"another key".ljust(64, b"\0")
    assert evidence.quote.raw == quote


def test_only_the_first_is_verified_in_full(
    world: World, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.attestation.dcap.dcap_qvl", None)
    trust = verifier.trust
    again = world.quote(report_data=b"2" * 64)
    with pytest.raises(AttributeError):
        Authenticator(trust, lambda: world.now).authenticate(again)
    experienced = verifier._experienced.authenticate(again)
    assert experienced.judge(POLICY).accepted


def test_every_changed_byte_is_found(world: World, verifier: Verifier) -> None:
    """Where a change is accepted (the ends of PEM lines), a first verification accepts it too."""
    quote = world.quote(report_data=b"k" * 64)
    for position in range(len(quote)):
        changed = bytearray(quote)
        changed[position] ^= 1 << position % 8
        accepted = verifier.agreed(bytes(changed))
        assert not accepted or position > 1018, position


@pytest.mark.parametrize("size", [0, 1, 47, 48, 367, 368, 431, 432, 435, 436, 499, 500, 501])
def test_a_cut_quote_is_refused(world: World, verifier: Verifier, size: int) -> None:
    quote = world.quote()
    assert not verifier.agreed(quote[:size])
    assert not verifier.agreed(quote[:-1])
    assert not verifier.agreed(quote + b"\0")


def test_a_signature_of_another_key_is_refused(world: World, verifier: Verifier) -> None:
    quote = bytearray(world.quote(report_data=b"mine".ljust(64)))
    for scalar in (1, 7):
        key = ec.derive_private_key(scalar, ec.SECP256R1())
        quote[436:500] = sign_raw(key, bytes(quote[:432]))
        assert not verifier.agreed(bytes(quote))


@pytest.mark.parametrize("half", [0, 2**256 - 1])
def test_a_signature_of_impossible_numbers_is_refused(
    world: World, verifier: Verifier, half: int
) -> None:
    quote = bytearray(world.quote())
    for position in (436, 468):
        quote[position : position + 32] = half.to_bytes(32, "big")
        assert not verifier.agreed(bytes(quote))


@pytest.mark.parametrize(
    "changes",
    [{"flags": PRODUCTION.flags | Attribute.DEBUG}, {"mr_enclave": b"x" * 32}, {"isv_svn": 9}],
    ids=["debug", "measurement", "version"],
)
def test_another_enclave_is_another_matter(
    world: World, verifier: Verifier, changes: dict[str, int | bytes]
) -> None:
    identity = PRODUCTION._replace(**changes)  # type: ignore[arg-type]
    assert verifier.agreed(world.quote(identity)) == (list(changes) == ["isv_svn"])


def test_a_debug_enclave_is_refused_every_time(world: World, verifier: Verifier) -> None:
    debug = PRODUCTION._replace(flags=PRODUCTION.flags | Attribute.DEBUG)
    for number in range(3):
        assert not verifier.agreed(world.quote(debug, report_data=bytes([number]) * 64))


def test_what_runs_out_is_refused_to_the_second(world: World, verifier: Verifier) -> None:
    """Collateral, certificates and the root: whatever is the first."""
    quote = world.quote(report_data=b"late".ljust(64))
    end = json.loads(verifier.trust.known[0][1].tcb_info)["nextUpdate"]
    last = datetime.datetime.fromisoformat(end.replace("Z", "+00:00"))
    found = []
    for seconds in (-2, -1, 0, 1, 2):
        verifier.now = last + datetime.timedelta(seconds=seconds)
        found.append(verifier.agreed(quote))
    assert found[0] and not found[-1]
    for years in (1, 30, 200):
        verifier.now = world.now + datetime.timedelta(days=365 * years)
        assert not verifier.agreed(quote)


def test_a_certificate_that_runs_out_before_the_collateral_counts(
    world: World, verifier: Verifier
) -> None:
    long = world.collateral(Conditions(lifetime=datetime.timedelta(days=365 * 60)))
    verifier.trust = Trust(((world.anchor, long),))
    quote = world.quote()
    assert verifier.agreed(quote)
    certified = world.certified
    ends = {
        certificate.not_valid_after_utc
        for certificate in (certified.chain.pck, certified.chain.pck_ca, world.anchor.certificate)
    }
    for end in sorted(ends):
        verifier.now = end + datetime.timedelta(seconds=1)
        assert not verifier.agreed(quote)


def test_tdx_quotes_are_verified_in_full_every_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = Authenticator(
        Trust(((world.anchor, tdx_collateral(world)),)), lambda: world.now
    )
    quote = new_quote(world, TD_REPORT.pack())
    for _ in range(2):
        assert authenticator.authenticate(quote).evidence is not None
    monkeypatch.setattr("cloister.attestation.dcap.dcap_qvl", None)
    with pytest.raises(AttributeError):
        authenticator.authenticate(quote)


def test_a_clock_that_goes_back_is_no_shortcut(world: World, verifier: Verifier) -> None:
    quote = world.quote()
    for days in (1, 400, 20000):
        verifier.now = world.now - datetime.timedelta(days=days)
        assert not verifier.agreed(quote)


@pytest.mark.parametrize(
    "worse",
    [
        lambda world: world.collateral(Conditions(pck_revoked=True)),
        lambda world: world.collateral(Conditions(tcb_status="OutOfDate")),
        lambda world: world.edited("tcb_info", pceId="0001"),
    ],
    ids=["revoked", "out of date", "PCE id"],
)
def test_new_collateral_counts_at_once(
    world: World, verifier: Verifier, worse: Callable[[World], Collateral]
) -> None:
    quote = world.quote()
    assert verifier.agreed(quote)
    good = verifier.trust
    verifier.trust = Trust(((world.anchor, worse(world)),))
    assert not verifier.agreed(quote)
    verifier.trust = good
    assert verifier.agreed(quote)


def test_a_root_that_is_trusted_no_longer_vouches_for_nothing(
    world: World, verifier: Verifier, tmp_path: Path
) -> None:
    other = World(tmp_path / "other", world.now)
    verifier.trust = Trust(((other.anchor, other.collateral()),))
    assert not verifier.agreed(world.quote())
    assert verifier.agreed(other.quote())
    verifier.trust = Trust()
    assert not verifier.agreed(world.quote())


def test_collateral_that_is_gone_is_missed(world: World, verifier: Verifier) -> None:
    verifier.trust = Trust(((world.anchor, world.edited("tcb_info", fmspc="000000000000")),))
    assert not verifier.agreed(world.quote())


def test_an_event_log_beside_a_repeated_quote_is_refused(world: World) -> None:
    authenticator = Authenticator(Verifier(world).trust, lambda: world.now)
    quote = world.quote()
    assert authenticator.authenticate(quote).judge(POLICY).accepted
    assert not authenticator.authenticate(quote, b"log").judge(POLICY).accepted


def test_sgx_quotes_of_other_versions_are_refused_every_time(
    world: World, verifier: Verifier
) -> None:
    body = world.quote()[48:432]
    for version in (4, 5, 4, 5):
        assert not verifier.agreed(new_quote(world, body, version=version, tdx=False))


def test_memory_is_bounded(
    world: World, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.attestation.repeated.MAX_REMEMBERED", 3)
    for number in range(8):
        identity = PRODUCTION._replace(isv_svn=number)
        assert verifier.agreed(world.quote(identity))
    assert len(verifier._experienced._repeated._known) == 3


def test_a_simulated_quoting_enclave_shows_the_same_certification_every_time(
    world: World,
) -> None:
    """As a real one, which keeps what the platform's key has signed."""
    first, second = (world.quote(report_data=bytes([number]) * 64) for number in (1, 2))
    assert (
        first[:368] + first[432:436] + first[500:] == second[:368] + second[432:436] + second[500:]
    )
