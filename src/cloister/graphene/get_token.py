"""``graphene-sgx-get-token``: the dummy EINITTOKEN that Graphene's loader wants to see."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister.cli.main import run_command

if TYPE_CHECKING:
    from cloister.sgx.sigstruct import Sigstruct

FILE = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sig", "-sig", type=FILE, required=True, help="SIGSTRUCT, APP.sig.")
@click.option("--output", "-output", type=FILE, help="Token, APP.token; else only print.")
def command(sig: Path, output: Path | None) -> None:
    """Write a token for the enclave of SIG. It grants nothing: no platform here needs one.

    \b
    Example:  graphene-sgx-get-token --sig app.sig --output app.token
    """
    from cloister.cli.sigstruct import load
    from cloister.files import write_atomically
    from cloister.sgx.token import dummy_token

    found = load(sig)
    if output is not None:
        write_atomically(output, dummy_token(found))
    click.echo("\n".join(_lines(found)))


def _lines(found: Sigstruct) -> list[str]:
    from cloister.sgx.sigstruct import EXPONENT, MODULUS_SIZE, decode_date

    modulus = found.modulus.to_bytes(MODULUS_SIZE, "little").hex()
    signature = found.signature.to_bytes(MODULUS_SIZE, "little").hex()
    return [
        "Attributes:",
        f"    mr_enclave:  {found.mr_enclave.hex()}",
        f"    mr_signer:   {found.mr_signer.hex()}",
        f"    isv_prod_id: {found.isv_prod_id}",
        f"    isv_svn:     {found.isv_svn}",
        f"    attr.flags:  {found.flags:016x}",
        f"    attr.xfrm:   {found.xfrm:016x}",
        f"    mask.flags:  {found.flags_mask:016x}",
        f"    mask.xfrm:   {found.xfrm_mask:016x}",
        f"    misc_select: {found.misc_select:08x}",
        f"    misc_mask:   {found.misc_mask:08x}",
        f"    modulus:     {modulus[:32]}...",
        f"    exponent:    {EXPONENT}",
        f"    signature:   {signature[:32]}...",
        f"    date:        {decode_date(found.date)}",
    ]


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    return run_command(command, list(arguments), "graphene-sgx-get-token")


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))
