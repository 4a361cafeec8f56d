"""``graphene-direct``, ``graphene-sgx`` and ``pal_loader``: run an application by its old command.

``graphene-direct APP ARGS`` runs ``APP.manifest``; ``graphene-sgx APP ARGS`` starts the enclave of
``APP.manifest.sgx`` and ``APP.sig``. ``pal_loader`` does the second where the environment says
``SGX=1``, else the first. ``APP.token`` is not needed: it means nothing to processors with Flexible
Launch Control, which are the only ones left.

The exit code is the program's own, 128 plus the signal that ended it, 2 if there is no such
application, and 1 if the start failed. (Graphene exits with 0 there, and scripts go on as if
the program had run.) Arguments that the manifest overrides are dropped with a message, as in
Graphene; ``cloister run`` refuses them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloister import __version__
from cloister.errors import CloisterError

_NO_APPLICATION = 2
_NOT_STARTED = 1


def run(name: str, arguments: Sequence[str], *, sgx: bool, environment: Mapping[str, str]) -> int:
    """Run an application and return the exit code.

    Args:
        name: what the command is called.
        arguments: the application, then its arguments; or ``--version``.
        sgx: whether it runs in its enclave.
        environment: the caller's, for the debuggers that it may ask for.
    """
    if arguments[:1] == ["--version"]:
        print(f"Cloister {__version__}")
        return 0
    if not arguments:
        print(f"Usage: {name} [<application>] <args>...")
        return _NO_APPLICATION
    app = Path(arguments[0])
    manifest = app.with_name(app.name + (".manifest.sgx" if sgx else ".manifest"))
    if not manifest.is_file():
        print(f"Invalid application path specified ({manifest} does not exist).", file=sys.stderr)
        print(f"hint: {_mend(app, sgx=sgx)}", file=sys.stderr)
        return _NO_APPLICATION
    for debugger in ("GDB", "PERF"):
        if environment.get(debugger) == "1":
            print(
                f"{name}: {debugger}=1 has no effect: use your debugger on the native program, "
                "or on cloister itself",
                file=sys.stderr,
            )
    from cloister.cli.run import run_direct, run_enclave
    from cloister.cli.streams import open_standard_streams
    from cloister.signals import reap, wait_for_children

    open_standard_streams()
    wait_for_children()
    try:
        return (run_enclave if sgx else run_direct)(app, arguments[1:], drop_arguments=True)
    except CloisterError as error:
        print(f"{name}: error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return _NOT_STARTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: error: {where}{error.strerror or error}", file=sys.stderr)
        return _NOT_STARTED
    except KeyboardInterrupt:
        return 130
    finally:
        reap()


def _mend(app: Path, *, sgx: bool) -> str:
    if sgx and app.with_name(f"{app.name}.manifest").is_file():
        return f"sign it first: make SGX=1, or cloister sign {app}.manifest"
    return (
        "name the application's files without their suffix; "
        f"make, or cloister build {app}.manifest.template, makes them"
    )


def graphene_direct() -> None:
    """Run the command line of ``graphene-direct`` and exit with its code."""
    sys.exit(run("graphene-direct", sys.argv[1:], sgx=False, environment=os.environ))


def graphene_sgx() -> None:
    """Run the command line of ``graphene-sgx`` and exit with its code."""
    sys.exit(run("graphene-sgx", sys.argv[1:], sgx=True, environment=os.environ))


def pal_loader() -> None:
    """Run the command line of ``pal_loader`` and exit with its code."""
    sgx = os.environ.get("SGX") == "1"
    sys.exit(run("pal_loader", sys.argv[1:], sgx=sgx, environment=os.environ))
