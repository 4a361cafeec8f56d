"""Options that several commands share: which roots and which collateral to believe, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import datetime

    from cloister.attestation.policy import Policy
    from cloister.attestation.trust import Trust

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

_BUNDLES = click.option(
    "--trust-simulated",
    "bundles",
    multiple=True,
    type=FILE,
    metavar="BUNDLE",
    help="Trust this SIMULATED platform (from `cloister platform export`). Repeatable.",
)
_COLLATERALS = click.option(
    "--collateral",
    "collaterals",
    multiple=True,
    type=FILE,
    help="Collateral of a kind of platforms (JSON of dcap-qvl). Repeatable.",
)
_PCCS = click.option(
    "--pccs",
    metavar="URL",
    help="Fetch collateral there when needed: a PCCS, or `intel` for Intel's own service.",
)
_STATUSES = click.option(
    "--accept-tcb",
    "statuses",
    multiple=True,
    metavar="STATUS",
    help="Accept this TCB status besides UpToDate. Repeatable.",
)
_ROOTS = click.option(
    "--root",
    "roots",
    multiple=True,
    type=FILE,
    metavar="PEM",
    help="Believe this root instead of Intel's; what it vouches for is called SIMULATED.",
)


def trust_options(function: F) -> F:
    """Add the options that :func:`trust_from` and the policy of a server take."""
    for option in (_STATUSES, _PCCS, _COLLATERALS, _BUNDLES):
        function = option(function)
    return function


def root_option(function: F) -> F:
    """Add ``--root``, for commands that look at quotes of any origin."""
    return _ROOTS(function)


def trust_from(
    bundles: tuple[Path, ...],
    collaterals: tuple[Path, ...],
    pccs: str | None,
    roots: tuple[Path, ...] = (),
) -> Trust:
    """Return whom the options say to trust.

    Raises:
        InputError: nobody.
    """
    from cloister.attestation import Collateral, SimulatedBundle, TrustAnchor, intel
    from cloister.attestation.trust import Trust
    from cloister.errors import InputError

    simulated = [SimulatedBundle.from_json(path.read_bytes()) for path in bundles]
    named = [TrustAnchor.from_pem(path.read_bytes()) for path in roots] or [intel()]
    files = [Collateral.from_json(path.read_bytes()) for path in collaterals]
    known = [(bundle.anchor, bundle.collateral) for bundle in simulated]
    known += [(anchor, collateral) for anchor in named for collateral in files]
    sources = [(anchor, _source(pccs, anchor)) for anchor in named] if pccs else []
    if not known and not sources:
        raise InputError(
            "no platform is trusted, so nothing could be accepted",
            hint="real platforms: --pccs URL or --collateral FILE; a simulated one:"
            " --trust-simulated BUNDLE (from: cloister platform export)",
        )
    return Trust(tuple(known), tuple(sources))


def _source(url: str, anchor: Any) -> Any:
    import sys

    from cloister.attestation.service import (
        INTEL_PCS,
        CollateralCache,
        CollateralService,
        cache_directory,
    )
    from cloister.files import cache_home

    url = INTEL_PCS if url == "intel" else url
    directory = cache_directory(cache_home(), f"{url} {anchor.fingerprint}")

    def tell(error: Exception) -> None:
        print(f"cloister: collateral: {error}", file=sys.stderr, flush=True)

    service = CollateralService(url, anchor)
    return CollateralCache(service, directory, anchor=anchor, clock=utc_now, on_failure=tell)


def quote_policy(policy_file: Path | None, statuses: tuple[str, ...]) -> Policy:
    """Return the policy of a file, or one that accepts any enclave on a good platform."""
    from cloister.attestation.policy import AnyEnclave, TcbStatus, all_of
    from cloister.attestation.policy_file import parse_policy
    from cloister.errors import InputError

    if policy_file is None:
        return all_of(AnyEnclave(), TcbStatus("UpToDate", *statuses))
    if statuses:
        raise InputError(
            "--accept-tcb and --policy do not go together: name tcb_status in the file"
        )
    return parse_policy(policy_file.read_bytes(), str(policy_file))


def utc_now() -> datetime.datetime:
    """Return the present time, aware."""
    import datetime

    return datetime.datetime.now(datetime.timezone.utc)


def parse_at(text: str | None) -> datetime.datetime:
    """Return the time that ``--at`` names: RFC 3339, a date, or seconds since 1970; None is now.

    Raises:
        InputError: none of these.
    """
    import datetime

    from cloister.attestation.expiry import parse_time
    from cloister.errors import InputError

    if text is None:
        return utc_now()
    try:
        if text.isdecimal():
            return datetime.datetime.fromtimestamp(int(text), tz=datetime.timezone.utc)
        return parse_time(text if "T" in text else f"{text}T00:00:00Z")
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"--at {text}: not a time", hint="e.g. 2025-06-20, 2025-06-20T12:00:00Z or 1750420800"
        ) from error
