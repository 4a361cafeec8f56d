"""Writes the pages of the documentation that say what the code says: commands, manifest, errors.

Usage: python docs/reference.py [DIRECTORY]
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cloister import errors
from cloister.cli.main import COMMANDS, cli
from cloister.errors import CloisterError
from cloister.manifest import model
from cloister.manifest.dialect import meaningless_keys, translated_keys
from cloister.manifest.effects import WITHOUT_EFFECT
from cloister.manifest.model import Manifest

WORDS = {
    "bool": "true or false",
    "int": "number",
    "str": "text",
    "Text": "text",
    "Any": "value",
    "Size": "size",
    "Sha256": "64 hexadecimal digits",
    "Key128": "32 hexadecimal digits",
    "U16": "number up to 65535",
    "UserId": "number up to 4294967294",
    "PositiveInt": "number above 0",
    "FileUri": "URI",
    "FileOrDeviceUri": "URI, also `dev:`",
    "InsidePath": "path",
    "KeyName": "name of a key",
    "EnvValue": "text, or a table with `value` or `passthrough = true`",
    "Demand": '`"unspecified"`, `"disabled"`, `"required"`',
}
EXIT_CODES = {
    1: "1, the work failed",
    2: "2, wrong usage or input",
    3: "3, refused by policy or failed verification",
}


def errors_page() -> str:
    """Return the catalogue of errors, in the order of ``errors.py``."""
    lines = [
        "# Errors",
        "",
        "The situations in which people mostly meet them, with the mend, are in",
        "[When it does not work](troubleshooting.md).",
        "",
        "Every error is one line that says what happened, to which file or peer, and what was",
        "expected. A second line begins with `hint:` and says what to do. The exit code tells the",
        "kind: 1 the work failed, 2 wrong usage or input, 3 refused by policy or failed",
        "verification. A program that ran ends with its own exit code. `cloister --debug` shows",
        "where in the code an error arose.",
        "",
        "In Python, every error is a class in `cloister.errors`.",
        "",
    ]
    for error in error_classes():
        lines += [f"## {error.__name__}", "", _first_sentences(error), ""]
        lines += [f"Exit code {EXIT_CODES[error.exit_code]}.", ""]
        if error.default_hint:
            lines += [f"> hint: {error.default_hint}", ""]
    return "\n".join(lines)


def error_classes() -> list[type[CloisterError]]:
    """Return every error class, in the order of the module."""
    found = [
        item
        for item in vars(errors).values()
        if inspect.isclass(item) and issubclass(item, CloisterError)
    ]
    return sorted(found, key=lambda item: inspect.getsourcelines(item)[1])


def _first_sentences(item: type) -> str:
    """Return the description in a docstring, without its sections."""
    text = inspect.getdoc(item) or ""
    return " ".join(text.partition("\n\n")[0].split())


def commands_page() -> str:
    """Return every command with its help."""
    lines = ["# Commands", "", "`cloister COMMAND --help` shows the same in a terminal.", ""]
    context = cli.make_context("cloister", [], resilient_parsing=True)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            lines += _command(command, context, name, level=2)
    return "\n".join(lines)


def _command(command: click.Command, parent: click.Context, name: str, level: int) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent, max_content_width=90)
    text = command.get_help(context)
    lines = [f"{'#' * level} {context.command_path}", "", "```text", text.rstrip(), "```", ""]
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            inner = command.get_command(context, below)
            if inner is not None:
                lines += _command(inner, context, below, level + 1)
    return lines


def manifest_page() -> str:
    """Return every key of a manifest, with its type, default and effect."""
    lines = [
        "# Manifest keys",
        "",
        "Both dialects are read: Gramine's, whose keys are listed here, and Graphene's, below.",
        "Other keys are errors. `cloister manifest explain` says what a manifest of yours grants,",
        "and which of its lines have no effect here. A *size* is a number in quotes, with K, M or",
        "G behind it; a *URI* begins with `file:` and is a path of the host, relative ones from",
        "the manifest's directory; a *path* is one inside the enclave and begins with `/`.",
        "Hexadecimal digits are in quotes.",
        "",
        "| key | value | default | without effect here, because |",
        "|---|---|---|---|",
    ]
    for path, value, default in _keys(Manifest, ()):
        why = WITHOUT_EFFECT.get((path[0], path[1].removesuffix("[]")), "")
        lines.append(f"| `{'.'.join(path)}` | {value} | {default} | {why} |")
    lines += ["", "## Graphene's keys", "", "| Graphene | Gramine |", "|---|---|"]
    lines += [f"| `{old}` | `{new}` |" for old, new in translated_keys()]
    lines += ["", "Passed over, since they mean nothing here:", "", "| key | why |", "|---|---|"]
    lines += [f"| `{key}` | {why} |" for key, why in meaningless_keys()]
    lines.append("")
    return "\n".join(lines)


def _keys(
    table: type[BaseModel], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield the path, the value's description and the default of each key."""
    for name, field in table.model_fields.items():
        path = (*above, field.alias or name)
        written = ast.parse(_annotation(table, name), mode="eval").body
        inner = _inner_table(written)
        if inner is None:
            yield path, _words(written), _default(field)
        else:
            in_list = isinstance(_bare(written), ast.Subscript)
            yield from _keys(inner, (*above, f"{path[-1]}[]") if in_list else path)


def _annotation(table: type[BaseModel], name: str) -> str:
    """Return the type of a field as its author wrote it."""
    owner = next(base for base in table.__mro__ if name in vars(base).get("__annotations__", {}))
    return str(vars(owner)["__annotations__"][name])


def _bare(written: ast.expr) -> ast.expr:
    """Return a type without what only a validator needs."""
    if isinstance(written, ast.BinOp):  # X | None
        return _bare(written.left)
    if isinstance(written, ast.Subscript) and _name(written.value) == "Annotated":
        return _bare(_elements(written)[0])
    return written


def _elements(written: ast.Subscript) -> list[ast.expr]:
    """Return what stands in the brackets."""
    inside = written.slice
    return inside.elts if isinstance(inside, ast.Tuple) else [inside]


def _inner_table(written: ast.expr) -> type[BaseModel] | None:
    bare = _bare(written)
    if isinstance(bare, ast.Subscript) and _name(bare.value) == "list":
        bare = _bare(bare.slice)
    found = getattr(model, _name(bare), None)
    return found if inspect.isclass(found) and issubclass(found, BaseModel) else None


def _name(written: ast.expr) -> str:
    return written.id if isinstance(written, ast.Name) else ""


def _words(written: ast.expr) -> str:
    """Return a type in words."""
    bare = _bare(written)
    if isinstance(bare, ast.Subscript):
        kind, elements = _name(bare.value), _elements(bare)
        if kind == "Literal":
            return ", ".join(f"`{ast.unparse(value)}`".replace("'", '"') for value in elements)
        if kind == "dict":
            return f"table of {_words(elements[-1])}"
        return f"{kind} of {_words(elements[-1])}"
    return WORDS.get(_name(bare), _name(bare))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in (PydanticUndefined, None) or isinstance(field.default, BaseModel):
        return ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default!r}`".replace("'", '"')


PAGES = {"errors.md": errors_page, "commands.md": commands_page, "manifest.md": manifest_page}


def main() -> None:
    """Write the pages."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, page in PAGES.items():
        (directory / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
