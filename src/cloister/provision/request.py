"""What the enclave's environment asks of key servers, and what they release: no network here."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cloister.errors import InputError, ProtocolError
from cloister.provision.variables import (
    CA_CHAIN_PATH,
    SECRET_STRING,
    SERVERS,
    SET_KEY,
    SET_PF_KEY,
    YES,
    is_asked,
)
from cloister.ratls.validity import DEFAULT_NOT_AFTER, DEFAULT_NOT_BEFORE, validity_from

DEFAULT_SERVERS = "localhost:4433"
DEFAULT_KEY_NAME = "default"
"""Graphene has one key without a name; it is the wrap key called ``default`` today."""
WRAP_KEY_SIZE = 16
MAX_STRING_SIZE = 4096


class ServerAddress(NamedTuple):
    """Where a key server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ProvisioningRequest(NamedTuple):
    """What the enclave's environment asks for.

    Attributes:
        servers: key servers, to be tried in this order.
        ca: certificates (PEM or DER) that the server's certificate must lead to.
        key_name: wrap key to set, or None for a secret string in the environment.
        accepts_hex: the secret may be 32 hex digits and a NUL, as Graphene's servers send it.
        not_before: start of validity of our certificate.
        not_after: end of validity of our certificate.
    """

    servers: tuple[ServerAddress, ...]
    ca: bytes
    key_name: str | None
    accepts_hex: bool = False
    not_before: datetime.datetime = DEFAULT_NOT_BEFORE
    not_after: datetime.datetime = DEFAULT_NOT_AFTER

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], read_file: Callable[[str], bytes]
    ) -> ProvisioningRequest | None:
        """Return what the variables ask for, or None if they ask for nothing.

        Args:
            environment: the enclave's environment, from its manifest.
            read_file: reads a file of the enclave, verified; gets the CA file's path.

        Raises:
            InputError: a variable is missing or malformed.
        """
        if not is_asked(environment):
            return None
        ca_path = environment.get(CA_CHAIN_PATH)
        if not ca_path:
            raise InputError(
                f"{CA_CHAIN_PATH} is not set, so no key server can be believed",
                hint=f'loader.env.{CA_CHAIN_PATH} = "certs/ca.crt", and trust that file',
            )
        named = environment.get(SET_KEY)
        graphene = named is None and environment.get(SET_PF_KEY) in YES
        if named is not None and not _is_key_name(named):
            raise InputError(f"{SET_KEY}: {named!r} is not a key name")
        not_before, not_after = validity_from(environment)
        return cls(
            servers=parse_servers(environment.get(SERVERS, DEFAULT_SERVERS), SERVERS),
            ca=read_file(ca_path),
            key_name=DEFAULT_KEY_NAME if graphene else named,
            accepts_hex=graphene,
            not_before=not_before,
            not_after=not_after,
        )

    @classmethod
    def for_key(cls, name: str, servers: str, ca: bytes) -> ProvisioningRequest:
        """Return the request for a key of the manifest's ``cloister.keys``.

        Args:
            name: the wrap key's name.
            servers: its servers, as in ``SECRET_PROVISION_SERVERS``.
            ca: certificates that vouch for them, PEM or DER.

        Raises:
            InputError: a server is malformed.
        """
        where = f"cloister.keys: {name}: servers"
        return cls(servers=parse_servers(servers, where), ca=ca, key_name=name)


@dataclasses.dataclass
class Provisioned:
    """A secret that a key server released.

    Attributes:
        server: the server that released it.
        certificate: the one by which it was believed, in DER.
        secret: exactly the bytes that it sent.
        key_name: the wrap key to set, or None.
        key: the wrap key's 16 bytes, or None.
        environment: variables to set for the application.
    """

    server: ServerAddress
    certificate: bytes
    secret: bytearray = dataclasses.field(repr=False)
    key_name: str | None
    key: bytearray | None = dataclasses.field(repr=False)
    environment: dict[str, str] = dataclasses.field(repr=False)

    def wipe(self) -> None:
        """Overwrite the secret and the key with zeros."""
        for value in (self.secret, self.key):
            if value is not None:
                value[:] = bytes(len(value))


def parse_servers(text: str, where: str) -> tuple[ServerAddress, ...]:
    """Read a list of ``host:port`` separated by commas, semicolons or spaces.

    IPv6 addresses stand in brackets.

    Args:
        text: the list.
        where: what errors call it.

    Raises:
        InputError: the list is empty, or an item is malformed.
    """
    items = [item for item in re.split(r"[,; ]+", text) if item]
    if not items:
        raise InputError(
            f"{where} is empty", hint=f'name at least one server, e.g. "{DEFAULT_SERVERS}"'
        )
    return tuple(_parse_server(item, where) for item in items)


def _parse_server(item: str, where: str) -> ServerAddress:
    try:
        return parse_address(item)
    except InputError as error:
        raise InputError(f"{where}: {error.message}") from error


def parse_address(item: str) -> ServerAddress:
    """Read ``host:port``; an IPv6 address stands in brackets.

    Raises:
        InputError: it is not of this form.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]]+)):([0-9]{1,5})", item)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InputError(f"{item!r} is not host:port (IPv6: [address]:port)")
    return ServerAddress(match[1] or match[2], int(match[3]))


def _is_key_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in (".", "..")


def interpret(
    server: ServerAddress, certificate: bytes, secret: bytearray, request: ProvisioningRequest
) -> Provisioned:
    """Return what a released secret is for the enclave that asked for it.

    Args:
        server: the one that released it.
        certificate: the one by which it was believed, in DER.
        secret: exactly the bytes that it sent.
        request: what was asked for.

    Raises:
        ProtocolError: it is not what was asked for.
    """
    if request.key_name is None:
        return Provisioned(
            server, certificate, secret, None, None, {SECRET_STRING: _as_string(secret)}
        )
    key = _as_key(secret, accepts_hex=request.accepts_hex)
    # Graphene's programs get the key in the variable besides; Gramine's do not.
    is_text = request.accepts_hex and len(secret) != WRAP_KEY_SIZE
    variables = {SECRET_STRING: _as_string(secret)} if is_text else {}
    return Provisioned(server, certificate, secret, request.key_name, key, variables)


def _as_key(secret: bytearray, *, accepts_hex: bool) -> bytearray:
    if len(secret) == WRAP_KEY_SIZE:
        return bytearray(secret)
    expected = f"{WRAP_KEY_SIZE} bytes"
    if accepts_hex:
        expected += ", or 32 hex digits and a NUL"
        if re.fullmatch(rb"[0-9A-Fa-f]{32}\0", secret):
            return bytearray.fromhex(secret[:-1].decode("ascii"))
    raise ProtocolError(
        f"the released secret has {len(secret)} bytes, expected a wrap key of {expected}",
        hint="the server serves another kind of secret than the manifest asks for",
    )


def _as_string(secret: bytearray) -> str:
    if len(secret) > MAX_STRING_SIZE or not secret.endswith(b"\0"):
        raise ProtocolError(
            f"the released secret is no string of at most {MAX_STRING_SIZE} bytes ending with NUL",
            hint=f"to receive a wrap key, set {SET_KEY} to its name",
        )
    return os.fsdecode(bytes(secret[: secret.index(0)]))
