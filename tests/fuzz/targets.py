"""Every parser that faces the network or a file, with inputs to begin from.

A target takes bytes and may raise nothing but the errors that it documents; whatever else comes
out of it is a bug. ``corpus/NAME/`` holds inputs that once broke something, or reach far.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloister.attestation import Collateral, SimulatedBundle, TrustAnchor, intel, verify_quote
from cloister.attestation.anchors import intel_ias
from cloister.attestation.collateral import tee_and_fmspc
from cloister.attestation.dcap import kind_of
from cloister.attestation.evidence import epid_dict, quote_dict
from cloister.attestation.expiry import expires
from cloister.attestation.ias import read_stored, verify_ias_report
from cloister.attestation.pcs import (
    PCK_CRL_CHAIN,
    QE_IDENTITY_CHAIN,
    TCB_INFO_CHAIN,
    Answer,
    assemble,
)
from cloister.attestation.policy import AnyEnclave
from cloister.attestation.policy_file import parse_policy
from cloister.encrypted.backing import MemoryBacking
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.keys import parse_wrap_key
from cloister.encrypted.layout import METADATA, Metadata, seal_metadata
from cloister.encrypted.stream import decrypt, encrypt
from cloister.errors import CloisterError
from cloister.manifest.index import TrustedEntry, TrustedIndex, write_index
from cloister.manifest.parse import parse_manifest
from cloister.platforms.simulated.collateral import sign_raw
from cloister.provision import protocol
from cloister.ratls.certificate import attested_key, create_identity
from cloister.ratls.evidence import decode_evidence, encode_claims, require_key_claim
from cloister.sgx.elf import Elf
from cloister.sgx.epid import is_epid, parse_epid_quote
from cloister.sgx.quote import parse_quote
from cloister.sgx.report import Report
from cloister.sgx.sigstruct import Sigstruct
from cloister.tdx.event_log import ProgramEvent, decode_log, encode_log, replay
from worlds import World

DATA = Path(__file__).resolve().parent.parent / "data"
CORPUS = Path(__file__).resolve().parent / "corpus"
NOW = datetime.datetime(2025, 6, 20, 12, tzinfo=datetime.timezone.utc)
KEY = bytes(range(16))
PATH = "dir/file"


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        run: gives it bytes; raises what it raises.
        seeds: returns inputs to begin from; at least one of them is accepted.
        words: what texts of its kind are made of, for mutations that keep their shape.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()

    def survives(self, data: bytes) -> bool:
        """Give ``data`` to the parser; tell whether it was accepted.

        Raises:
            Exception: a bug: something that is not an error of ours.
        """
        try:
            self.run(data)
        except CloisterError:
            return False
        return True


@functools.cache
def world() -> World:
    """A simulated device for inputs that must be signed again after a change."""
    directory = Path(tempfile.mkdtemp(prefix="cloister-fuzz-"))
    return World(directory / "device", NOW)


@functools.cache
def real_collateral(name: str) -> Collateral:
    return Collateral.from_json((DATA / "quotes" / f"{name}_quote_collateral.json").read_bytes())


def real_quotes() -> list[bytes]:
    return [(DATA / "quotes" / f"{name}_quote").read_bytes() for name in ("sgx", "tdx")]


def run_quote(data: bytes) -> None:
    # A verdict is always given, whatever the bytes are.
    for name in ("sgx", "tdx"):
        verify_quote(
            data,
            collateral=real_collateral(name),
            anchors=[intel()],
            now=NOW,
            policy=AnyEnclave(),
        ).to_text()
    if is_epid(data):
        epid_dict(parse_epid_quote(data))
    quote = parse_quote(data)
    json.dumps(quote_dict(quote))
    kind_of(quote)


def run_collateral(data: bytes) -> None:
    collateral = Collateral.from_json(data)
    verdict = verify_quote(
        real_quotes()[0], collateral=collateral, anchors=[intel()], now=NOW, policy=AnyEnclave()
    )
    json.dumps(verdict.to_dict())
    tee_and_fmspc(collateral)
    expires(collateral)


def run_signed(field: str) -> Callable[[bytes], None]:
    """Return a run whose JSON is signed with the right key, to reach what lies behind that."""

    def run(data: bytes) -> None:
        signature = sign_raw(world().certified.device.authority.tcb_signer_key, data)
        try:
            changes: dict[str, Any] = {field: data.decode(), f"{field}_signature": signature}
        except UnicodeDecodeError:
            return
        collateral = dataclasses.replace(simulated_collateral(), **changes)
        verdict = world().verify(simulated_quote(), collateral=collateral, policy=AnyEnclave())
        json.dumps(verdict.to_dict())

    return run


@functools.cache
def simulated_collateral() -> Collateral:
    return world().collateral()


@functools.cache
def simulated_quote() -> bytes:
    return world().quote()


def run_bundle(data: bytes) -> None:
    SimulatedBundle.from_json(data)


def bundle_seeds() -> list[bytes]:
    anchor: TrustAnchor = world().anchor
    return [SimulatedBundle(anchor, simulated_collateral()).to_json().encode()]


def run_ias(data: bytes) -> None:
    stored = read_stored(data)
    quote = b"\2\0" + bytes(430)
    verdict = verify_ias_report(
        stored, quote, anchors=[intel_ias()], now=NOW, policy=AnyEnclave(), nonce="0"
    )
    json.dumps(verdict.to_dict())


def ias_seeds() -> list[bytes]:
    pem = intel_ias().certificate_pem.replace("\n", "%0A").replace(" ", "%20")
    head = f"X-IASReport-Signature: AAAA\r\nX-IASReport-Signing-Certificate: {pem}\r\n\r\n"
    return [f"HTTP/1.1 200 OK\r\n{head}{{}}".encode()]


def run_certificate(data: bytes) -> None:
    attested_key(data)


@functools.cache
def identity() -> Any:
    def quote_for(report_data: bytes) -> bytes:
        quote = bytearray(simulated_quote())
        quote[48 + 320 : 48 + 384] = report_data
        return bytes(quote)

    return create_identity(quote_for)


def run_evidence(data: bytes) -> None:
    """Read an extension's value, and the same bytes as claims."""
    try:
        require_key_claim(data, b"spki")
    finally:
        require_key_claim(decode_evidence(data).claims, b"spki")


