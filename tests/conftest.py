"""What every test shares: the fixtures, clean user directories, policing of skips."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from cloister.runtime.linux import set_dumpable

if TYPE_CHECKING:
    from cloister.platforms.simulated import SimulatedEnclave, SimulatedPlatform

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
FIXTURES = Path(os.environ.get("CLOISTER_FIXTURES", ROOT.parent / "shared" / "fixtures"))

# The only tests that may skip where CI=true: name prefix -> the reason that excuses it.
ALLOWED_SKIPS: dict[str, str] = {
    "tests/cli/test_report_in_browser.py": "a browser comes with the machine, not with Python",
    "tests/runtime/test_processors.py": "only root may ask for it, and not every kernel can poll",
    "tests/runtime/test_shelf.py": "only root's kernel reads files behind files, from Linux 6.9 on",
    "tests/runtime/test_standard_library.py": "Debian's Python comes without its own tests",
}


# Machines differ in speed, so examples have no deadline. Where CI=true every run tries the same
# examples: a change must not fail for a property that it did not touch. At home they are random.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")

# A script's `make test &` ignores a terminal's keys, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def data() -> Path:
    """The small fixtures that travel with the repository."""
    return DATA


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The full fixtures; tests that use them skip where the folder is absent."""
    if not FIXTURES.is_dir():
        pytest.skip(f"fixtures are absent: {FIXTURES} (set CLOISTER_FIXTURES)")
    return FIXTURES


@pytest.fixture(scope="session")
def hash_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of hashes for all test processes that trust the same packages, for its variable."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return shared / "hash-cache"


@pytest.fixture(autouse=True)
def own_user_directories(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Give each test its own XDG directories, so that none reads or writes the user's."""
    home = tmp_path_factory.mktemp("xdg")
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))
    monkeypatch.setenv("NO_COLOR", "1")
    return home


@pytest.fixture(autouse=True)
def dumpable_again() -> Iterator[None]:
    """Take back what commands that ran in this process did to it for the sake of their keys.

    An ordinary user's process can neither read its own environment nor start a sandbox afterwards.
    """
    yield
    set_dumpable(True)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that copies a file or tree into the test's own directory, writable."""

    def copy(source: Path) -> Path:
        target = tmp_path / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
            target.chmod(0o644)
        return target

    return copy


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedPlatform:
    """A simulated platform of the test's own, with fresh keys."""
    from cloister.platforms.simulated import SimulatedPlatform

    return SimulatedPlatform(tmp_path / "simulated-platform")


@pytest.fixture
def start_enclave() -> Callable[..., SimulatedEnclave]:
    """Return a function that signs and starts a small enclave on a simulated platform.

    Another manifest gives another MRENCLAVE; everything else may be set by name.
    """
    from signing import IMAGE, PARAMETERS, signed

    def start(
        platform: SimulatedPlatform, manifest: bytes = b"manifest", **fields: Any
    ) -> SimulatedEnclave:
        sigstruct = signed(manifest, **fields).pack()
        return platform.start(manifest=manifest, sigstruct=sigstruct, image=IMAGE, **PARAMETERS)

    return start


_skipped: list[tuple[str, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember each skipped test and its reason."""
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped.append((report.nodeid, reason))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where CI=true, fail when a test skipped that is not excused."""
    if os.environ.get("CI") != "true":
        return
    unexcused = [
        (node, reason)
        for node, reason in _skipped
        if not any(node.startswith(prefix) for prefix in ALLOWED_SKIPS)
    ]
    if unexcused:
        for node, reason in unexcused:
            print(f"\nskipped without excuse: {node}: {reason}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
