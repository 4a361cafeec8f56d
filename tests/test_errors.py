"""Every error of the catalogue is provoked, and says what, where and what to do.

``PROVOKED`` names for each class a function that meets it as a user or a caller would, on real
files, quotes and sockets, and words that the message must contain: the file, the peer, or the thing
at fault. A new class of ``cloister.errors`` needs a line here.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import inspect
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from applications import SIGNING_KEY
from cloister import errors as e
from cloister.attestation import intel
from cloister.attestation.anchors import TrustAnchor
from cloister.attestation.conditions import ReportData
from cloister.attestation.dcap import kind_of
from cloister.attestation.ias import read_stored
from cloister.attestation.policy import AnyEnclave, MrEnclave, MrSigner, Policy, all_of
from cloister.attestation.service import CollateralService
from cloister.attestation.trust import Authenticator, Trust
from cloister.cli.main import cli
from cloister.doctor import tiny_run
from cloister.encrypted import whole
from cloister.encrypted.file import EncryptedFile
from cloister.encrypted.keys import read_wrap_key
from cloister.errors import CloisterError
from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform
from cloister.platforms.simulated import authority as ca
from cloister.platforms.simulated.collateral import Conditions
from cloister.platforms.simulated.pccs import SimulatedBackend
from cloister.platforms.tdx.reports import Reports
from cloister.provision import protocol
from cloister.provision.audit import AuditLog
from cloister.provision.certificates import make_server_certificates
from cloister.provision.client import fetch_secret
from cloister.provision.database import open_database
from cloister.provision.decision import ClientJudge, Secret
from cloister.provision.request import ProvisioningRequest
from cloister.provision.store_key import load_store_key
from cloister.ratls.certificate import attested_key, create_identity
from cloister.ratls.peer import judging_context
from cloister.sgx.keys import KeyRequest
from cloister.sgx.quote import pack_quote_v3, parse_quote
from cloister.sgx.report import Attribute
from cloister.tdx.event_log import decode_log
from signing import IMAGE, PARAMETERS, signed
from worlds import PRODUCTION, TD_REPORT, World, new_quote, tdx_collateral, with_chain

UTC = datetime.timezone.utc
NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=UTC)
DATA = Path(__file__).parent / "data"


class Scene:
    """A directory of the test's own, and what the functions below need of the world."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = directory / "wrap-key"
        self.key.write_bytes(bytes(range(16)))

    @functools.cached_property
    def world(self) -> World:
        return World(self.directory / "device", NOW)

    @functools.cached_property
    def platform(self) -> SimulatedPlatform:
        return SimulatedPlatform(self.directory / "platform")

    def enclave(self, manifest: bytes = b"manifest") -> SimulatedEnclave:
        return self.start(manifest, signed_as=manifest)

    def start(self, manifest: bytes, *, signed_as: bytes, flags: int = 4) -> SimulatedEnclave:
        sigstruct = signed(signed_as, flags=flags).pack()
        return self.platform.start(
            manifest=manifest, sigstruct=sigstruct, image=IMAGE, **PARAMETERS
        )

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def encrypted(self, name: str = "file.pf", size: int = 20_000) -> Path:
        """Return an encrypted file of several nodes."""
        path = self.directory / name
        plain = self.write("plain", bytes(size))
        whole.encrypt(plain, path, read_wrap_key(self.key), name)
        return path

    def template(self, **settings: str) -> Path:
        """Return a template that builds, with some keys set otherwise."""
        keys = {"libos.entrypoint": '"/bin/cat"', "sgx.enclave_size": '"16M"', **settings}
        trusted = self.write("trusted.txt", "text\n").name
        keys["sgx.trusted_files"] = f'["file:{trusted}"]'
        text = "".join(f"{name} = {value}\n" for name, value in keys.items())
        return self.write("app.manifest.template", text)

    def verify(self, policy: Policy | None = None, **changes: int) -> None:
        """Verify a quote; the enclave's identity may be changed."""
        identity = PRODUCTION._replace(**changes)  # type: ignore[arg-type]
        self.world.verify(self.world.quote(identity), policy=policy).require()

    def verify_tdx(self, **changes: object) -> None:
        report = TD_REPORT._replace(**changes)  # type: ignore[arg-type]
        quote = new_quote(self.world, report.pack())
        self.world.verify(
            quote, collateral=tdx_collateral(self.world), policy=AnyEnclave()
        ).require()

    def bad_day(self, **conditions: object) -> None:
        """Verify a good quote with the collateral of a bad day."""
        collateral = self.world.collateral(Conditions(**conditions))  # type: ignore[arg-type]
        self.world.verify(collateral=collateral).require()