def evidence_seeds() -> list[bytes]:
    claims = encode_claims(b"spki")
    with_log = encode_claims(b"spki", event_log_seeds()[1])
    return [claims, bytes.fromhex("d9ea6082430102035833") + claims, with_log]


def run_event_log(data: bytes) -> None:
    events = decode_log(data)
    replay(events)
    assert encode_log(events) == data


def event_log_seeds() -> list[bytes]:
    event = ProgramEvent(b"e" * 32, b"s" * 32, 4, 7, 3)
    return [encode_log([]), encode_log([event] * 3)]


def run_provision(data: bytes) -> None:
    try:
        protocol.check_request(data)
    except CloisterError:
        protocol.decode_head(data)


def run_pcs(data: bytes) -> None:
    """Read one body as each of a service's answers."""
    pem = "-----BEGIN%20CERTIFICATE-----%0A%ff"
    headers = {name.lower(): pem for name in (PCK_CRL_CHAIN, QE_IDENTITY_CHAIN, TCB_INFO_CHAIN)}
    info, identity_text = (
        b'{"tcbInfo":{},"signature":"00"}',
        b'{"enclaveIdentity":{},"signature":""}',
    )
    for bodies in ((data, identity_text, b"0"), (info, data, b"0"), (info, identity_text, data)):
        tcb_info, qe_identity, crl = (Answer(body, headers) for body in bodies)
        collateral = assemble(tcb_info=tcb_info, qe_identity=qe_identity, pck_crl=crl, root_crl=crl)
        Collateral.from_json(collateral.to_json())
        expires(collateral)


def pcs_seeds() -> list[bytes]:
    collateral = real_collateral("sgx")
    members = (("tcbInfo", collateral.tcb_info), ("enclaveIdentity", collateral.qe_identity))
    texts = [f'{{"{name}":{text},"signature":"00ff"}}'.encode() for name, text in members]
    return [*texts, collateral.pck_crl, collateral.root_ca_crl.hex().encode()]


def run_policy(data: bytes) -> None:
    parse_policy(data).describe()


POLICY = f"""version = 1
roots = ["intel", "{"0" * 64}"]
tcb_status = ["UpToDate", "OutOfDate"]
advisories = ["INTEL-SA-00615"]
minimum_tcb_date = 2024-03-13
[[any]]
mrenclave = ["{"ab" * 32}"]
attributes = {{ value = "{"00" * 16}", mask = "{"ff" * 16}" }}
[[any]]
mrsigner = "{"cd" * 32}"
isv_prod_id = 7
minimum_isv_svn = 3
[[any]]
all = [{{ mrtd = "{"ef" * 48}", rtmr0 = "{"00" * 48}" }}, {{ report_data = "{"11" * 64}" }}]
""".encode()


def run_encrypted(data: bytes) -> None:
    decrypt(data, KEY, PATH)


def encrypted_seeds() -> list[bytes]:
    return [encrypt(bytes(size), KEY, PATH, version=v) for size in (10, 9000) for v in (1, 2)]


def run_metadata(data: bytes) -> None:
    """Read a file whose node 0 says anything at all under the right key."""
    plain = Metadata(**METADATA.unpack(data.ljust(METADATA.size, b"\0")[: METADATA.size]))
    node0 = seal_metadata(plain, KEY, b"n" * 32, 2)
    decrypt(node0 + encrypted_seeds()[3][4096:], KEY, None)


