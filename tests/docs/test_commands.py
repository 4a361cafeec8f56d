"""Every ``cloister`` command that the documentation writes exists, with the options it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cloister.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for pattern in ("README.md", "docs/*.md", "examples/**/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "commands.md"  # generated from the commands themselves
]


def written(page: Path) -> Iterator[str]:
    """Yield the command lines in code blocks, and the commands in running text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\$ |    )?(cloister .*)", line):
                yield found[1]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        if span.startswith("cloister "):
            yield " ".join(span.split())


def words_of(line: str) -> list[str]:
    """Split a line as a shell does, up to what is not the command's any more."""
    words: list[str] = []
    for word in shlex.split(line, comments=True)[1:]:
        if word in ("|", "&", "&&", ";", ">", "--"):
            break
        words.append(word)
    return words


def problem(line: str) -> str | None:
    """Return what is wrong with a command line, None if nothing is."""
    command: click.Command = cli
    context = click.Context(cli)
    words = words_of(line)
    options = {option for item in cli.params for option in item.opts}
    while words and isinstance(command, click.Group):
        word = words.pop(0)
        if word.startswith("-") or not re.fullmatch(r"[a-z-]+", word):
            return None if word.split("=")[0] in {*options, "--help", "COMMAND"} else word
        found = command.get_command(context, word)
        if found is None:
            return f"there is no command {word}"
        command = found
    return option_problem(command, words)


def option_problem(command: click.Command, words: list[str]) -> str | None:
    """Return the first option that the command does not have."""
    flags = {"--help": True, "-h": True}
    for item in command.params:
        if isinstance(item, click.Option):
            flags |= dict.fromkeys((*item.opts, *item.secondary_opts), item.is_flag)
    ends_at_argument = not command.context_settings.get("allow_interspersed_args", True)
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif not word.startswith("-") or word == "-":
            if ends_at_argument:
                return None  # the rest belongs to the program
        elif word.startswith("--") and word.split("=")[0] not in flags:
            return f"{command.name} has no option {word}"
        else:
            is_value = not flags.get(word, True)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    wrong = {line: found for line in written(page) if (found := problem(line))}
    assert not wrong


def test_the_check_finds_what_is_wrong() -> None:
    assert problem("cloister nothing") == "there is no command nothing"
    assert problem("cloister key nothing FILE") == "there is no command nothing"
    assert problem("cloister build --nothing x") == "build has no option --nothing"
    assert problem("cloister serve --key k --listen=localhost:1 # --nothing") is None
    assert problem("cloister run app --of-the-program") is None
    assert problem("cloister run --mode direct app --of-the-program") is None
    assert problem("cloister run --mode direct --nothing app") == "run has no option --nothing"
