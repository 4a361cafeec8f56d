"""``/dev/attestation``: pseudo-files through which a program meets its enclave.

Files, sizes and semantics are Gramine's: ``my_target_info`` (512 bytes), ``target_info`` (512,
writable), ``user_report_data`` (64, writable), ``report`` (432), ``quote``, ``attestation_type``
and ``keys/NAME`` (16 raw bytes); besides, Graphene's ``protected_files_key`` (32 hex digits).
What a readable file holds is made when it is opened and stays so for that descriptor. A write
replaces the whole value; shorter input is padded with zeros, longer input is cut. The written
values belong to a process; a child starts with zeros.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cloister.errors import CloisterError, UnsupportedByPlatformError
from cloister.fuse.filesystem import Caller
from cloister.platforms.base import Enclave
from cloister.runtime.keyring import DEFAULT_KEY, KEY_SIZE, Keyring
from cloister.runtime.nodes import SyntheticDirectory, refuse
from cloister.runtime.pseudo import PseudoFile, Reader

REPORT_DATA_SIZE = 64
TARGET_INFO_SIZE = 512
_MANY_PROCESSES = 256
EVENT_LOG = b"event_log"
"""Ours: what lies beside the quotes of a TDX virtual machine, for programs that pass quotes on."""


class _State:
    """What one process wrote."""

    def __init__(self) -> None:
        self.target_info = bytes(TARGET_INFO_SIZE)
        self.report_data = bytes(REPORT_DATA_SIZE)
        self.graphene_key = bytes(2 * KEY_SIZE)


class _Process(NamedTuple):
    """A process that cannot be mistaken for a later one of the same number."""

    number: int
    started: str


def _process_of(caller: Caller) -> _Process:
    """Return the process that a thread belongs to."""
    try:
        status = Path(f"/proc/{caller.pid}/status").read_text(encoding="utf-8")
        number = int(status.partition("\nTgid:")[2].split(None, 1)[0])
        # The name in parentheses may hold anything; the start time is the 20th field behind it.
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError, IndexError):
        refuse(errno.EACCES)
    return _Process(number, fields[19])


def _is_alive(number: int) -> bool:
    return Path(f"/proc/{number}").exists()


class _Values:
    """What every process wrote; that of processes that have ended is forgotten now and then."""

    def __init__(self) -> None:
        self._states: dict[_Process, _State] = {}

    def of(self, caller: Caller) -> _State:
        process = _process_of(caller)
        if process not in self._states:
            if len(self._states) >= _MANY_PROCESSES:
                self._states = {p: s for p, s in self._states.items() if _is_alive(p.number)}
            self._states[process] = _State()
        return self._states[process]

    def set_report_data(self, caller: Caller, value: bytes) -> None:
        self.of(caller).report_data = value[:REPORT_DATA_SIZE].ljust(REPORT_DATA_SIZE, b"\0")

    def set_target_info(self, caller: Caller, value: bytes) -> None:
        self.of(caller).target_info = value[:TARGET_INFO_SIZE].ljust(TARGET_INFO_SIZE, b"\0")


def attestation_directory(
    enclave: Enclave | None,
    keys: Keyring,
    tell: Callable[[str], None],
    *,
    remote_attestation: bool,
) -> SyntheticDirectory:
    """Build ``/dev/attestation``; without an enclave (direct mode) it holds only ``keys``.

    Args:
        enclave: the running enclave.
        keys: the wrap keys, readable and settable under ``keys/``.
        tell: called with the reason when the platform fails to make what a program opens.
        remote_attestation: ``sgx.remote_attestation`` is not "none": there is a ``quote``.
    """
    directory = SyntheticDirectory()
    directory.mounted[b"keys"] = _keys_directory(enclave, keys)
    if enclave is None:
        return directory
    values = _Values()
    made = functools.partial(_made, tell)

    def report(caller: Caller) -> bytes:
        state = values.of(caller)
        if not any(state.target_info):
            state.target_info = enclave.target_info()
        return enclave.report(state.target_info, state.report_data)

    directory.mounted |= {
        b"attestation_type": PseudoFile(lambda _: b"dcap" if remote_attestation else b"none"),
        b"my_target_info": PseudoFile(made("my_target_info", lambda _: enclave.target_info())),
        b"target_info": PseudoFile(lambda _: b"", values.set_target_info),
        b"user_report_data": PseudoFile(lambda _: b"", values.set_report_data),
        b"report": PseudoFile(made("report", report)),
        b"protected_files_key": _graphene_key(keys, values),
    }
    if remote_attestation:
        directory.mounted[b"quote"] = PseudoFile(
            made("quote", lambda caller: enclave.quote(values.of(caller).report_data))
        )
        if enclave.event_log:
            directory.mounted[EVENT_LOG] = PseudoFile(lambda _: enclave.event_log)
    return directory


def _made(tell: Callable[[str], None], name: str, read: Reader) -> Reader:
    """Turn a failure of the platform into an error of open(2), and tell of it.

    ``EOPNOTSUPP`` is for what the platform does not have, ``EACCES`` for the rest, as in Gramine.
    """

    def made(caller: Caller) -> bytes:
        try:
            return read(caller)
        except UnsupportedByPlatformError:
            refuse(errno.EOPNOTSUPP)
        except CloisterError as error:
            hint = f" (hint: {error.hint})" if error.hint else ""
            tell(f"/dev/attestation/{name}: {error.message}{hint}")
            refuse(errno.EACCES)

    return made


def _keys_directory(enclave: Enclave | None, keys: Keyring) -> SyntheticDirectory:
    directory = SyntheticDirectory()
    for name in keys:
        sealing = name in SEALING_KEYS and enclave is not None
        directory.mounted[name.encode()] = _key_file(keys, name, writable=not sealing)
    return directory


SEALING_KEYS = ("_sgx_mrenclave", "_sgx_mrsigner")
"""Keys that the platform derives for the enclave; read-only."""


def _key_file(keys: Keyring, name: str, *, writable: bool) -> PseudoFile:
    def write(caller: Caller, value: bytes) -> None:
        if len(value) != KEY_SIZE:
            refuse(errno.EACCES)
        keys.set(name, value)

    return PseudoFile(lambda _: keys.get(name) or b"", write if writable else None)


def _graphene_key(keys: Keyring, values: _Values) -> PseudoFile:
    """Graphene's file: 32 hexadecimal digits; it reads what this process wrote, else NUL bytes."""

    def write(caller: Caller, value: bytes) -> None:
        try:
            key = bytes.fromhex(value.decode("ascii"))
        except ValueError:
            refuse(errno.EACCES)
        if len(value) != 2 * KEY_SIZE or len(key) != KEY_SIZE or DEFAULT_KEY not in keys:
            refuse(errno.EACCES)
        keys.set(DEFAULT_KEY, key)
        values.of(caller).graphene_key = value

    return PseudoFile(lambda caller: values.of(caller).graphene_key, write)
