"""The simulated device on disk: made once per machine, then the same for ever. SIMULATED.

``device.json`` holds the fused keys and the manufacturer's keys (0600 in a 0700 directory);
``issued.json`` what the manufacturer published last, made anew before it expires. A lock file
keeps two processes that start at once from making two devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from cloister.attestation.collateral import Collateral
from cloister.files import make_private_directory, write_atomically
from cloister.platforms.simulated import authority as ca
from cloister.platforms.simulated.collateral import (
    LIFETIME,
    Conditions,
    Issued,
    PckChain,
    issue_chain,
    issue_collateral,
)
from cloister.platforms.simulated.cpu import CPU_SVN
from cloister.platforms.simulated.fused import (
    DEVICE_FILE,
    FORMAT,
    damage_is_an_error,
    exact,
    parse_fused,
    refuse_open_permissions,
)
from cloister.platforms.simulated.quoting import PCE_SVN, QUOTING_ENCLAVE
from cloister.sgx.keys import FusedKeys

FMSPC = b"SIMCPU"
PCE_ID = bytes(2)
RENEW_BEFORE = datetime.timedelta(days=10)
"""Collateral that holds for less than this is issued anew."""


@dataclasses.dataclass(frozen=True)
class Device:
    """One simulated device: its own keys and its manufacturer's."""

    fused: FusedKeys
    pck_key: ca.PrivateKey = dataclasses.field(repr=False)
    ppid: bytes
    authority: ca.Authority

    @property
    def pck_identity(self) -> ca.PckIdentity:
        """What the device's PCK certificate states."""
        return ca.PckIdentity(
            ppid=self.ppid, cpu_svn=CPU_SVN, pce_svn=PCE_SVN, pce_id=PCE_ID, fmspc=FMSPC
        )

    def issue_chain(self, now: datetime.datetime) -> PckChain:
        """Let the manufacturer certify this device."""
        return issue_chain(
            self.authority, device=self.pck_identity, pck_key=self.pck_key.public_key(), now=now
        )

    def issue_collateral(
        self, chain: PckChain, now: datetime.datetime, conditions: Conditions | None = None
    ) -> Issued:
        """Let the manufacturer publish the collateral of this device."""
        return issue_collateral(
            self.authority,
            chain,
            device=self.pck_identity,
            quoting_enclave=QUOTING_ENCLAVE,
            now=now,
            conditions=conditions,
        )


class Certified(NamedTuple):
    """A device with its certificates and the collateral that was published last."""

    device: Device
    chain: PckChain
    issued: Issued


@dataclasses.dataclass(frozen=True)
class DeviceStore:
    """The directory of one simulated device."""

    directory: Path

    def open(self, now: datetime.datetime) -> Certified:
        """Return the device, made if there is none, and its certificates, renewed if near expiry.

        Raises:
            PlatformError: the files are damaged, or others may read the keys.
        """
        make_private_directory(self.directory)
        refuse_open_permissions(self.directory)
        with self._locked():
            device = self._load_or_make(now)
            return self._load_or_issue(device, now)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.directory / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _load_or_make(self, now: datetime.datetime) -> Device:
        path = self.directory / DEVICE_FILE
        if not path.exists():
            text = json.dumps(_new_device(now), indent=1)
            write_atomically(path, text.encode(), mode=0o600, replace=False)
        refuse_open_permissions(path)
        with damage_is_an_error(path):
            return _parse_device(json.loads(path.read_bytes()))

    def _load_or_issue(self, device: Device, now: datetime.datetime) -> Certified:
        path = self.directory / "issued.json"
        chain: PckChain | None = None
        if path.exists():
            with damage_is_an_error(path):
                chain, issued = _parse_issued(json.loads(path.read_bytes()))
            if not chain.holds_for(LIFETIME + RENEW_BEFORE, now=now):
                chain = None
            elif issued.holds_for(RENEW_BEFORE, now=now):
                return Certified(device, chain, issued)
        chain = chain or device.issue_chain(now)
        issued = device.issue_collateral(chain, now)
        text = json.dumps(_issued_json(chain, issued), indent=1)
        write_atomically(path, text.encode(), mode=0o600)
        return Certified(device, chain, issued)


def _new_device(now: datetime.datetime) -> dict[str, Any]:
    root_key = ec.generate_private_key(ec.SECP256R1())
    not_before = now.replace(microsecond=0) - datetime.timedelta(days=1)
    root = ca.make_root(root_key, not_before=not_before)
    return {
        "format": FORMAT,
        "note": "SIMULATED: these keys protect nothing; whoever reads them can forge quotes",
        "fused": {name: secrets.token_hex(16) for name in ("seal", "report", "owner_epoch")},
        "provisioning": secrets.token_hex(32),
        "ppid": secrets.token_hex(16),
        "root_key": _key_hex(root_key),
        "pck_ca_key": _key_hex(ec.generate_private_key(ec.SECP256R1())),
        "tcb_signer_key": _key_hex(ec.generate_private_key(ec.SECP256R1())),
        "root": ca.chain_pem(root),
    }


def _parse_device(data: dict[str, Any]) -> Device:
    return Device(
        fused=parse_fused(data),
        pck_key=ca.derive_private_key(exact(data["provisioning"], 32)),
        ppid=exact(data["ppid"], 16),
        authority=ca.Authority(
            root_key=_load_key(data["root_key"]),
            pck_ca_key=_load_key(data["pck_ca_key"]),
            tcb_signer_key=_load_key(data["tcb_signer_key"]),
            root=x509.load_pem_x509_certificate(data["root"].encode()),
        ),
    )


def _issued_json(chain: PckChain, issued: Issued) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "this_update": issued.this_update.isoformat(),
        "next_update": issued.next_update.isoformat(),
        "pck_chain": chain.to_pem(),
        "collateral": issued.collateral.to_dict(),
    }


def _parse_issued(data: dict[str, Any]) -> tuple[PckChain, Issued]:
    if data["format"] != FORMAT:
        raise ValueError("format")
    issued = Issued(
        collateral=Collateral.from_dict(data["collateral"]),
        this_update=datetime.datetime.fromisoformat(data["this_update"]),
        next_update=datetime.datetime.fromisoformat(data["next_update"]),
    )
    return PckChain.from_pem(data["pck_chain"]), issued


def _key_hex(key: ca.PrivateKey) -> str:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()).hex()


def _load_key(text: str) -> ca.PrivateKey:
    key = load_der_private_key(bytes.fromhex(text), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an EC key")
    return key
