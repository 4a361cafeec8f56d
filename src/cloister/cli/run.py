"""``cloister run``: start a program, in its enclave or in direct mode."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.runtime.attester import HeldEnclave
    from cloister.runtime.journal import Journal
    from cloister.runtime.program import Program
    from cloister.runtime.recorder import Recorder


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
@click.option(
    "--platform",
    "platform_name",
    metavar="NAME",
    help="Where the enclave runs: gramine (SGX), tdx or simulated [default: the best here]; or "
    "gramine-direct, which protects nothing.",
)
@click.option(
    "--require-hardware", is_flag=True, help="Refuse the SIMULATED platform and gramine-direct."
)
@click.option(
    "--insecure-key",
    "insecure_keys",
    multiple=True,
    metavar="NAME=FILE",
    help="With gramine-direct, where no key server can be asked: a wrap key. Repeatable.",
)
@click.option(
    "--libpal",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The measured runtime image, if `cloister build --libpal` was given one.",
)
@click.option(
    "--log-level",
    type=click.Choice(["none", "error", "warning", "debug", "trace", "all"]),
    help="How much is told of files, in place of loader.log_level: error tells of denials, debug "
    "also of what is granted.",
)
@click.option(
    "--record",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write what happened to FILE, of which `cloister report` makes a page: names, "
    "measurements, numbers and times; no content, no keys. Only you can read it.",
)
@click.option(
    "--shell", is_flag=True, help="Direct mode: start a shell there instead, to look around."
)
@click.pass_context
def run(
    ctx: click.Context,
    app: Path,
    arguments: tuple[str, ...],
    mode: str,
    platform_name: str | None,
    require_hardware: bool,
    libpal: Path | None,
    log_level: str | None,
    record: Path | None,
    shell: bool,
    insecure_keys: tuple[str, ...],
) -> int:
    """Run APP with ARGUMENTS; exit with the program's own code.

    APP is the name that `cloister build` was given, without `.manifest.template`.

    \b
    Example:  cloister run pytorch
              cloister run --mode direct pytorch
              cloister run --mode direct --shell pytorch
              cloister run --platform gramine-direct --insecure-key default=wrap-key pytorch
    """
    debug = bool(ctx.find_root().params.get("debug"))
    if mode == "direct":
        _refuse_in_direct_mode(
            {
                "--require-hardware": require_hardware,
                "--platform": platform_name,
                "--libpal": libpal,
                "--insecure-key": insecure_keys,
            }
        )
        return run_direct(
            app, arguments, debug=debug, shell=shell, log_level=log_level, record=record
        )
    if shell:
        from cloister.errors import InputError

        raise InputError(
            "--shell: an enclave runs what was signed and measured, not a shell",
            hint=f"cloister run --mode direct --shell {app} shows the same tree",
        )
    return run_enclave(
        app,
        arguments,
        platform_name=platform_name,
        require_hardware=require_hardware,
        libpal=libpal,
        debug=debug,
        log_level=log_level,
        insecure_keys=insecure_keys,
        record=record,
    )


def run_direct(
    app: Path,
    arguments: Sequence[str],
    *,
    debug: bool = False,
    shell: bool = False,
    drop_arguments: bool = False,
    log_level: str | None = None,
    record: Path | None = None,
) -> int:
    """Run ``APP.manifest`` in direct mode and return the program's exit code.

    Args:
        app: path without suffix.
        arguments: for the program.
        debug: show tracebacks of our own defects.
        shell: start a shell instead, with these arguments.
        drop_arguments: drop those that the manifest overrides, as Graphene does, with a message.
        log_level: in place of ``loader.log_level``.
        record: file for a record of the run.

    Raises:
        CloisterError: the run did not come to the program's start.
    """
    from cloister.cli.caller import callers_environment
    from cloister.cli.recording import now, of_direct, recorded
    from cloister.runtime.launch import run as launch
    from cloister.runtime.load import direct_program

    begun, journal = now(), _journal()
    program = direct_program(app, arguments, callers_environment(), debug=debug)
    program.log_level = log_level
    if drop_arguments:
        _drop_arguments(program, journal)
    if shell:
        from cloister.runtime.shell import with_shell

        program = with_shell(program, arguments)

    with recorded(journal, record, lambda: of_direct(app, program.manifest, begun)):
        return launch(program, None, journal)


def run_enclave(
    app: Path,
    arguments: Sequence[str],
    *,
    platform_name: str | None = None,
    require_hardware: bool = False,
    libpal: Path | None = None,
    debug: bool = False,
    drop_arguments: bool = False,
    log_level: str | None = None,
    insecure_keys: Sequence[str] = (),
    record: Path | None = None,
) -> int:
    """Run a signed application in its enclave and return the program's exit code.

    Args:
        app: path without suffix.
        arguments: for the program.
        platform_name: where the enclave runs; None takes the best here.
        require_hardware: refuse the simulated platform and ``gramine-direct``.
        libpal: the measured runtime image; None takes this installation's.
        debug: show tracebacks of our own defects.
        drop_arguments: drop those that the manifest overrides, as Graphene does, with a message.
        log_level: in place of ``loader.log_level``.
        insecure_keys: NAME=FILE, for ``gramine-direct``.
        record: file for a record of the run.

    Raises:
        CloisterError: the run did not come to the program's start.
    """
    from cloister.cli.caller import callers_environment
    from cloister.cli.recording import now
    from cloister.errors import InputError
    from cloister.platforms.base import UNDER_GRAMINE, choose_name, choose_platform
    from cloister.runtime.attester import Attester, Started

    chosen = choose_name(platform_name, require_hardware=require_hardware)
    _require_direct(chosen, insecure_keys)
    begun = now()
    if chosen in UNDER_GRAMINE:
        options = {
            "--libpal": libpal,
            "--log-level": log_level if chosen == "gramine" else None,
        }
        _refuse_for_gramine(chosen, options)
        if record is not None:
            raise InputError(
                f"--record: with --platform {chosen} Gramine serves the files and tells nobody",
                hint="leave --record out",
            )
        return _run_under_gramine(
            chosen,
            app,
            arguments,
            _journal(),
            insecure_keys,
            log_level,
            require_hardware=require_hardware,
        )

    def start() -> Started:
        from cloister.runtime.load import start_enclave

        return start_enclave(app, chosen, libpal)

    with contextlib.closing(Attester(start)) as attester:
        # The enclave starts beside what follows: importing the rest of the runtime, to begin with.
        from cloister.cli.recording import enclave_started, of_enclave, recorded
        from cloister.runtime.launch import run as launch
        from cloister.runtime.load import enclave_program

        signed = enclave_program(app, arguments, callers_environment(), chosen, debug=debug)
        signed.program.log_level = log_level
        journal = _journal()
        if drop_arguments:
            _drop_arguments(signed.program, journal)

        def started() -> HeldEnclave:
            enclave = attester.enclave()
            signed.confirm(enclave, enclave.digest)
            if enclave.simulated:
                journal.note(
                    f"SIMULATED enclave {enclave.mrenclave.hex()}: no hardware protects this run"
                )
            else:
                journal.note(f"enclave {enclave.mrenclave.hex()} on {enclave.description}")
            if journal.recorder is not None:
                enclave_started(journal.recorder, enclave, app, signed.signed, libpal)
            return enclave

        def recorder() -> Recorder:
            return of_enclave(app, signed.signed, choose_platform(chosen), begun)

        with recorded(journal, record, recorder):
            return launch(signed.program, started, journal)


def _refuse_in_direct_mode(options: Mapping[str, object]) -> None:
    from cloister.errors import InputError

    for name, value in options.items():
        if value:
            raise InputError(
                f"{name}: belongs to an enclave; direct mode has none, and protects nothing",
                hint=f"leave out --mode direct, or {name}",
            )


def _require_direct(platform: str, insecure_keys: Sequence[str]) -> None:
    from cloister.errors import InputError

    if insecure_keys and platform != "gramine-direct":
        raise InputError(
            f"--insecure-key: on platform {platform}, a key server releases the keys",
            hint="cloister serve --key FILE --enclave APP, on the owner's machine",
        )


def _refuse_for_gramine(platform: str, options: Mapping[str, object]) -> None:
    from cloister.errors import InputError

    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name}: with --platform {platform} this is Gramine's, as it is installed and was"
                " measured",
                hint=f"leave {name} out",
            )


def _run_under_gramine(
    platform: str,
    app: Path,
    arguments: Sequence[str],
    journal: Journal,
    insecure_keys: Sequence[str],
    log_level: str | None,
    *,
    require_hardware: bool,
) -> int:
    from cloister.encrypted.keys import read_wrap_key
    from cloister.errors import InputError
    from cloister.platforms.gramine import run as gramine

    if platform == "gramine":
        return gramine.run_sgx(app, arguments, journal.note, require_protection=require_hardware)
    keys = {}
    for text in insecure_keys:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise InputError(f"--insecure-key {text}: expected NAME=FILE", hint="default=wrap-key")
        keys[name] = read_wrap_key(file)
    return gramine.run_direct(app, arguments, journal.note, keys=keys, log_level=log_level)


def _drop_arguments(program: Program, journal: Journal) -> None:
    """Drop arguments that the manifest overrides."""
    loader = program.manifest.loader
    for key, value in (("argv", loader.argv), ("argv_src_file", loader.argv_src_file)):
        if value and program.arguments:
            words = " ".join(program.arguments)
            journal.note(f"command-line arguments are dropped, loader.{key} stands: {words}")
            program.arguments = ()


def _journal() -> Journal:
    """Return a journal that writes to standard error at once."""
    from cloister.cli.streams import tell
    from cloister.runtime.journal import Journal

    return Journal(tell)
