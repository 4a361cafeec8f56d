"""``cloister try``: a project, natively and in its SIMULATED enclave, all roles on this machine."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import click


@click.command("try")
@click.argument(
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def try_(directory: Path, as_json: bool) -> None:
    """Try the project in DIRECTORY [default: here] in its SIMULATED enclave.

    Runs the program natively, encrypts its inputs, builds the enclave, releases the key to it, runs
    it there and compares what both runs wrote. The project itself is not changed.

    \b
    Example:  cloister init classify.py && cloister try classify-confidential
    """
    from rich.console import Console

    from cloister.cli.demo import Steps
    from cloister.errors import CloisterError
    from cloister.project.trial import Trial

    console = Console(stderr=as_json, highlight=False)
    with tempfile.TemporaryDirectory(prefix="cloister-try-") as name:
        tried = Trial(directory.resolve(), Path(name), Steps(console)).run()
    if as_json:
        print(json.dumps(dataclasses.asdict(tried), indent=2))
    else:
        ratio = tried.enclave_seconds / tried.native_seconds
        console.print(
            f"native {tried.native_seconds:.2f} s, SIMULATED enclave {tried.enclave_seconds:.2f} s"
            f" ({ratio:.2f} times)"
        )
        for result in tried.results:
            console.print(f"the same in both: {result}", markup=False)
    if tried.different:
        raise CloisterError(
            f"the two runs wrote different files: {', '.join(tried.different)}",
            hint="time, random numbers or the order of threads may be in them; fix a seed, and"
            " compare by hand",
        )
