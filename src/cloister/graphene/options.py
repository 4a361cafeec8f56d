"""Options as Graphene's C tools read them: a mode, short and long options, no order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """One option: its letter, its long name, and whether a value follows."""

    letter: str
    name: str
    takes_value: bool


class Parsed(NamedTuple):
    """What the command line said; ``values`` has an empty string for options without value."""

    words: list[str]
    values: dict[str, str]
    unknown: list[str]


def parse(arguments: Sequence[str], options: Sequence[Option]) -> Parsed:
    """Read a command line as ``getopt_long`` does; unknown options are collected, not fatal.

    An option whose value is missing counts as unknown. ``--`` ends the options.
    """
    letters = {option.letter: option for option in options}
    names = {option.name: option for option in options}
    parsed = Parsed([], {}, [])
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            parsed.words.extend(rest)
            break
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            _take(names.get(name), argument, value if equals else None, rest, parsed)
        elif argument.startswith("-") and argument != "-":
            _cluster(argument[1:], letters, rest, parsed)
        else:
            parsed.words.append(argument)
    return parsed


def _cluster(text: str, letters: dict[str, Option], rest: list[str], parsed: Parsed) -> None:
    """Read ``-vV`` or ``-wFILE``."""
    for place, letter in enumerate(text):
        option = letters.get(letter)
        attached = text[place + 1 :]
        takes_value = option is not None and option.takes_value
        _take(option, f"-{letter}", attached if takes_value and attached else None, rest, parsed)
        if takes_value:
            return


def _take(
    option: Option | None, shown: str, value: str | None, rest: list[str], parsed: Parsed
) -> None:
    if option is None or (option.takes_value and value is None and not rest):
        parsed.unknown.append(shown)
    elif option.takes_value:
        parsed.values[option.name] = rest.pop(0) if value is None else value
    else:
        parsed.values[option.name] = ""
