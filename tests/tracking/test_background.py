"""A tracker in the background: calls do not wait for it, and none of its errors is lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import pytest

from speechft_ray.sweep.protocols import Curve, EncoderRow, Model, SweepEnd, SweepInfo, TrackerDown
from speechft_ray.tracking import background
from speechft_ray.tracking.background import BackgroundTracker

SWEEP = SweepInfo("key", "name", {})


class Slow:
    """Waits for its gate in every call; fails while it has an error to raise."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.calls: list[str] = []
        self.error: Exception | None = None

    def start(self, sweep: SweepInfo) -> None:
        self._call("start")

    def log_curve(self, curve: Curve) -> None:
        self._call(curve.key)

    def log_encoder(self, row: EncoderRow) -> None:
        self._call(row.key)

    def register_model(self, row: EncoderRow, model: Model) -> None:
        self._call(row.key)

    def finish(self, end: SweepEnd) -> None:
        self._call(end.status)

    def how_to_open(self) -> str:
        return "Here."

    def _call(self, name: str) -> None:
        assert self.gate.wait(900)
        if self.error is not None:
            raise self.error
        self.calls.append(name)


def row(key: str) -> EncoderRow:
    return EncoderRow(key=key, title="", params={}, complete=True)


def test_calls_return_at_once_and_keep_their_order() -> None:
    slow = Slow()
    tracker = BackgroundTracker(slow)
    tracker.start(SWEEP)
    tracker.log_curve(Curve("curve", "", {}, []))
    for number in range(50):
        tracker.log_encoder(row(str(number)))
    assert slow.calls == [], "every call has returned, and none was passed on"
    slow.gate.set()
    tracker.finish(SweepEnd("finished"))
    assert slow.calls == ["start", "curve", *map(str, range(50)), "finished"]
    assert tracker.how_to_open() == "Here."


def test_a_tracker_that_is_down_is_said_once_and_can_come_back() -> None:
    slow = Slow()
    slow.gate.set()
    slow.error = TrackerDown("no answer")
    tracker = BackgroundTracker(slow)
    tracker.start(SWEEP)
    with pytest.raises(TrackerDown, match="no answer"):
        for _ in range(1000):
            tracker.log_encoder(row("lost"))
            time.sleep(0.01)
    slow.error = None
    tracker.start(SWEEP)  # the caller repeats all calls
    tracker.log_encoder(row("repeated"))
    tracker.finish(SweepEnd("finished"))
    assert slow.calls == ["start", "repeated", "finished"]


def test_what_fails_at_the_end_is_said_at_the_end() -> None:
    slow = Slow()
    slow.gate.set()
    tracker = BackgroundTracker(slow)
    tracker.start(SWEEP)
    slow.error = TrackerDown("disk full")
    with pytest.raises(TrackerDown, match="disk full"):
        tracker.finish(SweepEnd("finished"))


def test_the_end_waits_while_calls_go_on() -> None:
    """All calls take longer than one may."""

    class Steady(Slow):
        def _call(self, name: str) -> None:
            time.sleep(0.25)
            self.calls.append(name)

    steady = Steady()
    tracker = BackgroundTracker(steady, finish_seconds=3.0)
    tracker.start(SWEEP)
    for number in range(14):
        tracker.log_encoder(row(str(number)))
    tracker.finish(SweepEnd("finished"))
    assert steady.calls == ["start", *map(str, range(14)), "finished"]


def test_the_end_waits_only_so_long() -> None:
    slow = Slow()
    tracker = BackgroundTracker(slow, finish_seconds=0.1)
    tracker.start(SWEEP)
    with pytest.raises(TrackerDown, match=r"Here\. It is still being written"):
        tracker.finish(SweepEnd("finished"))
    slow.gate.set()


