"""Stored reports of an EPID service, made by one of the test's own and broken in every way."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import struct
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import TrustAnchor, Verdict, intel
from cloister.attestation.anchors import INTEL_IAS_SHA256, intel_ias
from cloister.attestation.ias import IasReport, read_stored, verify_ias_report
from cloister.attestation.policy import AnyEnclave, MrEnclave, Policy, TcbStatus, all_of
from cloister.attestation.policy_file import parse_policy
from cloister.cli.main import run
from cloister.errors import (
    AttestationError,
    CertificateChainError,
    DebugEnclaveError,
    IasReportError,
    InputError,
    MalformedQuoteError,
    QuoteSignatureError,
    ReportDataError,
    RevokedError,
    TcbStatusError,
    UnsupportedQuoteError,
    UntrustedRootError,
    WrongMeasurementError,
)
from cloister.sgx.epid import parse_epid_quote

UTC = datetime.timezone.utc
THEN = datetime.datetime(2021, 3, 4, 5, 6, 7, tzinfo=UTC)
NOW = datetime.datetime(2026, 11, 25, tzinfo=UTC)
MRENCLAVE = b"e" * 32


def epid_quote(flags: int = 5) -> bytes:
    header = struct.pack("<HH4sHHI32s", 2, 1, b"grp0", 11, 9, 0, b"spid" * 4)
    body = bytearray(384)
    body[48:56] = flags.to_bytes(8, "little")
    body[64:96] = MRENCLAVE
    body[320:352] = b"r" * 32
    return header + bytes(body) + struct.pack("<I", 680) + b"s" * 680


QUOTE = epid_quote()


def certificate(
    subject: str, key: Any, issuer: x509.Certificate | None, issuer_key: Any, *, ca: bool
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2016, 11, 22, tzinfo=UTC))
        .not_valid_after(datetime.datetime(2026, 11, 20, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


class Service:
    """Plays Intel's part, with keys of its own."""

    def __init__(self) -> None:
        root_key = rsa.generate_private_key(65537, 3072)
        self.key = rsa.generate_private_key(65537, 2048)
        self.root = certificate("Report Signing CA", root_key, None, root_key, ca=True)
        self.signer = certificate("Report Signing", self.key, self.root, root_key, ca=False)
        self.root_key = root_key

    @property
    def anchor(self) -> TrustAnchor:
        return TrustAnchor(self.root)

    def body(self, **changes: Any) -> bytes:
        values = {
            "id": "1",
            "timestamp": "2021-03-04T05:06:07.123456",
            "version": 4,
            "nonce": "0123456789abcdef",
            "advisoryURL": "https://security-center.intel.com",
            "isvEnclaveQuoteStatus": "OK",
            "isvEnclaveQuoteBody": base64.b64encode(QUOTE[:432]).decode(),
        } | changes
        return json.dumps(
            {name: value for name, value in values.items() if value is not ...}
        ).encode()

    def report(self, body: bytes | None = None) -> IasReport:
        body = self.body() if body is None else body
        signature = self.key.sign(body, padding.PKCS1v15(), hashes.SHA256())
        return IasReport(body, signature, (self.signer, self.root))

    def response(self, report: IasReport) -> bytes:
        pem = "".join(item.public_bytes(Encoding.PEM).decode() for item in report.certificates)
        head = [
            "HTTP/1.1 100 Continue",
            "",
            "HTTP/1.1 200 OK",
            f"Content-Length: {len(report.body)}",
            f"X-IASReport-Signature: {base64.b64encode(report.signature).decode()}",
            f"x-iasreport-signing-certificate: {urllib.parse.quote(pem)}",
            "",
            "",
        ]
        return "\r\n".join(head).encode() + report.body


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


def judge(
    service: Service,
    report: IasReport | None = None,
    *,
    quote: bytes = QUOTE,
    policy: Policy | None = None,
    anchors: list[TrustAnchor] | None = None,
    now: datetime.datetime = NOW,
    nonce: str | None = None,
) -> Verdict:
    return verify_ias_report(
        service.report() if report is None else report,
        quote,
        anchors=[service.anchor] if anchors is None else anchors,
        now=now,
        policy=policy or MrEnclave(MRENCLAVE),
        nonce=nonce,
    )


