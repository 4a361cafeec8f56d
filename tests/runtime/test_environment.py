"""Arguments and environment: the manifest's rules."""

from __future__ import annotations

import os

import pytest

from applications import App
from cloister.errors import InputError
from cloister.manifest.model import Manifest
from cloister.runtime.environment import arguments, declared, environment

FILES = {
    "file:args": b"prog\0two words\0new\nline\0",
    "file:cut": b"prog\0cut",
    "file:empty": b"",
    "file:env": b"A=1\0B=x=y\0",
    "file:bad": b"A=1\0nothing\0",
    "file:nameless": b"=1\0",
}


def manifest(**loader: object) -> Manifest:
    return Manifest.model_validate({"libos": {"entrypoint": "/bin/prog"}, "loader": loader})


def read(uri: str) -> bytes:
    return FILES[uri]


def test_without_any_rule_the_entrypoint_is_the_only_argument() -> None:
    assert arguments(manifest(), [], read) == ["/bin/prog"]


def test_arguments_from_the_host_are_refused_unless_the_manifest_lets_them_in() -> None:
    with pytest.raises(InputError, match="lets no command-line arguments in"):
        arguments(manifest(), ["x"], read)
    for key, value in (("argv", ["a"]), ("argv_src_file", "file:a")):
        with pytest.raises(InputError, match="fixes the arguments") as refusal:
            arguments(manifest(**{key: value}), ["x"], read)
        assert str(refusal.value.hint).endswith(f"remove loader.{key} from the manifest")
    open_manifest = manifest(insecure__use_cmdline_argv=True)
    assert arguments(open_manifest, ["x", "-y"], read) == ["/bin/prog", "x", "-y"]


def test_fixed_arguments_are_literal() -> None:
    assert arguments(manifest(argv=["a", "b "]), [], read) == ["a", "b "]
    from_file = manifest(argv_src_file="file:args")
    assert arguments(from_file, [], read) == ["prog", "two words", "new\nline"]
    with pytest.raises(InputError, match="at least its own name"):
        arguments(manifest(argv_src_file="file:empty"), [], read)


def test_a_cut_file_of_arguments_is_refused() -> None:
    with pytest.raises(InputError, match="does not end with NUL"):
        arguments(manifest(argv_src_file="file:cut"), [], read)


HOST = {"A": "host", "B": "host", "SECRET": "host"}


def test_nothing_comes_from_the_host_unless_named() -> None:
    env = {"A": {"value": "mine"}, "B": {"passthrough": True}, "C": {"passthrough": True}}
    assert environment(manifest(), HOST, read) == {}
    assert environment(manifest(env=env), HOST, read) == {"A": "mine", "B": "host"}
    assert declared(manifest(env=env), HOST) == {"A": "mine", "B": "host"}


def test_the_manifest_wins_over_host_and_file() -> None:
    env = {"A": {"value": "mine"}}
    everything = manifest(env=env, insecure__use_host_env=True)
    assert environment(everything, HOST, read) == {"A": "mine", "B": "host", "SECRET": "host"}
    from_file = manifest(env=env, env_src_file="file:env")
    assert environment(from_file, HOST, read) == {"A": "mine", "B": "x=y"}


def test_a_malformed_file_of_variables_is_refused() -> None:
    with pytest.raises(InputError, match="'nothing' is not of the form NAME=VALUE"):
        environment(manifest(env_src_file="file:bad"), HOST, read)
    with pytest.raises(InputError, match="'=1' is not of the form NAME=VALUE"):
        environment(manifest(env_src_file="file:nameless"), HOST, read)


def test_the_hosts_environment_is_the_callers(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python sets LC_CTYPE in its own environment where there is no locale (PEP 538)."""
    app.settings["loader.insecure__use_host_env"] = "true"
    for name in list(os.environ):
        if name.startswith("LC_") or name == "LANG":
            monkeypatch.delenv(name)
    assert "LC_CTYPE" not in app.direct(["/usr/bin/env"]).stdout
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
    assert "LC_CTYPE=C.UTF-8" in app.cloister("run", "--mode", "direct", "app").stdout
