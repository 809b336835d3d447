"""Keeps trackers in step with the store. A tracker that does not answer is told everything at the end, or by the next run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from speechft_ray.core.records import Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import EncoderRow, SweepInfo, Tracker, TrackerDown
from speechft_ray.sweep.rows import curves, rows

Note = Callable[[str], None]


def sweep_info(plan: Plan) -> SweepInfo:
    """What trackers and reports say of the sweep as a whole."""
    spec = plan.spec
    counts = {"merged_encoders": len(plan.rows), "evaluations": len(plan.of_stage("evaluate"))}
    return SweepInfo(plan.fingerprint, spec.name, {"encoder": spec.encoder, **counts})


class Publisher:
    """Tells trackers what is new after each outcome; everything it says is read from the store."""

    def __init__(self, plan: Plan, store: Store, trackers: Sequence[Tracker], note: Note) -> None:
        self._plan = plan
        self._store = store
        self._note = note
        self._trackers = list(trackers)
        self._down: set[int] = set()
        self._told: set[str] = set()

    def start(self) -> None:
        """Opens every view and tells it what earlier runs left in the store."""
        for tracker in self._trackers:
            self._attempt(tracker, lambda tracker=tracker: tracker.start(sweep_info(self._plan)))
        for curve in curves(self._plan, self._store):
            self._each(lambda tracker, curve=curve: tracker.curve(curve))
        for row in self._news():
            self._each(lambda tracker, row=row: tracker.encoder(row))

    def outcome(self, outcome: Outcome) -> None:
        """Tells the trackers what this outcome adds."""
        if not outcome.ok:
            return
        if outcome.stage == "finetune":
            for curve in curves(self._plan, self._store):
                if curve.key == outcome.fingerprint:
                    self._each(lambda tracker, curve=curve: tracker.curve(curve))
        elif outcome.stage == "evaluate":
            for row in self._news():
                self._each(lambda tracker, row=row: tracker.encoder(row))

    def finish(self, report: Path | None, status: str) -> list[str]:
        """Sends what a silent tracker missed, then the report. Returns the sentences that say how to open each view."""
        found = rows(self._plan, self._store)
        points = sorted((float(row.params["alpha"]), row.metrics["score"]) for row in found if "score" in row.metrics)
        for tracker in self._trackers:
            if id(tracker) in self._down:
                self._down.discard(id(tracker))
                self._attempt(tracker, lambda tracker=tracker: self._tell_all(tracker, found))
            self._attempt(tracker, lambda tracker=tracker: tracker.finish(report, points, status))
        return self.where()

    def where(self) -> list[str]:
        """The sentences that say how to open each view that answers."""
        return [tracker.where() for tracker in self._trackers if id(tracker) not in self._down]

    def _tell_all(self, tracker: Tracker, found: Sequence[EncoderRow]) -> None:
        tracker.start(sweep_info(self._plan))
        for curve in curves(self._plan, self._store):
            tracker.curve(curve)
        for row in found:
            if row.metrics:
                tracker.encoder(row)

    def _news(self) -> list[EncoderRow]:
        """Rows that became complete since the last time."""
        fresh = [row for row in rows(self._plan, self._store) if "score" in row.metrics and row.key not in self._told]
        self._told.update(row.key for row in fresh)
        return fresh

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            self._attempt(tracker, lambda tracker=tracker: action(tracker))

    def _attempt(self, tracker: Tracker, action: Callable[[], None]) -> None:
        if id(tracker) in self._down:
            return
        try:
            action()
        except TrackerDown as error:
            self._down.add(id(tracker))
            self._note(
                f"{error} The sweep goes on; its results wait in the store and are sent at its end or when it runs again."
            )