def test_a_stopped_sweep_waits_only_so_long_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where calls go on ending, as with a server that answers each after half a minute."""
    monkeypatch.setattr(background, "STOP_SECONDS", 0.1)

    class Steady(Slow):
        def _call(self, name: str) -> None:
            time.sleep(0.03)

    for tracker in (BackgroundTracker(Slow()), BackgroundTracker(Steady())):
        tracker.start(SWEEP)
        for number in range(100):
            tracker.log_encoder(row(str(number)))
        with pytest.raises(TrackerDown, match=r"still being written after 0\.1 s"):
            tracker.finish(SweepEnd("stopped"))


class SteppedQueue:
    """A queue whose reader gets as many items as were released."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.released = threading.Semaphore(0)

    def put(self, item: Callable[[], None]) -> None:
        self.items.put(item)

    def get(self) -> Callable[[], None]:
        self.released.acquire()
        return self.items.get()


def test_calls_that_were_queued_before_an_error_was_raised_are_void() -> None:
    slow, calls = Slow(), SteppedQueue()
    slow.gate.set()
    tracker = BackgroundTracker(slow)
    tracker._calls = calls  # type: ignore[assignment]
    slow.error = TrackerDown("no answer")
    tracker.start(SWEEP)
    tracker.log_encoder(row("stale"))
    calls.released.release()  # `start` fails, the row still waits
    with pytest.raises(TrackerDown, match="no answer"):
        for _ in range(1000):
            tracker._raise_error()
            time.sleep(0.01)
    slow.error = None
    tracker.start(SWEEP)
    calls.released.release(10)
    tracker.finish(SweepEnd("finished"))
    assert slow.calls == ["start", "finished"]


def live(key: str, *updates: int) -> Curve:
    return Curve(key, "", {}, [(update, {"loss": 1.0}) for update in updates], state="running")


def test_points_that_wait_are_one_batch_for_each_run() -> None:
    class Listening(Slow):
        def log_curve(self, curve: Curve) -> None:
            self._call(f"{curve.key} {curve.state} {[update for update, _ in curve.points]}")

    slow = Listening()
    tracker = BackgroundTracker(slow)
    tracker.start(SWEEP)
    for update in range(1, 4):
        for key in ("a", "b"):
            tracker.log_curve(live(key, update))
    tracker.log_curve(Curve("a", "", {}, []))
    slow.gate.set()
    tracker._wait()
    tracker.log_curve(live("b", 4, 5))
    tracker.finish(SweepEnd("finished"))
    assert slow.calls == [
        "start",
        "a running [1, 2, 3]",
        "b running [1, 2, 3]",
        "a finished []",
        "b running [4, 5]",
        "finished",
    ]


def test_points_that_an_error_dropped_do_not_block_later_ones() -> None:
    slow = Slow()
    slow.gate.set()
    slow.error = TrackerDown("no answer")
    tracker = BackgroundTracker(slow)
    tracker.start(SWEEP)
    with pytest.raises(TrackerDown, match="no answer"):
        for _ in range(1000):
            tracker.log_curve(live("a", 1))
            time.sleep(0.01)
    slow.error = None
    tracker.start(SWEEP)
    tracker.log_curve(live("a", 2))
    tracker.finish(SweepEnd("finished"))
    assert slow.calls == ["start", "a", "finished"]


def test_one_that_failed_or_hangs_is_waited_for_in_proportion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that accepts and never answers must not delay the end of a sweep by minutes."""
    now = 1000.0
    monkeypatch.setattr("speechft_ray.tracking.background.time.monotonic", lambda: now)
    tracker = BackgroundTracker(Slow())
    assert tracker._find_patience() == background.FINISH_SECONDS
    tracker._call_began = now
    now += background.HANG_SECONDS / 2
    assert tracker._find_patience() == background.FINISH_SECONDS
    now += background.HANG_SECONDS
    assert tracker._find_patience() == background.LEAST_RETRY_SECONDS
    now = 1000.0 + 3600.0
    assert tracker._find_patience() == 36.0
    tracker._call_began, tracker._last_failed = None, True
    assert tracker._find_patience() == 36.0
    tracker._last_failed = False
    assert tracker._find_patience() == background.FINISH_SECONDS
