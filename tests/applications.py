"""Applications for tests of the runtime: a directory, a manifest, and the command that runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CLOISTER = (sys.executable, "-m", "cloister")
PYTHON = os.path.realpath(sys.executable)
"""The interpreter itself, without the virtual environment around it."""
PROGRAMS = Path(__file__).parent / "runtime" / "programs"


class App:
    """One application in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings: dict[str, str] = {"fs.start_dir": '"/"'}
        self.mounts: list[str] = []

    def mount(self, path: str, uri: str = "", kind: str = "chroot", **more: str) -> None:
        fields = {"path": path, "uri": uri, "type": kind, **more}
        shown = ", ".join(f'{name} = "{value}"' for name, value in fields.items() if value)
        self.mounts.append(f"{{ {shown} }}")

    def text(self, python: bool) -> str:
        """The template: ``python`` adds the interpreter that runs the tests, trusted."""
        lines = [f"{name} = {value}" for name, value in self.settings.items()]
        mounts = list(self.mounts)
        if python:
            lines.insert(0, "{% set python = python_environment(PYTHON) %}")
            mounts.append(
                "{% for d in python.directories %}"
                '{ path = "{{ d }}", uri = "file:{{ d }}" }, {% endfor %}'
            )
        return "\n".join([*lines, f"fs.mounts = [{', '.join(mounts)}]\n"])

    def cloister(
        self, *arguments: str, expect: int | None = 0, **options: object
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(  # type: ignore[call-overload]
            [*CLOISTER, *arguments],
            check=False,
            cwd=self.directory,
            **{"capture_output": True, "text": True, "timeout": 100, **options},
        )
        assert isinstance(done, subprocess.CompletedProcess)
        if expect is not None:
            assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
        return done

    def direct(self, argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Run in direct mode with the whole host's programs mounted."""
        for path in ("/usr", "/lib", "/lib64", "/bin", "/etc"):
            self.mount(path, f"file:{path}")
        prefix = Path(PYTHON).parent.parent
        if not prefix.is_relative_to("/usr"):
            self.mount(str(prefix), f"file:{prefix}")
        self.mount("/programs", f"file:{PROGRAMS}")
        self.settings["libos.entrypoint"] = json.dumps(argv[0])
        self.settings["loader.argv"] = json.dumps(list(argv))
        (self.directory / "app.manifest").write_text(self.text(python=False))
        return self.cloister("run", "--mode", "direct", "app", **options)  # type: ignore[arg-type]