def command(*words: object) -> None:
    """Run ``cloister``; its errors come through as what they are."""
    cli.main([str(word) for word in words], prog_name="cloister", standalone_mode=False)


# Functions that take more than a line


def no_program(scene: Scene) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(scene.directory))
        tiny_run()


def no_fuse(scene: Scene) -> None:
    """Run where ``/dev`` is empty, in a namespace of its own."""
    scene.write("app.manifest", 'libos.entrypoint = "/bin/true"\n')
    program = (
        "import json; from cloister.cli.main import cli\n"
        "from cloister.errors import CloisterError\n"
        "try: cli.main(['run', '--mode', 'direct', 'app'], standalone_mode=False)\n"
        "except CloisterError as e: print(json.dumps([type(e).__name__, e.message, e.hint]))\n"
    )
    script = 'mount -t tmpfs none /dev && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, sys.executable,
         program],
        cwd=scene.directory, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout, done.stderr
    name, message, hint = json.loads(done.stdout)
    raise getattr(e, name)(message, hint=hint)


def no_executable(scene: Scene) -> None:
    scene.write("data.txt", "no program\n")
    mount = 'fs.mounts = [{ path = "/data.txt", uri = "file:data.txt" }]'
    scene.write("app.manifest", f'libos.entrypoint = "/data.txt"\n{mount}\n')
    command("run", "--mode", "direct", scene.directory / "app")


def no_sealing_keys(scene: Scene) -> None:
    from cloister.platforms.base import SealingPolicy
    from cloister.platforms.tdx.platform import TdxEnclave
    from cloister.platforms.tdx.programs import Programs
    from cloister.platforms.tdx.register import DeviceRegister
    from cloister.tdx.event_log import ProgramEvent

    reports = Reports(scene.directory / "absent")
    event = ProgramEvent(bytes(32), bytes(32), 4, 1, 1)
    programs = Programs(DeviceRegister(scene.directory / "tdx_guest"))
    TdxEnclave(event, reports, programs).sealing_key(SealingPolicy.MRENCLAVE)


def anothers_report(scene: Scene) -> None:
    one, other = scene.enclave(b"one"), scene.enclave(b"other")
    one.verify_report(other.report(other.target_info(), bytes(64)))


def closed_root(scene: Scene) -> None:
    key = scene.world.certified.device.authority.root_key
    future = ca.make_root(key, not_before=datetime.datetime(2049, 1, 1, tzinfo=UTC))
    quote = with_chain(scene.world.quote(), scene.world.certified.chain, future)
    scene.world.verify(quote, anchors=[TrustAnchor(future)]).require()


def broken_chain(scene: Scene) -> None:
    quote = scene.world.quote()
    signature = parse_quote(quote).signature
    broken = signature._replace(certification_data=b"no certificates")
    scene.world.verify(pack_quote_v3(quote[:432], broken)).require()


def changed_quote(scene: Scene) -> None:
    quote = bytearray(scene.world.quote())
    quote[400] ^= 1
    scene.world.verify(bytes(quote)).require()


def no_service(scene: Scene) -> None:
    service = CollateralService("http://127.0.0.1:1", scene.world.anchor)
    service.get(kind_of(parse_quote(scene.world.quote())))


def judged_by(scene: Scene, *names: str) -> None:
    """Ask a key server that has these secrets, all of them for the enclave that asks."""
    enclave, bundle = scene.enclave(), scene.platform.export()
    trust = Trust(((bundle.anchor, bundle.collateral),))
    policy = MrEnclave(enclave.mrenclave)
    secrets = [Secret(name, bytearray(16), policy) for name in names]
    judge = ClientJudge(secrets, Authenticator(trust, lambda: datetime.datetime.now(UTC)))
    judge(create_identity(enclave.quote).der).verdict.require()


def unknown_head(scene: Scene) -> None:
    AuditLog(open_database(str(scene.directory / "audit.db")), None).verify(known="00" * 32)


