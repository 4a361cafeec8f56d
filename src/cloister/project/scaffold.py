"""The files of a new project, as text: manifest, Makefile, README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from cloister.project.kinds import Kind
from cloister.project.sorting import INSIDE, Sorted
from cloister.text import without_braces

_FILES = {"Makefile": "Makefile", "README.md": "README.md", "gitignore": ".gitignore"}


@dataclass(frozen=True)
class Project:
    """What a project is made of.

    Attributes:
        app: its name.
        script: name of the script.
        arguments: for the script.
        kind: what it is.
        files: what it needs and makes.
        interpreter: the Python that has its packages; None for the one that runs this.
    """

    app: str
    script: str
    arguments: Sequence[str]
    kind: Kind
    files: Sorted
    interpreter: str | None = None


def render(project: Project) -> dict[str, str]:
    """Return the project's own files: name -> text."""
    # The manifest is itself a template of Jinja, so that ours has other brackets.
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        block_start_string="[%",
        block_end_string="%]",
        variable_start_string="[[",
        variable_end_string="]]",
        comment_start_string="[#",
        comment_end_string="#]",
        autoescape=False,  # noqa: S701  (the output is TOML, make and Markdown, not HTML)
    )
    environment.filters["quoted"] = _quoted
    values = _values(project)
    names = {"manifest.template": f"{project.app}.manifest.template", **_FILES}
    directory = resources.files(__package__) / "files"
    return {
        target: environment.from_string((directory / name).read_text("utf-8")).render(values)
        for name, target in names.items()
    }


def _values(project: Project) -> dict[str, object]:
    files, kind = project.files, project.kind
    words = [f"{INSIDE}/{project.script}", *project.arguments]
    return {
        "app": project.app,
        "script": project.script,
        "module": project.script.removesuffix(".py"),
        "arguments": ", ".join(map(_quoted, words)),
        "kind": kind.name,
        "serves": kind.serves,
        "threads": kind.threads,
        "enclave_size": kind.enclave_size,
        "environment": [(name, _quoted(text)) for name, text in kind.environment.items()],
        "interpreter": "" if project.interpreter is None else _quoted(project.interpreter),
        "elsewhere": list(files.elsewhere),
        "places": [
            (place, path)
            for path, above in files.elsewhere.items()
            for place in (path, above)
            if place is not None
        ],
        "mounted": _mounted(files),
        "more_code": len(files.code) > 1,
        "data": files.data,
        "results": files.results,
    }


def _quoted(text: str) -> str:
    """Return a string for the manifest's template; no name is code there."""
    return without_braces(json.dumps(text, ensure_ascii=False))


def _mounted(files: Sorted) -> list[str]:
    """Return what of the code is mounted: a whole directory where it holds no data."""
    with_data = {name.partition("/")[0] for name in (*files.data, *files.results)}
    tops = [name.partition("/")[0] for name in files.code]
    names = [name if top in with_data else top for name, top in zip(files.code, tops, strict=True)]
    return list(dict.fromkeys(names))
