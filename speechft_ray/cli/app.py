"""The ``speechft`` command that the verbs of this folder hang themselves on."""

from __future__ import annotations

import typer

EXIT_FAILED, EXIT_USER, EXIT_RESUMABLE = 1, 2, 75

app = typer.Typer(
    name="speechft",
    help="Search for speech encoders that stay general after fine-tuning: tune stably, merge, evaluate on SUPERB.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
