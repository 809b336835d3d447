"""Sends the results of a sweep to its trackers. A tracker that is down gets all of them at the end,
or from the next run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from speechft_ray.core.records import Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan, PlannedRow
from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, Tracker, TrackerDown
from speechft_ray.sweep.rows import Scale, read_job_curves, read_row, read_rows, read_scale

Note = Callable[[str], None]


def make_sweep_info(plan: Plan) -> SweepInfo:
    """Returns the facts of the whole sweep that trackers and reports show."""
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


def index_rows(plan: Plan) -> dict[str, list[PlannedRow]]:
    """Returns the rows of a plan by each of their evaluations."""
    rows: dict[str, list[PlannedRow]] = {}
    for planned in plan.rows:
        for key in planned.evaluations:
            rows.setdefault(key, []).append(planned)
    return rows


class Publisher:
    """Logs to all trackers what an outcome adds. Everything logged is read from the store, except
    trials of a search.

    ``note`` prints a line for people.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        trackers: Sequence[Tracker],
        note: Note,
        tunings: Sequence[Job] = (),
    ) -> None:
        """``tunings``: the fine-tuning runs of the sweep that are not in its plan, as those that a
        search may propose."""
        self._plan = plan
        self._rows_by_evaluation = index_rows(plan)
        self._scale: Scale | None = None
        self._store = store
        self._tunings = tunings
        self._note = note
        self._trackers = list(trackers)
        self._down: set[int] = set()
        self._ending = False
        self._logged_rows: set[str] = set()
        self._trials: dict[str, EncoderRow] = {}

    def start(self) -> None:
        """Opens every tracker and logs what earlier runs left in the store."""
        sweep = make_sweep_info(self._plan)
        self._each(lambda tracker: tracker.start(sweep))
        for curve in self._read_curves():
            self._log_curve(curve)
        self._log_new_rows()

    def log_outcome(self, outcome: Outcome) -> None:
        """Logs what this outcome adds: a learning curve, or rows that it completes."""
        if outcome.ok and outcome.stage == "finetune":
            for curve in self._read_curves():
                if curve.key == outcome.fingerprint:
                    self._log_curve(curve)
        elif outcome.ok and outcome.stage == "evaluate":
            self._log_rows_of(outcome.fingerprint)

    def log_trial(self, row: EncoderRow) -> None:
        """Logs one trial of a search."""
        self._trials[row.key] = row
        self._log_row(row)

    def set_plan(self, plan: Plan) -> None:
        """Continues with the plan of the merge that a search selected; the sweep stays the same."""
        self._plan = plan
        self._rows_by_evaluation = index_rows(plan)
        self._scale = None
        self._log_new_rows()

    def finish(self, rows: Sequence[EncoderRow], report: Path | None, status: str) -> list[str]:
        """Sends to a tracker that was down what it lacks, ends the entry of the sweep with its
        report, then registers the winner of a search: its weights are what most often fails.

        ``rows``: those of the plan, as they are in the store. Returns ``how_to_open``.
        """
        scored = [row for row in rows if "score" in row.test and "trial" not in row.params]
        points = sorted((float(row.params["alpha"]), row.test["score"]) for row in scored)
        winner = self._find_winner(rows)
        # The zero of their score was never measured.
        self._log_rows([row for row in rows if row.complete])
        self._ending = True
        for tracker in self._trackers:
            if id(tracker) in self._down:
                self._down.discard(id(tracker))
                self._attempt(tracker, lambda tracker: self._log_all(tracker, rows))
        self._each(lambda tracker: tracker.finish(report, points, status))
        if winner is not None:
            folder = self._store.folder("merge", winner.key)
            self._each(lambda tracker: tracker.register_model(winner, folder))
        return self.how_to_open()

    def how_to_open(self) -> list[str]:
        """Returns one sentence per tracker that is not down: how to open it."""
        return [
            tracker.how_to_open() for tracker in self._trackers if id(tracker) not in self._down
        ]

    def _find_winner(self, rows: Sequence[EncoderRow]) -> EncoderRow | None:
        """Returns the row that a search selected, if it is complete and tuned, and its weights are
        stored."""
        complete = (row for row in rows if row.complete and not row.untuned)
        row = next((row for row in complete if row.key == self._plan.winner), None)
        return row if row is not None and self._store.is_complete("merge", row.key) else None

    def _log_all(self, tracker: Tracker, rows: Sequence[EncoderRow]) -> None:
        tracker.start(make_sweep_info(self._plan))
        for curve in self._read_curves():
            tracker.log_curve(curve)
        for row in (*self._trials.values(), *rows):
            if row.flat():
                tracker.log_encoder(row)

    def _read_curves(self) -> list[Curve]:
        """Returns the learning curves of all runs that are complete."""
        jobs = [*self._plan.of_stage("finetune"), *self._tunings]
        unique = {job.fingerprint: job for job in jobs}
        return read_job_curves(unique.values(), self._store)

    def _log_new_rows(self) -> None:
        """Logs the rows that have a score, or a reason to have none, and were not logged before."""
        rows = read_rows(self._plan, self._store)
        self._log_rows([row for row in rows if "score" in row.test or row.unscored])

    def _log_rows_of(self, evaluation: str) -> None:
        """Logs the rows that an evaluation completes. Reads those alone: a read of all after each
        of ten thousand evaluations would be a hundred million."""
        if self._scale is None:
            self._scale = read_scale(self._plan, self._store)
            if self._scale is not None:  # rows that were complete before their scale
                self._log_new_rows()
            return
        names = [item.name for item in self._plan.spec.evaluate]
        rows = [
            read_row(planned, names, self._store, self._scale)
            for planned in self._rows_by_evaluation.get(evaluation, ())
            if planned.key not in self._logged_rows
        ]
        self._log_rows([row for row in rows if "score" in row.test or row.unscored])

    def _log_rows(self, rows: Sequence[EncoderRow]) -> None:
        for row in rows:
            if row.key not in self._logged_rows:
                self._logged_rows.add(row.key)
                self._log_row(row)

    def _log_curve(self, curve: Curve) -> None:
        self._each(lambda tracker: tracker.log_curve(curve))

    def _log_row(self, row: EncoderRow) -> None:
        self._each(lambda tracker: tracker.log_encoder(row))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            self._attempt(tracker, action)

    def _attempt(self, tracker: Tracker, action: Callable[[Tracker], None]) -> None:
        """Calls a tracker unless it is down. One that raises is down from then on, with one note:
        no error of a view may end a sweep."""
        if id(tracker) in self._down:
            return
        try:
            action(tracker)
        except Exception as error:
            self._down.add(id(tracker))
            rest = (
                "Its results are in the store; `speechft report` with the same options sends them."
                if self._ending
                else "The sweep goes on; its results wait in the store and are sent at its end or "
                "when it runs again."
            )
            self._note(f"{_describe(error)} {rest}")


def _describe(error: Exception) -> str:
    if isinstance(error, TrackerDown):
        return str(error)
    cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"A tracker does not take results ({cause})."
