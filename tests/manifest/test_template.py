"""Templates: globals of both dialects, definitions, and errors that name the template's line."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError, ManifestError
from cloister.manifest.definitions import parse_definitions
from cloister.manifest.parse import ManifestText
from cloister.manifest.template import Template


def render(text: str, definitions: dict[str, str | bool] | None = None) -> str:
    environment = {"HOME": "/home/x"}
    return Template(text, definitions or {}, source="t", environment=environment).render()


def test_definitions_environment_and_newlines() -> None:
    text = "a = '{{ name }}'\nb = '{{ env.HOME }}{{ env.get('NO', '!') }}'\n"
    assert render(text, {"name": "x"}) == "a = 'x'\nb = '/home/x!'\n"


def test_definitions_as_on_the_command_line() -> None:
    assert parse_definitions(["a=1=2", "b", "c="]) == {"a": "1=2", "b": True, "c": ""}
    with pytest.raises(InputError, match="'1a' cannot be a name"):
        parse_definitions(["1a=2"])


def test_nothing_is_escaped() -> None:
    assert render("{{ x }}", {"x": "<a href='&'>"}) == "<a href='&'>"


@pytest.mark.parametrize("dialect", ["gramine", "graphene"])
def test_installation(dialect: str) -> None:
    libdir = render(f"{{{{ {dialect}.pkglibdir }}}}")
    assert render(f"{{{{ {dialect}.libos }}}}") == f"{libdir}/libsysdb.so"


def test_runtimedir_is_a_directory_of_the_hosts_c_library() -> None:
    directory = Path(render("{{ graphene.runtimedir() }}"))
    assert (directory / "libc.so.6").read_bytes()[:4] == b"\x7fELF"
    assert (directory / "ld-linux-x86-64.so.2").resolve().is_file()
    assert render("{{ gramine.runtimedir('glibc') }}") == str(directory)
    assert render("{{ graphene.runtime() }}") == str(directory)
    (directory / "libc.so.6").unlink()
    (directory / "libc.so.6").symlink_to("/nowhere")
    render("{{ graphene.runtimedir() }}")
    assert (directory / "libc.so.6").exists()


def test_python_paths() -> None:
    paths = sysconfig.get_paths()
    assert render("{{ python.stdlib }}") == paths["stdlib"]
    assert render("{{ python.get_path('purelib') }}") == paths["purelib"]
    assert render("{{ python.ext_suffix }}") == sysconfig.get_config_var("EXT_SUFFIX")
    assert render("{{ python.implementation.name }}") == "cpython"
    assert paths["stdlib"] in render("{{ python.get_sys_path() | join(' ') }}").split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\n{{ nope }}", "t:3: template: 'nope' is undefined"),
        ("\n{{ env.NOPE }}", "t:2: template: the environment variable NOPE is not set"),
        ("\n{% for x in %}", "t:2: template: Expected an expression, got"),
        ("{% if 1 %}\n", "t:1: template: Unexpected end of template"),
        ("\n\n\n{{ 1 / 0 }}", "t:4: template: ZeroDivisionError: division by zero"),
        ("{{ gramine.runtimedir('musl') }}", "t:1: runtimedir('musl'): only glibc is there"),
        ("\n{{ python_environment('/bin/true') }}", "t:2: python_environment: /bin/true does"),
        ("\n{{ python_environment('/nowhere') }}", "t:2: python_environment: /nowhere does not"),
        ("{{ ldd('/nowhere') }}", "t:1: ldd: /nowhere: "),
        ("{{ ldd('/etc/passwd') }}", "t:1: ldd: /etc/passwd: not an x86-64 ELF file"),
    ],
)
def test_mistakes_name_the_line(text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as caught:
        render(text)
    assert caught.value.message.startswith(expected)
    assert "\n" not in caught.value.message


def test_a_variable_that_is_not_set_is_told_with_what_helps() -> None:
    with pytest.raises(ManifestError) as caught:
        render("{{ env.NOPE }}")
    assert "default('VALUE')" in str(caught.value.hint)
    with pytest.raises(ManifestError) as caught:
        render("{{ nope }}")
    assert caught.value.hint == "define it with -D NAME=VALUE"
    assert render("{{ env.NOPE | default('VALUE') }}{{ env.NOPE is defined }}") == "VALUEFalse"


TEMPLATE = """\
{% set names = ["a", "b"] %}
libos.entrypoint = "/x"
sgx.trusted_files = [
{% for name in names -%}
  "file:{{ name }}",
  "{{ name }}",
{% endfor %}
]
"""


def test_errors_of_the_manifest_name_the_line_of_the_template() -> None:
    template = Template(TEMPLATE, {}, source="t")
    with pytest.raises(ManifestError, match=r"^t:6: sgx.trusted_files\[1\].uri: 'a': expected"):
        ManifestText(template.render(), "t", template.line_of)


def test_a_template_that_counts_characters_has_no_lines() -> None:
    text = "{% set a %}\n\n{% endset %}libos = '{{ a | length }}'"
    template = Template(text, {}, source="t")
    assert template.render() == "libos = '2'"
    with pytest.raises(ManifestError, match=r"^t \(line 1 of what it renders to\): libos: "):
        ManifestText(template.render(), "t", template.line_of)


@given(st.text(max_size=60))
def test_lines_of_a_text_without_tags_are_its_own(text: str) -> None:
    template = Template(text, {}, source="t")
    try:
        rendered = template.render()
    except ManifestError:
        return
    count = rendered.count("\n")
    assert [template.line_of(line) for line in range(1, count + 1)] == list(range(1, count + 1))


@given(st.text(st.sampled_from("{%}-# \nabc'\"()[]=.|~+1"), max_size=40))
def test_no_template_makes_anything_but_a_manifest_error(text: str) -> None:
    try:
        render(text)
    except ManifestError as error:
        assert error.message.startswith("t:")


def test_environment_is_this_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CLOISTER_TEST", "yes")
    assert Template("{{ env.CLOISTER_TEST }}", {}, source="t").render() == "yes"


@pytest.mark.parametrize("name", ["gramine.runtimedir", "graphene.runtimedir", "ldd"])
def test_a_function_is_not_written(name: str) -> None:
    with pytest.raises(ManifestError, match="is a function") as caught:
        render("\n{{ " + name + " }}")
    assert "call it:" in str(caught.value.hint)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    template = tmp_path / "m.manifest.template"
    template.write_text('libos.entrypoint = "/x"\nloader.argv = ["{{ name }}"]\n')
    for words in (["manifest", "render"], ["build"]):
        done = subprocess.run(
            [sys.executable, "-m", "cloister", *words, "-D", b"name=\xff", template],
            capture_output=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert b"line 2 of the manifest would not be UTF-8: it holds the byte 0xff" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.manifest.template"]
