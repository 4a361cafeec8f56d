"""The entry point: finds the command, turns errors into one line, a hint and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cloister import __version__
from cloister.cli.streams import forget_output, open_standard_streams
from cloister.errors import CloisterError
from cloister.signals import reap, wait_for_children
from cloister.text import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    """Where a command lives; its module is imported only when the command is used."""

    target: str
    summary: str


_READER_LEFT = 141
"""Exit code where whoever read the output has left: as of a program that died of SIGPIPE."""

COMMANDS: dict[str, Entry] = {
    "demo": Entry("cloister.cli.demo:demo", "Run the whole confidential workflow on this machine."),
    "init": Entry("cloister.cli.init:init", "Make a project of your own script."),
    "try": Entry("cloister.cli.try_:try_", "Try a project, all roles on this machine."),
    "key": Entry("cloister.cli.key:key", "Make and look at wrap keys."),
    "encrypt": Entry("cloister.cli.encrypt:encrypt", "Encrypt files for an enclave."),
    "decrypt": Entry("cloister.cli.decrypt:decrypt", "Decrypt results."),
    "inspect": Entry("cloister.cli.inspect:inspect", "Show what an encrypted file is."),
    "verify": Entry("cloister.cli.verify:verify", "Authenticate every byte of encrypted files."),
    "rekey": Entry("cloister.cli.rekey:rekey", "Encrypt files again under a new key."),
    "recover": Entry("cloister.cli.recover:recover", "Undo writes that a crash interrupted."),
    "certs": Entry("cloister.cli.certs:certs", "Make TLS certificates for a key server."),
    "build": Entry("cloister.cli.build:build", "Render, measure and sign an enclave."),
    "sign": Entry("cloister.cli.sign:sign", "Measure and sign a rendered manifest."),
    "signing-key": Entry("cloister.cli.signing_key:signing_key", "Make signing keys."),
    "sigstruct": Entry("cloister.cli.sigstruct:sigstruct", "Show and verify SIGSTRUCT files."),
    "measure": Entry("cloister.cli.measure:measure", "Tell what would be measured, and why."),
    "trace": Entry("cloister.cli.trace:trace", "Run a program and propose its manifest."),
    "manifest": Entry("cloister.cli.manifest:manifest", "Check, explain and convert manifests."),
    "platform": Entry("cloister.cli.platform:platform", "Show the platform; export its root."),
    "quote": Entry("cloister.cli.quote:quote", "Look at quotes and verify them."),
    "attest": Entry("cloister.cli.attest:attest", "Verify the enclave behind a TLS server."),
    "ratls": Entry("cloister.cli.ratls:ratls", "Make a certificate that proves an enclave."),
    "pccs": Entry("cloister.cli.pccs:pccs", "Serve collateral to those who verify quotes."),
    "secret": Entry("cloister.cli.secret:secret", "Keep secrets for a key server."),
    "audit": Entry("cloister.cli.audit:audit", "Read and verify a key server's audit log."),
    "serve": Entry("cloister.cli.serve:serve", "Release a key to the enclave you expect."),
    "run": Entry("cloister.cli.run:run", "Run a program in its enclave."),
    "report": Entry("cloister.cli.report:report", "Make a page of a recorded run."),
    "doctor": Entry("cloister.cli.doctor:doctor", "Tell whether programs can run here."),
    "completion": Entry(
        "cloister.cli.completion:completion", "Complete commands in your shell with Tab."
    ),
}


class LazyGroup(click.Group):
    """A group that knows its commands by a table, so that ``--help`` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table, which is the order of the workflow."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command called ``cmd_name``, or None."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  (a wrong table, not a user's error)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names from the table, so that a Tab imports no command."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=entry.summary)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cloister")
@click.option("--debug", is_flag=True, help="Show Python tracebacks of errors.")
def cli(debug: bool) -> None:
    """Run unmodified programs on machines you do not trust; only you can open the results.

    \b
    Try it:   cloister demo
    By hand:  cloister COMMAND --help
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that says how it went."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_standard_streams()
    wait_for_children()
    code = run(arguments)
    reap()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code instead of exiting."""
    return run_command(cli, arguments, "cloister", debug=_wants_traceback(arguments))


def run_command(
    command: click.Command, arguments: list[str], name: str, *, debug: bool = False
) -> int:
    """Run a command; turn errors into one line and a hint, and return the exit code.

    Args:
        command: what to run.
        arguments: without the program's name.
        name: what messages call the program.
        debug: let exceptions through, for their tracebacks.
    """
    try:
        result = _invoke(command, arguments, name)
        sys.stdout.flush()
    except CloisterError as error:
        if debug:
            raise
        return _report(error, name)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        print(f"\n{name}: interrupted", file=sys.stderr)  # behind the terminal's ^C
        return 130
    except BrokenPipeError:
        forget_output()
        return _READER_LEFT
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(printable(f"{name}: error: {where}{error.strerror or error}"), file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0


def _invoke(command: click.Command, arguments: list[str], name: str) -> Any:
    """Do what click's own ``main`` does, but make nothing of exceptions.

    That one makes 1 of a closed pipe, which would mean that the work failed.
    """
    variable = completion_variable(name)
    asked = os.environ.get(variable)
    if asked:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(command, {}, name, variable, asked))
    with command.make_context(name, list(arguments)) as context:
        return command.invoke(context)


def completion_variable(name: str) -> str:
    """Return the variable by which a shell asks the program ``name`` to complete; click answers."""
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


def _wants_traceback(arguments: list[str]) -> bool:
    """Tell whether the global ``--debug`` stands before the command's name."""
    for argument in arguments:
        if not argument.startswith("-"):
            return False
        if argument == "--debug":
            return True
    return False


def _report(error: CloisterError, name: str) -> int:
    print(printable(f"{name}: error: {error.message}"), file=sys.stderr)
    if error.hint:
        print(printable(f"hint: {error.hint}"), file=sys.stderr)
    return error.exit_code