def test_the_built_in_root_is_the_services() -> None:
    assert intel_ias().fingerprint == INTEL_IAS_SHA256
    assert intel_ias().name.startswith("CN=Intel SGX Attestation Report Signing CA")
    assert not intel_ias().simulated


def test_a_report_of_its_time_is_accepted_and_its_age_told(service: Service) -> None:
    verdict = judge(service)
    evidence = verdict.require()
    assert evidence.tcb_status == "UpToDate"
    assert evidence.sgx is not None
    assert evidence.sgx.mr_enclave == MRENCLAVE
    text = verdict.to_text()
    assert "2021-03-04" in text
    assert "2091 days before" in text
    assert "retired" in text
    assert "SIMULATED" in text.splitlines()[0]  # its root is not Intel's
    assert json.loads(json.dumps(verdict.to_dict()))["evidence"]["tcb_date"] is None


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_both_stored_forms_say_the_same(service: Service, end: str) -> None:
    report = service.report()
    response = service.response(report)
    head, body = response[: -len(report.body)], response[-len(report.body) :]
    assert read_stored(head.replace(b"\r\n", end.encode()) + body) == report
    pem = b"".join(item.public_bytes(Encoding.PEM) for item in report.certificates)
    for signature in (report.signature, base64.b64encode(report.signature) + b"\n"):
        for certificates in (pem, urllib.parse.quote(pem).encode()):
            assert read_stored(report.body, signature, certificates) == report


def test_a_form_that_is_neither_is_wrong_usage(service: Service) -> None:
    report = service.report()
    for arguments in (
        (report.body,),
        (report.body, report.signature),
        (report.body, None, b"x"),
        (service.response(report), report.signature, b"x"),
        (b"",),
    ):
        with pytest.raises(InputError):
            read_stored(*arguments)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ("SW_HARDENING_NEEDED", "SWHardeningNeeded"),
        ("CONFIGURATION_NEEDED", "ConfigurationNeeded"),
        ("CONFIGURATION_AND_SW_HARDENING_NEEDED", "ConfigurationAndSWHardeningNeeded"),
        ("GROUP_OUT_OF_DATE", "OutOfDate"),
    ],
)
def test_each_status_must_be_named(service: Service, found: str, status: str) -> None:
    changed = service.report(
        service.body(isvEnclaveQuoteStatus=found, advisoryIDs=["INTEL-SA-00334"])
    )
    with pytest.raises(TcbStatusError, match="INTEL-SA-00334"):
        judge(service, changed).require()
    policy = all_of(MrEnclave(MRENCLAVE), TcbStatus(status))
    assert judge(service, changed, policy=policy).accepted


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("GROUP_REVOKED", RevokedError),
        ("KEY_REVOKED", RevokedError),
        ("SIGNATURE_REVOKED", RevokedError),
        ("SIGNATURE_INVALID", QuoteSignatureError),
        ("SIGRL_VERSION_MISMATCH", QuoteSignatureError),
        ("FINE", QuoteSignatureError),
    ],
)
def test_other_statuses_are_never_accepted(
    service: Service, status: str, error: type[AttestationError]
) -> None:
    changed = service.report(service.body(isvEnclaveQuoteStatus=status))
    every = all_of(AnyEnclave(), TcbStatus("UpToDate", "OutOfDate", "ConfigurationNeeded"))
    with pytest.raises(error, match=status):
        judge(service, changed, policy=every).require()


def test_another_enclave_is_refused(service: Service) -> None:
    with pytest.raises(WrongMeasurementError):
        judge(service, policy=MrEnclave(bytes(32))).require()


def test_a_debug_enclave_is_refused(service: Service) -> None:
    quote = epid_quote(flags=7)
    body = service.body(isvEnclaveQuoteBody=base64.b64encode(quote[:432]).decode())
    with pytest.raises(DebugEnclaveError):
        judge(service, service.report(body), quote=quote).require()


