"""The record that ``cloister run --record`` writes: where its parts come from, and the file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloister.manifest.model import Manifest
    from cloister.manifest.parse import ManifestText
    from cloister.manifest.signed import SignedEnclave
    from cloister.platforms.base import Enclave, Platform
    from cloister.runtime.journal import Journal
    from cloister.runtime.recorder import Recorder


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(timezone.utc)


@contextlib.contextmanager
def recorded(journal: Journal, path: Path | None, make: Callable[[], Recorder]) -> Iterator[None]:
    """Write a record of what happens in the block, whole or not at all; also of its failure.

    Args:
        journal: hears of what happens.
        path: the record; None writes none.
        make: returns the recorder.

    Raises:
        InputError: the file cannot be written there; the block has not begun.
    """
    if path is None:
        yield
        return
    from cloister.errors import CloisterError
    from cloister.files import atomic_output

    failure = None
    with atomic_output(path, mode=0o600) as stream:
        recorder = journal.recorder = make()
        try:
            yield
        except CloisterError as error:
            failure = error
        stream.write(recorder.record(failure).to_json())
    if failure is not None:
        raise failure


def of_direct(app: Path, manifest: Manifest, begun: datetime) -> Recorder:
    """Return a recorder for a run in direct mode."""
    from cloister.manifest.signed import beside
    from cloister.runtime.recorder import Recorder

    path = beside(app, ".manifest")
    text = _text(path.read_bytes(), path)
    return Recorder(app.name, manifest, text, None, begun)


def of_enclave(app: Path, signed: SignedEnclave, platform: Platform, begun: datetime) -> Recorder:
    """Return a recorder for a run in an enclave."""
    from cloister.manifest.signed import beside
    from cloister.runtime.recorder import Recorder

    text = _text(signed.manifest_bytes, beside(app, ".manifest.sgx"))
    return Recorder(app.name, signed.manifest, text, platform, begun)


def enclave_started(
    recorder: Recorder, enclave: Enclave, app: Path, signed: SignedEnclave, libpal: Path | None
) -> None:
    """Record an enclave that started from an application's files."""
    from cloister.manifest.signed import beside
    from cloister.platforms.image import runtime_image
    from cloister.runtime.recorder import Built

    modified = beside(app, ".manifest.sgx").stat().st_mtime
    built = Built(
        manifest=signed.manifest_bytes,
        sigstruct=signed.sigstruct,
        image=runtime_image() if libpal is None else libpal.read_bytes(),
        trusted_files=len(signed.trusted),
        time=datetime.fromtimestamp(modified, timezone.utc),
    )
    recorder.enclave_started(enclave, built)


def _text(data: bytes, path: Path) -> Callable[[], ManifestText]:
    """Return what parses a manifest when the run is over, and does not delay its start."""

    def parse() -> ManifestText:
        from cloister.manifest.parse import ManifestText

        return ManifestText(data.decode("utf-8", "replace"), str(path))

    return parse
