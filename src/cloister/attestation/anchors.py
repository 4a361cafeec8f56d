"""Trust anchors: the root certificates under which quotes are believed.

Intel's root is built in. Every other root belongs to a simulated platform (or to someone who
plays Intel's part) and is believed only by a verifier that was given it by name; what it
vouches for is always called SIMULATED.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.resources

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import InputError

INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""SHA-256 of the DER of "Intel SGX Root CA" (valid 2018-05-21 to 2049-12-31)."""
INTEL_IAS_SHA256 = "7b42e41ec43b91db834a065de4f98a13c44d695570e839cfa8921e584e40735d"
"""SHA-256 of the DER of "Intel SGX Attestation Report Signing CA" (valid 2016-11-14 to 2049-12-31).

The retired EPID service's. Only verification of stored reports ever names it.
"""


@dataclasses.dataclass(frozen=True)
class TrustAnchor:
    """A root certificate that the verifier chose to believe."""

    certificate: x509.Certificate

    @functools.cached_property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def certificate_pem(self) -> str:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, lower-case hex."""
        return hashlib.sha256(self.der).hexdigest()

    @functools.cached_property
    def name(self) -> str:
        """The certificate's subject, for people."""
        return self.certificate.subject.rfc4514_string()

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind it: true for every root but Intel's own."""
        return self.fingerprint not in (INTEL_ROOT_SHA256, INTEL_IAS_SHA256)

    @classmethod
    def from_pem(cls, pem: str | bytes) -> TrustAnchor:
        """Read one certificate.

        Raises:
            InputError: not one PEM certificate.
        """
        try:
            data = pem.encode() if isinstance(pem, str) else pem
            (certificate,) = x509.load_pem_x509_certificates(data)
        except (ValueError, x509.InvalidVersion) as error:
            raise InputError("root certificate: expected exactly one PEM certificate") from error
        return cls(certificate)

    def is_valid_at(self, now: datetime.datetime) -> bool:
        """Tell whether ``now`` (aware) lies within the certificate's validity."""
        certificate = self.certificate
        return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc

    def issued(self, certificate: x509.Certificate) -> bool:
        """Tell whether this root signed ``certificate`` (or is it).

        A variant of the root itself (the same key, another encoding) is neither.
        """
        if certificate == self.certificate:
            return True
        try:
            certificate.verify_directly_issued_by(self.certificate)
            return certificate.public_key() != self.certificate.public_key()
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return False


@functools.cache
def intel() -> TrustAnchor:
    """Return Intel's SGX and TDX root."""
    return _built_in("intel_sgx_root.pem", INTEL_ROOT_SHA256)


@functools.cache
def intel_ias() -> TrustAnchor:
    """Return the root of Intel's retired EPID service."""
    return _built_in("intel_ias_root.pem", INTEL_IAS_SHA256)


def _built_in(name: str, fingerprint: str) -> TrustAnchor:
    pem = importlib.resources.files(__package__).joinpath(name).read_bytes()
    anchor = TrustAnchor.from_pem(pem)
    if anchor.fingerprint != fingerprint:
        raise InputError(
            f"{name}: fingerprint {anchor.fingerprint}, expected {fingerprint}",
            hint="the installed package was changed; install it again",
        )
    return anchor
