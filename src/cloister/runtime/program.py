"""What is to run: a validated manifest and what the caller adds to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloister.manifest.index import TrustedIndex
    from cloister.manifest.model import Manifest
    from cloister.runtime.policy import Rules


@dataclass
class Program:
    """What is to run.

    Attributes:
        manifest: the validated manifest.
        base: directory to which its relative URIs belong.
        arguments: from the command line; the manifest decides whether they count.
        host_environment: the caller's environment; likewise.
        debug: show tracebacks of our own defects.
        trusted: returns the digests of the trusted files; None in direct mode, where nothing is
            checked.
        rules: access rules in place of the manifest's own, for watching a run in direct mode.
        log_level: how much is told, in place of ``loader.log_level``.
    """

    manifest: Manifest
    base: Path
    arguments: Sequence[str] = ()
    host_environment: Mapping[str, str] = field(default_factory=dict)
    trusted: Callable[[], TrustedIndex] | None = None
    debug: bool = False
    rules: Rules | None = None
    log_level: str | None = None
