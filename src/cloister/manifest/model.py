"""The manifest as a validated model, in the shape and with the names of Gramine's dialect.

Every key that Gramine 1.9 knows is here, also those that have no effect on our platforms: a
manifest either means something or is refused. Defaults are the secure ones. Graphene's keys are
turned into these by :mod:`cloister.manifest.dialect` before validation.
"""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from cloister.manifest.uris import DEVICE, FILE, file_path
from cloister.sgx.features import Demand

MIB = 1 << 20
DEFAULT_ENCLAVE_SIZE = 256 * MIB
DEFAULT_EDMM_ENCLAVE_SIZE = 1 << 40

_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgG]?)")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(value: object) -> int:
    """Return a size such as ``"256M"`` in bytes.

    Raises:
        ValueError: not a number, optionally followed by one of K, M or G, or 2**63 and more.
    """
    match = _SIZE.fullmatch(value) if isinstance(value, str) and len(value) <= 100 else None
    if match is None:
        raise ValueError('expected a size in quotes, such as "256M" or "4G"')
    size = int(match[1], 0 if match[1][:2] in ("0x", "0X") else 10) * _UNITS[match[2].lower()]
    if size >= 1 << 63:
        raise ValueError(f"{value} is more than any machine has; expected less than 2**63 bytes")
    return size


_LARGEST_ENCLAVE = 1 << 46  # an enclave lies aligned in the lower half of 48-bit addresses


def _power_of_two(size: int) -> int:
    if size < 4096 or size & (size - 1):
        raise ValueError(f'{size} bytes is not a power of two, which SGX requires; write "4G"')
    if size > _LARGEST_ENCLAVE:
        raise ValueError(f'{size} bytes is more than a process can address; write "4G"')
    return size


def _hexadecimal(digits: int) -> BeforeValidator:
    """Accept exactly ``digits`` hexadecimal digits."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", value):
            raise ValueError(f"expected {digits} hexadecimal digits in quotes")
        return value.lower()

    return BeforeValidator(parse)


def _mask(digits: int) -> BeforeValidator:
    """Accept ``0x`` and exactly ``digits`` hexadecimal digits; give the number."""

    def parse(value: object) -> int:
        if not isinstance(value, str) or not re.fullmatch(f"0x[0-9a-fA-F]{{{digits}}}", value):
            raise ValueError(f'expected "0x" and {digits} hexadecimal digits in quotes')
        return int(value, 16)

    return BeforeValidator(parse)


def _uri(*schemes: str) -> BeforeValidator:
    def parse(value: object) -> object:
        if isinstance(value, str):
            if not value.startswith(schemes):
                raise ValueError(
                    f"{value!r}: expected a URI that starts with {' or '.join(schemes)}"
                )
            if "\0" in value:
                raise ValueError("a URI with a NUL character")
        return value

    return BeforeValidator(parse)


def _inside_path(value: object) -> object:
    if isinstance(value, str):
        if not value.startswith("/"):
            raise ValueError(
                f"{value!r} is relative; paths inside the enclave start with /: {'/' + value!r}"
            )
        if "\0" in value:
            raise ValueError("a path with a NUL character")
        return posixpath.normpath("/" + value.lstrip("/"))
    return value


def _text(value: object) -> object:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("a text with a NUL character cannot reach a program")
    return value


Size = Annotated[int, BeforeValidator(parse_size)]
Sha256 = Annotated[str, _hexadecimal(64)]
Key128 = Annotated[str, _hexadecimal(32)]
UserId = Annotated[int, Field(ge=0, le=0xFFFF_FFFE)]  # the last one means "leave it"
U16 = Annotated[int, Field(ge=0, le=0xFFFF)]
FileUri = Annotated[str, _uri(FILE)]
FileOrDeviceUri = Annotated[str, _uri(FILE, DEVICE)]
InsidePath = Annotated[str, BeforeValidator(_inside_path)]
Text = Annotated[str, BeforeValidator(_text)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$")]
KeyName = Annotated[str, StringConstraints(pattern=r"^[^/\x00]+$", max_length=255)]


class Table(BaseModel):
    """A TOML table: unknown keys are refused, types are not guessed, nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _as_table(key: str) -> BeforeValidator:
    """Accept the short form of a table: a string that stands for its ``key``."""

    def parse(value: object) -> object:
        if isinstance(value, str):
            return {key: value}
        if not isinstance(value, dict | BaseModel):
            raise ValueError(  # noqa: TRY004  (pydantic reports no other)
                f"expected a text in quotes, or a table with {key}"
            )
        return value

    return BeforeValidator(parse)