def metadata_seeds() -> list[bytes]:
    root = {"root_key": bytes(16), "root_tag": bytes(16), "head": bytes(3072)}
    return [METADATA.pack(path=PATH.encode(), size=size, **root) for size in (5, 9000, 1 << 62)]


class _MemoryStore:
    """A recovery file in memory."""

    def __init__(self, log: bytes) -> None:
        self._log = log

    def needed(self) -> bool:
        return True

    def open(self) -> MemoryBacking:
        return MemoryBacking(self._log)

    def create(self) -> MemoryBacking:
        return MemoryBacking()

    def remove(self) -> None:
        pass


def run_recovery(data: bytes) -> None:
    """Undo an interrupted write by a recovery file that holds anything."""
    main = bytearray(encrypted_seeds()[3])
    main[58] |= 1
    for writable in (False, True):
        backing = MemoryBacking(main)
        file = EncryptedContent.open(
            backing, KEY, PATH, name=PATH, store=_MemoryStore(data), writable=writable
        )
        file.read(0, file.size)


def recovery_seeds() -> list[bytes]:
    file = encrypted_seeds()[3]
    nodes = range(len(file) // 4096)
    records = [struct.pack("<Q", n) + file[n * 4096 : n * 4096 + 4096] for n in nodes]
    return [b"".join(records), records[0]]


def run_sigstruct(data: bytes) -> None:
    Sigstruct.unpack(data).verify()


def sigstruct_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "signing").glob("*.sig"))]


def run_report(data: bytes) -> None:
    Report.unpack(data).mac_is_valid(KEY)


def run_index(data: bytes) -> None:
    index = TrustedIndex.load(data, hashlib.sha256(data).digest())
    for path, _ in index.entries():
        index.number(path)


def index_seeds() -> list[bytes]:
    entry = TrustedEntry(5, b"d" * 32, b"c" * 32)
    return [write_index({}), write_index({"file:a": entry, "file:b/ä": entry})]


def run_manifest(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    parse_manifest(text, "fuzz.manifest")


def manifest_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "signing").glob("*.manifest*"))]


def run_elf(data: bytes) -> None:
    elf = Elf(data, "fuzz.so")
    for segment in elf.loadable():
        elf.content(segment)
    elf.interpreter()
    elf.dynamic()


def run_wrap_key(data: bytes) -> None:
    parse_wrap_key(data, name="fuzz.key")


_JSON = tuple(b'{ } [ ] , : " null true 0 -1 1e999 "" \\ud800 9999999999999999999999'.split(b" "))
_TOML = (*_JSON, b"=", b"[[any]]", b"\n", b"'", b'"""', b"1979-05-27T07:32:00Z", b"#", b".")
_INFO = (*_JSON, b'"tcbLevels"', b'"isvsvn"', b'"Revoked"', b'"OutOfDate"', b'"svn"', b"256")

TARGETS: dict[str, Target] = {
    "quote": Target(run_quote, lambda: [*real_quotes(), simulated_quote()]),
    "collateral": Target(
        run_collateral, lambda: [real_collateral("sgx").to_json().encode()], words=_JSON
    ),
    "tcb-info": Target(
        run_signed("tcb_info"), lambda: [simulated_collateral().tcb_info.encode()], words=_INFO
    ),
    "qe-identity": Target(
        run_signed("qe_identity"),
        lambda: [simulated_collateral().qe_identity.encode()],
        words=_INFO,
    ),
    "bundle": Target(run_bundle, bundle_seeds, words=_JSON),
    "ias-report": Target(run_ias, ias_seeds, words=_JSON),
    "certificate": Target(run_certificate, lambda: [identity().der]),
    "evidence": Target(run_evidence, evidence_seeds),
    "event-log": Target(run_event_log, event_log_seeds),
    "provision": Target(run_provision, lambda: [protocol.REQUEST, protocol.encode_head(5)]),
    "pcs": Target(run_pcs, pcs_seeds, words=_JSON),
    "policy": Target(run_policy, lambda: [POLICY], words=_TOML),
    "encrypted": Target(run_encrypted, encrypted_seeds),
    "metadata": Target(run_metadata, metadata_seeds),
    "recovery": Target(run_recovery, recovery_seeds),
    "sigstruct": Target(run_sigstruct, sigstruct_seeds),
    "report": Target(run_report, lambda: [bytes(432)]),
    "index": Target(run_index, index_seeds),
    "manifest": Target(run_manifest, manifest_seeds, words=_TOML),
    "elf": Target(run_elf, lambda: [(DATA / "signing" / "pal.so").read_bytes()]),
    "wrap-key": Target(run_wrap_key, lambda: [KEY, KEY.hex().encode()]),
}


def inputs(name: str) -> list[bytes]:
    """Return a target's seeds and what is in its corpus."""
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in kept)]
