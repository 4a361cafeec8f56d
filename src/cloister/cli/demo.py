"""``cloister demo``: the whole workflow on this machine, step by step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from cloister.demo import Outcome
    from cloister.workflow import Step


@click.command()
@click.option(
    "--example",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("examples/pytorch"),
    show_default=True,
    help="Directory of the PyTorch example.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Keep the files of all roles in this new directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def demo(example: Path, keep: Path | None, as_json: bool) -> None:
    """Classify an encrypted photograph with an encrypted model in a SIMULATED enclave.

    Shows every step by its role, compares the decrypted answer with a native run, and lets three
    attacks fail. No SGX, no root and no network is needed.

    \b
    Example:  cloister demo
              cloister demo --keep /tmp/demo
    """
    from rich.console import Console

    from cloister.demo import Demonstration
    from cloister.errors import CloisterError

    console = Console(stderr=as_json, highlight=False)
    with _work_directory(keep) as work:
        outcome = Demonstration(example.resolve(), work, Steps(console)).run()
    if as_json:
        print(json.dumps(dataclasses.asdict(outcome), indent=2))
    else:
        _show(console, outcome)
    if outcome.native != outcome.decrypted:
        raise CloisterError("the decrypted answer differs from the native run's")


@contextlib.contextmanager
def _work_directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="cloister-demo-") as name:
            yield Path(name)
        return
    from cloister.errors import InputError

    try:
        keep.mkdir(parents=True, mode=0o700)
    except FileExistsError as error:
        raise InputError(f"{keep}: exists already; expected a new directory") from error
    yield keep.resolve()


class Steps:
    """Prints each step on a line, with a spinner while it runs on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def running(self, role: str, title: str) -> Iterator[None]:
        """Show that a step is being done."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(f"{role}: {title}"):
            yield

    def done(self, step: Step) -> None:
        """Show a finished step."""
        from rich.markup import escape

        line = f"[bold]{step.role:<8}[/bold]  {escape(step.title):<62} {step.seconds:7.2f} s"
        self._console.print(line, soft_wrap=True)
        if step.detail:
            self._console.print(f"          {escape(step.detail)}", style="dim", soft_wrap=True)


def _name_and_share(line: str) -> tuple[str, str]:
    """Split a line of the result at the wide gap before the percentage."""
    name, _, share = line.rpartition("  ")
    return name.strip(), share.strip()


def _show(console: Console, outcome: Outcome) -> None:
    from rich.markup import escape
    from rich.table import Table

    answers = Table(title="Top 5")
    for column in ("native run", "", "decrypted from the SIMULATED enclave", ""):
        answers.add_column(column, justify="left" if column else "right")
    for native, decrypted in zip(outcome.native, outcome.decrypted, strict=True):
        answers.add_row(*map(escape, (*_name_and_share(native), *_name_and_share(decrypted))))
    console.print(answers)
    times = Table(title="Wall time of the whole program")
    for column in ("mode", "seconds", "ratio to native"):
        times.add_column(column, justify="left" if column == "mode" else "right")
    for mode, seconds in (
        ("native", outcome.native_seconds),
        ("direct", outcome.direct_seconds),
        ("SIMULATED enclave", outcome.enclave_seconds),
    ):
        times.add_row(mode, f"{seconds:.2f}", f"{seconds / outcome.native_seconds:.2f}")
    console.print(times)
    console.print("Attacks, each of which failed:")
    for attack in outcome.attacks:
        console.print(f"  [bold]{escape(attack.title)}[/bold]", soft_wrap=True)
        console.print(f"    {escape(attack.refusal)}", soft_wrap=True)
    console.print(
        "The processor was SIMULATED: everything you saw is real except the hardware's protection."
    )
