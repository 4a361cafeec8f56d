"""From a template to signed files and back: exact, reproducible, whole or not at all."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Any

import pytest
import tomli
from blake3 import blake3

from cloister.errors import InputError, ManifestError, TrustedIndexError
from cloister.manifest.build import Built, app_of, build, render_only
from cloister.manifest.index import CHUNK_SIZE, UNKNOWN_SIZE
from cloister.manifest.prepare import Format, Settings
from cloister.manifest.rendering import Rendering
from cloister.manifest.signed import load_signed
from cloister.manifest.signing_key import load_signing_key
from cloister.sgx.sigstruct import Sigstruct

SIGNING = Path(__file__).resolve().parent.parent / "data" / "signing"
PAL = (SIGNING / "pal.so").read_bytes()
NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.timezone.utc)

TEMPLATE = """\
libos.entrypoint = "/bin/{{ program }}"
loader.env.LANG = "C"
sgx.enclave_size = "64M"
sgx.isvprodid = 7
sgx.isvsvn = 3
sgx.trusted_files = ["file:big", "file:dir/"]
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "big").write_bytes(bytes(3 * CHUNK_SIZE + 1))
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "small").write_text("small")
    path = tmp_path / "app.manifest.template"
    path.write_text(TEMPLATE)
    return path


