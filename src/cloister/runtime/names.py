"""Names from the host, for ``sys.enable_extra_runtime_domain_names_conf``: cleaned before use.

The host is not trusted, so only what has the right form passes: addresses of name servers, search
domains and known options.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path

DEFAULT_HOST_NAME = "localhost"

_DOMAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_OPTION = re.compile(
    r"(ndots|timeout|attempts):[0-9]{1,2}|debug|rotate|no-check-names|inet6|ip6-bytestring|"
    r"ip6-dotint|no-ip6-dotint|edns0|single-request|single-request-reopen|no-tld-query|use-vc|"
    r"no-reload|trust-ad"
)
_MOST_SERVERS = 3  # MAXNS of the C library
_MOST_DOMAINS = 6  # MAXDNSRCH


def host_name() -> str:
    """Return the host's name, or ``localhost`` if it is none that a name can be."""
    name = os.uname().nodename
    return name if _HOST_NAME.fullmatch(name) else DEFAULT_HOST_NAME


def resolver_configuration(path: Path) -> bytes:
    """Return what a host's ``resolv.conf`` says, line by line anew; empty if there is none."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return b""
    return "".join(f"{line}\n" for line in _clean(text)).encode("ascii")


def _clean(text: str) -> Iterator[str]:
    servers, domains, options = [], [], []
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values and _is_address(values[0]):
            servers.append(values[0])
        elif keyword in ("search", "domain"):
            domains = [value for value in values if _DOMAIN.fullmatch(value)]  # the last one counts
        elif keyword == "options":
            options += [value for value in values if _OPTION.fullmatch(value)]
    yield from (f"nameserver {server}" for server in servers[:_MOST_SERVERS])
    if domains:
        yield f"search {' '.join(domains[:_MOST_DOMAINS])}"
    if options:
        yield f"options {' '.join(options)}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
