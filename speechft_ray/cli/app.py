"""The ``speechft`` application that the modules of this package add their verbs to."""

from __future__ import annotations

from typing import Annotated

import typer

from speechft_ray import __version__

EXIT_FAILED, EXIT_USER = 1, 2

app = typer.Typer(
    name="speechft",
    help="Search for speech encoders that stay general after fine-tuning: "
    "tune stably, merge, evaluate on SUPERB.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"speechft_ray {__version__}")
        raise typer.Exit


@app.callback()
def _add_global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Search for speech encoders that stay general after fine-tuning."""
