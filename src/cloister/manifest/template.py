"""Templates: Jinja2 with strict undefined names and the globals of Graphene and Gramine."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from cloister.errors import CloisterError, ManifestError
from cloister.manifest.clib import runtime_directory
from cloister.manifest.libraries import Libraries, read_dynamic
from cloister.manifest.python_environment import PythonEnvironment, ask, python_environment
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import LIBOS

BELOW_PREFIX = ("lib/x86_64-linux-gnu/gramine", "lib64/gramine", "lib/gramine")
"""Where Gramine's libraries are below the prefix of its installation."""
_PREFIXES = ("/usr", "/usr/local")


class Template:
    """A template with everything that it may use.

    Args:
        text: the template.
        definitions: names that the template may use, as given with ``-D``.
        source: what errors call the template, normally its file name.
        environment: ``env``; None takes this process's.
        tree: listings of directories, to be shared with the expansion of trusted files.
    """

    def __init__(
        self,
        text: str,
        definitions: Mapping[str, str | bool],
        *,
        source: str,
        environment: Mapping[str, str] | None = None,
        tree: FileTree | None = None,
    ) -> None:
        self.source = source
        self._text = text
        self._definitions = definitions
        self._globals = global_names(
            os.environ if environment is None else environment, tree or FileTree()
        )

    def render(self) -> str:
        """Return the manifest.

        Raises:
            ManifestError: a mistake in the template, or a name that nobody defined.
        """
        text = self._render(self._text)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            line = text.count("\n", 0, error.start) + 1
            raise ManifestError(
                f"{self.source}: line {line} of the manifest would not be UTF-8: it holds the byte "
                f"0x{ord(text[error.start]) & 0xFF:02x}",
                hint="it comes from an environment variable, a file name or -D",
            ) from error
        return text

    def line_of(self, line: int) -> int | None:
        """Return the line of the template that made ``line`` of the manifest (both from 1)."""
        lines = self._lines
        return next((origin for origin in lines[line - 1 :] if origin is not None), None)

    @functools.cached_property
    def _lines(self) -> list[int | None]:
        """The template's line for each line of the manifest, None where it cannot be told.

        The template is rendered again with marks at the ends of its lines. Where they change the
        result, as a template that counts characters does, nothing can be told.
        """
        marked = self._render(_mark(self._text)).split("\n")
        if "\n".join(_MARK.sub("", text) for text in marked) != self.render():
            return []
        marks = (_MARK.search(text) for text in marked)
        return [None if mark is None else int(mark[1]) for mark in marks]

    def _render(self, text: str) -> str:
        try:
            template = _jinja().from_string(text, globals=self._globals)
            return template.render(self._definitions)
        except jinja2.TemplateSyntaxError as error:
            raise self._problem(error.lineno, f"template: {error.message}") from error
        except jinja2.UndefinedError as error:
            hint = _Undefined.hint_of(str(error.message))
            raise self._problem(_line(error), f"template: {error.message}", hint) from error
        except CloisterError as error:
            raise self._problem(_line(error), error.message, error.hint) from error
        except Exception as error:
            # A template can call anything, so it can fail with anything.
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise self._problem(_line(error), f"template: {what}") from error

    def _problem(self, line: int, what: str, hint: str | None = None) -> ManifestError:
        return ManifestError(f"{self.source}:{line}: {what}", hint=hint)


_MARK = re.compile("\0([0-9]+)\0")


def _mark(text: str) -> str:
    """Put the number of its line at the end of each line that is not inside of a Jinja tag."""
    marked = ""
    for number, kind, value in _jinja().lex(text):
        if kind == "data":
            lines = value.split("\n")
            value = "\n".join(  # noqa: PLW2901  (the same token, marked)
                [f"{line}\0{number + at}\0" for at, line in enumerate(lines[:-1])] + lines[-1:]
            )
        marked += value
    return marked


class _Environment(dict[str, str]):
    """``env``; a type of its own, so that errors can tell whose name is missing."""


_NOT_SET = "the environment variable {} is not set"


class _Undefined(jinja2.StrictUndefined):
    """A name that nobody defined."""

    @property
    def _undefined_message(self) -> str:
        if isinstance(self._undefined_obj, _Environment):
            return _NOT_SET.format(self._undefined_name)
        return super()._undefined_message

    @staticmethod
    def hint_of(message: str) -> str:
        """Return what to do about it."""
        if message.startswith(_NOT_SET.partition("{}")[0]):
            return "set it, or give the template another value: env.NAME | default('VALUE')"
        return "define it with -D NAME=VALUE"


def _jinja() -> jinja2.Environment:
    return jinja2.Environment(
        undefined=_Undefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (the output is TOML, not HTML)
        finalize=_finalize,
    )


def _finalize(value: object) -> object:
    """Refuse to write a function: its name alone was meant to call it."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        name = getattr(value, "__name__", "it")
        raise ManifestError(f"{name} is a function", hint=f"call it: {name}()")
    return value


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
        "env": _Environment(environment),
        "python": PythonFacts(),
        "ldd": ldd,
        "python_environment": environment_of,
    }


def ldd(*programs: str | Path) -> list[str]:
    """Return the sorted absolute paths of the libraries that ``programs`` need.

    Raises:
        ManifestError: one of them is no ELF file.
    """
    names = [str(program) for program in programs]
    for name in names:
        if read_dynamic(name) is None:
            raise ManifestError(f"ldd: {name}: not an x86-64 ELF file that can be read")
    return sorted(Libraries(names).names)


class Installation:
    """``gramine`` and ``graphene``: where an installed Gramine keeps its files.

    Our runtime needs none of them; they are for manifests that stock Gramine is to accept too.
    """

    @property
    def pkglibdir(self) -> str:
        """Gramine's directory of libraries: beside its programs, or where packages put it."""
        program = shutil.which("gramine-direct") or shutil.which("gramine-sgx-sign")
        beside = [] if program is None else [Path(program).resolve().parent.parent]
        usual = [Path(prefix) / below for prefix in _PREFIXES for below in BELOW_PREFIX]
        places = [*(prefix / below for prefix in beside for below in BELOW_PREFIX), *usual]
        return str(next((place for place in places if place.is_dir()), usual[0]))

    @property
    def libos(self) -> str:
        """Gramine's library OS."""
        return f"{self.pkglibdir}/{LIBOS}"

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
