"""The ``speechft`` application that the modules of this package add their verbs to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from speechft_ray import __version__

EXIT_FAILED, EXIT_USER, EXIT_RESUMABLE = 1, 2, 75

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
"""Slurm, Kubernetes and spot machines send SIGTERM before they take a machine away, Slurm SIGUSR1
with ``--signal``, and a dropped ssh connection SIGHUP."""

app = typer.Typer(
    name="speechft",
    help="Search for speech encoders that stay general after fine-tuning: "
    "tune stably, merge, evaluate on SUPERB.",
    no_args_is_help=True,
    add_completion=False,
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


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turns the first of ``STOP_SIGNALS`` into a set event, so that the run ends cleanly; a second
    one ends the process. A signal that is ignored, as SIGHUP under ``nohup``, stays ignored."""
    stop = threading.Event()
    signals = [one for one in STOP_SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in signals}

    def remember(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.SIGINT] if number == signal.SIGINT else signal.SIG_DFL)

    for number in signals:
        signal.signal(number, remember)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, before[number])