@pytest.mark.parametrize("offset", [0, 100, -1])
def test_a_changed_report_is_refused(service: Service, offset: int) -> None:
    report = service.report()
    body = bytearray(report.body)
    body[offset] ^= 1
    with pytest.raises(QuoteSignatureError):
        judge(service, dataclasses.replace(report, body=bytes(body))).require()


@pytest.mark.parametrize("signature", [b"", bytes(256), b"x" * 255])
def test_another_signature_is_refused(service: Service, signature: bytes) -> None:
    with pytest.raises(QuoteSignatureError):
        judge(service, dataclasses.replace(service.report(), signature=signature)).require()


def test_another_services_report_is_refused(service: Service) -> None:
    other = Service()
    for anchors in ([service.anchor], [intel_ias()], [intel(), intel_ias()], []):
        with pytest.raises(UntrustedRootError):
            judge(service, other.report(), anchors=anchors).require()


def test_the_root_does_not_sign_reports_itself(service: Service) -> None:
    body = service.body()
    signature = service.root_key.sign(body, padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(UntrustedRootError):
        judge(service, IasReport(body, signature, (service.root,))).require()


def test_a_report_without_certificates_is_refused(service: Service) -> None:
    with pytest.raises(IasReportError):
        judge(service, dataclasses.replace(service.report(), certificates=())).require()


@pytest.mark.parametrize("kind", ["EC", "short RSA"])
def test_signers_with_other_keys_are_refused(service: Service, kind: str) -> None:
    key: Any = (
        ec.generate_private_key(ec.SECP256R1())
        if kind == "EC"
        else rsa.generate_private_key(65537, 1024)
    )
    signer = certificate("Signer", key, service.root, service.root_key, ca=False)
    body = service.body()
    signature = b"x" if kind == "EC" else key.sign(body, padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(CertificateChainError, match="RSA"):
        judge(service, IasReport(body, signature, (signer,))).require()


@pytest.mark.parametrize("time", ["2016-11-21T00:00:00.0", "2026-11-21T00:00:00"])
def test_the_certificate_must_have_been_valid_then(service: Service, time: str) -> None:
    with pytest.raises(CertificateChainError, match="valid"):
        judge(service, service.report(service.body(timestamp=time))).require()


def test_a_report_of_the_future_is_refused(service: Service) -> None:
    with pytest.raises(IasReportError, match="future"):
        judge(service, now=THEN - datetime.timedelta(days=1)).require()
    assert judge(service, now=THEN).accepted


def test_the_report_must_be_about_this_quote(service: Service) -> None:
    other = bytearray(QUOTE)
    other[48 + 320] ^= 1
    with pytest.raises(IasReportError, match="another quote"):
        judge(service, quote=bytes(other)).require()


def test_the_body_of_a_quote_is_enough(service: Service) -> None:
    assert judge(service, quote=QUOTE[:432]).accepted


@pytest.mark.parametrize("quote", [QUOTE[:-1], QUOTE + b"\0", QUOTE[:433], QUOTE[:431], b"\2\0"])
def test_damaged_quotes_have_their_own_error(service: Service, quote: bytes) -> None:
    with pytest.raises(MalformedQuoteError):
        judge(service, quote=quote).require()


@pytest.mark.parametrize("quote", [b"", b"\2", b"\3\0" + QUOTE[2:]])
def test_other_quotes_have_their_own_error(service: Service, quote: bytes) -> None:
    with pytest.raises(UnsupportedQuoteError):
        judge(service, quote=quote).require()


@pytest.mark.parametrize(
    ("sent", "said", "accepted"),
    [
        (None, ..., True),
        ("0123456789abcdef", "0123456789abcdef", True),
        ("0123456789abcdef", "0123456789abcdee", False),
        ("0123456789abcdef", ..., False),
        ("", ..., True),
    ],
)
def test_the_nonce(service: Service, sent: str | None, said: Any, accepted: bool) -> None:
    verdict = judge(service, service.report(service.body(nonce=said)), nonce=sent)
    assert verdict.accepted == accepted
    if not accepted:
        with pytest.raises(ReportDataError, match="nonce"):
            verdict.require()


@pytest.mark.parametrize(
    "changes",
    [
        {"isvEnclaveQuoteBody": ...},
        {"isvEnclaveQuoteBody": "AAAA"},
        {"isvEnclaveQuoteBody": "?"},
        {"isvEnclaveQuoteBody": 7},
        {"isvEnclaveQuoteStatus": ...},
        {"isvEnclaveQuoteStatus": None},
        {"isvEnclaveQuoteStatus": "O\nK"},
        {"timestamp": "yesterday"},
        {"timestamp": 5},
        {"nonce": 5},
        {"advisoryIDs": 5},
        {"advisoryIDs": [5]},
    ],
)
def test_signed_nonsense_is_refused(service: Service, changes: Mapping[str, Any]) -> None:
    with pytest.raises(IasReportError):
        judge(service, service.report(service.body(**changes))).require()


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{" * 10000, b"\xff"])
def test_signed_bytes_that_are_no_report_are_refused(service: Service, body: bytes) -> None:
    with pytest.raises(AttestationError):
        judge(service, service.report(body)).require()


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_stored_garbage_is_refused(data: bytes) -> None:
    for arguments in ((data,), (b"HTTP/1.1 200 OK\r\n" + data,), (data, data, data)):
        with pytest.raises((IasReportError, InputError)):
            read_stored(*arguments)


def test_a_policy_file_must_name_the_retired_service(service: Service) -> None:
    text = f'version = 1\nmrenclave = "{MRENCLAVE.hex()}"\n'
    for roots, error in (("", UntrustedRootError), ('roots = ["intel-epid"]', UntrustedRootError)):
        with pytest.raises(error):
            judge(service, policy=parse_policy(text + roots)).require()
    named = parse_policy(text + f'roots = ["{service.anchor.fingerprint}"]')
    assert judge(service, policy=named).accepted


def test_an_epid_quote_has_its_fields() -> None:
    quote = parse_epid_quote(QUOTE)
    assert quote.header.sign_type == 1
    assert quote.header.epid_group_id == b"grp0"
    assert quote.report.mr_enclave == MRENCLAVE


class TestCommandLine:
    @pytest.fixture
    def files(self, service: Service, tmp_path: Path) -> Path:
        (tmp_path / "quote").write_bytes(QUOTE)
        (tmp_path / "answer").write_bytes(service.response(service.report()))
        (tmp_path / "body").write_bytes(service.report().body)
        (tmp_path / "root").write_text(service.anchor.certificate_pem)
        (tmp_path / "policy").write_text(
            f'version = 1\nmrenclave = "{MRENCLAVE.hex()}"\n'
            f'roots = ["{service.anchor.fingerprint}"]\n'
        )
        return tmp_path

    def test_a_stored_answer(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["quote", "verify", str(files / "quote"), "--ias-report", str(files / "answer")]
        command += ["--root", str(files / "root"), "--policy", str(files / "policy"), "--json"]
        assert run(command) == 0
        assert json.loads(capsys.readouterr().out)["accepted"] is True
        assert run([*command, "--ias-nonce", "ffff"]) == 3
        assert "nonce" in capsys.readouterr().err

    def test_without_the_root_it_is_not_intels(
        self, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["quote", "verify", str(files / "quote"), "--ias-report", str(files / "answer")]
        assert run(command) == 3
        assert "another root" in capsys.readouterr().err

    def test_a_body_without_its_signature(
        self, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["quote", "verify", str(files / "quote"), "--ias-report", str(files / "body")]
        assert run(command) == 2
        assert "--ias-signature" in capsys.readouterr().err

    def test_without_a_report_it_says_plainly_why_not(
        self, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["quote", "verify", str(files / "quote")]) == 3
        shown = capsys.readouterr().err
        assert "retired" in shown
        assert "--ias-report" in shown

    def test_show(self, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["quote", "show", str(files / "quote")]) == 0
        shown = capsys.readouterr().out
        assert "NOT VERIFIED" in shown
        assert "EPID" in shown
        assert MRENCLAVE.hex() in shown
