"""Text that comes from machines and files that are not trusted."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return one line that every terminal shows and none obeys: what is unprintable is escaped.

    File names come from machines that are not trusted, and can hold line ends, escape sequences
    and bytes that are no text.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


_BRACES = str.maketrans({"{": "\\u007b", "}": "\\u007d"})


def without_braces(quoted: str) -> str:
    """Return TOML or JSON text, whose braces are all inside of strings, with these escaped.

    It means the same, also as a string of Jinja, but a template that contains it runs nothing of
    it: whoever named a file is not the author of the template that names it.
    """
    return quoted.translate(_BRACES)
