"""From the text of a manifest to the validated model, with errors that name file, line and key."""

from __future__ import annotations

import difflib
import functools
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

import tomli
from pydantic import BaseModel, ValidationError

from cloister.errors import ManifestError
from cloister.manifest.dialect import keys_of, translate
from cloister.manifest.locate import KeyLines, KeyPath
from cloister.manifest.model import Manifest
from cloister.text import printable


def parse_manifest(text: str, source: str) -> Manifest:
    """Parse and validate a rendered manifest.

    Args:
        text: TOML.
        source: what errors call it, normally the file's name.

    Raises:
        ManifestError: not TOML, an unknown key, a missing key, or a value that is not permitted.
    """
    return ManifestText(text, source).manifest


class ManifestText:
    """A rendered manifest that was validated, with the text to which errors point.

    Args:
        text: TOML.
        source: what errors call it, normally the file's name.
        line_in_source: turns a line of ``text`` into one of the file ``source``, where that is a
            template; None where it cannot be told.

    Attributes:
        document: the parsed TOML in Gramine's dialect.
        manifest: the validated model.
        dropped: keys of Graphene's that mean nothing here, and why.

    Raises:
        ManifestError: as :func:`parse_manifest`.
    """

    def __init__(
        self,
        text: str,
        source: str,
        line_in_source: Callable[[int], int | None] = lambda line: line,
    ) -> None:
        self.text = text
        self.source = source
        self._line_in_source = line_in_source
        self._translation = translate(self._parse(), self._plain_problem)
        self.document = self._translation.document
        self.dropped = self._translation.dropped
        try:
            self.manifest = Manifest.model_validate(self.document)
        except ValidationError as error:
            raise self._problems(error) from error

    @property
    def graphene(self) -> bool:
        """Whether the text uses keys of Graphene's dialect."""
        return self._translation.graphene

    def origin(self, path: KeyPath) -> KeyPath:
        """Return the path in the text of what stands at ``path`` of :attr:`document`."""
        return self._translation.origin(path)

    def line_of(self, path: KeyPath) -> int | None:
        """Return the line of ``source`` for what stands at ``path`` of :attr:`document`."""
        line = self._lines.line_of(self.origin(path))
        return None if line is None else self._line_in_source(line)

    def problem(self, path: KeyPath, what: str, hint: str | None = None) -> ManifestError:
        """Return the error for what stands at ``path`` of :attr:`document`."""
        return self._plain_problem(self.origin(path), what, hint)

    def _plain_problem(self, path: KeyPath, what: str, hint: str | None = None) -> ManifestError:
        """Return the error for what stands at ``path`` of the text."""
        where = self._where(self._lines.line_of(path))
        return ManifestError(f"{where}: {dotted(path)}: {what}", hint=hint)

    def trusted_file_problem(self, number: int, what: str, hint: str | None) -> ManifestError:
        """Return the error for item ``number`` of ``sgx.trusted_files``."""
        return self.problem(("sgx", "trusted_files", number), what, hint)

    def _problems(self, error: ValidationError) -> ManifestError:
        """Turn what is wrong into one line each, in the order of the text."""
        found = error.errors(include_url=False)
        found.sort(key=lambda problem: self._lines.line_of(self.origin(_path(problem))) or 0)
        first, *others = (
            self.problem(path, _sentence(problem, path))
            for problem, path in ((problem, _path(problem)) for problem in found)
        )
        return ManifestError(first.message, others=[other.message for other in others])

    @functools.cached_property
    def _lines(self) -> KeyLines:
        try:
            return KeyLines(self.text)
        except RecursionError as error:
            raise ManifestError(f"{self.source}:1: nested too deeply") from error

    def _parse(self) -> dict[str, Any]:
        try:
            return tomli.loads(self.text)
        except (ValueError, RecursionError) as error:
            what, line = _toml_problem(error, self.text)
            raise ManifestError(f"{self._where(line)}: not TOML: {what}") from error

    def _where(self, line: int | None) -> str:
        """Return the file and, where it is known, the line."""
        if line is None:
            return self.source
        in_source = self._line_in_source(line)
        if in_source is None:
            return f"{self.source} (line {line} of what it renders to)"
        return f"{self.source}:{in_source}"


def _toml_problem(error: Exception, text: str) -> tuple[str, int]:
    if isinstance(error, RecursionError):
        return "nested too deeply", 1
    if not isinstance(error, tomli.TOMLDecodeError):
        return "a number has too many digits", 1
    message = str(error)
    where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    if where is None:
        return message, 1
    line = int(where[1]) if where[1] else text.count("\n") + 1
    return message[: where.start()].lower(), line


def _path(problem: Mapping[str, Any]) -> KeyPath:
    """Return where a problem is, without the parts that pydantic adds for keys of a table."""
    return tuple(part for part in problem["loc"] if part != "[key]")


def dotted(path: KeyPath) -> str:
    """Return a path as people write it: ``fs.mounts[1].path``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{printable(part)}"'
            text += f".{name}" if text else name
    return text or "manifest"


_SENTENCES = {
    "missing": "missing, but needed",
    "bool_type": "expected true or false, without quotes",
    "string_type": "expected a text in quotes",
    "int_type": "expected a whole number, without quotes",
    "list_type": "expected an array, [ .. ]",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "too_short": "an empty array means nothing; leave the key out",
    "string_too_short": "an empty text means nothing; leave the key out",
    "string_pattern_mismatch": "a name that cannot be used",
    "string_too_long": "a name that is too long",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
}


def _sentence(problem: Mapping[str, Any], path: KeyPath) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{problem['input']!r} is none of {context['expected']}"
    if kind in _BOUNDS:
        key, word = _BOUNDS[kind]
        return f"{problem['input']} is out of range, expected {word} {context[key]}"
    return _SENTENCES.get(kind) or str(problem["msg"])


def _unknown(path: KeyPath) -> str:
    *table, name = path
    known = _keys_of(_model_at(tuple(table))) + keys_of(tuple(table))
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key; did you mean {dotted((*table, nearest[0]))}?"
    elsewhere = [dotted((*at, str(name))) for at, model in _tables() if name in _keys_of(model)]
    if elsewhere:
        return f"unknown key here; did you mean {elsewhere[0]}?"
    return f"unknown key; known here: {', '.join(sorted(known))}"


def _keys_of(model: type[BaseModel] | None) -> list[str]:
    fields = {} if model is None else model.model_fields
    return [field.alias or name for name, field in fields.items()]


def _model_at(path: KeyPath) -> type[BaseModel] | None:
    """Return the model of the table at ``path``."""
    model: type[BaseModel] | None = Manifest
    for part in path:
        if isinstance(part, int) or model is None:
            continue  # items of an array share the model of the array
        field = model.model_fields.get(part)
        model = None if field is None else _model_in(field.annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the table type inside an annotation such as ``list[Annotated[Mount, ..]]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        model = _model_in(argument)
        if model is not None:
            return model
    return None


def _tables(
    at: KeyPath = (), model: type[BaseModel] = Manifest
) -> list[tuple[KeyPath, type[BaseModel]]]:
    """Return all tables of the model with their paths."""
    found: list[tuple[KeyPath, type[BaseModel]]] = [(at, model)]
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            found += _tables((*at, name), inner)
    return found
