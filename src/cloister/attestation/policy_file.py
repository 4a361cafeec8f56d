"""Policies as TOML: one table, every entry of which must hold.

.. code-block:: toml

    version = 1
    roots = ["intel"]                      # default; or SHA-256 of a simulated root
    tcb_status = ["UpToDate", "SWHardeningNeeded"]     # default: UpToDate alone
    advisories = ["INTEL-SA-00615"]        # no advisory but these
    minimum_tcb_date = 2024-03-13

    [[any]]                                # one of these
    mrenclave = "33d8736d..."              # one, or a list of which one must match
    [[any]]
    mrsigner = "815f42f1..."
    isv_prod_id = 7
    minimum_isv_svn = 3

Stored reports about EPID quotes are under the root ``"intel-epid"``.

A table of ``any`` or ``all`` may have ``roots`` of its own, which narrow those of the file.

Other entries: ``mrtd`` with ``rtmr0`` to ``rtmr3`` and ``program`` (MRENCLAVE, one or a list: a TDX
virtual machine that has run nothing but these; its event log must lie beside the quote),
``attributes`` and ``td_attributes`` (tables of ``value`` and ``mask``, 16 and 8 bytes each),
``report_data``, ``debug = false`` (debug enclaves are refused anyway), and ``all``, a list of
tables like ``any``. Byte strings are hexadecimal. What is not named is not accepted: unknown
entries are errors, and a policy that names no enclave is refused. ``docs/attestation.md`` explains
each entry.
"""

from __future__ import annotations

import datetime
import difflib
import sys
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from cloister.attestation.anchors import INTEL_IAS_SHA256, INTEL_ROOT_SHA256
from cloister.attestation.conditions import (
    Advisories,
    Attributes,
    MinimumTcbDate,
    ReportData,
    Root,
    TdAttributes,
)
from cloister.attestation.policy import (
    MrEnclave,
    MrSigner,
    MrTd,
    Policy,
    TcbStatus,
    TdPrograms,
    all_of,
    any_of,
    completed,
)
from cloister.attestation.status import TCB_STATUSES
from cloister.errors import PolicyError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_POLICY_SIZE = 1024 * 1024
MAX_DEPTH = 16

T = TypeVar("T")


def _hex_of(size: int) -> pydantic.BeforeValidator:
    """Return the validator of a hexadecimal string of ``size`` bytes."""

    def decode(text: Any) -> bytes:
        try:
            value = bytes.fromhex(text) if isinstance(text, str) else b""
        except ValueError:
            value = b""
        if len(value) != size or len(text) != 2 * size:
            raise ValueError(f"expected {2 * size} hexadecimal digits in quotes")
        return value

    return pydantic.BeforeValidator(decode)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _known_status(text: str) -> str:
    if text not in TCB_STATUSES:
        raise ValueError(f"{text!r} is unknown or never acceptable, there are: {_STATUSES}")
    return text


def _date(value: Any) -> Any:
    if not isinstance(value, datetime.date):  # which times with a date are, too
        raise ValueError("expected a date, such as 2024-03-13")  # noqa: TRY004  (see below)
    return value


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):  # which Python takes for a number
        raise ValueError("expected a number")  # noqa: TRY004  (pydantic reports ValueErrors alone)
    return value


def _fingerprint(text: str) -> str:
    if text in _NAMED_ROOTS:
        return _NAMED_ROOTS[text]
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise ValueError('expected "intel", or fingerprints (SHA-256) of 64 hexadecimal digits')
    return text.lower()


_NAMED_ROOTS = {"intel": INTEL_ROOT_SHA256, "intel-epid": INTEL_IAS_SHA256}
_STATUSES = ", ".join(TCB_STATUSES)
_Bytes8 = Annotated[bytes, _hex_of(8)]
_Bytes16 = Annotated[bytes, _hex_of(16)]
_Bytes32 = Annotated[bytes, _hex_of(32)]
_Bytes48 = Annotated[bytes, _hex_of(48)]
_Bytes64 = Annotated[bytes, _hex_of(64)]
_Date = Annotated[datetime.datetime | datetime.date, pydantic.BeforeValidator(_date)]
_Number = Annotated[int, pydantic.Field(ge=0, le=65535)]
_Some = pydantic.Field(min_length=1)


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class _Masked(_Model):
    value: _Bytes16
    mask: _Bytes16


class _TdMasked(_Model):
    value: _Bytes8
    mask: _Bytes8


_Roots = Annotated[list[Annotated[str, pydantic.AfterValidator(_fingerprint)]], _Some]


