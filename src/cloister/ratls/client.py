"""TLS clients inside an enclave: an RA-TLS certificate of our own, an ordinary one of the server.

Python's ssl takes keys from files only. The key goes through an anonymous file in memory
(memfd), which has no name and never reaches a disk, and is overwritten at once.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.errors import InputError
from cloister.ratls.certificate import RaTlsIdentity


def client_context(identity: RaTlsIdentity, ca: bytes) -> ssl.SSLContext:
    """Return a context that presents ``identity`` and believes servers certified by ``ca``.

    Args:
        identity: our key and certificate.
        ca: PEM (one or more certificates) or DER (one). Each of them is an anchor, also an
            intermediate or the server's own self-signed certificate.

    Raises:
        InputError: ``ca`` holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load_anchors(context, ca)
    present(context, identity)
    return context


def present(context: ssl.SSLContext, identity: RaTlsIdentity) -> None:
    """Let ``context`` present our key and certificate."""
    pem = identity.certificate.public_bytes(Encoding.PEM) + identity.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with _in_memory(pem) as path:
        context.load_cert_chain(path)


def _load_anchors(context: ssl.SSLContext, ca: bytes) -> None:
    is_pem = b"-----BEGIN" in ca
    try:
        context.load_verify_locations(cadata=ca.decode("latin-1") if is_pem else ca)
    except (ssl.SSLError, ValueError) as error:
        raise InputError(
            "CA file: it holds no readable certificate",
            hint="SECRET_PROVISION_CA_CHAIN_PATH must name the server's CA in PEM",
        ) from error


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.pwrite(descriptor, bytes(len(data)), 0)
        os.close(descriptor)
