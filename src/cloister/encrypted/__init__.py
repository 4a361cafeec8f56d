"""Encrypted files: content that only the holder of a wrap key can read or change.

Compatible with the "protected files" of Graphene (version 1) and the "encrypted files" of Gramine
(version 2). Owners read results and write inputs from Python without temporary files::

    import cloister.encrypted

    with cloister.encrypted.open("encrypted/model.pt", "wrap-key") as file:
        model = torch.load(file, weights_only=True)

The rooms, from the bytes upwards: ``layout`` (the format, pure), ``runs`` (many nodes at once),
``backing`` (files and memory), ``journal`` and ``recovery`` (crashes), ``tree`` and ``nodes``
(the hash tree and the data under it), ``content`` (random access), ``file`` (host files by name),
``stream`` (Python file objects), ``bulk``, ``whole`` and ``trees`` (all of one or many files),
``keys`` (wrap keys).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.encrypted.keys import fingerprint, generate, read_wrap_key
    from cloister.encrypted.stream import EncryptedStream, decrypt, encrypt, open

__all__ = [
    "EncryptedStream",
    "decrypt",
    "encrypt",
    "fingerprint",
    "generate",
    "open",
    "read_wrap_key",
]

_HOMES = {
    "EncryptedStream": "stream",
    "decrypt": "stream",
    "encrypt": "stream",
    "open": "stream",
    "fingerprint": "keys",
    "generate": "keys",
    "read_wrap_key": "keys",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: commands that need no cipher start faster."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
