"""``cloister ratls``: leave an RA-TLS certificate and its key for a program that reads files."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("certificate", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("key", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("-D", "--der", is_flag=True, help="Write DER instead of PEM.")
@click.option(
    "--encrypted-mount",
    is_flag=True,
    help="KEY lies in an encrypted mount of the manifest instead of a tmpfs.",
)
def ratls(
    certificate: Path, key: Path, command: tuple[str, ...], der: bool, encrypted_mount: bool
) -> None:
    """Make an RA-TLS certificate in this enclave, write CERTIFICATE and KEY, then run COMMAND.

    For servers that read certificate and key from files, inside an enclave. KEY must lie in a
    tmpfs mount of the manifest: anywhere else it could reach the host. (Whether a mount is
    encrypted cannot be seen from inside; --encrypted-mount says so.) COMMAND takes the place of
    this program; without one, it ends here. If anything fails, COMMAND is not run.

    RA_TLS_CERT_TIMESTAMP_NOT_BEFORE and RA_TLS_CERT_TIMESTAMP_NOT_AFTER (YYYYMMDDhhmmss) set the
    certificate's validity.

    \b
    Example:  cloister ratls /tmp/ratls.crt /tmp/ratls.key -- nginx -c /etc/nginx/nginx.conf
    """
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    from cloister.errors import InputError
    from cloister.files import write_atomically
    from cloister.ratls.programs import this_enclave

    if command[:1] == ("--",):
        command = command[1:]
    if not encrypted_mount:
        _require_memory(key)
    identity = this_enclave()
    encoding = Encoding.DER if der else Encoding.PEM
    private = identity.key.private_bytes(encoding, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    write_atomically(key, private, mode=0o600)
    write_atomically(certificate, identity.certificate.public_bytes(encoding))
    if not command:
        return
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise InputError(f"{command[0]}: {error.strerror}") from error


def _require_memory(key: Path) -> None:
    from cloister.errors import InputError
    from cloister.files import filesystem_of

    kind = filesystem_of(key.parent)
    if kind not in ("tmpfs", "ramfs"):
        raise InputError(
            f"{key}: lies on {kind or 'an unknown file system'}, where the host could read the key",
            hint='mount a directory of memory, { type = "tmpfs", path = "/run/ratls" }, in'
            " fs.mounts of the manifest; --encrypted-mount if that place is encrypted",
        )
