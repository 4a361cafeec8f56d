"""``cloister measure``: what an enclave would measure, and why it measures something else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloister.manifest.prepare import Prepared, Settings

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "-D", "--define", "defines", multiple=True, metavar="NAME=VALUE", help="What {{ NAME }} means."
)
@click.option("--libpal", type=FILE, help="Measured runtime [default: this version's]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["cloister", "gramine"]),
    default="cloister",
    show_default=True,
    help="As for `cloister build`.",
)
@click.option("--no-cache", is_flag=True, help="Hash every file, also those that did not change.")
@click.option(
    "--against",
    type=FILE,
    metavar="APP",
    help="Compare with the signed files APP.manifest.sgx, APP.index and APP.sig.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(
    file: Path,
    defines: tuple[str, ...],
    libpal: Path | None,
    form: str,
    no_cache: bool,
    against: Path | None,
    as_json: bool,
) -> int:
    """Print what FILE (a template or a manifest) would measure; nothing is written or signed.

    With --against, say which input differs: the runtime, a line of the manifest, a trusted file;
    exit with 3 if any does.

    \b
    Example:  cloister measure pytorch.manifest.template --against pytorch
    """
    import dataclasses
    import json

    from cloister.cli import signing
    from cloister.manifest.compare import differences
    from cloister.manifest.signed import load_signed

    old = None if against is None else load_signed(against)
    # What Gramine's signer wrote has digests of whole files only.
    whole = old is not None and old.manifest.cloister.trusted_index is None
    settings = signing.settings(libpal, form, use_cache=not no_cache, whole=whole)
    prepared = prepare(file, defines, settings)
    measured = prepared.measurement.mrenclave.hex()
    found = None if old is None else differences(prepared, old, settings.libpal)
    if as_json:
        listed = None if found is None else [dataclasses.asdict(item) for item in found]
        click.echo(json.dumps({"mrenclave": measured, "differences": listed}))
    else:
        click.echo(f"MRENCLAVE   {measured}")
        for item in found or ():
            click.echo(f"{item.input:<11} {item.text}")
        if found == []:
            click.echo(f"same        as {against} was signed for")
    return 3 if found else 0


def prepare(file: Path, defines: tuple[str, ...], settings: Settings) -> Prepared:
    """Prepare a template or a rendered manifest."""
    from cloister.errors import InputError
    from cloister.manifest.build import manifest_of
    from cloister.manifest.definitions import parse_definitions
    from cloister.manifest.prepare import prepare as prepare_text
    from cloister.manifest.rendering import Rendering
    from cloister.manifest.sign import prepare_file, read_manifest

    if file.suffix == ".template":
        rendering = Rendering(file, parse_definitions(defines))
        return prepare_text(manifest_of(rendering), file.parent, settings, rendering.tree)
    if defines:
        raise InputError(
            f"-D {defines[0]}: {file} is no template",
            hint="the name of a template ends with .template",
        )
    return prepare_file(read_manifest(file), settings)
