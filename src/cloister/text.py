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
