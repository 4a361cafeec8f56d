"""``cloister completion``: what a shell needs to complete commands, options and files."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes `cloister` with Tab.

    Load it when the shell starts: the line of the example belongs into ~/.bashrc or ~/.zshrc
    (for zsh, behind compinit); fish reads ~/.config/fish/completions/cloister.fish by itself.
    bash must be 4.4 or later.

    \b
    Example:  eval "$(cloister completion bash)"
              eval "$(cloister completion zsh)"
              cloister completion fish > ~/.config/fish/completions/cloister.fish
    """
    from click.shell_completion import get_completion_class

    from cloister.cli.main import cli, completion_variable

    script = get_completion_class(shell)
    assert script is not None  # noqa: S101  (the choices are click's own)
    click.echo(script(cli, {}, "cloister", completion_variable("cloister")).source())
