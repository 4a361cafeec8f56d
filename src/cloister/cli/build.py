"""``cloister build``: render, measure and sign an enclave in one step."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("template", type=click.Path(path_type=Path))
@click.option(
    "-D", "--define", "defines", multiple=True, metavar="NAME=VALUE", help="What {{ NAME }} means."
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="Signing key [default: your own, made on first use]",
)
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File whose first line opens the key; else you are asked.",
)
@click.option(
    "--date", default="today", metavar="YYYY-MM-DD", help="Date of the signature [default: today]"
)
@click.option(
    "--libpal",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="ELF file that is measured as the runtime [default: this version of Cloister]",
)
@click.option(
    "--mode",
    type=click.Choice(["sgx", "direct"]),
    default="sgx",
    show_default=True,
    help="direct: only render and check, for runs without an enclave.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["cloister", "gramine"]),
    default="cloister",
    show_default=True,
    help="gramine: list every trusted file in the manifest, as Gramine's tools do.",
)
@click.option(
    "--platform",
    type=click.Choice(["gramine"]),
    help="Build also for Gramine, on any machine where it is installed [default: where it is and "
    "there is SGX].",
)
@click.option("--no-cache", is_flag=True, help="Hash every file, also those that did not change.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a policy (TOML) that accepts exactly this enclave.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build(
    template: Path,
    defines: tuple[str, ...],
    key: Path | None,
    passphrase_file: Path | None,
    date: str,
    libpal: Path | None,
    mode: str,
    form: str,
    platform: str | None,
    no_cache: bool,
    policy: Path | None,
    as_json: bool,
) -> None:
    """Render TEMPLATE (APP.manifest.template), hash what it trusts, measure and sign.

    Writes APP.manifest, APP.manifest.sgx, APP.index and APP.sig beside TEMPLATE, and prints the
    measurement by which others recognise the enclave. The same inputs give the same files.

    Where Gramine is installed and there is SGX, writes the same for Gramine (APP.gramine.manifest,
    APP.gramine.manifest.sgx, APP.gramine.sig), with a measurement of its own.

    \b
    Example:  cloister build pytorch.manifest.template -D key_server=keys.example.org:4433
    """
    import gc
    import json

    from cloister.manifest.definitions import parse_definitions
    from cloister.manifest.rendering import Rendering

    gc.disable()  # what a build allocates lives to its end; looking through it costs a tenth
    rendering = Rendering(template, parse_definitions(defines))
    with rendering.ahead():
        from cloister.cli import signing
        from cloister.manifest.build import build as build_enclave
        from cloister.manifest.build import render_only

        if mode == "direct":
            written = str(render_only(rendering))
            click.echo(json.dumps({"files": [written]}) if as_json else f"wrote       {written}")
            return
        from cloister.errors import InputError, PlatformError
        from cloister.manifest.build import app_of
        from cloister.platforms.gramine.presence import forget, sgx_is_here

        signing_key = signing.choose_key(key, passphrase_file)
        date = signing.choose_date(date)
        settings = signing.settings(libpal, form, use_cache=not no_cache)
        built = build_enclave(rendering, signing_key=signing_key, date=date, settings=settings)
        forget(app_of(template))
        gramine = None
        if platform == "gramine" or sgx_is_here():
            from cloister.platforms.gramine.build import build_for_gramine

            try:
                gramine = build_for_gramine(
                    rendering, signing_key=signing_key, date=date, settings=settings
                )
            except (InputError, PlatformError) as error:  # it cannot run it, or lacks a part
                if platform is not None:
                    raise
                click.echo(f"note: not built for Gramine: {error.message}", err=True)
    if policy is not None:
        others = [] if gramine is None else [gramine.built.sigstruct.mr_enclave]
        write_policy(policy, built.sigstruct.mr_enclave, *others)
    signing.show(built, gramine, as_json=as_json)


def write_policy(path: Path, *mrenclaves: bytes) -> None:
    """Write the policy that accepts a program, on real hardware that is up to date.

    Args:
        path: where to.
        mrenclaves: the program's measurement on each kind of platform, 32 bytes.
    """
    from cloister.files import write_atomically

    named = ", ".join(f'"{measured.hex()}"' for measured in mrenclaves)

    text = (
        "# Who may have the key, or is believed: this enclave, on hardware that is up to date.\n"
        '# A SIMULATED platform must be named: roots = ["SHA-256 of its root"]\n'
        "version = 1\n"
        f"mrenclave = {named if len(mrenclaves) == 1 else f'[{named}]'}\n"
    )
    write_atomically(path, text.encode())