# --- loader, libos -------------------------------------------------------------------------------


class LibOs(Table):
    """``loader.entrypoint``: Gramine's own library OS, for manifests that stock tools made."""

    uri: FileUri
    sha256: Sha256 | None = None


class EnvValue(Table):
    """One environment variable: fixed, or passed through from the untrusted host."""

    value: Text | None = None
    passthrough: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> EnvValue:
        if (self.value is None) != self.passthrough:
            raise ValueError("expected a string, { value = .. } or { passthrough = true }")
        return self


class Loader(Table):
    """``loader``: arguments, environment, log."""

    entrypoint: Annotated[LibOs, _as_table("uri")] | None = None
    log_level: Literal["none", "error", "warning", "debug", "trace", "all"] = "error"
    log_file: Text | None = None
    argv: Annotated[list[Text], Field(min_length=1)] | None = None
    argv_src_file: FileUri | None = None
    env: dict[EnvName, Annotated[EnvValue, _as_table("value")]] = {}
    env_src_file: FileUri | None = None
    insecure__use_cmdline_argv: bool = False
    insecure__use_host_env: bool = False
    insecure__disable_aslr: bool = False
    uid: UserId = 0
    gid: UserId = 0

    @model_validator(mode="after")
    def _one_source_of_each(self) -> Loader:
        sources = (self.argv, self.argv_src_file, self.insecure__use_cmdline_argv or None)
        if sum(source is not None for source in sources) > 1:
            raise ValueError(
                "argv, argv_src_file and insecure__use_cmdline_argv exclude each other"
            )
        if self.insecure__use_host_env and self.env_src_file is not None:
            raise ValueError("insecure__use_host_env and env_src_file exclude each other")
        return self


class LibosTable(Table):
    """``libos``: what is executed."""

    entrypoint: Annotated[Text, Field(min_length=1)]
    check_invalid_pointers: bool = True


# --- fs ------------------------------------------------------------------------------------------


class _MountBase(Table):
    type: Literal["chroot", "encrypted", "tmpfs", "untrusted_shm"] = "chroot"
    uri: Annotated[str, _uri(FILE, DEVICE, "dir:")] | None = None
    key_name: KeyName | None = None
    enable_recovery: bool | None = None

    @model_validator(mode="after")
    def _fits_type(self) -> _MountBase:
        if self.uri is None and self.type != "tmpfs":
            raise ValueError(f"a mount of type {self.type} needs a uri")
        if self.type != "encrypted" and (self.key_name or self.enable_recovery is not None):
            raise ValueError(
                f'key_name and enable_recovery are for type = "encrypted", not "{self.type}"'
            )
        if self.type == "encrypted" and not str(self.uri).startswith(FILE):
            raise ValueError(f"an encrypted mount needs a uri that starts with {FILE}")
        if self.type == "untrusted_shm" and not str(self.uri).startswith(DEVICE):
            raise ValueError(f"an untrusted_shm mount needs a uri that starts with {DEVICE}")
        return self


class RootMount(_MountBase):
    """``fs.root``: what is at ``/``; by default the directory of the manifest."""


class Mount(_MountBase):
    """One of ``fs.mounts``."""

    path: InsidePath

    @model_validator(mode="after")
    def _not_the_root(self) -> Mount:
        if self.path == "/":
            raise ValueError('path = "/" is the root; set fs.root instead')
        return self


class Fs(Table):
    """``fs``: what the program sees of files."""

    root: RootMount | None = None
    mounts: list[Mount] = []
    start_dir: InsidePath = "/"
    insecure__keys: dict[KeyName, Key128] = {}


# --- sys -----------------------------------------------------------------------------------------


class Stack(Table):
    """``sys.stack``."""

    size: Size = 256 << 10


class Brk(Table):
    """``sys.brk``."""

    max_size: Size = 256 << 10


class Fds(Table):
    """``sys.fds``."""

    limit: PositiveInt = 900


class MockSyscall(Table):
    """One of ``sys.debug__mock_syscalls``."""

    name: str
    returns: Annotated[int, Field(alias="return")] = 0


class AllowedIoctl(Table):
    """One of ``sys.allowed_ioctls``."""

    request_code: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)]
    struct: str | None = None


class Sys(Table):
    """``sys``: system calls and limits."""

    stack: Stack = Stack()
    brk: Brk = Brk()
    fds: Fds = Fds()
    insecure__allow_eventfd: bool = False
    enable_sigterm_injection: bool = False
    disallow_subprocesses: bool = False
    enable_extra_runtime_domain_names_conf: bool = False
    experimental__enable_flock: bool = False
    debug__mock_syscalls: list[MockSyscall] = []
    ioctl_structs: dict[str, list[dict[str, Any]]] = {}
    allowed_ioctls: list[AllowedIoctl] = []


