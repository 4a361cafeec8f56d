"""From when until when an RA-TLS certificate is valid: two variables of Gramine and Graphene."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from cloister.errors import InputError

DEFAULT_NOT_BEFORE = datetime.datetime(2001, 1, 1, tzinfo=datetime.timezone.utc)
DEFAULT_NOT_AFTER = datetime.datetime(2030, 12, 31, 23, 59, 59, tzinfo=datetime.timezone.utc)

NOT_BEFORE = "RA_TLS_CERT_TIMESTAMP_NOT_BEFORE"
NOT_AFTER = "RA_TLS_CERT_TIMESTAMP_NOT_AFTER"


def validity_from(environment: Mapping[str, str]) -> tuple[datetime.datetime, datetime.datetime]:
    """Return the validity that the variables of Gramine and Graphene ask for, or their default.

    Raises:
        InputError: a time that is not of the form YYYYMMDDhhmmss.
    """
    return (
        _timestamp(environment, NOT_BEFORE, DEFAULT_NOT_BEFORE),
        _timestamp(environment, NOT_AFTER, DEFAULT_NOT_AFTER),
    )


def _timestamp(
    environment: Mapping[str, str], name: str, default: datetime.datetime
) -> datetime.datetime:
    text = environment.get(name)
    if text is None:
        return default
    try:
        parsed = datetime.datetime.strptime(text if len(text) == 14 else "", "%Y%m%d%H%M%S")
    except ValueError as error:
        raise InputError(f"{name}: {text!r} is not a time of the form YYYYMMDDhhmmss") from error
    return parsed.replace(tzinfo=datetime.timezone.utc)
