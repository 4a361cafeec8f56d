"""TCG DICE "tagged evidence": the CBOR in which a certificate carries a quote.

``60000([quote, claims])`` where both are byte strings and ``claims`` is itself an encoded map
whose entry ``pubkey-hash`` is an encoded ``[hash algorithm, hash]`` of the certificate's
SubjectPublicKeyInfo (TCG DICE Concise Evidence Binding; Gramine's RA-TLS since 1.8). The quote's
report data is SHA-256 of the encoded claims, and 32 zero bytes.

Encoding is cbor2's. Decoding is a strict reader of our own: cbor2 ignores trailing bytes and
builds objects (regular expressions, dates, cycles) for tags, which hostile bytes must not.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

import cbor2

from cloister.errors import BindingError, EvidenceFormatError

TAGGED_EVIDENCE = 60000
PUBKEY_HASH = "pubkey-hash"
EVENT_LOG = "event-log"
"""Our own claim: the event log of a TDX quote. Verifiers that do not know it pass it over."""

MAX_DEPTH = 8

# IANA "Named Information Hash Algorithm Registry" numbers that verifiers know.
_HASHES: dict[int, Callable[[bytes], bytes]] = {
    1: lambda data: hashlib.sha256(data).digest(),
    7: lambda data: hashlib.sha384(data).digest(),
    8: lambda data: hashlib.sha512(data).digest(),
}
_SHA256 = 1

_UNSIGNED, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = 0, 2, 3, 4, 5, 6, 7


class TaggedEvidence(NamedTuple):
    """A quote, and the claims that it is bound to."""

    quote: bytes
    claims: bytes


def encode_claims(spki: bytes, event_log: bytes = b"") -> bytes:
    """Return the claims about a public key (its SubjectPublicKeyInfo in DER).

    Args:
        spki: the key; alone it makes claims of 51 bytes.
        event_log: what has to lie beside the quote; empty for quotes that need none.
    """
    claims = {PUBKEY_HASH: cbor2.dumps([_SHA256, hashlib.sha256(spki).digest()])}
    if event_log:
        claims[EVENT_LOG] = event_log
    return cbor2.dumps(claims)


def report_data_of(digest_of: bytes) -> bytes:
    """Return the report data that binds a quote to bytes: their SHA-256 and 32 zero bytes."""
    return hashlib.sha256(digest_of).digest() + bytes(32)


def encode_evidence(evidence: TaggedEvidence) -> bytes:
    """Return the extension's value."""
    return cbor2.dumps(cbor2.CBORTag(TAGGED_EVIDENCE, [evidence.quote, evidence.claims]))


def decode_evidence(data: bytes) -> TaggedEvidence:
    """Read the extension's value.

    Raises:
        EvidenceFormatError: anything but the one shape, with definite lengths and no rest.
    """
    reader = _Reader(data)
    reader.expect(_TAG, TAGGED_EVIDENCE, "tag 60000")
    reader.expect(_ARRAY, 2, "an array of two")
    evidence = TaggedEvidence(quote=reader.string(_BYTES), claims=reader.string(_BYTES))
    reader.finish()
    return evidence


def require_key_claim(claims: bytes, spki: bytes) -> bytes:
    """Check that the claims name the public key whose SubjectPublicKeyInfo (DER) is ``spki``.

    Returns:
        The event log that is claimed with it, or nothing.

    Raises:
        EvidenceFormatError: the claims are malformed.
        BindingError: no ``pubkey-hash``, an unknown hash algorithm, or another key.
    """
    found_claims = _byte_claims(claims)
    entry = found_claims.get(PUBKEY_HASH)
    if entry is None:
        raise BindingError("the evidence does not claim the certificate's key (no pubkey-hash)")
    reader = _Reader(entry)
    reader.expect(_ARRAY, 2, "an array of two")
    algorithm = reader.unsigned()
    found = reader.string(_BYTES)
    reader.finish()
    if algorithm not in _HASHES:
        raise BindingError(f"pubkey-hash: unknown hash algorithm {algorithm}, expected 1, 7 or 8")
    if not hmac.compare_digest(found, _HASHES[algorithm](spki)):
        raise BindingError("pubkey-hash is of another key than the certificate's")
    return found_claims.get(EVENT_LOG) or b""


def _byte_claims(claims: bytes) -> dict[str, bytes | None]:
    """Return the claims that we know; None for the others, which are passed over."""
    reader = _Reader(claims)
    count = reader.head(_MAP)
    found: dict[str, bytes | None] = {}
    for _ in range(count):
        name = reader.text()
        if name in found:
            raise EvidenceFormatError(f"evidence claims: {name!r} is there twice")
        if name in (PUBKEY_HASH, EVENT_LOG):
            found[name] = reader.string(_BYTES)
        else:
            reader.skip(MAX_DEPTH)
            found[name] = None
    reader.finish()
    return found


class _Reader:
    """Reads definite-length CBOR (RFC 8949, section 3) forward through hostile bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def expect(self, major: int, argument: int, what: str) -> None:
        if self.head(major) != argument:
            raise EvidenceFormatError(f"evidence: expected {what}")

    def unsigned(self) -> int:
        return self.head(_UNSIGNED)

    def text(self) -> str:
        try:
            return self.string(_TEXT).decode()
        except UnicodeDecodeError as error:
            raise EvidenceFormatError("evidence: text is not UTF-8") from error

    def string(self, major: int) -> bytes:
        return self._take(self.head(major))

    def head(self, major: int) -> int:
        found, argument = self._any_head()
        if found != major:
            raise EvidenceFormatError(f"evidence: CBOR major type {found}, expected {major}")
        return argument

    def skip(self, depth: int) -> None:
        """Step over one item of any kind, nested at most ``depth`` deep."""
        if depth == 0:
            raise EvidenceFormatError(f"evidence: nested deeper than {MAX_DEPTH}")
        major, argument = self._any_head()
        if major in (_BYTES, _TEXT):
            self._take(argument)
        items = {_ARRAY: argument, _MAP: 2 * argument, _TAG: 1}.get(major, 0)
        for _ in range(items):
            self.skip(depth - 1)

    def finish(self) -> None:
        rest = len(self._data) - self._position
        if rest:
            raise EvidenceFormatError(f"evidence: {rest} bytes after its end")

    def _any_head(self) -> tuple[int, int]:
        initial = self._take(1)[0]
        major, info = initial >> 5, initial & 0x1F
        if info < 24:
            return major, info
        if info > 27:
            raise EvidenceFormatError("evidence: indefinite length or reserved CBOR head")
        return major, int.from_bytes(self._take(1 << (info - 24)), "big")

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise EvidenceFormatError("evidence is cut short")
        piece = self._data[self._position : end]
        self._position = end
        return piece
