"""Policies as TOML: one table, every entry of which must hold.

.. code-block:: toml

    version = 1
    roots = ["intel"]                      # or SHA-256 of a simulated root; default: intel alone
    tcb_status = ["UpToDate", "SWHardeningNeeded"]     # default: UpToDate alone
    advisories = ["INTEL-SA-00615"]        # no advisory but these
    minimum_tcb_date = 2024-03-13

    [[any]]                                # one of these
    mrenclave = "33d8736d..."              # one, or a list of which one must match
    [[any]]
    mrsigner = "815f42f1..."
    isv_prod_id = 7
    minimum_isv_svn = 3

Other entries: ``mrtd`` with ``rtmr0`` to ``rtmr3``, ``attributes`` (a table of ``value`` and
``mask``, 16 bytes each), ``report_data``, ``debug = false`` (debug enclaves are refused anyway),
and ``all``, a list of tables like ``any``. Byte strings are hexadecimal. What is not named is not
accepted: unknown entries are errors, and a policy that names no enclave is refused.
"""

from __future__ import annotations

import datetime
import sys
from typing import Any, Literal

import pydantic

from cloister.attestation.anchors import INTEL_ROOT_SHA256
from cloister.attestation.conditions import (
    Advisories,
    Attributes,
    MinimumTcbDate,
    ReportData,
    Root,
)
from cloister.attestation.policy import (
    MrEnclave,
    MrSigner,
    MrTd,
    Policy,
    TcbStatus,
    all_of,
    any_of,
    completed,
)
from cloister.errors import PolicyError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_POLICY_SIZE = 1024 * 1024
MAX_DEPTH = 16


def _hex_of(size: int) -> Any:
    pattern = f"^[0-9A-Fa-f]{{{2 * size}}}$"
    return pydantic.Field(default=None, pattern=pattern)


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class _Masked(_Model):
    value: str = pydantic.Field(pattern="^[0-9A-Fa-f]{32}$")
    mask: str = pydantic.Field(pattern="^[0-9A-Fa-f]{32}$")


class _Table(_Model):
    """One table: all of its entries must hold."""

    mrenclave: str | list[str] | None = None
    mrsigner: str | None = _hex_of(32)
    isv_prod_id: int | None = pydantic.Field(default=None, ge=0, le=65535)
    minimum_isv_svn: int | None = pydantic.Field(default=None, ge=0, le=65535)
    mrtd: str | None = _hex_of(48)
    rtmr0: str | None = _hex_of(48)
    rtmr1: str | None = _hex_of(48)
    rtmr2: str | None = _hex_of(48)
    rtmr3: str | None = _hex_of(48)
    attributes: _Masked | None = None
    debug: Literal[False] | None = None
    tcb_status: list[str] | None = None
    advisories: list[str] | None = None
    minimum_tcb_date: datetime.datetime | datetime.date | None = None
    report_data: str | None = _hex_of(64)
    any_: list[_Table] | None = pydantic.Field(default=None, alias="any")
    all_: list[_Table] | None = pydantic.Field(default=None, alias="all")

    def policies(self) -> list[Policy]:
        """Return one policy an entry."""
        found: list[Policy] = [*self._identities()]
        if self.attributes is not None:
            value, mask = (
                bytes.fromhex(part) for part in (self.attributes.value, self.attributes.mask)
            )
            found.append(Attributes(value, mask))
        if self.tcb_status is not None:
            found.append(TcbStatus(*_some("tcb_status", self.tcb_status)))
        if self.advisories is not None:
            found.append(Advisories(*self.advisories))
        if self.minimum_tcb_date is not None:
            found.append(MinimumTcbDate(_as_utc(self.minimum_tcb_date)))
        if self.report_data is not None:
            found.append(ReportData(bytes.fromhex(self.report_data)))
        if self.any_ is not None:
            found.append(any_of(*(table.policy() for table in self.any_)))
        if self.all_ is not None:
            found.append(all_of(*(table.policy() for table in self.all_)))
        return found

    def policy(self) -> Policy:
        """Return the policy of the whole table."""
        found = self.policies()
        if not found:
            raise PolicyError("an empty table would accept everything")
        return found[0] if len(found) == 1 else all_of(*found)

    def _identities(self) -> list[Policy]:
        found: list[Policy] = []
        if self.mrenclave is not None:
            texts = [self.mrenclave] if isinstance(self.mrenclave, str) else self.mrenclave
            found.append(MrEnclave(*(_bytes("mrenclave", text) for text in texts)))
        signer = (self.mrsigner, self.isv_prod_id, self.minimum_isv_svn)
        if any(part is not None for part in signer):
            found.append(_signer(*signer))
        registers = [self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3]
        named = tuple((n, bytes.fromhex(text)) for n, text in enumerate(registers) if text)
        if self.mrtd is not None:
            found.append(MrTd(bytes.fromhex(self.mrtd), named))
        elif named:
            raise PolicyError("rtmr0 to rtmr3 belong to mrtd, which is not there")
        return found


class _File(_Table):
    version: Literal[1]
    roots: list[str] = ["intel"]

    def policies(self) -> list[Policy]:
        """Return one policy an entry; the root is always among them."""
        fingerprints = [INTEL_ROOT_SHA256 if root == "intel" else root for root in self.roots]
        return [Root(*fingerprints), *super().policies()]


def parse_policy(text: str | bytes) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: not TOML, an unknown or malformed entry, or a policy that names no enclave.
    """
    if len(text) > MAX_POLICY_SIZE:
        raise PolicyError(f"policy: {len(text)} bytes, at most {MAX_POLICY_SIZE}")
    try:
        data = tomllib.loads(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"policy: not valid TOML ({error})") from error
    return policy_from_table(data)


def policy_from_table(data: dict[str, Any]) -> Policy:
    """Return the policy of a table that was already read from TOML.

    Raises:
        PolicyError: an unknown or malformed entry, or a policy that names no enclave.
    """
    if _depth(data) > MAX_DEPTH:
        raise PolicyError(f"policy: nested deeper than {MAX_DEPTH}")
    try:
        return completed(_File.model_validate(data).policy())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PolicyError(
            f"policy: {where}: {first['msg']}", hint="`cloister quote verify --help` shows the form"
        ) from error


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return max((_depth(item) for item in value), default=0)
    return 0


def _some(name: str, values: list[str]) -> list[str]:
    if not values:
        raise PolicyError(f"policy: {name} is empty, so nothing could be accepted")
    return values


def _bytes(name: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise PolicyError(f"policy: {name} {text!r} is not hexadecimal") from error


def _signer(signer: str | None, isv_prod_id: int | None, minimum_isv_svn: int | None) -> Policy:
    if signer is None or isv_prod_id is None or minimum_isv_svn is None:
        raise PolicyError("policy: mrsigner, isv_prod_id and minimum_isv_svn belong together")
    return MrSigner(bytes.fromhex(signer), isv_prod_id, minimum_isv_svn)


def _as_utc(value: datetime.datetime | datetime.date) -> datetime.datetime:
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    return value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
