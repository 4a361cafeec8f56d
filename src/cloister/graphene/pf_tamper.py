"""``pf_tamper``: makes damaged copies of an encrypted file, to test that none of them opens.

A case changes the file as an attacker without the key could, or, for ``meta_enc``, as a writer
with the key but without sense could. The names of the cases are those of Gramine's tool.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from cloister.encrypted.constants import (
    DATA_PER_MHT,
    ENTRY_SIZE,
    KEY_SIZE,
    NODE_SIZE,
    NONCE_SIZE,
)
from cloister.encrypted.layout import (
    HEADERS,
    METADATA,
    Field,
    Metadata,
    data_node,
    entry_field,
    metadata_key,
    mht_count,
    mht_node,
    open_metadata,
    open_node,
    parse_header,
    seal_metadata,
    seal_node,
)
from cloister.errors import CloisterError, InputError
from cloister.graphene.options import Option, parse

FAILED: Final = 255

OPTIONS: Final = (
    Option("w", "wrap-key", True),
    Option("i", "input", True),
    Option("o", "output", True),
    Option("v", "verbose", False),
    Option("h", "help", False),
)

USAGE: Final = """\
Usage: pf_tamper [OPTION]...

Options:
  -w, --wrap-key PATH  file of the wrap key
  -i, --input PATH     a valid encrypted file, of more than 400000 bytes
  -o, --output PATH    directory for the damaged copies
  -v, --verbose        say more
  -h, --help           show this text

