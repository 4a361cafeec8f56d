"""Signed manifests that this machine's enclaves have validated before.

To validate a manifest takes longer than anything else at the start of a run. So an enclave that
has started keeps the validated values of its manifest in the user's data directory, authenticated
with a key that only this very enclave has: its measurement covers the manifest and the runtime,
hence what validation would say again. At the next start the values are there at once. Until the
enclave runs nobody can tell whether they are its own; by them the sandbox is made, the enclave
started and the index of trusted files loaded, and no more. Then the enclave confirms them or stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from cloister.errors import EnclaveStartError
from cloister.files import WRITE_ERRORS, make_private_directory, write_atomically

if TYPE_CHECKING:
    from cloister.manifest.model import Manifest

_LABEL = b"cloister: validated manifest\0"
_MOST = 32
_TABLE, _MAPPING = "table", "mapping"


class KnownManifest:
    """What may be known of one signed manifest.

    Args:
        directory: where validated manifests are kept.
        text: the manifest's bytes.
        sigstruct: what was signed for it; names the enclave.
    """

    def __init__(self, directory: Path, text: bytes, sigstruct: bytes) -> None:
        self._digest = hashlib.sha256(sigstruct + text).digest()
        self._path = directory / self._digest.hex()[:32]
        self._values = b""
        self._mac = b""

    def recall(self) -> Manifest | None:
        """Return the values if some are there; :meth:`is_confirmed` decides whether they count."""
        try:
            self._mac, _, self._values = self._path.read_bytes().partition(b"\n")
            recalled = json.loads(self._values, object_hook=_loaded)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return cast("Manifest", recalled) if isinstance(recalled, SimpleNamespace) else None

    def is_confirmed(self, key: bytes) -> bool:
        """Tell whether the enclave with this secret key (16 bytes) wrote the values."""
        return hmac.compare_digest(self._mac, self._authenticated(key, self._values))

    def refusal(self) -> EnclaveStartError:
        """Return the error for values that are not the enclave's own."""
        return EnclaveStartError(
            f"{self._path}: the validated manifest is not what this enclave has kept there",
            hint=f"rm {self._path}   (the next start makes it again; a new SIMULATED platform "
            "or somebody else changed it)",
        )

    def keep(self, key: bytes, manifest: Manifest) -> None:
        """Keep the values of a validated manifest; a full disk keeps nothing."""
        values = json.dumps(_dumped(manifest), separators=(",", ":")).encode()
        with contextlib.suppress(*WRITE_ERRORS):
            make_private_directory(self._path.parent)
            write_atomically(
                self._path, self._authenticated(key, values) + b"\n" + values, mode=0o600
            )
            others = sorted(self._path.parent.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in others[:-_MOST]:
                path.unlink(missing_ok=True)

    def _authenticated(self, key: bytes, values: bytes) -> bytes:
        return hmac.new(key, _LABEL + self._digest + values, hashlib.sha256).hexdigest().encode()


def _dumped(value: Any) -> Any:
    """Turn tables of the model into JSON that tells them from mappings with free keys."""
    if isinstance(value, dict):
        return {_MAPPING: [[name, _dumped(item)] for name, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_dumped(item) for item in value]
    fields = getattr(type(value), "model_fields", None)
    if fields is None:
        return value
    return {_TABLE: [[name, _dumped(getattr(value, name))] for name in fields]}


def _loaded(value: dict[str, Any]) -> Any:
    """Undo :func:`_dumped` for one JSON object; its parts are done already."""
    if _TABLE in value:
        return SimpleNamespace(**dict(value[_TABLE]))
    return dict(value[_MAPPING])
