"""Signing keys: RSA-3072 with public exponent 3, in PEM files, with or without a passphrase."""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cloister.errors import EncryptedKeyError, InputError, SigningKeyError
from cloister.files import config_home, write_atomically
from cloister.sgx.sigstruct import EXPONENT, MODULUS_SIZE

KEY_BITS = MODULUS_SIZE * 8
_PUBLIC_KEY_HINT = "openssl rsa -in KEY.pem -pubout, or ask the HSM for its public key"


def default_key_path() -> Path:
    """Return where the key is kept that signs when no other is given."""
    return config_home() / "enclave-key.pem"


def load_signing_key(path: Path, passphrase: bytes | None = None) -> rsa.RSAPrivateKey:
    """Read a signing key.

    Args:
        path: a PEM file.
        passphrase: None if the file is not encrypted.

    Raises:
        SigningKeyError: it does not exist, does not open, or is not RSA-3072 with exponent 3.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SigningKeyError(f"{path}: there is no such signing key") from error
    try:
        # Without the slow test of the primes: what a broken key signs is refused after signing.
        key = load_pem_private_key(data, passphrase, unsafe_skip_rsa_key_validation=True)
    except TypeError as error:
        if passphrase is None:
            raise EncryptedKeyError(f"{path}: the key is encrypted") from error
        raise SigningKeyError(
            f"{path}: the key is not encrypted", hint="give no passphrase"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is not None and b"ENCRYPTED" in data:
            raise EncryptedKeyError(f"{path}: this passphrase does not open it") from error
        raise SigningKeyError(f"{path}: not a private key in PEM") from error
    return _checked(key, path)


def _checked(key: object, path: Path) -> rsa.RSAPrivateKey:
    if not isinstance(key, rsa.RSAPrivateKey):
        raise SigningKeyError(f"{path}: expected an RSA private key, found another kind")
    _check_numbers(key.public_key().public_numbers(), path)
    return key


def _check_numbers(numbers: rsa.RSAPublicNumbers, path: Path) -> None:
    bits = numbers.n.bit_length()
    if bits != KEY_BITS:
        raise SigningKeyError(f"{path}: expected an RSA key of {KEY_BITS} bits, got {bits}")
    if numbers.e != EXPONENT:
        raise SigningKeyError(f"{path}: expected public exponent {EXPONENT}, got {numbers.e}")


def load_modulus(path: Path) -> int:
    """Read the modulus of a public key.

    Args:
        path: a PEM file with a public key or a certificate.

    Raises:
        SigningKeyError: it does not exist, or is not RSA-3072 with exponent 3.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SigningKeyError(
            f"{path}: there is no such public key", hint=_PUBLIC_KEY_HINT
        ) from error
    key: object
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            from cryptography.x509 import load_pem_x509_certificate

            key = load_pem_x509_certificate(data).public_key()
        else:
            key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(
            f"{path}: not a public key or certificate in PEM",
            hint=_PUBLIC_KEY_HINT,
        ) from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise SigningKeyError(f"{path}: expected an RSA public key, found another kind")
    _check_numbers(key.public_numbers(), path)
    return key.public_numbers().n


def create_signing_key(
    path: Path, passphrase: bytes | None = None, *, replace: bool = False
) -> rsa.RSAPrivateKey:
    """Make a key and write it with permissions 0600, in the traditional PEM form.

    Args:
        path: the PEM file; its directory is made if it is missing.
        passphrase: encrypts the file; None leaves it open.
        replace: whether an existing file may be lost.

    Raises:
        InputError: the file exists and ``replace`` is False.
    """
    key = rsa.generate_private_key(EXPONENT, KEY_BITS)
    protection: KeySerializationEncryption = NoEncryption()
    form = PrivateFormat.TraditionalOpenSSL
    if passphrase is not None:
        # The traditional form derives its key with one round of MD5.
        protection, form = BestAvailableEncryption(passphrase), PrivateFormat.PKCS8
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = key.private_bytes(Encoding.PEM, form, protection)
    write_atomically(path, pem, mode=0o600, replace=replace)
    return key


def load_or_create_default_key() -> rsa.RSAPrivateKey:
    """Return this user's signing key; on first use it is made, and standard error says so."""
    path = default_key_path()
    if not path.exists():
        try:
            key = create_signing_key(path)
        except InputError:
            if not path.exists():
                raise
        else:
            print(f"cloister: made a signing key: {path}", file=sys.stderr)
            return key
    return load_signing_key(path)  # of an earlier build, or of one that runs beside this one
