"""What ``-D`` defines for templates."""

from __future__ import annotations

from collections.abc import Iterable

from cloister.errors import InputError


def parse_definitions(texts: Iterable[str]) -> dict[str, str | bool]:
    """Parse what was given with ``-D``: ``NAME=VALUE``, or ``NAME`` for true.

    Raises:
        InputError: a name that no template can use.
    """
    definitions: dict[str, str | bool] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.isidentifier():
            raise InputError(f"-D {text!r}: {name!r} cannot be a name in a template")
        definitions[name] = value if equals else True
    return definitions
