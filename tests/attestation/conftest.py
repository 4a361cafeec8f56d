"""A PCCS while a test runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pccs_double import Pccs


@pytest.fixture
def pccs() -> Iterator[Pccs]:
    made = Pccs()
    yield made
    made.server.shutdown()
    made.server.server_close()
