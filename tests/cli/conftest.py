"""What several tests of commands share."""

from __future__ import annotations

import pytest

from recorded_run import Recorded, record_run


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A run that was recorded, on a platform of its own."""
    directory = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(directory / variable.lower()))
        return record_run(directory)
