"""The ``speechft`` command that the verbs of this folder hang themselves on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_FAILED, EXIT_USER, EXIT_RESUMABLE = 1, 2, 75

app = typer.Typer(
    name="speechft",
    help="Search for speech encoders that stay general after fine-tuning: tune stably, merge, evaluate on SUPERB.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a set event, so that the run ends cleanly; a second
    one ends the process.

    Slurm, Kubernetes and spot machines send SIGTERM before they take a machine away.
    """
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
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
