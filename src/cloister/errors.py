"""One family of exceptions: what happened, where, what was expected, what to do.

Every error that a user can meet is a :class:`CloisterError`. Its text is one line; its ``hint``,
when there is one, is a second line that says what to do. The exit code of a command that fails
with it is the class's ``exit_code`` (design: 0 success, 1 the work failed, 2 wrong usage or
input, 3 refused by policy or failed verification).

Hints that are always the same live here, beside the class; hints that depend on the case are
passed by the caller. No message ever carries key material.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CloisterError(Exception):
    """The work failed for a reason that a person can understand.

    Args:
        message: one line: what happened, to which file or peer, what was expected.
        hint: what to do about it; None takes the class's own hint.
    """

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.default_hint


class InputError(CloisterError):
    """Wrong usage or wrong input: the person who typed the command can mend it."""

    exit_code = 2


class RefusedError(CloisterError):
    """Refused by policy, or something failed verification."""

    exit_code = 3


# --- platforms, attestation, RA-TLS, key release -------------------------------------------------


class PlatformError(CloisterError):
    """The platform on which an enclave should run is missing, broken or cannot do what is asked."""


class UnsupportedByPlatformError(PlatformError):
    """The platform works, but has no such thing."""


class EnclaveStartError(RefusedError):
    """The processor refused to start the enclave (EINIT)."""


class MeasurementMismatchError(EnclaveStartError):
    """Manifest or runtime image are not those that were signed."""

    default_hint = (
        "the manifest or the runtime image changed after signing; build and sign again"
        " (cloister build), or restore the signed files"
    )


class KeyRequestError(RefusedError):
    """The processor refused to derive a key (EGETKEY)."""


class ReportMacError(RefusedError):
    """A local report was not made on this processor for this enclave."""

    default_hint = "reports can be checked only by the enclave they are aimed at, on one machine"


class AttestationError(RefusedError):
    """A quote was not accepted."""


class MalformedQuoteError(AttestationError):
    """The bytes are not one whole quote."""

    default_hint = "pass the quote exactly as read from /dev/attestation/quote"


class UnsupportedQuoteError(AttestationError):
    """A well-formed quote of a kind that is not verified."""


class UntrustedRootError(AttestationError):
    """The quote's certificates do not lead to a root that is trusted."""


class RootValidityError(AttestationError):
    """The trusted root certificate is not valid at the time of verification."""


class CertificateChainError(AttestationError):
    """The certificates of the quote or of the collateral do not hold."""


class RevokedError(AttestationError):
    """A certificate, the quoting enclave or the TCB level is revoked."""

    default_hint = "keys of this platform may be known to others; do not release secrets to it"


class CollateralError(AttestationError):
    """The collateral is broken, or belongs to another kind of platform."""

    default_hint = "fetch or export the collateral of the platform that made the quote"


class ExpiredCollateralError(CollateralError):
    """The collateral is out of date, or not yet valid."""

    default_hint = (
        "get fresh collateral; for a simulated platform: cloister platform export FILE;"
        " if it is fresh, check this machine's clock"
    )


class CollateralFetchError(CollateralError):
    """A collateral service could not be reached, or did not have what was asked."""

    default_hint = (
        "check the service's address and the network; without a network,"
        " verify with collateral from a file (--collateral FILE)"
    )


class CollateralNotFoundError(CollateralError):
    """A collateral service does not have what was asked."""

    default_hint = "it knows other kinds of platforms (FMSPC) than this one"


class QuoteSignatureError(AttestationError):
    """A signature in the quote is wrong: it was changed or forged."""

    default_hint = "the quote was altered or forged; do not trust its sender"


class QuotingEnclaveError(AttestationError):
    """The enclave that signed the quote is not the genuine quoting enclave."""


class IasReportError(AttestationError):
    """A stored report of Intel's retired EPID service that proves nothing about the quote."""

    default_hint = "give the service's answer exactly as it was stored, with its headers"


class EventLogError(AttestationError):
    """The event log beside a TDX quote is malformed, or is not what the quote's register says."""

    default_hint = (
        "the quote's RTMR 3 counts, not the log; a virtual machine in which other software extends"
        " that register cannot be judged"
    )


class TdxModuleError(AttestationError):
    """The TDX module that vouches for the virtual machine is not a genuine one."""


class TcbStatusError(AttestationError):
    """The platform's TCB status or its advisories are not accepted by the policy."""

    default_hint = (
        "update the platform's firmware and microcode, or accept the status by name"
        " (--accept-tcb STATUS) if its advisories do not concern you"
    )


class DebugEnclaveError(AttestationError):
    """The enclave runs in debug mode: its memory is readable from outside."""

    default_hint = "build without sgx.debug = true; debug enclaves are never given secrets"


class EnclaveAttributesError(AttestationError):
    """The enclave has attributes that it must not have, or lacks one that it must."""


class WrongMeasurementError(AttestationError):
    """Another enclave than expected: MRENCLAVE, MRTD or a runtime register differs."""

    default_hint = (
        "another program, manifest or runtime; if the change was meant,"
        " tell the verifier the new measurement"
    )


class WrongSignerError(AttestationError):
    """The enclave was signed by someone else, is another product or too old a version."""


class ReportDataError(AttestationError):
    """The quote was made for another purpose: its report data is not the expected one."""