def changed_certificate(scene: Scene) -> None:
    """The real tool's sample: its quotes vouch for no key."""
    from cryptography import x509

    text = (DATA / "ratls" / "gramine_ratls_cert.pem").read_bytes().rstrip(b"\0")
    certificate = x509.load_pem_x509_certificate(text.replace(b"TRUSTED ", b""))
    attested_key(certificate.public_bytes(Encoding.DER))


@contextlib.contextmanager
def tls_server(scene: Scene, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A TLS server without evidence, which hangs up after the handshake; yields its port."""
    context = context or certified(scene)

    def serve(listener: socket.socket) -> None:
        connected, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(connected, server_side=True):
            pass

    with socket.create_server(("localhost", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def certified(scene: Scene) -> ssl.SSLContext:
    made = make_server_certificates(
        ["localhost"], now=datetime.datetime.now(UTC), lifetime=datetime.timedelta(days=1)
    )
    scene.write("ca.crt", made.ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        scene.write("server.crt", made.certificate), scene.write("server.key", made.key)
    )
    return context


def require_evidence(certificate: bytes) -> None:
    attested_key(certificate)


def ordinary_server(scene: Scene) -> None:
    with (
        tls_server(scene) as port,
        socket.create_connection(("localhost", port), 10) as raw,
    ):
        judging_context(require_evidence).wrap_socket(raw, server_hostname="localhost")


def anonymous_server(scene: Scene) -> None:
    """A server that shows no certificate at all."""
    ciphers = "AECDH-AES128-SHA:@SECLEVEL=0"
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), judging_context(require_evidence)
    for context in (server, client):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
    with (
        tls_server(scene, server) as port,
        socket.create_connection(("localhost", port), 10) as raw,
    ):
        client.wrap_socket(raw, server_hostname="localhost")


def refusing_server(scene: Scene) -> None:
    with tls_server(scene) as port:
        ca_chain = (scene.directory / "ca.crt").read_bytes()
        request = ProvisioningRequest.for_key("default", f"localhost:{port}", ca_chain)
        fetch_secret(scene.enclave(), request, timeout=10)


def absent_server(scene: Scene) -> None:
    made = make_server_certificates(["localhost"], now=NOW, lifetime=datetime.timedelta(days=1))
    request = ProvisioningRequest.for_key("default", "localhost:1", made.ca)
    fetch_secret(scene.enclave(), request, timeout=10)


def decrypted(scene: Scene, change: Callable[[bytearray], object], *more: str) -> None:
    """Change an encrypted file, then decrypt it."""
    path = scene.encrypted()
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    command("decrypt", "-k", scene.key, *more, path, "-")


def set_byte(place: int, value: int) -> Callable[[bytearray], object]:
    return lambda data: data.__setitem__(place, value)


def locked_file(scene: Scene) -> None:
    path = scene.encrypted()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        EncryptedFile.open_path(path, read_wrap_key(scene.key), "file.pf", writable=True)


def locked_key(scene: Scene) -> None:
    key = rsa.generate_private_key(3, 3072)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin.isatty", lambda: False)
        command("signing-key", "show", scene.write("locked.pem", pem))


def exchanged_index(scene: Scene) -> None:
    command("build", "--key", SIGNING_KEY, scene.template())
    scene.write("app.index", b"another")
    command("run", scene.directory / "app")


def wrong_policy(scene: Scene) -> None:
    quote = scene.write("quote", scene.world.quote())
    policy = scene.write("policy.toml", "version = 1\n")
    bundle = scene.write("bundle.json", scene.platform.export().to_json())
    command("quote", "verify", quote, "--policy", policy, "--trust-simulated", bundle)


class Provoked(NamedTuple):
    """How an error is met, and what its text must name."""

    by: Callable[[Scene], object]
    names: str


PROVOKED: dict[type[CloisterError], Provoked] = {
    e.CloisterError: Provoked(no_program, "true"),
    e.InputError: Provoked(
        lambda s: command("sigstruct", "show", s.directory / "absent"), "absent"
    ),
    e.PlatformError: Provoked(lambda s: Reports(s.directory / "absent").quote(bytes(64)), "absent"),
    e.UnsupportedByPlatformError: Provoked(no_sealing_keys, "sealing keys"),
    e.EnclaveStartError: Provoked(lambda s: s.start(b"m", signed_as=b"m", flags=0), "MODE64"),
    e.MeasurementMismatchError: Provoked(lambda s: s.start(b"m", signed_as=b"n"), "MRENCLAVE"),
    e.KeyRequestError: Provoked(lambda s: KeyRequest.unpack(b"\xff" * 512), "KEYREQUEST"),
    e.ReportMacError: Provoked(anothers_report, "REPORT"),
    e.AttestationError: Provoked(judged_by, "no secret in the store"),
    e.MalformedQuoteError: Provoked(
        lambda s: command("quote", "show", s.write("quote.bin", b"\3\0")), "quote.bin"
    ),
    e.UnsupportedQuoteError: Provoked(
        lambda s: s.world.verify(
            new_quote(s.world, s.world.quote()[48:432], tdx=False)
        ).require(),
        "version",
    ),
    e.UntrustedRootError: Provoked(
        lambda s: s.world.verify(anchors=[intel()]).require(), "another root"
    ),
    e.RootValidityError: Provoked(closed_root, "2049"),
    e.CertificateChainError: Provoked(broken_chain, "certificate chain"),
    e.RevokedError: Provoked(lambda s: s.bad_day(pck_revoked=True), "revocation list"),
    e.CollateralError: Provoked(
        lambda s: s.world.verify(collateral=s.world.edited("tcb_info", pceId="0001")).require(),
        "PCE id",
    ),
    e.ExpiredCollateralError: Provoked(
        lambda s: s.bad_day(lifetime=datetime.timedelta(seconds=-1)), "out of date"
    ),
    e.CollateralFetchError: Provoked(no_service, "http://127.0.0.1:1"),
    e.CollateralNotFoundError: Provoked(
        lambda s: SimulatedBackend(s.world.collateral).answer("/tcb", {"fmspc": "0" * 12}), "FMSPC"
    ),
    e.QuoteSignatureError: Provoked(changed_quote, "signature"),
    e.QuotingEnclaveError: Provoked(
        lambda s: s.world.verify(
            collateral=s.world.edited("qe_identity", mrsigner="00" * 32)
        ).require(),
        "quoting enclave",
    ),
    e.IasReportError: Provoked(lambda s: read_stored(b"HTTP/1.1 200 OK\r\n", None, None), "report"),
    e.EventLogError: Provoked(lambda s: decode_log(b"\xff"), "event log"),
    e.TdxModuleError: Provoked(
        lambda s: s.verify_tdx(seam_attributes=b"\1" + bytes(7)), "TDX module"
    ),
    e.TcbStatusError: Provoked(
        lambda s: s.world.verify(
            collateral=s.world.collateral(Conditions(tcb_status="OutOfDate")),
            policy=None,
        ).require(),
        "OutOfDate",
    ),
    e.DebugEnclaveError: Provoked(
        lambda s: s.verify(flags=PRODUCTION.flags | Attribute.DEBUG), "debug"
    ),
    e.EnclaveAttributesError: Provoked(
        lambda s: s.verify(flags=PRODUCTION.flags | Attribute.PROVISION_KEY), "PROVISION_KEY"
    ),
    e.WrongMeasurementError: Provoked(lambda s: s.verify(MrEnclave(b"x" * 32)), "MRENCLAVE"),
    e.WrongSignerError: Provoked(lambda s: s.verify(MrSigner(b"x" * 32, 1, 1)), "MRSIGNER"),
    e.ReportDataError: Provoked(
        lambda s: s.verify(all_of(AnyEnclave(), ReportData(b"x" * 64))), "report data"
    ),
    e.PolicyError: Provoked(wrong_policy, "policy.toml"),
    e.AmbiguousSecretError: Provoked(lambda s: judged_by(s, "one", "other"), "one, other"),
    e.StoreError: Provoked(lambda s: open_database("sqlite:////no/such/place/x.db"), "database"),
    e.StoreKeyError: Provoked(lambda s: load_store_key(f"file:{s.directory}/absent"), "absent"),
    e.AuditError: Provoked(unknown_head, "audit log"),
    e.RaTlsError: Provoked(anonymous_server, "certificate"),
    e.EvidenceFormatError: Provoked(ordinary_server, "no evidence"),
    e.BindingError: Provoked(changed_certificate, "report data"),
    e.PeerError: Provoked(
        lambda s: command(
            "attest", "localhost:1", "--trust-simulated",
            s.write("bundle.json", s.platform.export().to_json()),
        ),
        "localhost:1",
    ),
    e.ProvisioningError: Provoked(absent_server, "localhost:1"),
    e.ProvisioningRefusedError: Provoked(refusing_server, "localhost:"),
    e.ProtocolError: Provoked(lambda s: protocol.decode_head(bytes(41)), "magic"),
    e.WrapKeyError: Provoked(lambda s: read_wrap_key(s.write("short", b"123")), "short"),
    e.NotEncryptedError: Provoked(
        lambda s: command("decrypt", "-k", s.key, s.write("plain.txt", "x" * 9000), "-"),
        "plain.txt",
    ),
    e.UnsupportedVersionError: Provoked(lambda s: decrypted(s, set_byte(8, 9)), "file.pf"),
    e.EmbeddedPathError: Provoked(
        lambda s: command("encrypt", "-k", s.key, "--as", "x" * 800, s.write("a", "b"), "-"),
        "path",
    ),
    e.WrongKeyError: Provoked(lambda s: decrypted(s, set_byte(100, 1)), "file.pf"),
    e.TamperedError: Provoked(
        lambda s: decrypted(s, lambda data: data.__setitem__(-1, data[-1] ^ 1)), "file.pf"
    ),
    e.TruncatedError: Provoked(lambda s: decrypted(s, lambda data: data.pop()), "file.pf"),
    e.RenamedError: Provoked(
        lambda s: decrypted(s, lambda data: None, "--as", "elsewhere.pf"), "elsewhere.pf"
    ),
    e.RecoveryError: Provoked(
        lambda s: decrypted(s, lambda data: data.__setitem__(58, data[58] | 1)), "file.pf"
    ),
    e.InUseError: Provoked(locked_file, "file.pf"),
    e.ElfError: Provoked(
        lambda s: command(
            "build", "--libpal", s.write("no.elf", "text"), "--key", SIGNING_KEY, s.template()
        ),
        "runtime image",
    ),
    e.MeasurementError: Provoked(
        lambda s: command(
            "build", "--key", SIGNING_KEY,
            s.template(**{"sgx.enclave_size": '"1M"', "sgx.max_threads": "64"}),
        ),
        "sgx.enclave_size",
    ),
    e.SigningKeyError: Provoked(
        lambda s: command("build", "--key", s.write("no.pem", "text"), s.template()), "no.pem"
    ),
    e.EncryptedKeyError: Provoked(locked_key, "locked.pem"),
    e.SigstructError: Provoked(
        lambda s: command("sigstruct", "verify", s.write("app.sig", bytes(1808))), "app.sig"
    ),
    e.ManifestError: Provoked(
        lambda s: command(
            "build", "--key", SIGNING_KEY, s.template(**{"sgx.enclave_sise": '"1M"'})
        ),
        "app.manifest.template:3: sgx.enclave_sise",
    ),
    e.TrustedIndexError: Provoked(exchanged_index, "app.index"),
    e.SandboxError: Provoked(no_fuse, "/dev/fuse"),
    e.ProgramStartError: Provoked(no_executable, "/data.txt"),
}  # fmt: skip

FAMILIES = {
    e.RefusedError: "gives its exit code to those below it",
    e.EncryptedFileError: "is for callers that treat all causes alike",
    e.AuthenticationError: "wrong key or changed file: each has its own class",
}
"""Classes that are never raised themselves."""


def all_errors() -> set[type[CloisterError]]:
    return {
        item
        for item in vars(e).values()
        if inspect.isclass(item) and issubclass(item, CloisterError)
    }


def test_every_error_is_provoked() -> None:
    assert all_errors() == {*PROVOKED, *FAMILIES}
    assert not {*PROVOKED} & {*FAMILIES}


@pytest.mark.parametrize("error", PROVOKED, ids=lambda error: error.__name__)
def test_an_error_says_what_where_and_what_to_do(
    error: type[CloisterError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CloisterError) as caught:
        PROVOKED[error].by(Scene(tmp_path))
    found = caught.value
    assert type(found) is error, f"{type(found).__name__}: {found.message}"
    assert PROVOKED[error].names in found.message
    assert found.message.isprintable(), "one line, nothing that moves a terminal's cursor"
    assert found.exit_code in (1, 2, 3)
    if error.default_hint is not None:
        assert found.hint
    if found.hint is not None:
        assert found.hint.isprintable()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_family_is_never_raised_itself(family: type[CloisterError]) -> None:
    source = Path(inspect.getfile(e)).parent
    assert family.__subclasses__()
    for path in source.rglob("*.py"):
        assert f"raise {family.__name__}(" not in path.read_text(encoding="utf-8"), path