Example: pf_tamper -w wrap-key -i encrypted/model.pt -o damaged
"""

Case = tuple[str, bytes]
"""The name of a case, and the damaged file."""


def cases(file: bytes, wrap_key: bytes) -> Iterator[Case]:
    """Yield damaged copies of an encrypted file, none of which may open under its path.

    Args:
        file: a valid encrypted file with at least two MHT nodes.
        wrap_key: its key, 16 bytes.

    Raises:
        InputError: the file is too small to have all the parts that are to be damaged.
    """
    metadata = open_metadata(file[:NODE_SIZE], wrap_key)
    if mht_count(metadata.size) < 2:
        raise InputError(
            f"an encrypted file with {metadata.size} bytes of content has one hash tree node, "
            "expected two or more",
            hint="damage a file of more than 400000 bytes",
        )
    yield from _lengths(file)
    yield from _plain_header(file, wrap_key)
    yield from _sealed_metadata(file, wrap_key, metadata)
    yield from _root(file, metadata)
    yield from _data(file)


def _lengths(file: bytes) -> Iterator[Case]:
    table = HEADERS[parse_header(file).major]
    fields = table.fields
    ends = {
        "meta_plain": [
            *_halves(fields["magic"]),
            fields["major"].offset,
            fields["minor"].offset,
            *_halves(fields["nonce"]),
            *_halves(fields["tag"]),
        ],
        "meta_enc": [
            table.size + place for field in METADATA.fields.values() for place in _halves(field)
        ],
        "meta_pad": _halves(
            Field(table.size + METADATA.size, NODE_SIZE - table.size - METADATA.size)
        ),
        "mht": [
            mht_node(0) * NODE_SIZE + slot * ENTRY_SIZE + part
            for slot in (0, DATA_PER_MHT)
            for part in (0, 8, 16, 24, 32)
        ],
        "data": [data_node(0) * NODE_SIZE + part * (NODE_SIZE // 2) for part in range(4)],
    }
    for name, places in ends.items():
        for number, place in enumerate(places):
            yield f"trunc_{name}_{number}", file[:place]
    yield "extend_0", file + b"\0"


def _halves(field: Field) -> list[int]:
    """Return where a field begins, and its middle."""
    return [field.offset, field.offset + field.size // 2]


def _plain_header(file: bytes, wrap_key: bytes) -> Iterator[Case]:
    header = parse_header(file)
    fields = HEADERS[header.major].fields
    start = HEADERS[header.major].size
    yield "meta_plain_id_0", _put(file, fields["magic"], bytes(8))
    yield "meta_plain_id_1", _put(file, fields["magic"], b"\xff" * 8)
    yield "meta_plain_version_0", _put(file, fields["major"], b"\x00")
    yield "meta_plain_version_1", _put(file, fields["major"], b"\xff")
    for number, nonce in enumerate(_two_changes(header.nonce)):
        changed = _put(file, fields["nonce"], nonce)
        yield f"meta_plain_nonce_{number}", changed
        plain = METADATA.pack(**open_metadata(file, wrap_key)._asdict())
        sealed = seal_node(metadata_key(wrap_key, header.nonce), plain)
        changed = _put(changed, fields["tag"], sealed[METADATA.size :])
        yield (
            f"meta_plain_nonce_{number}_fixed",
            _put(changed, Field(start, METADATA.size), sealed[: METADATA.size]),
        )
    for number, tag in enumerate(_two_changes(header.tag)):
        yield f"meta_plain_mac_{number}", _put(file, fields["tag"], tag)
    for number, place in enumerate((start, start + METADATA.size - 1)):
        yield f"meta_plain_encrypted_{number}", _flip(file, place)


def _two_changes(value: bytes) -> tuple[bytes, bytes]:
    """Return ``value`` with its first byte changed, and with its last byte changed."""
    return _flip(value, 0), _flip(value, len(value) - 1, 0xFE)


def _sealed_metadata(file: bytes, wrap_key: bytes, metadata: Metadata) -> Iterator[Case]:
    host, path = len(file), metadata.path
    values: dict[str, list[dict[str, Any]]] = {
        "filename": [
            {"path": b""},
            {"path": _flip(path, 0)},
            {"path": path[:-1]},
        ],
        "size": [
            {"size": size}
            for size in (host - NODE_SIZE, host - 1, host + NODE_SIZE, 2**64 - 1, host + 1)
        ],
        "mht_key": [{"root_key": key} for key in _two_changes(metadata.root_key)],
        "mht_mac": [{"root_tag": tag} for tag in _two_changes(metadata.root_tag)],
    }
    version = parse_header(file).major
    for name, changes in values.items():
        for number, change in enumerate(changes):
            changed = metadata._replace(**change)
            node0 = seal_metadata(changed, wrap_key, os.urandom(NONCE_SIZE), version)
            yield f"meta_enc_{name}_{number}", node0 + file[NODE_SIZE:]


def _root(file: bytes, metadata: Metadata) -> Iterator[Case]:
    """Change entries of the root MHT node and seal it with its key; its tag stays the old one."""
    place = Field(mht_node(0) * NODE_SIZE, NODE_SIZE)
    plain = open_node(metadata.root_key + metadata.root_tag, file[place.offset : place.end])
    last_child = DATA_PER_MHT + 31
    changes = [
        _flip(plain, entry_field(slot).offset + part)
        for slots in ((0, DATA_PER_MHT), (DATA_PER_MHT - 1, last_child))
        for slot in slots
        for part in (0, KEY_SIZE)
    ]
    changes += [_swap(plain, 0, 1), _swap(plain, DATA_PER_MHT, DATA_PER_MHT + 1)]
    for number, changed in enumerate(changes):
        sealed = seal_node(metadata.root_key, changed)[:NODE_SIZE]
        yield f"mht_{number}", _put(file, place, sealed)


def _swap(node: bytes, one: int, other: int) -> bytes:
    first, second = entry_field(one), entry_field(other)
    swapped = _put(node, first, node[second.offset : second.end])
    swapped = _put(swapped, second, node[first.offset : first.end])
    return swapped if swapped != node else _flip(node, first.offset)


def _data(file: bytes) -> Iterator[Case]:
    first = Field(data_node(0) * NODE_SIZE, NODE_SIZE)
    second = Field(data_node(1) * NODE_SIZE, NODE_SIZE)
    yield "data_0", _flip(file, first.offset)
    yield "data_1", _flip(file, first.end - 1)
    swapped = _put(file, first, file[second.offset : second.end])
    yield "data_2", _put(swapped, second, file[first.offset : first.end])


def _put(data: bytes, field: Field, value: bytes) -> bytes:
    return data[: field.offset] + value + data[field.end :]


def _flip(data: bytes, place: int, bits: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return 0, or 255 if anything went wrong."""
    parsed = parse(arguments, OPTIONS)
    if "help" in parsed.values:
        print(USAGE)
        return 0
    needed = [name for name in ("input", "output", "wrap-key") if name not in parsed.values]
    for option in parsed.unknown:
        print(f"pf_tamper: Unknown option: {option}", file=sys.stderr)
    for name in needed:
        print(f"pf_tamper: {name} not specified", file=sys.stderr)
    if needed:
        print(USAGE)
        return FAILED
    try:
        _write_cases(
            Path(parsed.values["input"]), Path(parsed.values["output"]), parsed.values["wrap-key"]
        )
    except CloisterError as error:
        print(f"pf_tamper: {error.message}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"pf_tamper: {error}", file=sys.stderr)
        return FAILED
    return 0


def _write_cases(source: Path, target: Path, key_file: str) -> None:
    from cloister.encrypted import whole
    from cloister.encrypted.keys import read_wrap_key

    key = read_wrap_key(key_file)
    whole.verify(source, key, whole.Expected())
    target.mkdir(parents=True, exist_ok=True)
    for name, damaged in cases(source.read_bytes(), key):
        path = target / f"{source.name}.{name}"
        path.write_bytes(damaged)
        print(f"[*] {path}")
