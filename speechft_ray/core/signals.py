"""Signals that end a run cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
"""Slurm, Kubernetes and spot machines send SIGTERM before they take a machine away, Slurm SIGUSR1
with ``--signal``, and a dropped ssh connection SIGHUP."""


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turns the first of ``STOP_SIGNALS`` into a set event, so that the run ends cleanly; a second
    one ends the process. A signal that is ignored, as SIGHUP under ``nohup``, stays ignored.

    Python delivers signals to the main thread alone; in another thread no signal stops the run.
    """
    stop = threading.Event()
    is_main = threading.current_thread() is threading.main_thread()
    signals = [one for one in STOP_SIGNALS if is_main and signal.getsignal(one) != signal.SIG_IGN]
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
