"""Signals stop a run cleanly; a process of its own gets them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from speechft_ray.core.signals import STOP_SIGNALS

WAITS = """
import signal, sys
# The tests themselves may run under nohup, and an ignored signal is inherited.
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1:] else signal.SIG_DFL)
from speechft_ray.core.signals import stop_on_signals
with stop_on_signals() as stop:
    print("ready", flush=True)
    for line in sys.stdin:
        print(stop.is_set(), flush=True)
"""


def send_and_ask(number: signal.Signals, *arguments: str) -> str:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WAITS, *arguments]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.stdin.write("stopped?\n")
        process.stdin.flush()
        answer = process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait() == 0
    return answer


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_sets_the_event(number: signal.Signals) -> None:
    assert len(STOP_SIGNALS) == 4
    assert send_and_ask(number) == "True"


def test_under_nohup_a_dropped_connection_stops_nothing() -> None:
    assert send_and_ask(signal.SIGHUP, "nohup") == "False"
