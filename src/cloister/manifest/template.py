"""Templates: Jinja2 with strict undefined names and the globals of Graphene and Gramine."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from cloister.errors import CloisterError, InputError, ManifestError
from cloister.manifest.clib import runtime_directory
from cloister.manifest.libraries import Libraries
from cloister.manifest.python_environment import PythonEnvironment, ask, python_environment
from cloister.manifest.tree import FileTree

_GRAMINE_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu/gramine",
    "/usr/lib64/gramine",
    "/usr/local/lib/x86_64-linux-gnu/gramine",
)


def render(
    text: str,
    definitions: Mapping[str, str | bool],
    *,
    source: str,
    environment: Mapping[str, str] | None = None,
    tree: FileTree | None = None,
) -> str:
    """Render a template.

    Args:
        text: the template.
        definitions: names that the template may use, as given with ``-D``.
        source: what errors call the template, normally its file name.
        environment: ``env``; None takes this process's.
        tree: listings of directories, to be shared with the expansion of trusted files.

    Raises:
        ManifestError: a mistake in the template, or a name that nobody defined.
    """
    names = global_names(os.environ if environment is None else environment, tree or FileTree())
    try:
        template = _jinja().from_string(text, globals=names)
        return template.render(definitions)
    except jinja2.TemplateSyntaxError as error:
        raise ManifestError(f"{source}:{error.lineno}: template: {error.message}") from error
    except jinja2.UndefinedError as error:
        raise ManifestError(
            f"{source}:{_line(error)}: template: {error.message}",
            hint="define it with -D NAME=VALUE",
        ) from error
    except CloisterError as error:
        raise ManifestError(f"{source}:{_line(error)}: {error.message}", hint=error.hint) from error
    except Exception as error:
        # A template can call anything, so it can fail with anything.
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ManifestError(f"{source}:{_line(error)}: template: {what}") from error


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


def _jinja() -> jinja2.Environment:
    return jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (the output is TOML, not HTML)
    )


def _line(error: BaseException) -> int:
    """Return the line of the template at which ``error`` was raised."""
    lines = [
        frame.lineno or 1
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == "<template>"
    ]
    return lines[-1] if lines else 1


def global_names(environment: Mapping[str, str], tree: FileTree) -> dict[str, Any]:
    """Return the names that every template may use."""
    installation = Installation()

    def environment_of(interpreter: str | None = None) -> PythonEnvironment:
        return python_environment(interpreter, tree=tree)

    return {
        "gramine": installation,
        "graphene": installation,
        "env": dict(environment),
        "python": PythonFacts(),
        "ldd": ldd,
        "python_environment": environment_of,
    }


def ldd(*programs: str) -> list[str]:
    """Return the sorted absolute paths of the libraries that ``programs`` need."""
    return sorted(Libraries(str(program) for program in programs).names)


class Installation:
    """``gramine`` and ``graphene``: where an installed Gramine keeps its files.

    Our runtime needs none of them; they are for manifests that stock Gramine is to accept too.
    """

    @property
    def pkglibdir(self) -> str:
        """Gramine's directory of libraries, where packages of distributions put it."""
        installed = [path for path in _GRAMINE_DIRECTORIES if Path(path).is_dir()]
        return (installed or list(_GRAMINE_DIRECTORIES))[0]

    @property
    def libos(self) -> str:
        """Gramine's library OS."""
        return f"{self.pkglibdir}/libsysdb.so"

    def runtimedir(self, libc: str = "glibc") -> str:
        """Return the directory that is to be mounted at ``/lib``."""
        return str(runtime_directory(libc))

    runtime = runtimedir  # as some tutorials write it


class PythonFacts:
    """``python``: paths of the interpreter that runs this, not of the application's."""

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        self.stdlib = Path(paths["stdlib"])
        self.platstdlib = Path(paths["platstdlib"])
        self.purelib = Path(paths["purelib"])
        self.distlib = self.stdlib.parent / "python3" / "dist-packages"
        self.ext_suffix = sysconfig.get_config_var("EXT_SUFFIX")
        self.implementation = sys.implementation
        self.get_config_var = sysconfig.get_config_var
        self.get_path = sysconfig.get_path
        self.get_paths = sysconfig.get_paths

    def get_sys_path(
        self, interpreter: str | None = None, *, include_nonexisting: bool = False
    ) -> list[Path]:
        """Return ``sys.path`` of an interpreter, without its script's directory."""
        path = [Path(entry) for entry in ask(interpreter)["path"]]
        return [entry for entry in path if include_nonexisting or entry.exists()]
