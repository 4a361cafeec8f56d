"""Whatever is in a manifest or a template: an exit code and a message, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.cli.main import run
from cloister.graphene import manifest as graphene_manifest
from cloister.graphene import sgx_sign

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"
EXIT_CODES = (0, 1, 2, 3)

GRAPHENE = """\
loader.preload = "file:{{ graphene.libos }}"
libos.entrypoint = "/usr/bin/python3"
loader.argv0_override = "python3"
fs.mount.lib.type = "chroot"
fs.mount.lib.path = "/lib"
fs.mount.lib.uri = "file:{{ graphene.runtimedir() }}"
sgx.thread_num = 8
sgx.enclave_size = "64M"
sgx.require_avx = true
sgx.remote_attestation = true
sgx.trusted_files.lib = "file:dir"
sgx.trusted_checksum.lib = "00"
sgx.trusted_files.a = "file:a.txt"
sgx.protected_files.classes = "file:classes.txt"
sgx.allowed_files.result = "file:result.txt"
"""
SEEDS = [
    (SIGNING / "app.manifest").read_text(),
    (SIGNING / "app.manifest.template").read_text().replace("{{ log_level }}", "error"),
    GRAPHENE,
]
PIECES = [
    '"', "'", "[", "]", "{", "}", "[[", "]]", "=", ".", ",", "#", "\n", "\\", "\0", "\x7f", "é",
    "\ud800",
    "{{ ", " }}", "{% for x in y %}", "{% endfor %}", "{% if 1 %}", "{# ", '"""', "'''", "\\u0000",
    "true", "1", "-1", "0x", "1e400", "1979-05-27", "file:", "dev:", "/", "..", "G", "sgx",
    "fs.mounts",
    "[sgx]\n", "[[fs.mounts]]\n", "loader.env.", "{{ env }}", "{{ ldd('/x') }}", "{{ 1/0 }}",
    "{{ python_environment('/nowhere') }}", "{{ ''.join(range(3)) }}", "{% macro m() %}",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A sound manifest with a few pieces cut out, doubled or put in."""
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        end = draw(st.integers(at, min(len(text), at + 40)))
        text = text[:at] + draw(st.sampled_from(["", text[at:end] * 2, *PIECES])) + text[end:]
    return text


LEAVES = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["file:a.txt", "file:dir/", "/x", "64M", "dcap", "required", "0" * 64]),
)
NAMES = st.sampled_from(
    """
    libos loader fs sgx sys cloister pal entrypoint uri sha256 path type mount mounts root env argv
    trusted_files allowed_files protected_files trusted_checksum thread_num max_threads debug
    enclave_size cpu_features require_avx avx seal_key profile insecure__keys default key_name
    ioctl_structs debug__mock_syscalls remote_attestation trusted_index a
    """.split()  # noqa: SIM905  (a list of names, not of strings)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def structures(draw: st.DrawFn) -> str:
    """Well-formed TOML with the right names in wrong places."""
    document: dict[str, Any] = draw(st.dictionaries(NAMES, VALUES, max_size=5))
    if draw(st.booleans()):
        document["libos"] = {"entrypoint": "/x"}
    return tomli_w.dumps(document)


TEXTS = st.one_of(mutated(), structures(), st.text(max_size=60))
few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def folder(copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = copy_of(SIGNING)
    monkeypatch.chdir(copy)
    return copy


def write(name: str, text: str) -> None:
    Path(name).write_bytes(text.encode("utf-8", "surrogatepass"))


@few
@given(text=TEXTS)
@pytest.mark.parametrize("name", ["x.manifest", "x.manifest.template"])
def test_manifest_commands(name: str, text: str) -> None:
    write(name, text)
    for command in (
        ["render", name],
        ["check", name],
        ["explain", name],
        ["explain", "--json", name],
        ["convert", name, "--to", "gramine"],
        ["convert", name, "--to", "graphene"],
    ):
        assert run(["manifest", *command]) in EXIT_CODES


@few
@given(text=TEXTS)
def test_sign(text: str) -> None:
    write("x.manifest", text)
    common = ["-m", "x.manifest", "-o", "x.manifest.sgx", "-k", "key.pem", "-l", "pal.so"]
    for form in ("cloister", "gramine"):
        assert run(["sign", *common, "--no-cache", "--format", form]) in EXIT_CODES
    old = ["--manifest", "x.manifest", "--output", "x.manifest.sgx", "--key", "key.pem"]
    assert sgx_sign.run([*old, "--libpal", "pal.so"]) in EXIT_CODES
    assert sgx_sign.run([*old, "--depend"]) in EXIT_CODES


@few
@given(text=TEXTS)
def test_build_and_measure(text: str) -> None:
    write("x.manifest.template", text)
    for form in ("cloister", "gramine"):
        options = ["--libpal", "pal.so", "--no-cache", "--format", form]
        assert run(["build", "x.manifest.template", "--key", "key.pem", *options]) in EXIT_CODES
        assert run(["measure", "x.manifest.template", "--against", "app", *options]) in EXIT_CODES
    assert run(["build", "x.manifest.template", "--mode", "direct"]) in EXIT_CODES
    assert graphene_manifest.run(["x.manifest.template", "x.manifest"]) in EXIT_CODES