class PolicyError(InputError):
    """A policy that cannot be used: it names no enclave, or contradicts itself."""


class AmbiguousSecretError(AttestationError):
    """Several secrets' policies accept one enclave, and the protocol cannot say which is meant."""

    default_hint = "make the policies name different enclaves"


class StoreError(CloisterError):
    """The key server's database cannot be used."""


class StoreKeyError(StoreError):
    """The key that protects the stored secrets is missing or is another one."""

    default_hint = "give the key with which the secrets were stored (--store-key)"


class AuditError(RefusedError):
    """The audit log was changed, or a decision could not be recorded."""


class RaTlsError(RefusedError):
    """A TLS peer's certificate carries no acceptable evidence."""


class EvidenceFormatError(RaTlsError):
    """The certificate's evidence is missing or malformed."""


class BindingError(RaTlsError):
    """The evidence does not belong to the certificate's key (a replayed quote)."""

    default_hint = "the quote was made for another key: a replayed or forged certificate"


class PeerError(CloisterError):
    """A peer could not be reached, or does not speak TLS."""

    default_hint = "check the address; is a TLS server running there?"


class ProvisioningError(CloisterError):
    """No secret was received."""


class ProvisioningRefusedError(ProvisioningError):
    """A key server answered, but did not release its secret to this enclave."""

    exit_code = 3
    default_hint = "the key server's log says which check failed; ask its owner"


class ProtocolError(ProvisioningError):
    """The peer does not speak the Secret Provisioning protocol."""


# --- Encrypted files (cloister.encrypted) -------------------------------------------------------


class EncryptedFileError(CloisterError):
    """An encrypted file cannot be used; every subclass says why."""


class WrapKeyError(EncryptedFileError, InputError):
    """A wrap key cannot be read, or is not a 16-byte key."""

    default_hint = "a wrap key is 16 raw bytes or 32 hex digits; make one: cloister key new FILE"


class NotEncryptedError(EncryptedFileError, InputError):
    """The file is not an encrypted file: its first bytes are something else."""

    default_hint = (
        "it is a plain file where an encrypted one is expected: remove it if the program is to "
        "write it, or encrypt it first with: cloister encrypt"
    )


class UnsupportedVersionError(EncryptedFileError, InputError):
    """The file is encrypted in a format version that nobody here reads."""

    default_hint = "versions 1 (Graphene) and 2 (Gramine) are known; or the first node was changed"


class EmbeddedPathError(EncryptedFileError, InputError):
    """A path that cannot be embedded in an encrypted file."""


class AuthenticationError(EncryptedFileError, RefusedError):
    """A part of the file does not authenticate under the key."""


class WrongKeyError(AuthenticationError):
    """The first node does not authenticate: another key, or the node was changed."""

    default_hint = (
        "the format cannot tell a wrong key from a changed first node: check the key's "
        "fingerprint, then fetch the file again from where it was made"
    )


class TamperedError(AuthenticationError):
    """The key is right, but a region behind the first node was changed."""

    default_hint = "fetch the file again from where it was made; what it holds now is not trusted"


class TruncatedError(EncryptedFileError, RefusedError):
    """The file is shorter than its metadata says, or not a whole number of nodes."""

    default_hint = "the copy is incomplete or was cut: fetch the file again"


class RenamedError(EncryptedFileError, RefusedError):
    """The file authenticates, but was encrypted for another path."""

    default_hint = (
        "encrypted files are bound to their path: give it its old name back, or decrypt it and "
        "encrypt it for the new one"
    )


class RecoveryError(EncryptedFileError):
    """A write was interrupted, and the recovery file that would undo it is missing or useless."""

    default_hint = "see what can be saved: cloister recover FILE"


class InUseError(EncryptedFileError):
    """Another process has the file open: many may read an encrypted file, or one may write it."""

    default_hint = "wait until the other process has closed the file"


# --- measurement, signing, manifests -------------------------------------------------------------


class ElfError(InputError):
    """A file is not a sound x86-64 ELF file."""


class MeasurementError(InputError):
    """An enclave that cannot be laid out: its size, threads and contents do not go together."""


class SigningKeyError(InputError):
    """A signing key that SGX cannot use, or that cannot be read."""

    default_hint = "make one: cloister signing-key new FILE"


class EncryptedKeyError(SigningKeyError):
    """A signing key that only opens with a passphrase."""

    default_hint = "give its passphrase: --passphrase-file FILE"


class SigstructError(RefusedError):
    """A SIGSTRUCT that is malformed, or whose signature is wrong."""

    default_hint = "sign again (cloister build, or cloister sign)"


class ManifestError(InputError):
    """A manifest or template that cannot be used: the text names file, line and key.

    Args:
        message: the problem that stands first.
        hint: what to do about it.
        others: the other problems of the same manifest, one line each.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, others: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.others = tuple(others)


class TrustedIndexError(RefusedError):
    """The index of trusted files is not the one that was signed."""

    default_hint = "restore the signed files, or build and sign again (cloister build)"


# The runtime


class SandboxError(CloisterError):
    """The kernel does not permit what a run needs: namespaces, FUSE mounts, devices."""

    default_hint = "cloister doctor tells what is missing, and the command that enables it"


class ProgramStartError(CloisterError):
    """The program could not be started inside its tree."""
