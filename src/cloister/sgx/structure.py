"""Fixed-size structures as tables: field name -> (offset, format).

Every number is little endian, as everywhere in the SGX architecture (Intel SDM vol. 3D, 1.3.1).
Bytes that no field covers are reserved: written as zero, and checked when a caller asks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from cloister.errors import InputError

Value = int | bytes


class Structure:
    """The layout of one structure.

    Args:
        name: what errors call it, e.g. ``REPORT``.
        size: total size in bytes.
        fields: field name -> (offset in bytes, :mod:`struct` format of one value without byte
            order, e.g. ``H``, ``Q`` or ``32s``).
    """

    def __init__(self, name: str, size: int, fields: Mapping[str, tuple[int, str]]) -> None:
        self.name = name
        self.size = size
        self._fields = {
            field: (offset, struct.Struct("<" + code)) for field, (offset, code) in fields.items()
        }
        self._reserved = bytearray(b"\xff" * size)
        for field, (offset, code) in self._fields.items():
            end = offset + code.size
            if end > size or any(byte == 0 for byte in self._reserved[offset:end]):
                raise ValueError(f"{name}.{field}: does not fit into the layout")
            self._reserved[offset:end] = bytes(code.size)

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Return the fields of ``data``; reserved bytes are ignored.

        Raises:
            InputError: ``data`` is not exactly :attr:`size` bytes.
        """
        self._require_size(data)
        return {
            name: code.unpack_from(data, offset)[0] for name, (offset, code) in self._fields.items()
        }

    def pack(self, values: Mapping[str, Value]) -> bytes:
        """Return the structure's bytes; fields that ``values`` lacks are zero.

        Raises:
            ValueError: an unknown field, or bytes of the wrong length.
            struct.error: a number out of its field's range.
        """
        data = bytearray(self.size)
        for name, value in values.items():
            if name not in self._fields:
                raise ValueError(f"{self.name} has no field {name}")
            offset, code = self._fields[name]
            if isinstance(value, bytes) and len(value) != code.size:
                raise ValueError(
                    f"{self.name}.{name}: {len(value)} bytes, the layout says {code.size}"
                )
            code.pack_into(data, offset, value)
        return bytes(data)

    def reserved_is_zero(self, data: bytes) -> bool:
        """Tell whether every byte that no field covers is zero."""
        self._require_size(data)
        return not any(
            byte for byte, reserved in zip(data, self._reserved, strict=True) if reserved
        )

    def _require_size(self, data: bytes) -> None:
        if len(data) != self.size:
            raise InputError(f"{self.name}: {len(data)} bytes, expected exactly {self.size}")
