"""Policies in TOML: what they mean, and that nothing odd is read leniently."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation import Collateral, Verdict, intel, verify_quote
from cloister.attestation.policy_file import _File, parse_policy
from cloister.attestation.status import TCB_STATUSES
from cloister.errors import (
    EnclaveAttributesError,
    PolicyError,
    RefusedError,
    TcbStatusError,
    UntrustedRootError,
    WrongMeasurementError,
    WrongSignerError,
)

DATA = Path(__file__).parent.parent / "data" / "quotes"
NOW = datetime.datetime(2025, 6, 20, 12, tzinfo=datetime.timezone.utc)
ENCLAVE = 'mrenclave = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"'
SIGNER = """
mrsigner = "815f42f11cf64430c30bab7816ba596a1da0130c3b028b673133a66cf9a3e0e6"
isv_prod_id = 0
minimum_isv_svn = 0
"""
OTHER = f'mrenclave = "{"00" * 32}"'
STATUS = 'tcb_status = ["UpToDate", "ConfigurationAndSWHardeningNeeded"]'
MRTD = (
    'mrtd = "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407'
    'de03ae6dc5f87f27428b2538873118b7"'
)


def judge(*lines: str, name: str = "sgx") -> Verdict:
    return verify_quote(
        (DATA / f"{name}_quote").read_bytes(),
        collateral=Collateral.from_json((DATA / f"{name}_quote_collateral.json").read_text()),
        anchors=[intel()],
        now=NOW,
        policy=parse_policy("\n".join(["version = 1", *lines])),
    )


@pytest.mark.parametrize(
    "lines",
    [
        [ENCLAVE, STATUS],
        [SIGNER, STATUS],
        [ENCLAVE, STATUS, "debug = false"],
        [ENCLAVE, STATUS, 'roots = ["intel"]'],
        [ENCLAVE, STATUS, 'advisories = ["INTEL-SA-00289", "INTEL-SA-00615"]'],
        [ENCLAVE, STATUS, "minimum_tcb_date = 2024-03-13"],
        [ENCLAVE, STATUS, "minimum_tcb_date = 2024-03-13T00:00:00Z"],
        [ENCLAVE, STATUS, f'attributes = {{ value = "05{"0" * 30}", mask = "ff{"0" * 30}" }}'],
        [ENCLAVE, STATUS, f'report_data = "{b"Hello, world!".hex().ljust(128, "0")}"'],
        [STATUS, "[[any]]", OTHER, "[[any]]", ENCLAVE],
        [STATUS, "[[all]]", SIGNER, "[[all]]", ENCLAVE],
        [STATUS, "[[any]]", OTHER, "[[any]]", "[[any.all]]", SIGNER, "[[any.all]]", ENCLAVE],
        ["[[any]]", ENCLAVE, STATUS, "[[any]]", OTHER],
        [STATUS, ENCLAVE.replace('"', "['", 1).replace('"', "', '" + "0" * 64 + "']")],
    ],
)
def test_accepted(lines: list[str]) -> None:
    verdict = judge(*lines)
    assert verdict.accepted, verdict.to_text()


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([OTHER, STATUS], WrongMeasurementError),
        ([ENCLAVE], TcbStatusError),
        ([ENCLAVE, STATUS, f'roots = ["{"0" * 64}"]'], UntrustedRootError),
        ([ENCLAVE, STATUS, "advisories = []"], TcbStatusError),
        ([ENCLAVE, STATUS, "minimum_tcb_date = 2024-03-14"], TcbStatusError),
        ([SIGNER.replace("svn = 0", "svn = 1"), STATUS], WrongSignerError),
        ([STATUS, "[[all]]", OTHER, "[[all]]", ENCLAVE], WrongMeasurementError),
        (["[[any]]", OTHER, STATUS, "[[any]]", ENCLAVE], WrongMeasurementError),
        ([MRTD, STATUS], WrongMeasurementError),
    ],
)
def test_refused(lines: list[str], error: type[RefusedError]) -> None:
    with pytest.raises(error):
        judge(*lines).require()


def test_when_no_alternative_holds_each_has_its_reason() -> None:
    with pytest.raises(WrongMeasurementError) as caught:
        judge("[[any]]", OTHER, "[[any]]", OTHER.replace("0", "1"), STATUS).require()
    assert f"expected {'0' * 64}" in caught.value.message
    assert f"expected {'1' * 64}" in caught.value.message


def test_tdx() -> None:
    assert judge(MRTD, name="tdx").accepted
    with pytest.raises(WrongMeasurementError, match="RTMR1"):
        judge(MRTD, f'rtmr1 = "{"0" * 96}"', name="tdx").require()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "version"),
        ("version = 2\n" + ENCLAVE, "version"),
        ("version = 1", "which enclave"),
        ("version = 1\n" + STATUS, "which enclave"),
        ("version = 1\n[[any]]\n" + ENCLAVE + "\n[[any]]\n" + STATUS, "which enclave"),
        ("version = 1\n[[any]]\n" + ENCLAVE + "\n[[any]]\n", "empty table"),
        ("version = 1\nany = []\n" + ENCLAVE, "at least one"),
        ("version = 1\nmrenclave = []", "at least one"),
        ("version = 1\ntcb_status = []\n" + ENCLAVE, "tcb_status: is empty"),
        ("version = 1\ntcb_status = ['Revoked']\n" + ENCLAVE, "never acceptable"),
        (f"version = 1\n{MRTD}\nprogram = '{'0' * 64}'", "rtmr1 and rtmr2"),
        (f"version = 1\n{MRTD}\nrtmr1 = '{'0' * 96}'\nprogram = '{'0' * 64}'", "rtmr1 and rtmr2"),
        ("version = 1\nroots = []\n" + ENCLAVE, "at least one"),
        ("version = 1\nroots = ['here']\n" + ENCLAVE, "fingerprints"),
        ("version = 1\ndebug = true\n" + ENCLAVE, "debug"),
        ("version = 1\nmrenclav = 'x'\n" + ENCLAVE, "mrenclav"),
        ("version = 1\nmrenclave = 'xyz'", "hexadecimal"),
        ("version = 1\nmrenclave = '00'", "expected 64"),
        ("version = 1\nmrenclave = 5", "mrenclave"),
        ("version = 1\n" + SIGNER.replace("isv_prod_id = 0", ""), "belong together"),
        ("version = 1\n" + SIGNER.replace("isv_prod_id = 0", "isv_prod_id = -1"), "isv_prod_id"),
        ("version = 1\n" + SIGNER.replace("isv_prod_id = 0", "isv_prod_id = '0'"), "isv_prod_id"),
        (f"version = 1\n{ENCLAVE}\nrtmr0 = '{'0' * 96}'", "mrtd"),
        ("version = 1\n" + ENCLAVE + "\nreport_data = '00'", "report_data"),
        ("version = 1\n" + "[[any]]\n" + ENCLAVE + "\nroots = []", "roots"),
        (f"version = 1\n{ENCLAVE}\nprogram = '{'0' * 64}'", "program belongs to mrtd"),
        ("version = 1\n" + ENCLAVE + "\n" + ENCLAVE, "TOML"),
        ("version = 1\nall = " + "[{all=" * 30 + "[]" + "}]" * 30, "nested"),
        ("x = " + "[" * 100000, "TOML"),
    ],
)
def test_policies_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        parse_policy(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nmrenclav = 1\n", "p.toml: line 3: mrenclav: no such entry"),
        ("[[any]]\nmrsigner = 'x'\n", "p.toml: line 3: any[0].mrsigner: expected 64 hexadecimal"),
        ("mrenclave = [\n  '00',\n]\n", "p.toml: line 3: mrenclave[0]: expected 64"),
        ("[[any]]\n[[any]]\n", "p.toml: line 2: any[0]: an empty table"),
        ("tcb_status = ['Good']", "p.toml: line 2: tcb_status[0]: 'Good' is unknown"),
        ("attributes = { value = '00' }", "p.toml: line 2: attributes.value: expected 32"),
        ("x = = 1", "p.toml: not valid TOML (Invalid value (at line 2, column 5))"),
        ("debug = false", "p.toml: the policy does not say which enclave it means"),
    ],
)
def test_errors_name_file_line_and_key(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(f"version = 1\n{text}" if text[0] != "\n" else f"version = 1{text}", "p.toml")
    assert caught.value.message.startswith(message)
    assert caught.value.hint or "TOML" in message


def test_a_misspelt_entry_is_suggested() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy("version = 1\nmr_enclave = 'x'")
    assert caught.value.hint == "did you mean mrenclave?"


def test_td_attributes() -> None:
    wanted = 'td_attributes = {{ value = "0000001000000000", mask = "{}" }}'
    assert judge(MRTD, wanted.format("ff" * 8), name="tdx").accepted
    other = wanted.replace("0000001", "0000005").format("ff" * 8)
    with pytest.raises(EnclaveAttributesError, match="TD attributes"):
        judge(MRTD, other, name="tdx").require()
    with pytest.raises(EnclaveAttributesError, match="an SGX quote"):
        judge(ENCLAVE, STATUS, wanted.format("00" * 8)).require()


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_policy(data)


def test_an_oversized_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match="at most"):
        parse_policy("#" * 2_000_000)


def test_the_policies_in_the_documentation_can_be_used() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(version = 1\n.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        whole = re.sub(r'"(\w\w)…"', lambda match: f'"{match[1] * 32}"', block)
        assert "MRENCLAVE" in parse_policy(whole, "docs/attestation.md").describe()


def test_the_documentation_names_every_entry_and_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text(encoding="utf-8")
    for name, field in _File.model_fields.items():
        assert re.search(rf"`(\[\[)?{field.alias or name}\b", page) or name[:4] == "rtmr"
    for status in TCB_STATUSES:
        assert f"`{status}`" in page
