"""``cloister run``: start a program, in its enclave or in direct mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.platforms.base import Enclave


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("app", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--mode",
    type=click.Choice(["sgx", "direct"]),
    default="sgx",
    show_default=True,
    help="sgx: in the enclave that `cloister build` signed. direct: the same file tree without "
    "enclave, checks and keys, for porting.",
)
@click.option("--platform", "platform_name", help="Where the enclave runs [default: the best here]")
@click.option(
    "--libpal",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The measured runtime image, if `cloister build --libpal` was given one.",
)
@click.pass_context
def run(
    ctx: click.Context,
    app: Path,
    arguments: tuple[str, ...],
    mode: str,
    platform_name: str | None,
    libpal: Path | None,
) -> int:
    """Run APP with ARGUMENTS; exit with the program's own code.

    APP is the name that `cloister build` was given, without `.manifest.template`.

    \b
    Example:  cloister run pytorch
              cloister run --mode direct pytorch
    """
    import os
    import sys

    from cloister.runtime.journal import Journal
    from cloister.runtime.launch import run as launch
    from cloister.runtime.load import direct_program, enclave_program

    def write(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    journal = Journal(write)
    debug = bool(ctx.find_root().params.get("debug"))
    if mode == "direct":
        program = direct_program(app, arguments, os.environ, debug=debug)
        return launch(program, None, journal)
    signed = enclave_program(app, arguments, os.environ, debug=debug)

    def start() -> Enclave:
        enclave = signed.start(platform_name, libpal)
        journal.note(
            f"{'SIMULATED enclave' if enclave.simulated else 'enclave'} "
            f"{enclave.mrenclave.hex()}"
            + (": no hardware protects this run" if enclave.simulated else "")
        )
        return enclave

    return launch(signed.program, start, journal)
