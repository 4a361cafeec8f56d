"""Options by which the simulated platform rehearses a bad day."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cloister.platforms.simulated.collateral import Conditions

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--tcb-status", metavar="STATUS", help="Rehearse: TCB status of the platform."),
    click.option(
        "--advisory", "advisories", multiple=True, help="Rehearse: an advisory of that status."
    ),
    click.option("--qe-status", metavar="STATUS", help="Rehearse: status of the quoting enclave."),
    click.option("--revoke-pck", is_flag=True, help="Rehearse: the platform's key is revoked."),
    click.option("--expired", is_flag=True, help="Rehearse: the collateral is out of date."),
)


def rehearsal_options(function: F) -> F:
    """Add the options that :func:`conditions_from` takes."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def conditions_from(
    tcb_status: str | None,
    advisories: tuple[str, ...],
    qe_status: str | None,
    revoke_pck: bool,
    expired: bool,
) -> Conditions | None:
    """Return the conditions that the options ask for; None is a good day.

    Raises:
        InputError: an unknown status.
    """
    import datetime

    from cloister.attestation.status import TCB_STATUSES
    from cloister.errors import InputError
    from cloister.platforms.simulated.collateral import LIFETIME, Conditions

    if not (tcb_status or advisories or qe_status or revoke_pck or expired):
        return None
    for status in (tcb_status, qe_status):
        if status is not None and status not in (*TCB_STATUSES, "Revoked"):
            raise InputError(
                f"TCB status {status}: unknown",
                hint=f"there are: {', '.join(TCB_STATUSES)}, Revoked",
            )
    return Conditions(
        tcb_status=tcb_status or "UpToDate",
        advisories=advisories,
        qe_status=qe_status or "UpToDate",
        pck_revoked=revoke_pck,
        lifetime=datetime.timedelta(minutes=-1) if expired else LIFETIME,
    )