# --- sgx -----------------------------------------------------------------------------------------


class TrustedFile(Table):
    """One of ``sgx.trusted_files``; without a hash only before signing."""

    uri: FileUri
    sha256: Sha256 | None = None

    @property
    def path(self) -> str:
        """The normalised URI path: the name by which the runtime finds the file."""
        return file_path(self.uri)


class CpuFeatures(Table):
    """``sgx.cpu_features``."""

    avx: Demand = "unspecified"
    avx512: Demand = "unspecified"
    amx: Demand = "unspecified"
    mpx: Literal["disabled", "required"] = "disabled"
    pkru: Literal["disabled", "required"] = "disabled"


class SealKey(Table):
    """``sgx.seal_key``: what sealing keys are bound to."""

    flags_mask: Annotated[int, _mask(16)] = 0xFFFF_FFFF_FFFF_FFFF
    xfrm_mask: Annotated[int, _mask(16)] = 0xFFFF_FFFF_FFF9_FF1B
    misc_mask: Annotated[int, _mask(8)] = 0xFFFF_FFFF


class Profile(Table):
    """``sgx.profile``."""

    enable: Literal["none", "main", "all"] = "none"
    mode: Literal["aex", "ocall_inner", "ocall_outer"] = "aex"
    with_stack: bool = False
    frequency: Annotated[int, Field(ge=1, le=250)] = 50


class Sgx(Table):
    """``sgx``: the enclave, and which host files it trusts.

    ``protected_files`` is Graphene's: URIs of files and directories that are encrypted under the
    key ``default`` wherever they are mounted.
    """

    debug: bool = False
    edmm_enable: bool = False
    enclave_size: Annotated[Size, AfterValidator(_power_of_two)] = DEFAULT_ENCLAVE_SIZE
    max_threads: Annotated[int, Field(ge=1, le=4096)] = 4
    insecure__rpc_thread_num: Annotated[int, Field(ge=0, le=256)] = 0
    isvprodid: U16 = 0
    isvsvn: U16 = 0
    trusted_files: list[Annotated[TrustedFile, _as_table("uri")]] = []
    allowed_files: list[FileOrDeviceUri] = []
    protected_files: list[FileUri] = []
    file_check_policy: Literal["strict", "allow_all_but_log"] = "strict"
    remote_attestation: Literal["none", "dcap"] = "none"
    cpu_features: CpuFeatures = CpuFeatures()
    seal_key: SealKey = SealKey()
    use_exinfo: bool = False
    insecure__allow_memfaults_without_exinfo: bool = False
    preheat_enclave: bool = False
    enable_stats: bool = False
    profile: Profile = Profile()
    vtune_profile: bool = False

    @model_validator(mode="before")
    @classmethod
    def _size_with_edmm(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("edmm_enable") is True:
            return {"enclave_size": f"{DEFAULT_EDMM_ENCLAVE_SIZE}"} | values
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Sgx:
        if self.preheat_enclave and self.edmm_enable:
            raise ValueError("preheat_enclave and edmm_enable exclude each other")
        return self


# --- ours ----------------------------------------------------------------------------------------


class IndexReference(Table):
    """``cloister.trusted_index``: the digest of the index of trusted files."""

    sha256: Sha256


class ReleasedKey(Table):
    """One of ``cloister.keys``: a wrap key with key servers of its own.

    ``servers`` is a list as in ``SECRET_PROVISION_SERVERS``; ``ca`` is the path inside the
    enclave of the certificates that vouch for them.
    """

    name: KeyName
    servers: Annotated[Text, Field(min_length=1)]
    ca: InsidePath


class Extensions(Table):
    """``cloister``: what the other dialects do not have. The signer writes ``trusted_index``.

    ``terminals = false``: the program opens no terminals, and none but its standard streams is one.
    """

    trusted_index: IndexReference | None = None
    keys: list[ReleasedKey] = []
    terminals: bool = True

    @model_validator(mode="after")
    def _each_key_once(self) -> Extensions:
        names = [key.name for key in self.keys]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"key {name!r} is there twice")
        return self


class Manifest(Table):
    """A whole manifest."""

    libos: LibosTable
    loader: Loader = Loader()
    fs: Fs = Fs()
    sys: Sys = Sys()
    sgx: Sgx = Sgx()
    cloister: Extensions = Extensions()
