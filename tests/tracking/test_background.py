"""A tracker in the background: nobody waits for it, and nothing that goes wrong in it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, TrackerDown
from speechft_ray.tracking.background import InBackground

SWEEP = SweepInfo("key", "name", {})


class Slow:
    """Waits for its gate in every call; fails while it has an error to raise."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.calls: list[str] = []
        self.error: Exception | None = None

    def start(self, sweep: SweepInfo) -> None:
        self._call("start")

    def curve(self, curve: Curve) -> None:
        self._call(curve.key)

    def encoder(self, row: EncoderRow) -> None:
        self._call(row.key)

    def finish(
        self, report: Path | None, score_by_alpha: Sequence[tuple[float, float]], status: str
    ) -> None:
        self._call(status)

    def where(self) -> str:
        return "Here."

    def _call(self, name: str) -> None:
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.calls.append(name)


def row(key: str) -> EncoderRow:
    return EncoderRow(key, "", {}, {}, True)


def test_calls_return_at_once_and_keep_their_order() -> None:
    slow = Slow()
    tracker = InBackground(slow)
    before = time.monotonic()
    tracker.start(SWEEP)
    tracker.curve(Curve("curve", "", {}, []))
    for number in range(50):
        tracker.encoder(row(str(number)))
    assert time.monotonic() - before < 1 and slow.calls == []
    slow.gate.set()
    tracker.finish(None, [], "finished")
    assert slow.calls == ["start", "curve", *map(str, range(50)), "finished"]
    assert tracker.where() == "Here."


def test_a_tracker_that_is_down_is_said_once_and_can_come_back() -> None:
    slow = Slow()
    slow.gate.set()
    slow.error = TrackerDown("no answer")
    tracker = InBackground(slow)
    tracker.start(SWEEP)
    with pytest.raises(TrackerDown, match="no answer"):
        for _ in range(1000):
            tracker.encoder(row("lost"))
            time.sleep(0.01)
    slow.error = None
    tracker.start(SWEEP)  # who was told tells everything again
    tracker.encoder(row("told again"))
    tracker.finish(None, [], "finished")
    assert slow.calls == ["start", "told again", "finished"]


def test_what_fails_at_the_end_is_said_at_the_end() -> None:
    slow = Slow()
    slow.gate.set()
    tracker = InBackground(slow)
    tracker.start(SWEEP)
    slow.error = TrackerDown("disk full")
    with pytest.raises(TrackerDown, match="disk full"):
        tracker.finish(None, [], "finished")


def test_the_end_waits_only_so_long() -> None:
    slow = Slow()
    tracker = InBackground(slow, finish_seconds=0.1)
    tracker.start(SWEEP)
    with pytest.raises(TrackerDown, match=r"Here\. It is still being written"):
        tracker.finish(None, [], "finished")
    slow.gate.set()
