"""What is written down of one run: names, measurements, numbers and times; no content, no keys.

``cloister run --record FILE`` writes it as JSON and ``cloister report FILE`` makes a page of it. It
is the word of the machine that ran the program, so it proves nothing to an owner; reading it
checks its form and nothing else.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from cloister.errors import InputError

FORMAT: Literal[1] = 1
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_HEXADECIMAL = re.compile(r"[0-9a-f]+")
_MARGIN = timedelta(minutes=5)
"""How far the clocks of a key server and of the machine may differ."""


class Kind(str, Enum):
    """What protects the files that a program used."""

    TRUSTED = "trusted"
    ENCRYPTED = "encrypted"
    ALLOWED = "allowed"
    UNCHECKED = "unchecked"
    """Nothing listed them: ``allow_all_but_log``, or direct mode."""
    MACHINE = "machine"
    """Information about the machine, made by the host's kernel."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UsedFile(_Model):
    """One file.

    Attributes:
        path: URI path; unprintable characters are escaped.
        size: bytes when it was last closed, in plaintext.
        read: bytes served of it.
        written: bytes taken for it.
    """

    path: str
    size: Count
    read: Count
    written: Count


class Files(_Model):
    """The files of one kind.

    Attributes:
        listed: by path.
        unlisted: how often further files were opened, when too many were listed already.
    """

    kind: Kind
    listed: tuple[UsedFile, ...]
    unlisted: Count


class Memory(_Model):
    """A tmpfs mount when the program ended.

    Attributes:
        path: where the program saw it.
        files: files and directories in it.
        size: bytes.
    """

    path: str
    files: Count
    size: Count


class Denial(_Model):
    """Something that the program wanted and did not get.

    Attributes:
        kind: ``denied`` by the manifest, ``tampered`` (a trusted file was changed), ``refused``
            (an encrypted file did not authenticate), ``failed``.
        intent: what was wanted.
        path: of which file.
        reason: why not.
        mend: what to do.
        count: how often.
    """

    kind: str
    intent: str
    path: str
    reason: str
    mend: str | None
    count: Count


class Release(_Model):
    """A secret that a key server released to the enclave.

    Attributes:
        time: when it had arrived.
        key: name of the wrap key; None is a secret for the program.
        server: host and port.
        certificate: SHA-256 of the server's certificate (DER).
    """

    time: AwareDatetime
    key: str | None
    server: str
    certificate: Hash


class Quotes(_Model):
    """Quotes that the program itself took, to prove the enclave to somebody."""

    count: Count
    first: AwareDatetime


class Measured(_Model):
    """What MRENCLAVE is made of, and what the signer said of it.

    Attributes:
        manifest: SHA-256 of the signed manifest.
        index: SHA-256 of the index of trusted files, if there is one.
        trusted_files: how many files the manifest trusts.
        image: SHA-256 of the runtime image.
        enclave_size: bytes.
        signed_on: the SIGSTRUCT's date.
        built: modification time of the signed manifest on this machine.
    """

    mrenclave: Hash
    mrsigner: Hash
    isv_prod_id: Count
    isv_svn: Count
    debug: bool
    flags: str
    xfrm: str
    misc_select: str
    manifest: Hash
    index: Hash | None
    trusted_files: Count
    image: Hash
    enclave_size: Count
    max_threads: Count
    edmm: bool
    remote_attestation: str
    signed_on: str
    built: AwareDatetime


class Platform(_Model):
    """Where it ran."""

    name: str
    description: str
    simulated: bool


class Line(_Model):
    """A line of the manifest and what it means."""

    key: str
    line: int | None
    text: str


class Meaning(_Model):
    """What the manifest permits; see :class:`cloister.manifest.explain.Explanation`."""

    executes: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    insecure: tuple[Line, ...]
    without_effect: tuple[Line, ...]


class Times(_Model):
    """When what happened; a step that was not reached has none."""

    begun: AwareDatetime
    enclave: AwareDatetime | None = None
    program: AwareDatetime | None = None
    program_ended: AwareDatetime | None = None
    ended: AwareDatetime


class Failure(_Model):
    """Why the program did not start, or could not be followed to its end."""

    message: str
    hint: str | None


class RunRecord(_Model):
    """One run.

    Attributes:
        app: the application's name.
        mode: ``sgx``, or ``direct``: without enclave.
        version: Cloister's.
        exit_code: the program's; None if it did not come to its end.
    """

    format: Literal[1]
    app: str
    mode: Literal["sgx", "direct"]
    version: str
    platform: Platform | None
    enclave: Measured | None
    meaning: Meaning
    times: Times
    exit_code: int | None
    failure: Failure | None
    releases: tuple[Release, ...]
    quotes: Quotes | None
    files: tuple[Files, ...]
    memory: tuple[Memory, ...]
    denials: tuple[Denial, ...]
    denials_unlisted: Count
    limits: tuple[str, ...]

    @property
    def simulated(self) -> bool:
        """Whether it ran in an enclave that no hardware protects."""
        return self.platform is not None and self.platform.simulated

    def to_json(self) -> bytes:
        """Return the record for a file."""
        return json.dumps(self.model_dump(mode="json"), indent=1).encode("ascii") + b"\n"


class Decision(BaseModel):
    """A record of a key server's audit log, as ``cloister audit show --json`` prints it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sequence: Count
    time: AwareDatetime
    peer: str
    outcome: str
    secret: str | None
    reason: str
    identity: str | None
    tcb_status: str | None
    simulated: bool | None
    hash: Hash


def read_record(data: str, name: str) -> RunRecord:
    """Read what ``cloister run --record`` wrote.

    Args:
        data: its text.
        name: what errors call it.

    Raises:
        InputError: this is no record of a run, or one of another version.
    """
    what = f"{name}: not the record of a run"
    hint = "cloister run --record FILE APP writes one"
    try:
        return RunRecord.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"{what}: {_first_problem(error)}", hint=hint) from error


def read_decisions(data: str, name: str) -> list[Decision]:
    """Read the lines of ``cloister audit show --json``.

    Raises:
        InputError: a line is not one of them.
    """
    found = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            found.append(Decision.model_validate_json(line))
        except ValidationError as error:
            raise InputError(
                f"{name}: line {number} is no record of an audit log: {_first_problem(error)}",
                hint="cloister audit show --store DATABASE --json writes them",
            ) from error
    return found


def of_this_run(record: RunRecord, decisions: list[Decision]) -> list[Decision]:
    """Return the decisions about this run's enclave that were made while it ran.

    Two runs of one enclave at one time cannot be told apart.
    """
    if record.enclave is None:
        return []
    start, end = record.times.begun - _MARGIN, record.times.ended + _MARGIN
    return [
        decision
        for decision in decisions
        if decision.identity is not None
        and record.enclave.mrenclave in _HEXADECIMAL.findall(decision.identity)
        and start <= decision.time <= end
    ]


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    """Return the seconds from one to the other, None if either did not happen."""
    return None if start is None or end is None else (end - start).total_seconds()


def _first_problem(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
