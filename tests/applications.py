"""Applications for tests of the runtime: a directory, a manifest, and the command that runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from environments import bare_python

CLOISTER = (sys.executable, "-m", "cloister")
PYTHON = os.path.realpath(sys.executable)
"""The interpreter itself, without the virtual environment around it."""
KEY = "00112233445566778899aabbccddeeff"
SIGNING_KEY = Path(__file__).parent / "data" / "signing" / "key.pem"
WITHOUT_LINKS = dict.fromkeys(("hard_links", "symbolic_links"), "PermissionError")
"""What differs in an encrypted mount: a file is bound to one path, so links are refused."""
TOOLS = ("sh", "cat", "ls", "rm", "mv", "mkdir", "head", "wc", "cmp", "od", "sleep")
PROGRAMS = Path(__file__).parent / "runtime" / "programs"


class App:
    """One application in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings: dict[str, str] = {
            "fs.start_dir": '"/"',
            "sys.stack.size": '"512K"',  # Debian 13's wc wants more than the 256 KiB of the default
        }
        self.mounts: list[str] = []
        self.trusted: list[str] = []
        self.built = ""

    def mount(self, path: str, uri: str = "", kind: str = "chroot", **more: str) -> None:
        fields = {"path": path, "uri": uri, "type": kind, **more}
        shown = ", ".join(f'{name} = "{value}"' for name, value in fields.items() if value)
        self.mounts.append(f"{{ {shown} }}")

    def text(self, prologue: str = "", mounts: str = "", trusted: str = "") -> str:
        """The manifest; the arguments are put at their places, in Jinja where it is a template."""
        settings = "\n".join(f"{name} = {value}" for name, value in self.settings.items())
        listed = ", ".join(f'"{uri}"' for uri in self.trusted)
        return (
            f"{prologue}\n{settings}\n"
            f"fs.mounts = [{', '.join([*self.mounts, mounts])}]\n"
            f"sgx.trusted_files = [{', '.join(filter(None, [listed, trusted]))}]\n"
        )

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
        (self.directory / "app.manifest").write_text(self.text())
        return self.cloister("run", "--mode", "direct", "app", **options)  # type: ignore[arg-type]

    def build(self, text: str, *options: str) -> None:
        """Build the enclave of a template."""
        (self.directory / "app.manifest.template").write_text(text)
        self.built = self.cloister(
            "build", "--json", *options, "--key", str(SIGNING_KEY), "app.manifest.template"
        ).stdout

    def build_shell(self, *options: str, arguments: bool = True) -> None:
        """Build an enclave that holds a shell and a few tools; the script comes at the run.

        Args:
            options: of ``cloister build``.
            arguments: whether it takes those of the command line.
        """
        tools = [str(Path(found).resolve()) for name in TOOLS if (found := shutil.which(name))]
        names = [f"/bin/{name}" for name in TOOLS]
        self.settings["libos.entrypoint"] = '"/bin/sh"'
        if arguments:
            self.settings["loader.insecure__use_cmdline_argv"] = "true"
        self.settings["loader.env.PATH"] = '"/bin"'
        mounts = [
            f'{{ path = "{name}", uri = "file:{tool}" }}'
            for name, tool in zip(names, tools, strict=True)
        ]
        mounts += [f'{{ path = "{lib}", uri = "file:{lib}" }}' for lib in ("/lib", "/lib64")]
        libraries = "{% for l in ldd(" + ", ".join(f"'{t}'" for t in tools) + ') %}"file:{{ l }}", '
        trusted = ", ".join(f'"file:{tool}"' for tool in tools)
        self.build(
            self.text(mounts=", ".join(mounts), trusted=f"{trusted}, {libraries}{{% endfor %}}"),
            *options,
        )

    def run_shell(
        self,
        script: str,
        expect: int | None = 0,
        meanwhile: Callable[[], None] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in the built enclave, with something else going on outside."""
        return self._run_with(meanwhile, "-c", script, expect=expect)

    def _run_with(
        self,
        meanwhile: Callable[[], None] | None,
        *arguments: str,
        expect: int | None,
        timeout: int = 100,
    ) -> subprocess.CompletedProcess[str]:
        with ThreadPoolExecutor(1) as other:
            pending = other.submit(meanwhile) if meanwhile else None
            done = self.cloister("run", "app", *arguments, expect=expect, timeout=timeout)
            if pending is not None:
                pending.result(10)
        return done

    def start_shell(self, script: str, *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
        """Begin to run a script in the built enclave, with pipes to its standard streams."""
        return subprocess.Popen(
            [*CLOISTER, "run", "app", "-c", script],
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )

    def enclave_shell(
        self, script: str, expect: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Build the enclave and run a script in it."""
        self.build_shell()
        return self.run_shell(script, expect)

    def enclave_python(
        self,
        program: str,
        *arguments: str,
        expect: int | None = 0,
        meanwhile: Callable[[], None] | None = None,
        timeout: int = 100,
        before: Callable[[], None] = lambda: None,
        python: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Build an enclave around an interpreter, and run a program in it.

        Args:
            program: one of ``PROGRAMS``, by its path inside.
            arguments: of the program.
            expect: the exit code.
            meanwhile: what goes on outside during the run.
            timeout: seconds.
            before: what happens between build and run.
            python: the interpreter; left out, that of the tests without its packages.
        """
        python = python or bare_python(self.directory / "python")
        self.mount("/programs", f"file:{PROGRAMS}")
        self.trusted += [f"file:{PROGRAMS}/{path.name}" for path in PROGRAMS.iterdir()]
        self.settings["libos.entrypoint"] = json.dumps(python)
        self.settings["loader.argv"] = json.dumps([python, program, *arguments])
        self.build(
            self.text(
                prologue=f"{{% set python = python_environment('{python}') %}}",
                mounts="{% for d in python.directories %}"
                '{ path = "{{ d }}", uri = "file:{{ d }}" }, {% endfor %}',
                trusted='{% for f in python.trusted_files %}"{{ f }}", {% endfor %}',
            )
        )
        before()
        return self._run_with(meanwhile, expect=expect, timeout=timeout)
