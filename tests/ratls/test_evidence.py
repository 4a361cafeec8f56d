"""The CBOR of tagged evidence: byte-exact, and strict where cbor2 is not."""

from __future__ import annotations

import hashlib

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.errors import BindingError, EvidenceFormatError, RefusedError
from cloister.ratls.evidence import (
    TaggedEvidence,
    decode_evidence,
    encode_claims,
    encode_evidence,
    report_data_of,
    require_key_claim,
)

SPKI = bytes(range(120))
QUOTE = b"q" * 4600


def test_claims_are_the_51_bytes_of_the_format() -> None:
    digest = hashlib.sha256(SPKI).digest()
    expected = b"\xa1\x6bpubkey-hash\x58\x24\x82\x01\x58\x20" + digest
    assert encode_claims(SPKI) == expected
    assert len(expected) == 51


def test_evidence_is_the_bytes_of_the_format() -> None:
    claims = encode_claims(SPKI)
    encoded = encode_evidence(TaggedEvidence(QUOTE, claims))
    expected = bytes.fromhex("d9ea60825911f8") + QUOTE + bytes.fromhex("5833") + claims
    assert encoded == expected
    assert len(encoded) == 4660


def test_the_binding_is_sha256_and_zeros() -> None:
    assert report_data_of(b"x") == hashlib.sha256(b"x").digest() + bytes(32)


@given(st.binary(max_size=5000), st.binary(max_size=300))
def test_what_cbor2_writes_is_read(quote: bytes, claims: bytes) -> None:
    written = cbor2.dumps(cbor2.CBORTag(60000, [quote, claims]))
    assert decode_evidence(written) == TaggedEvidence(quote, claims)


@pytest.mark.parametrize("number", [1, 7, 8])
def test_the_known_hashes(number: int) -> None:
    function = {1: hashlib.sha256, 7: hashlib.sha384, 8: hashlib.sha512}[number]
    entry = cbor2.dumps([number, function(SPKI).digest()])
    require_key_claim(cbor2.dumps({"pubkey-hash": entry}), SPKI)


def claim(number: int, digest: bytes) -> bytes:
    return cbor2.dumps({"pubkey-hash": cbor2.dumps([number, digest])})


SHA256 = hashlib.sha256(SPKI).digest()


@pytest.mark.parametrize(
    "claims",
    [
        cbor2.dumps({"nonce": b"n"}),
        cbor2.dumps({}),
        claim(1, hashlib.sha256(b"another key").digest()),
        claim(2, SHA256[:16]),
        claim(7, SHA256),
        claim(1, SHA256[:31]),
        claim(1, SHA256 + b"\0"),
        claim(1, b""),
    ],
)
def test_claims_that_do_not_name_the_key(claims: bytes) -> None:
    with pytest.raises(BindingError):
        require_key_claim(claims, SPKI)


ENTRY = cbor2.dumps([1, SHA256])


@pytest.mark.parametrize(
    "claims",
    [
        b"",
        b"\xa1",
        cbor2.dumps([1]),
        cbor2.dumps({1: ENTRY}),
        cbor2.dumps({b"pubkey-hash": ENTRY}),
        cbor2.dumps({"pubkey-hash": [1, SHA256]}),
        cbor2.dumps({"pubkey-hash": ENTRY.decode("latin-1")}),
        cbor2.dumps({"pubkey-hash": ENTRY + b"\0"}),
        cbor2.dumps({"pubkey-hash": ENTRY}) + b"\0",
        b"\xbf" + cbor2.dumps("pubkey-hash") + cbor2.dumps(ENTRY) + b"\xff",
        b"\xa2" + 2 * (cbor2.dumps("pubkey-hash") + cbor2.dumps(ENTRY)),
        b"\xa1\x7f\x6bpubkey-hash\xff" + cbor2.dumps(ENTRY),
        b"\xa1\x62\xff\xff\x00",
    ],
)
def test_malformed_claims(claims: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        require_key_claim(claims, SPKI)


UNKNOWN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.binary()
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "pubkey-hash"), UNKNOWN, max_size=4))
def test_unknown_claims_are_stepped_over(others: dict[str, object]) -> None:
    depth = nesting(others)
    claims = cbor2.dumps({**others, "pubkey-hash": ENTRY})
    if depth <= 8:
        require_key_claim(claims, SPKI)


def nesting(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((nesting(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((nesting(item) for item in value), default=0)
    return 1


def test_tags_build_no_objects() -> None:
    pattern = b"\xd8\x23" + cbor2.dumps("(a+)+$")  # tag 35: a regular expression
    claims = b"\xa2" + cbor2.dumps("odd") + pattern + cbor2.dumps("pubkey-hash")
    require_key_claim(claims + cbor2.dumps(ENTRY), SPKI)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        cbor2.dumps([QUOTE, b"claims"]),
        cbor2.dumps(cbor2.CBORTag(60001, [QUOTE, b"claims"])),
        cbor2.dumps(cbor2.CBORTag(60000, [QUOTE])),
        cbor2.dumps(cbor2.CBORTag(60000, [QUOTE, b"claims", b"more"])),
        cbor2.dumps(cbor2.CBORTag(60000, [QUOTE, "claims"])),
        cbor2.dumps(cbor2.CBORTag(60000, [QUOTE, b"claims"])) + b"\0",
        cbor2.dumps(cbor2.CBORTag(60000, [QUOTE, b"claims"]))[:-1],
        b"\xd9\xea\x60\x9f" + cbor2.dumps(QUOTE) + cbor2.dumps(b"claims") + b"\xff",
        b"\xd9\xea\x60\x82\x5f" + cbor2.dumps(QUOTE) + b"\xff" + cbor2.dumps(b"claims"),
        b"\xd9\xea\x60\x82\x5b" + b"\xff" * 8,
        b"\xd9\xea\x60\x9c",
        b"\x9b" + b"\xff" * 8,
    ],
)
def test_malformed_evidence(data: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        decode_evidence(data)


@given(st.binary(max_size=200))
@example(b"\x81" * 150)
@example(b"\xa1\x61a" * 60)
@example(b"\xa1\x61a" + b"\x81" * 150)
@example(b"\xa1\x61a\x9b" + b"\xff" * 8)
def test_garbage_is_refused_or_says_nothing_of_the_key(data: bytes) -> None:
    with pytest.raises(RefusedError):
        decode_evidence(data)
    with pytest.raises(RefusedError):
        require_key_claim(data, SPKI)
