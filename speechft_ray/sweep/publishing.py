"""Keeps trackers in step with the store. A tracker that does not answer is told everything at the
end, or by the next run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from speechft_ray.core.records import Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, Tracker, TrackerDown
from speechft_ray.sweep.rows import read_curves, read_rows

Note = Callable[[str], None]


def make_sweep_info(plan: Plan) -> SweepInfo:
    """What trackers and reports say of the sweep as a whole."""
    spec = plan.spec
    if spec.search is not None:
        facts = {
            "trials": spec.search.trials,
            "sampler": spec.search.sampler,
            "search_seed": spec.search.seed,
        }
        return SweepInfo(plan.fingerprint, spec.name, {"encoder": spec.encoder, **facts})
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
        self._trials: dict[str, EncoderRow] = {}

    def start(self) -> None:
        """Opens every view and tells it what earlier runs left in the store."""
        self._each(partial(_start, sweep=make_sweep_info(self._plan)))
        self._tell_curves({curve.key for curve in read_curves(self._plan, self._store)})
        self._tell_news()

    def log_outcome(self, outcome: Outcome) -> None:
        """Tells the trackers what this outcome adds."""
        if outcome.ok and outcome.stage == "finetune":
            self._tell_curves({outcome.fingerprint})
        elif outcome.ok and outcome.stage == "evaluate":
            self._tell_news()

    def log_trial(self, row: EncoderRow) -> None:
        """Tells the trackers what came of one proposal of a search."""
        self._trials[row.key] = row
        self._each(partial(_encoder, row=row))

    def set_plan(self, plan: Plan) -> None:
        """Goes on with the plan of what a search chose, whose sweep is the same."""
        self._plan = plan
        self._tell_news()

    def finish(self, report: Path | None, status: str) -> list[str]:
        """Sends what a silent tracker missed, then the report. Returns the sentences that say how
        to open each view."""
        found = read_rows(self._plan, self._store)
        scored = [row for row in found if "score" in row.metrics and "trial" not in row.params]
        points = sorted((float(row.params["alpha"]), row.metrics["score"]) for row in scored)
        champion = self._champion(found)
        for tracker in self._trackers:
            if id(tracker) in self._down:
                self._down.discard(id(tracker))
                self._attempt(tracker, partial(self._tell_all, found=found))
            if champion is not None:
                self._attempt(
                    tracker,
                    partial(
                        _champion, row=champion, folder=self._store.folder("merge", champion.key)
                    ),
                )
            self._attempt(tracker, partial(_finish, report=report, points=points, status=status))
        return self.how_to_open()

    def how_to_open(self) -> list[str]:
        """The sentences that say how to open each view that answers."""
        return [
            tracker.how_to_open() for tracker in self._trackers if id(tracker) not in self._down
        ]

    def _champion(self, found: Sequence[EncoderRow]) -> EncoderRow | None:
        """What a search chose, once it is measured and its weights are in the store."""
        row = next((row for row in found if row.key == self._plan.winner and row.complete), None)
        return row if row is not None and self._store.is_complete("merge", row.key) else None

    def _tell_all(self, tracker: Tracker, found: Sequence[EncoderRow]) -> None:
        tracker.start(make_sweep_info(self._plan))
        for curve in read_curves(self._plan, self._store):
            tracker.log_curve(curve)
        for row in (*self._trials.values(), *found):
            if row.metrics:
                tracker.log_encoder(row)

    def _tell_curves(self, keys: set[str]) -> None:
        for curve in read_curves(self._plan, self._store):
            if curve.key in keys:
                self._each(partial(_curve, curve=curve))

    def _tell_news(self) -> None:
        """Tells the rows that became complete since the last time."""
        for row in read_rows(self._plan, self._store):
            if "score" in row.metrics and row.key not in self._told:
                self._told.add(row.key)
                self._each(partial(_encoder, row=row))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            self._attempt(tracker, action)

    def _attempt(self, tracker: Tracker, action: Callable[[Tracker], None]) -> None:
        if id(tracker) in self._down:
            return
        try:
            action(tracker)
        except TrackerDown as error:
            self._down.add(id(tracker))
            self._note(
                f"{error} The sweep goes on; its results wait in the store and are sent at its end or when it runs again."
            )


def _start(tracker: Tracker, sweep: SweepInfo) -> None:
    tracker.start(sweep)


def _curve(tracker: Tracker, curve: Curve) -> None:
    tracker.log_curve(curve)


def _encoder(tracker: Tracker, row: EncoderRow) -> None:
    tracker.log_encoder(row)


def _champion(tracker: Tracker, row: EncoderRow, folder: Path) -> None:
    tracker.register_model(row, folder)


def _finish(
    tracker: Tracker, report: Path | None, points: Sequence[tuple[float, float]], status: str
) -> None:
    tracker.finish(report, points, status)
