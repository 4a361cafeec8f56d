"""The engine against vectors and files that it did not make."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloister.encrypted.backing import MemoryBacking
from cloister.encrypted.file import EncryptedFile, probe
from cloister.encrypted.keys import RandomKeys, read_wrap_key
from cloister.encrypted.layout import metadata_key

KEY = bytes.fromhex("ffeeddccbbaa99887766554433221100")
LARGE = bytes(7 * i % 256 for i in range(256)) * 52237
LARGE = LARGE[:13372421]

# Content, embedded path, version -> SHA-256 of the encrypted file, made with R_i below.
VECTORS = [
    (b"hello\n", "vec/s1", 1, "c3375e7d75602e22076b37daa639e3696beff510237753e09b2e39239dd52964"),
    (b"hello\n", "vec/s2", 2, "63dc2269b40fb218e18cb9667beb6a8a0a721a09b2ec29eb75853c2fff51d1b5"),
    (b"", "vec/e1", 1, "b2c6f7537d0e7b6c49a0d0273e50201d9f0f4b08b9938b2f3966c0e57a12d664"),
    (b"", "vec/e2", 2, "cf1f7ae3d163a0897f65708bf421d41fb06ed9dd8da34279747c10508ba3b0a3"),
    (b"A" * 10000, "vec/m1", 1, "45e80ee3193fb9707fd280f1f3014f64036c213e9f380fbb2b3232cf380f95fd"),
    (b"A" * 10000, "vec/m2", 2, "6f32a8a72dc4e834049edbbc7ab656fdfb13ffb44f7068d38b59f0de826290e4"),
    (LARGE, "vec/l1", 1, "70f6a860baa67e46cc91a7868e199975d5a71b66408ff61499fefb6fc428b010"),
    (LARGE, "vec/l2", 2, "e4076b84f3e1e1029a149fe508fc290b98923d62f7e68d8f82a672d1e988ac17"),
]

IDS = [vector[1] for vector in VECTORS]


def counted_random() -> RandomKeys:
    """Return the generator R_i = SHA256("rnd" + i), i = 1, 2, ..., cut to length."""
    calls = iter(range(1, 1_000_000))
    return RandomKeys(lambda size: hashlib.sha256(b"rnd%d" % next(calls)).digest()[:size])


def test_key_derivation_vector() -> None:
    assert metadata_key(KEY, bytes(range(32))).hex() == "13023cb37e5faf2da6ea64ba7c79cc62"


@pytest.mark.parametrize(
    ("content", "path", "version", "digest"), VECTORS, ids=lambda v: str(v)[:8]
)
def test_writes_the_vector_to_the_byte(
    content: bytes, path: str, version: int, digest: str
) -> None:
    backing = MemoryBacking()
    file = EncryptedFile.create(
        backing, KEY, path, name=path, keys=counted_random(), version=version, waiting_limit=4000
    )
    file.write(0, content)
    file.close()
    assert hashlib.sha256(backing.getvalue()).hexdigest() == digest


@pytest.mark.parametrize(
    ("content", "path", "version", "digest"), VECTORS, ids=lambda v: str(v)[:8]
)
def test_reads_what_it_wrote(content: bytes, path: str, version: int, digest: str) -> None:
    backing = MemoryBacking()
    file = EncryptedFile.create(backing, KEY, path, name=path, version=version)
    file.write(0, content)
    file.close()
    again = EncryptedFile.open(backing, KEY, path, name=path, store=None, writable=False)
    assert again.size == len(content)
    assert again.read(0, len(content) + 1) == content


@pytest.mark.parametrize("size", [0, 1, 3071, 3072, 3073, 4096, 7168, 396288, 396289])
def test_reads_files_of_gramine_tools(data: Path, size: int) -> None:
    folder = data / "encrypted"
    path = folder / "files" / f"{size}.bin"
    key = read_wrap_key(folder / "wrap-key")
    embedded = f"files/{size}.bin"
    expected = hashlib.shake_256(b"cloister fixture").digest(size)
    assert probe(path, key, embedded).size == size
    file = EncryptedFile.open_path(path, key, embedded, writable=False)
    assert file.read(0, size) == expected
    assert b"".join(file.read(i, 1000) for i in range(0, size, 1000)) == expected
    file.close()