def made(template: Path, **changes: Any) -> Built:
    options: dict[str, Any] = {"libpal": PAL, "now": NOW}
    definitions = changes.pop("definitions", {"program": "true"})
    date = changes.pop("date", "2026-11-22")
    return build(
        Rendering(template, definitions),
        signing_key=load_signing_key(SIGNING / "key.pem"),
        date=date,
        settings=Settings(**(options | changes)),
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_what_is_built_loads_again(template: Path) -> None:
    built = made(template)
    signed = load_signed(template.parent / "app")
    assert [path.name for path in built.files] == [
        "app.manifest",
        "app.index",
        "app.sig",
        "app.manifest.sgx",
    ]
    assert signed.manifest.libos.entrypoint == "/bin/true"
    assert signed.manifest.sgx.isvprodid == 7
    assert sorted(signed.trusted) == ["big", "dir/small"]
    big = signed.trusted.lookup("big")
    assert big is not None
    zeros, last = (blake3(bytes(n)).digest() for n in (CHUNK_SIZE, 1))
    assert (big.size, big.chunks) == (3 * CHUNK_SIZE + 1, zeros * 3 + last)
    small = signed.trusted.lookup("dir/small")
    assert small is not None
    assert small.chunks == blake3(b"small").digest()
    sigstruct = Sigstruct.unpack(signed.sigstruct)
    sigstruct.verify()
    assert sigstruct.mr_enclave == built.prepared.measurement.mrenclave
    assert (sigstruct.isv_prod_id, sigstruct.isv_svn, sigstruct.debug) == (7, 3, False)


def test_the_signed_manifest_holds_the_digest_of_the_index_and_not_the_list(template: Path) -> None:
    made(template)
    document = tomli.loads((template.parent / "app.manifest.sgx").read_text())
    index = (template.parent / "app.index").read_bytes()
    expected = {"trusted_index": {"sha256": hashlib.sha256(index).hexdigest()}}
    assert document["cloister"] == expected
    assert "trusted_files" not in document["sgx"]


def test_same_inputs_same_bytes(template: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made(template)
    first = contents(template.parent)
    made(template)
    assert contents(template.parent) == first
    copy = tmp_path_factory.mktemp("elsewhere")
    (copy / "dir").mkdir()
    for name in ("dir/small", "big", "app.manifest.template"):
        (copy / name).write_bytes((template.parent / name).read_bytes())
    made(copy / template.name, use_cache=False)
    assert contents(copy) == first


@pytest.mark.parametrize("change", ["file", "definition", "libpal", "more"])
def test_every_input_changes_the_measurement(template: Path, change: str) -> None:
    before = made(template).prepared.measurement.mrenclave
    changes: dict[str, Any] = {}
    if change == "file":
        (template.parent / "dir" / "small").write_text("SMALL")
    elif change == "more":
        (template.parent / "dir" / "more").touch()
    elif change == "definition":
        changes["definitions"] = {"program": "false"}
    else:
        changes["libpal"] = PAL.replace(b"\x2a\0\0\0", b"\x2b\0\0\0")
    assert made(template, **changes).prepared.measurement.mrenclave != before


def test_the_date_changes_only_the_signature(template: Path) -> None:
    first, second = made(template), made(template, date="0000-00-00")
    assert first.prepared.measurement == second.prepared.measurement
    assert first.sigstruct != second.sigstruct


def test_gramines_format_lists_every_file(template: Path) -> None:
    made(template)
    made(template, format=Format.GRAMINE)
    assert not (template.parent / "app.index").exists()
    document = tomli.loads((template.parent / "app.manifest.sgx").read_text())
    assert document["sgx"]["trusted_files"] == [
        {"uri": "file:big", "sha256": hashlib.sha256(bytes(3 * CHUNK_SIZE + 1)).hexdigest()},
        {"uri": "file:dir/small", "sha256": hashlib.sha256(b"small").hexdigest()},
    ]
    signed = load_signed(template.parent / "app")
    big = signed.trusted.lookup("big")
    assert big is not None
    assert (big.size, big.chunks) == (UNKNOWN_SIZE, b"")


def test_manifests_of_gramines_signer_load(copy_of: Any) -> None:
    folder = copy_of(SIGNING)
    signed = load_signed(folder / "app")
    entry = signed.trusted.lookup("dir/sub/c.txt")
    assert entry is not None
    assert entry.sha256 == hashlib.sha256((folder / "dir/sub/c.txt").read_bytes()).digest()


def test_nothing_is_written_when_something_is_wrong(template: Path) -> None:
    made(template)
    before = contents(template.parent)
    template.write_text(TEMPLATE + "sgx.isvsvn = -1\n")
    with pytest.raises(ManifestError):
        made(template)
    template.write_text(TEMPLATE.replace("64M", "256K"))
    with pytest.raises(InputError, match="not enough"):
        made(template)
    template.write_text(TEMPLATE)
    assert contents(template.parent) == before


def test_errors_name_template_line_and_key(template: Path) -> None:
    template.write_text(TEMPLATE.replace('"file:dir/"', '\n"file:absent"'))
    with pytest.raises(ManifestError) as caught:
        made(template)
    assert caught.value.message == (
        f"{template}:7: sgx.trusted_files[1]: file:absent does not exist, or is no regular file"
    )
    template.write_text(TEMPLATE.replace("sgx.isvsvn", "sgx.isvsn"))
    with pytest.raises(ManifestError, match=r"template:5: sgx.isvsn: unknown key; did you mean"):
        made(template)


@pytest.mark.parametrize("name", ["app.index", "app.sig", "app.manifest.sgx"])
def test_a_missing_file_is_named(template: Path, name: str) -> None:
    made(template)
    (template.parent / name).unlink()
    with pytest.raises(InputError, match=f"{name}: does not exist"):
        _ = load_signed(template.parent / "app").trusted


def test_a_changed_index_is_refused(template: Path) -> None:
    made(template)
    index = template.parent / "app.index"
    index.write_bytes(index.read_bytes()[:-1] + b"\xff")
    with pytest.raises(TrustedIndexError, match=r"app.index: .*SHA-256"):
        _ = load_signed(template.parent / "app").trusted


def test_an_unsigned_manifest_is_refused(template: Path) -> None:
    made(template)
    (template.parent / "app.manifest").rename(template.parent / "app.manifest.sgx")
    with pytest.raises(
        ManifestError, match=r"app.manifest.sgx:6: sgx.trusted_files\[0\]: .*no sha"
    ):
        _ = load_signed(template.parent / "app").trusted


def test_a_template_cannot_bring_its_own_index(template: Path) -> None:
    with template.open("a") as stream:
        stream.write(f'cloister.trusted_index.sha256 = "{"0" * 64}"\n')
    with pytest.raises(ManifestError, match=r"template:7: cloister.trusted_index: only the signer"):
        made(template)


def test_keys_with_servers_of_their_own_are_measured(template: Path) -> None:
    before = made(template).prepared.measurement.mrenclave
    key = {"name": "a", "servers": "h:1", "ca": "/ca"}
    with template.open("a") as stream:
        stream.write("cloister.keys = [{ name = 'a', servers = 'h:1', ca = '/ca' }]\n")
    assert made(template).prepared.measurement.mrenclave != before
    document = tomli.loads((template.parent / "app.manifest.sgx").read_text())
    assert document["cloister"]["keys"] == [key]
    assert "trusted_index" in document["cloister"]


def test_direct_mode_only_renders(template: Path) -> None:
    written = render_only(Rendering(template, {"program": "true"}))
    assert written == template.parent / "app.manifest"
    assert written.read_text() == TEMPLATE.replace("{{ program }}", "true")
    assert "app.sig" not in contents(template.parent)


@pytest.mark.parametrize("name", ["app.template", ".manifest.template", "app"])
def test_names_of_templates(name: str) -> None:
    with pytest.raises(InputError, match=r"ends with \.manifest\.template"):
        app_of(Path(name))
