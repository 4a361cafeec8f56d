"""Kinds of programs: what frameworks need in an enclave besides Python."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from cloister.errors import InputError


@dataclass(frozen=True)
class Kind:
    """A kind of program.

    Attributes:
        name: what the command line calls it.
        modules: imports by which it is recognised, and the first of which must be installed.
        threads: ``sgx.max_threads``.
        enclave_size: ``sgx.enclave_size``.
        environment: variables that the program needs inside.
        serves: whether it is a web application, named ``app``, instead of a program that ends.
    """

    name: str
    modules: tuple[str, ...]
    threads: int = 64
    enclave_size: str = "4G"
    environment: dict[str, str] = field(default_factory=dict)
    serves: bool = False


KINDS = (
    Kind("fastapi", ("fastapi",), serves=True),
    Kind("pytorch", ("torch",)),
    Kind("onnxruntime", ("onnxruntime",), environment={"ORT_DISABLE_TELEMETRY": "1"}),
    Kind("openvino", ("openvino",)),
    Kind("tensorflow", ("tensorflow", "keras"), enclave_size="8G"),
    Kind("sklearn", ("sklearn",)),
    Kind("python", ()),
)
"""From the most telling import to the least: a FastAPI service often imports a framework too."""


def kind_named(name: str) -> Kind:
    """Return the kind called ``name``.

    Raises:
        InputError: there is none.
    """
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise InputError(f"{name}: no such kind; there are: {', '.join(k.name for k in KINDS)}")


def kind_of(source: str) -> Kind:
    """Return the kind of a script, by what it imports.

    Raises:
        InputError: it is no Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"the script is not valid Python: {error}") from error
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imported.add(node.module.partition(".")[0])
    for kind in KINDS:
        if imported & set(kind.modules):
            return kind
    return kind_named("python")