class _Table(_Model):
    """One table: all of its entries must hold."""

    roots: _Roots | None = None
    mrenclave: Annotated[list[_Bytes32], _Some, pydantic.BeforeValidator(_as_list)] | None = None
    mrsigner: _Bytes32 | None = None
    isv_prod_id: _Number | None = None
    minimum_isv_svn: _Number | None = None
    mrtd: _Bytes48 | None = None
    rtmr0: _Bytes48 | None = None
    rtmr1: _Bytes48 | None = None
    rtmr2: _Bytes48 | None = None
    rtmr3: _Bytes48 | None = None
    program: Annotated[list[_Bytes32], _Some, pydantic.BeforeValidator(_as_list)] | None = None
    attributes: _Masked | None = None
    td_attributes: _TdMasked | None = None
    debug: Literal[False] | None = None
    tcb_status: (
        Annotated[list[Annotated[str, pydantic.AfterValidator(_known_status)]], _Some] | None
    ) = None
    advisories: list[str] | None = None
    minimum_tcb_date: _Date | None = None
    report_data: _Bytes64 | None = None
    any_: Annotated[list[_Table], _Some] | None = pydantic.Field(default=None, alias="any")
    all_: Annotated[list[_Table], _Some] | None = pydantic.Field(default=None, alias="all")

    @pydantic.model_validator(mode="after")
    def _belonging_together(self) -> _Table:
        signer = (self.mrsigner, self.isv_prod_id, self.minimum_isv_svn)
        if any(part is not None for part in signer) and None in signer:
            raise ValueError("mrsigner, isv_prod_id and minimum_isv_svn belong together")
        if self.mrtd is None and any(value is not None for value in self._registers()):
            raise ValueError("rtmr0 to rtmr3 belong to mrtd, which is not there")
        if self.mrtd is None and self.program is not None:
            raise ValueError("program belongs to mrtd, which is not there")
        if self.program is not None and None in (self.rtmr1, self.rtmr2):
            raise ValueError(
                "program needs rtmr1 and rtmr2: without them the host chooses the kernel, which"
                " can put any program into RTMR 3"
            )
        if self.rtmr3 is not None and self.program is not None:
            raise ValueError("program and rtmr3 exclude each other: the programs are in RTMR 3")
        if not self.model_fields_set:
            raise ValueError("an empty table would accept everything")
        return self

    def _registers(self) -> list[bytes | None]:
        return [self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3]

    def policies(self) -> list[Policy]:
        """Return one policy an entry."""
        found: list[Policy] = [] if self.roots is None else [Root(*self.roots)]
        found += self._identities()
        if self.attributes is not None:
            found.append(Attributes(self.attributes.value, self.attributes.mask))
        if self.td_attributes is not None:
            found.append(TdAttributes(self.td_attributes.value, self.td_attributes.mask))
        if self.tcb_status is not None:
            found.append(TcbStatus(*self.tcb_status))
        if self.advisories is not None:
            found.append(Advisories(*self.advisories))
        if self.minimum_tcb_date is not None:
            found.append(MinimumTcbDate(_as_utc(self.minimum_tcb_date)))
        if self.report_data is not None:
            found.append(ReportData(self.report_data))
        if self.any_ is not None:
            found.append(any_of(*(table.policy() for table in self.any_)))
        if self.all_ is not None:
            found.append(all_of(*(table.policy() for table in self.all_)))
        return found

    def policy(self) -> Policy:
        """Return the policy of the whole table."""
        found = self.policies()
        return found[0] if len(found) == 1 else all_of(*found)

    def _identities(self) -> list[Policy]:
        found: list[Policy] = []
        if self.mrenclave is not None:
            found.append(MrEnclave(*self.mrenclave))
        if (
            self.mrsigner is not None
            and self.isv_prod_id is not None
            and self.minimum_isv_svn is not None
        ):
            found.append(MrSigner(self.mrsigner, self.isv_prod_id, self.minimum_isv_svn))
        if self.mrtd is not None:
            named = ((n, value) for n, value in enumerate(self._registers()) if value is not None)
            found.append(MrTd(self.mrtd, tuple(named)))
        if self.program is not None:
            found.append(TdPrograms(*self.program))
        return found


class _File(_Table):
    """The whole file: there is always a root."""

    version: Annotated[Literal[1], pydantic.BeforeValidator(_no_truth_value)]
    roots: _Roots | None = [INTEL_ROOT_SHA256]


def parse_policy(text: str | bytes, name: str = "policy") -> Policy:
    """Read a policy file.

    Args:
        text: the TOML.
        name: what errors call it, e.g. the file's name.

    Raises:
        PolicyError: not TOML, an unknown or malformed entry, or a policy that names no enclave.
    """
    if len(text) > MAX_POLICY_SIZE:
        raise PolicyError(f"{name}: {len(text)} bytes, at most {MAX_POLICY_SIZE}")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        data = tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{name}: not valid TOML ({error})") from error
    if _depth(data) > MAX_DEPTH:
        raise PolicyError(f"{name}: nested deeper than {MAX_DEPTH}")
    try:
        return completed(_File.model_validate(data).policy())
    except pydantic.ValidationError as error:
        raise _explained(error, decoded, name) from error
    except PolicyError as error:
        raise PolicyError(f"{name}: {error.message}", hint=error.hint) from error


def _explained(error: pydantic.ValidationError, text: str, name: str) -> PolicyError:
    """Return the first problem with its line and key."""
    from cloister.manifest.locate import KeyLines

    first = error.errors()[0]
    path = first["loc"]
    line = KeyLines(text).line_of(path)
    place = f"{name}: line {line}" if line else name
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    hint = "`cloister quote verify --help` shows the form"
    if first["type"] == "extra_forbidden":
        message = "no such entry"
        close = difflib.get_close_matches(str(path[-1]), _entries(), n=1)
        hint = f"did you mean {close[0]}?" if close else hint
    message = _WORDS.get(first["type"], message)
    return PolicyError(f"{place}: {key}: {message}" if key else f"{place}: {message}", hint=hint)


_WORDS = {
    "missing": "is missing (the first line of a policy is: version = 1)",
    "too_short": "is empty, so nothing could be accepted; give at least one",
}


def _entries() -> list[str]:
    return [field.alias or name for name, field in _File.model_fields.items()]


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return max((_depth(item) for item in value), default=0)
    return 0


def _as_utc(value: datetime.datetime | datetime.date) -> datetime.datetime:
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    return value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
