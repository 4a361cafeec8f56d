"""Verification against real Intel quotes: accepted in their time, refused for every change."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.attestation import Collateral, Verdict, intel, verify_quote
from cloister.attestation.anchors import INTEL_ROOT_SHA256, TrustAnchor
from cloister.attestation.dcap import pck_chain
from cloister.attestation.policy import AnyEnclave, MrEnclave, MrTd, Policy, TcbStatus, all_of
from cloister.errors import (
    AttestationError,
    CollateralError,
    ExpiredCollateralError,
    MalformedQuoteError,
    QuoteSignatureError,
    TcbStatusError,
    UnsupportedQuoteError,
    UntrustedRootError,
)
from cloister.sgx.quote import parse_quote

DATA = Path(__file__).parent.parent / "data" / "quotes"
QUOTE = (DATA / "sgx_quote").read_bytes()
TDX_QUOTE = (DATA / "tdx_quote").read_bytes()
COLLATERAL = Collateral.from_json((DATA / "sgx_quote_collateral.json").read_text())
TDX_COLLATERAL = Collateral.from_json((DATA / "tdx_quote_collateral.json").read_text())
MRENCLAVE = bytes.fromhex("33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb")
STATUS = "ConfigurationAndSWHardeningNeeded"
NOW = datetime.datetime(2025, 6, 20, 10, 56, 11, tzinfo=datetime.timezone.utc)
POLICY = all_of(MrEnclave(MRENCLAVE), TcbStatus(STATUS))


def verify(
    quote: bytes = QUOTE,
    *,
    collateral: Collateral = COLLATERAL,
    now: datetime.datetime = NOW,
    policy: Policy = POLICY,
    anchors: list[TrustAnchor] | None = None,
) -> Verdict:
    chosen = [intel()] if anchors is None else anchors
    return verify_quote(quote, collateral=collateral, anchors=chosen, now=now, policy=policy)


def test_the_built_in_root_is_intels() -> None:
    assert hashlib.sha256(intel().der).hexdigest() == INTEL_ROOT_SHA256
    assert intel().name.endswith("CN=Intel SGX Root CA")
    assert not intel().simulated


def test_openssl_reads_the_built_in_root_alike(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_text(intel().certificate_pem)
    command = ["openssl", "x509", "-in", str(path), "-noout", "-fingerprint", "-sha256"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split("=")[1].strip().replace(":", "").lower() == INTEL_ROOT_SHA256


def test_a_real_sgx_quote_is_accepted_in_its_time() -> None:
    verdict = verify()
    evidence = verdict.require()
    assert verdict.accepted
    assert verdict.simulated is False
    assert "SIMULATED" not in verdict.to_text()
    assert evidence.tcb_status == STATUS
    assert evidence.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert evidence.sgx is not None
    assert evidence.sgx.mr_enclave == MRENCLAVE
    assert evidence.fmspc.hex() == "00a067110000"
    assert evidence.collateral_expires == datetime.datetime(
        2025, 7, 19, 10, 1, 18, tzinfo=datetime.timezone.utc
    )


def test_a_real_tdx_quote_is_accepted_in_its_time() -> None:
    mr_td = bytes.fromhex(
        "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407"
        "de03ae6dc5f87f27428b2538873118b7"
    )
    verdict = verify(TDX_QUOTE, collateral=TDX_COLLATERAL, policy=MrTd(mr_td))
    evidence = verdict.require()
    assert evidence.tcb_status == "UpToDate"
    assert evidence.tdx is not None
    assert evidence.sgx is None


def test_a_status_that_is_not_named_is_refused() -> None:
    verdict = verify(policy=MrEnclave(MRENCLAVE))
    assert not verdict.accepted
    with pytest.raises(TcbStatusError, match="INTEL-SA-00615") as caught:
        verdict.require()
    assert "UpToDate" in caught.value.message
    assert "--accept-tcb" in str(caught.value.hint)


@pytest.mark.parametrize(
    "now",
    [
        datetime.datetime(2025, 6, 18, tzinfo=datetime.timezone.utc),
        datetime.datetime(2025, 7, 20, tzinfo=datetime.timezone.utc),
        datetime.datetime(2026, 11, 22, tzinfo=datetime.timezone.utc),
    ],
)
def test_collateral_out_of_its_time_is_refused(now: datetime.datetime) -> None:
    verdict = verify(now=now)
    with pytest.raises(ExpiredCollateralError):
        verdict.require()
    assert verdict.evidence is None


def test_the_last_second_counts_and_the_next_does_not() -> None:
    last = datetime.datetime(2025, 7, 19, 10, 1, 18, tzinfo=datetime.timezone.utc)
    verify(now=last).require()
    with pytest.raises(ExpiredCollateralError):
        verify(now=last + datetime.timedelta(seconds=1)).require()


def test_nothing_is_trusted_without_an_anchor() -> None:
    verdict = verify(anchors=[])
    assert verdict.simulated is None
    with pytest.raises(UntrustedRootError, match=INTEL_ROOT_SHA256):
        verdict.require()


def test_collateral_of_another_platform_is_refused() -> None:
    with pytest.raises(CollateralError):
        verify(collateral=TDX_COLLATERAL).require()
    with pytest.raises(CollateralError):
        verify(TDX_QUOTE, collateral=COLLATERAL).require()


def changed_collateral(name: str, value: str | bytes) -> Collateral:
    change: dict[str, Any] = {name: value}
    return dataclasses.replace(COLLATERAL, **change)


def flipped(data: bytes, index: int = -1) -> bytes:
    changed = bytearray(data)
    changed[index] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tcb_info", COLLATERAL.tcb_info + " "),
        ("tcb_info", COLLATERAL.tcb_info.replace("SWHardeningNeeded", "UpToDate")),
        ("tcb_info", ""),
        ("tcb_info", "[]"),
        ("qe_identity", COLLATERAL.qe_identity.replace('"isvsvn":8', '"isvsvn":1')),
        ("qe_identity", "{}"),
        ("tcb_info_signature", flipped(COLLATERAL.tcb_info_signature)),
        ("tcb_info_signature", b""),
        ("qe_identity_signature", flipped(COLLATERAL.qe_identity_signature)),
        ("root_ca_crl", flipped(COLLATERAL.root_ca_crl)),
        ("pck_crl", flipped(COLLATERAL.pck_crl)),
        ("pck_crl", b""),
        ("pck_crl", COLLATERAL.root_ca_crl),
        ("root_ca_crl", COLLATERAL.pck_crl),
        ("tcb_info_issuer_chain", ""),
        ("tcb_info_issuer_chain", COLLATERAL.pck_crl_issuer_chain),
        ("qe_identity_issuer_chain", "nonsense"),
    ],
)
def test_changed_collateral_is_refused(name: str, value: str | bytes) -> None:
    verdict = verify(collateral=changed_collateral(name, value))
    assert not verdict.accepted
    assert verdict.evidence is None
    with pytest.raises(AttestationError):
        verdict.require()


@pytest.mark.parametrize("name", ["tcb_info_signature", "qe_identity_signature"])
def test_a_wrong_signature_over_collateral_names_the_collateral(name: str) -> None:
    wrong = flipped(getattr(COLLATERAL, name))
    with pytest.raises(CollateralError, match="signature"):
        verify(collateral=changed_collateral(name, wrong)).require()


SIGNATURE_PARTS = {
    "header user data": 30,
    "MRENCLAVE": 48 + 64,
    "attributes": 48 + 48 + 7,
    "report data": 48 + 320,
    "quote signature": 436,
    "attestation key": 436 + 70,
    "QE report": 436 + 128 + 64,
    "QE report signature": 436 + 512 + 3,
    "QE auth data": 436 + 578,
}


@pytest.mark.parametrize("part", SIGNATURE_PARTS)
def test_a_changed_quote_is_a_forged_quote(part: str) -> None:
    verdict = verify(flipped(QUOTE, SIGNATURE_PARTS[part]))
    with pytest.raises(QuoteSignatureError):
        verdict.require()


@settings(max_examples=400, deadline=None)
@example(bit=4473 * 8 + 2)  # an encoding of the root's certificate that its signature allows
@example(bit=3651 * 8)  # hides the root certificate from a lenient PEM parser
@example(bit=31984)  # in the root certificate that the quote carries and dcap-qvl never reads
@given(st.integers(0, len(QUOTE) * 8 - 1))
def test_a_flipped_bit_is_refused_or_changes_nothing_that_counts(bit: int) -> None:
    require_same_meaning("sgx", bit)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(TDX_QUOTE) * 8 - 1))
def test_a_flipped_bit_of_a_tdx_quote(bit: int) -> None:
    require_same_meaning("tdx", bit)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["sgx", "tdx"])
def test_every_flipped_bit_is_refused_or_changes_nothing_that_counts(name: str) -> None:
    assert not [bit for bit in range(len(REAL[name][0]) * 8) if require_same_meaning(name, bit)]


REAL = {
    "sgx": (QUOTE, COLLATERAL, POLICY, 436),
    "tdx": (TDX_QUOTE, TDX_COLLATERAL, AnyEnclave(), 636),
}


def require_same_meaning(name: str, bit: int) -> bool:
    """Flip one bit; if the quote is still accepted, it must still say the same."""
    quote, collateral, policy, signed = REAL[name]
    changed = bytearray(quote)
    changed[bit // 8] ^= 1 << (bit % 8)
    verdict = verify(bytes(changed), collateral=collateral, policy=policy)
    if verdict.accepted:
        assert changed[:signed] == quote[:signed]
        assert same_certificates(bytes(changed), quote)
    else:
        assert isinstance(verdict.failures[0].as_error(), AttestationError)
        assert type(verdict.failures[0].as_error()) is not AttestationError, verdict.to_text()
    return verdict.accepted


def same_certificates(one: bytes, two: bytes) -> bool:
    chains = [pck_chain(parse_quote(data).signature.certification_data) for data in (one, two)]
    return chains[0] == chains[1]


def test_cut_short_and_trailing_bytes_have_their_own_error() -> None:
    for data in (QUOTE[:-1], QUOTE + b"\0", b"", QUOTE[:100]):
        with pytest.raises(MalformedQuoteError):
            verify(data).require()


def test_epid_has_its_own_error() -> None:
    with pytest.raises(UnsupportedQuoteError, match="EPID"):
        verify(b"\x02\x00" + QUOTE[2:]).require()


def test_a_quote_without_certificate_chain_has_its_own_error() -> None:
    offset = 436 + 578 + 32
    assert QUOTE[offset : offset + 2] == b"\x05\x00"
    with pytest.raises(UnsupportedQuoteError, match="type 3"):
        verify(QUOTE[:offset] + b"\x03\x00" + QUOTE[offset + 2 :]).require()


def test_the_verdict_lists_every_check_in_text_and_json() -> None:
    verdict = verify(policy=all_of(MrEnclave(bytes(32)), TcbStatus()))
    shown: dict[str, Any] = json.loads(json.dumps(verdict.to_dict()))
    assert shown["accepted"] is False
    assert shown["evidence"]["tcb_status"] == STATUS
    parts = {part["name"]: part for part in shown["checks"][-1]["parts"]}
    assert parts["MRENCLAVE"]["passed"] is False
    assert parts["MRENCLAVE"]["found"] == MRENCLAVE.hex()
    assert parts["MRENCLAVE"]["expected"] == bytes(32).hex()
    assert parts["TCB status"]["passed"] is False
    text = verdict.to_text()
    assert text.startswith("REFUSED")
    assert f"FAIL MRENCLAVE: {MRENCLAVE.hex()}" in text
    assert "ok   trust anchor" in text


def test_any_enclave_proves_only_a_platform() -> None:
    verdict = verify(policy=all_of(AnyEnclave(), TcbStatus(STATUS)))
    assert "any enclave is accepted" in verdict.to_text()
