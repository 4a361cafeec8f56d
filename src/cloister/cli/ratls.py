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
def ratls(certificate: Path, key: Path, command: tuple[str, ...], der: bool) -> None:
    """Make an RA-TLS certificate in this enclave, write CERTIFICATE and KEY, then run COMMAND.

    For servers that read certificate and key from files, inside an enclave. The files belong in a
    tmpfs mount of the manifest, or in an encrypted one: on any other the key would reach the
    host. COMMAND takes the place of this program; without one, it ends here. If anything fails,
    COMMAND is not run.

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
