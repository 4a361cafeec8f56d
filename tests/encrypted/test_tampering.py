"""Nobody without the key can change a file unseen, and errors say what was changed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.encrypted.backing import MemoryBacking
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.file import EncryptedFile, probe
from cloister.encrypted.layout import HEADERS, METADATA, data_node, host_nodes, mht_node
from cloister.encrypted.stream import decrypt, encrypt
from cloister.errors import (
    AuthenticationError,
    EncryptedFileError,
    NotEncryptedError,
    RecoveryError,
    RenamedError,
    TamperedError,
    TruncatedError,
    UnsupportedVersionError,
    WrongKeyError,
)
from cloister.graphene.pf_tamper import cases

KEY = bytes(range(16))
PATH = "dir/file"
CONTENT = random.Random(3).randbytes(1_048_577)

# What each family of damage is called; the first prefix that fits counts.
VERDICTS: dict[str, type[EncryptedFileError]] = {
    "trunc_meta_plain_0": NotEncryptedError,
    "trunc_": TruncatedError,
    "extend_": TruncatedError,
    "meta_plain_id": NotEncryptedError,
    "meta_plain_version": UnsupportedVersionError,
    "meta_plain_": WrongKeyError,
    "meta_enc_filename": RenamedError,
    "meta_enc_size": TruncatedError,
    "meta_enc_mht": TamperedError,
    "mht_": TamperedError,
    "data_": TamperedError,
}


def verdict_of(name: str) -> type[EncryptedFileError]:
    return next(kind for prefix, kind in VERDICTS.items() if name.startswith(prefix))


@pytest.mark.parametrize("version", [1, 2])
def test_every_case_of_the_tamper_table_fails_for_its_reason(version: int) -> None:
    file = encrypt(CONTENT, KEY, PATH, version=version)
    assert decrypt(file, KEY, PATH) == CONTENT
    names = []
    for name, damaged in cases(file, KEY):
        names.append(name)
        assert damaged != file
        with pytest.raises(EncryptedFileError) as caught:
            decrypt(damaged, KEY, PATH)
        assert type(caught.value) is verdict_of(name), name
        assert caught.value.hint
    assert len(names) == len(set(names)) == 72


def test_a_wrong_key_is_told_apart_from_damage_behind_the_first_node() -> None:
    file = encrypt(CONTENT, KEY, PATH)
    with pytest.raises(WrongKeyError, match="another key, or the first node was changed") as caught:
        decrypt(file, bytes(16), PATH)
    assert KEY.hex() not in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_region_that_was_changed_is_named() -> None:
    file = bytearray(encrypt(CONTENT, KEY, PATH))
    place = data_node(100) * 4096 + 17
    file[place] ^= 1
    first = 3072 + 100 * 4096
    with pytest.raises(TamperedError, match=rf"from byte {first} \(bytes {place - 17} to"):
        decrypt(bytes(file), KEY, PATH)
    file[place] ^= 1
    file[mht_node(2) * 4096] ^= 1
    with pytest.raises(TamperedError, match="hash tree node 2"):
        decrypt(bytes(file), KEY, PATH)


def test_what_is_not_damaged_can_still_be_read() -> None:
    file = bytearray(encrypt(CONTENT, KEY, PATH))
    file[data_node(100) * 4096] ^= 1
    content = EncryptedContent.open(
        MemoryBacking(file), KEY, PATH, name="f", store=None, writable=False
    )
    bad = 3072 + 100 * 4096
    assert content.read(0, bad) == CONTENT[:bad]
    assert content.read(bad + 4096, 10**7) == CONTENT[bad + 4096 :]
    for before, after in ((1, 1), (5, 5)):
        start = bad - before * 4096
        buffer = bytearray(b"?" * (before + 1 + after) * 4096)
        with pytest.raises(TamperedError):
            content.read_into(start, memoryview(buffer))
        for place in range(0, len(buffer), 4096):
            genuine = CONTENT[start + place : start + place + 4096]
            node = buffer[place : place + 4096]
            assert node in ([genuine] if start + place != bad else []) + [bytes(4096), b"?" * 4096]


def authenticated_bytes(file: bytes, version: int) -> set[int]:
    """Return the places of all bytes whose change must be seen."""
    table = HEADERS[version]
    ignored = {table.fields["minor"].offset}
    if version == 2:
        ignored.add(table.fields["flags"].offset)
    ignored |= set(range(table.size + METADATA.size, 4096))
    return set(range(len(file))) - ignored


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 3072, 3073, 8000])
def test_every_flipped_byte_is_seen(size: int, version: int) -> None:
    content = CONTENT[:size]
    file = encrypt(content, KEY, PATH, version=version)
    assert len(file) == host_nodes(size) * 4096
    dice = random.Random(size)
    for place in sorted(authenticated_bytes(file, version)):
        damaged = bytearray(file)
        damaged[place] ^= dice.randrange(1, 256)
        with pytest.raises(EncryptedFileError):
            decrypt(bytes(damaged), KEY, PATH)


def test_bytes_that_the_format_does_not_authenticate_change_nothing() -> None:
    for version in (1, 2):
        file = encrypt(CONTENT[:9000], KEY, PATH, version=version)
        for place in sorted(set(range(4096)) - authenticated_bytes(file, version)):
            damaged = bytearray(file)
            damaged[place] ^= 0x80
            assert decrypt(bytes(damaged), KEY, PATH) == CONTENT[:9000]
    assert decrypt(file + bytes(8192), KEY, PATH) == CONTENT[:9000]


def test_random_damage_of_a_large_file_is_seen() -> None:
    file = encrypt(CONTENT, KEY, PATH)
    dice = random.Random(11)
    for _ in range(60):
        damaged = bytearray(file)
        start = dice.randrange(4096, len(file))
        length = min(dice.randrange(1, 9000), len(file) - start)
        damaged[start : start + length] = dice.randbytes(length)
        with pytest.raises(EncryptedFileError):
            decrypt(bytes(damaged), KEY, PATH)


def test_nodes_of_another_state_of_the_same_file_do_not_fit() -> None:
    """Rollback of a part is seen, even when every byte was once genuine."""
    backing = MemoryBacking()
    file = EncryptedContent.create(backing, KEY, PATH, name="f")
    file.write(0, CONTENT[:30_000])
    file.flush()
    old = backing.getvalue()
    file.write(5000, b"new")
    file.flush()
    new = backing.getvalue()
    for node in range(1, len(new) // 4096):
        if old[node * 4096 : (node + 1) * 4096] == new[node * 4096 : (node + 1) * 4096]:
            continue
        mixed = new[: node * 4096] + old[node * 4096 : (node + 1) * 4096]
        with pytest.raises(AuthenticationError):
            decrypt(mixed + new[(node + 1) * 4096 :], KEY, PATH)
    with pytest.raises(AuthenticationError):
        decrypt(old[:4096] + new[4096:], KEY, PATH)


def plant_nothing(path: Path) -> None:
    pass


def plant_plain(path: Path) -> None:
    path.write_text("Labrador retriever 41.6 %\n")


@pytest.mark.parametrize(
    ("plant", "error"),
    [
        (plant_nothing, FileNotFoundError),
        (plant_plain, NotEncryptedError),
        (lambda path: path.write_bytes(b""), NotEncryptedError),
        (lambda path: path.write_bytes(b"GRAFS"), TruncatedError),
        (lambda path: path.mkdir(), (NotEncryptedError, IsADirectoryError)),
        (os.mkfifo, NotEncryptedError),
        (lambda path: path.symlink_to("/dev/zero"), NotEncryptedError),
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_what_is_no_encrypted_file_is_refused(
    tmp_path: Path,
    plant: Callable[[Path], object],
    error: type[Exception],
    writable: bool,
) -> None:
    path = tmp_path / "result.txt"
    plant(path)
    with pytest.raises(error):
        EncryptedFile.open_path(path, KEY, None, writable=writable)
    with pytest.raises(error):
        probe(path, KEY, None)


def test_an_existing_plain_result_says_what_it_is_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    plant_plain(path)
    with pytest.raises(NotEncryptedError) as caught:
        EncryptedFile.open_path(path, KEY, "result.txt", writable=True)
    assert "result.txt: not an encrypted file" in caught.value.message
    assert "remove it" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_a_set_flag_without_a_recovery_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = bytearray(encrypt(CONTENT[:9000], KEY, PATH))
    file[58] |= 1
    path.write_bytes(file)
    for writable in (False, True):
        with pytest.raises(RecoveryError, match="recovery file is missing") as caught:
            EncryptedFile.open_path(path, KEY, PATH, writable=writable)
        assert "cloister recover" in (caught.value.hint or "")
    assert path.read_bytes() == file
