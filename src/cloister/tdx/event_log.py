"""The event log beside a TDX quote: which programs the virtual machine has run since it booted.

A quote holds RTMR 3, a running hash (Intel TDX Module ABI Specification, TDG.MR.RTMR.EXTEND):
``RTMR = SHA-384(RTMR || digest)``, from 48 zero bytes. The log holds what was hashed. It is not
trusted: a verifier replays it and compares, and only then reads it.

An event is a program's SGX identity, as its SIGSTRUCT has it. A program is logged once, before its
first run asks for a key; that it ran again changes nothing that a verifier could care about.

Encoded: 8 bytes ``CLOISTR1``, then 76 bytes for each event (:data:`PROGRAM`, little endian).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cloister.errors import EventLogError
from cloister.sgx.report import Attribute
from cloister.sgx.structure import Structure

MAGIC = b"CLOISTR1"
MAX_PROGRAMS = 64
"""Programs in one log; more do not fit beside a quote in a certificate."""

REGISTER_SIZE = 48
PROGRAM = Structure(
    "program event",
    76,
    {
        "mr_enclave": (0, "32s"),
        "mr_signer": (32, "32s"),
        "flags": (64, "Q"),
        "isv_prod_id": (72, "H"),
        "isv_svn": (74, "H"),
    },
)
_DOMAIN = b"Cloister TDX event: program\0"


class ProgramEvent(NamedTuple):
    """A program that was started in the virtual machine.

    Attributes:
        mr_enclave: measurement of its signed manifest and runtime, as for an SGX enclave, 32 bytes.
        mr_signer: SHA-256 of its signer's public modulus, 32 bytes.
        flags: ATTRIBUTES.FLAGS that the signer asked for (64 bits).
        isv_prod_id: product number that the signer gave (16 bits).
        isv_svn: security version that the signer gave (16 bits).
    """

    mr_enclave: bytes
    mr_signer: bytes
    flags: int
    isv_prod_id: int
    isv_svn: int

    @property
    def debug(self) -> bool:
        """Whether the signer asked for a debug enclave."""
        return bool(self.flags & Attribute.DEBUG)

    def pack(self) -> bytes:
        """Return the event as it is logged, 76 bytes."""
        return PROGRAM.pack(self._asdict())

    def digest(self) -> bytes:
        """Return the digest by which the register is extended, 48 bytes."""
        return hashlib.sha384(_DOMAIN + self.pack()).digest()


def replay(events: Iterable[ProgramEvent]) -> bytes:
    """Return the value (48 bytes) that RTMR 3 has after these events and nothing else."""
    register = bytes(REGISTER_SIZE)
    for event in events:
        register = hashlib.sha384(register + event.digest()).digest()
    return register


def encode_log(events: Sequence[ProgramEvent]) -> bytes:
    """Return the log as it lies beside a quote."""
    return MAGIC + b"".join(event.pack() for event in events)


def decode_log(data: bytes) -> tuple[ProgramEvent, ...]:
    """Read a log from hostile bytes.

    Raises:
        EventLogError: it is of another kind, cut short, or too long.
    """
    if not data.startswith(MAGIC):
        raise EventLogError(f"TDX event log: begins with {data[:8].hex()}, expected {MAGIC.hex()}")
    body = data[len(MAGIC) :]
    count, rest = divmod(len(body), PROGRAM.size)
    if rest:
        raise EventLogError(f"TDX event log: {rest} bytes of an event, expected {PROGRAM.size}")
    if count > MAX_PROGRAMS:
        raise EventLogError(f"TDX event log: {count} programs, at most {MAX_PROGRAMS}")
    size = PROGRAM.size
    return tuple(
        ProgramEvent(**PROGRAM.unpack(body[at : at + size])) for at in range(0, len(body), size)
    )
