"""Watching a program in direct mode: which host files it opens, by the names that rules see."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloister.manifest.index import TrustedEntry
from cloister.manifest.model import Manifest
from cloister.manifest.propose import Observed
from cloister.runtime.journal import Journal
from cloister.runtime.launch import run
from cloister.runtime.policy import DirectRules, Intent
from cloister.runtime.program import Program

_WRITES = {Intent.WRITE, Intent.CREATE, Intent.REMOVE, Intent.RENAME}


@dataclass
class Watcher(DirectRules):
    """Rules that grant everything and remember what was wanted.

    Attributes:
        base: directory where relative URI paths start.
        wanted: URI path -> intents, in the order in which files were first touched.
        existed: URI paths of files that were there when they were first touched.
    """

    checks_content = False
    base: Path = Path()
    wanted: dict[str, set[Intent]] = field(default_factory=dict)
    existed: set[str] = field(default_factory=set)

    def trusted(self, path: str) -> TrustedEntry | None:
        """Return None: nothing is checked."""
        return None

    def check(self, path: str, intent: Intent) -> None:
        """Remember what is wanted, and grant it."""
        if path not in self.wanted:
            self.wanted[path] = set()
            if (self.base / path).exists():
                self.existed.add(path)
        self.wanted[path].add(intent)

    def changes_on_host(self, path: str) -> bool:
        """Return False, so that links are followed as in an enclave and names are the same."""
        return False


def native_program(
    command: tuple[str, ...], directory: Path, environment: Mapping[str, str], uid: int, gid: int
) -> Program:
    """Return a program that sees the whole machine at its own paths.

    Args:
        command: program and arguments; the program by its absolute path.
        directory: where it starts.
        environment: its whole environment.
        uid: user that it sees.
        gid: group that it sees.
    """
    manifest = Manifest.model_validate(
        {
            "libos": {"entrypoint": command[0]},
            "loader": {"argv": list(command), "env": dict(environment), "uid": uid, "gid": gid},
            "fs": {"root": {"uri": "file:/"}, "start_dir": str(directory)},
            "sys": {
                "stack": {"size": str(_own_limit(resource.RLIMIT_STACK, 8 << 20))},
                "fds": {"limit": _own_limit(resource.RLIMIT_NOFILE, 65536)},
            },
        }
    )
    return Program(manifest=manifest, base=Path("/"))


def _own_limit(kind: int, unlimited: int) -> int:
    """Return the soft limit that the caller has; ``unlimited`` stands for none."""
    soft, _ = resource.getrlimit(kind)
    return unlimited if soft == resource.RLIM_INFINITY else soft


def watch(program: Program, journal: Journal) -> tuple[int, Observed]:
    """Run a program in direct mode; return its exit code and what it did.

    Raises:
        CloisterError: it did not come to its start.
    """
    watcher = Watcher(base=program.base)
    program.rules = watcher
    code = run(program, None, journal)
    manifest = program.manifest
    written: list[str] = []
    passing: list[str] = []
    for path, intents in watcher.wanted.items():
        if intents & _WRITES:
            host = program.base / path
            if host.is_file():
                written.append(path)
            elif not host.exists():
                passing.append(path)
    observed = Observed(
        command=tuple(manifest.loader.argv or [manifest.libos.entrypoint]),
        directory=manifest.fs.start_dir,
        environment={
            name: variable.value
            for name, variable in manifest.loader.env.items()
            if variable.value is not None
        },
        read=tuple(path for path, intents in watcher.wanted.items() if not intents & _WRITES),
        written=tuple(written),
        passing=tuple(passing),
        changed=tuple(path for path in written if path in watcher.existed),
    )
    return code, observed
