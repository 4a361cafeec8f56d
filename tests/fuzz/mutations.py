"""Changes that break bytes in the ways in which files and messages are broken or forged."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Change = Callable[[random.Random, bytearray], None]

_NUMBERS = (0, 1, 2, 7, 31, 32, 33, 127, 128, 255, 256, 4095, 4096, 0x7FFF, 0xFFFF, 0x10000)
_LARGE = (0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
MAX_SIZE = 1 << 17


def mutate(
    dice: random.Random, seeds: Sequence[bytes], words: Sequence[bytes] = (), *, most: int = 6
) -> bytes:
    """Return one of ``seeds`` after one to ``most`` changes.

    Args:
        dice: decides; the same state gives the same bytes.
        seeds: what to begin from, and to splice with.
        words: tokens to insert, for texts.
        most: changes at most.
    """
    data = bytearray(dice.choice(seeds))
    changes = [*_CHANGES, _splice_with(seeds)] + [_insert_word(words)] * (3 if words else 0)
    for _ in range(dice.randint(1, most)):
        dice.choice(changes)(dice, data)
    return bytes(data[:MAX_SIZE])


def _place(dice: random.Random, data: bytearray) -> int:
    # The front holds the lengths and versions, so that it is met more often.
    end = len(data) if dice.random() < 0.6 else min(len(data), 64)
    return dice.randrange(end + 1)


def _flip_bit(dice: random.Random, data: bytearray) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _overwrite_number(dice: random.Random, data: bytearray) -> None:
    size = dice.choice((1, 2, 4, 8))
    at = _place(dice, data)
    order = "little" if dice.random() < 0.5 else "big"
    present = int.from_bytes(data[at : at + size], "little" if order == "little" else "big")
    value = dice.choice((*_NUMBERS, *_LARGE, present - 1, present + 1)) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, "little" if order == "little" else "big")


def _delete(dice: random.Random, data: bytearray) -> None:
    at = _place(dice, data)
    del data[at : at + dice.choice((1, 2, 16, 4096, len(data)))]


def _truncate(dice: random.Random, data: bytearray) -> None:
    del data[_place(dice, data) :]


def _repeat(dice: random.Random, data: bytearray) -> None:
    at = _place(dice, data)
    piece = data[at : at + dice.choice((1, 8, 64, 512))]
    data[at:at] = piece * min(dice.choice((1, 2, 100, 2000)), MAX_SIZE // (len(piece) + 1))


def _insert(dice: random.Random, data: bytearray) -> None:
    at = _place(dice, data)
    data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 32)))


def _swap(dice: random.Random, data: bytearray) -> None:
    size = dice.choice((1, 4, 32, 4096))
    one, other = _place(dice, data), _place(dice, data)
    piece = data[one : one + size]
    data[other : other + size] = piece


_CHANGES: tuple[Change, ...] = (
    _flip_bit,
    _flip_bit,
    _overwrite_number,
    _overwrite_number,
    _delete,
    _truncate,
    _repeat,
    _insert,
    _swap,
)


def _splice_with(seeds: Sequence[bytes]) -> Change:
    def splice(dice: random.Random, data: bytearray) -> None:
        other = bytearray(dice.choice(seeds))
        data[_place(dice, data) :] = other[_place(dice, other) :]

    return splice


def _insert_word(words: Sequence[bytes]) -> Change:
    def insert(dice: random.Random, data: bytearray) -> None:
        at = _place(dice, data)
        replaced = dice.choice((0, 0, 1, 5))
        data[at : at + replaced] = dice.choice(words)

    return insert
