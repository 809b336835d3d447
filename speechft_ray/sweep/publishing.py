"""Sends the learning curves and results of a sweep to its trackers, while it runs.

A tracker that is down is asked again after a while and at the end, and then gets everything; so
does that of the next run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from speechft_ray.core.metrics import metrics_of
from speechft_ray.core.records import Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.curves import (
    LiveCurves,
    describe_encoder,
    describe_run,
    name_probe_points,
    read_run_curve,
)
from speechft_ray.sweep.fields import list_sweep_fields
from speechft_ray.sweep.plan import Plan, PlannedRow
from speechft_ray.sweep.protocols import (
    Curve,
    EncoderRow,
    Model,
    Progress,
    SweepEnd,
    SweepInfo,
    Tracker,
    TrackerDown,
)
from speechft_ray.sweep.rows import Scale, iterate_rows, read_row, read_rows, read_scale
from speechft_ray.sweep.run_facts import RunFacts
from speechft_ray.sweep.series import list_alpha_series

Note = Callable[[str], None]

RETRY_SECONDS = 60.0
"""How long a tracker that is down is left alone, the first time; then twice as long each time."""


def make_sweep_info(plan: Plan) -> SweepInfo:
    """Returns the facts of the whole sweep that trackers and reports show."""
    spec = plan.spec
    if spec.search is not None:
        facts: dict[str, str | float | int] = {
            "trials": spec.search.trials,
            "sampler": spec.search.sampler,
            "search_seed": spec.search.seed,
        }
    else:
        facts = {
            "merged_encoders": len(plan.rows),
            "evaluations": len(plan.of_stage("evaluate")),
        }
    return SweepInfo(
        plan.fingerprint,
        spec.name,
        {"encoder": spec.encoder, **facts},
        list_sweep_fields(plan),
        [item.name for entry in spec.evaluate for item in metrics_of(entry.task, entry.name)],
    )


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
        sweep: SweepInfo | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``tunings``: the fine-tuning runs of the sweep that are not in its plan, as those that a
        search may propose. ``sweep``: facts of the whole sweep; ``None``: those of the plan.
        ``clock`` returns seconds from any fixed moment."""
        self._sweep = sweep or make_sweep_info(plan)
        self._store = store
        self._tunings = {job.fingerprint: job for job in tunings}
        self._take_plan(plan)
        self._note = note
        self._trackers = list(trackers)
        self._clock = clock
        self._live = LiveCurves(clock)
        self._failed: dict[str, Curve] = {}
        """Runs whose state is no longer ``running`` although points may still come."""
        self._down: dict[int, tuple[float, float]] = {}
        """When a tracker that is down is asked again, and how long it was left alone."""
        self._waits: dict[int, float] = {}
        self._ending = False
        self._logged_rows: set[str] = set()
        self.on_row: Callable[[EncoderRow], object] = lambda row: None
        """Is called with every row that is logged."""
        self._trials: dict[str, EncoderRow] = {}

    def start(self) -> None:
        """Opens every tracker and logs what earlier runs left in the store."""
        self._each(lambda tracker: tracker.start(self._sweep))
        for curve in self._read_curves():
            self._log_curve(curve)
        self._log_new_rows()

    def log_progress(self, progress: Mapping[str, Progress]) -> None:
        """Logs new points of the learning curves of running jobs, those of one run at most every
        few seconds. Call it often."""
        for key, item in progress.items():
            if not item.points:
                continue
            if key in self._runs:
                self._live.add(describe_run(self._runs[key]), item.points)
            for row in self._rows_by_evaluation.get(key, ()):
                points = name_probe_points(row, self._plan.spec.evaluate, key, item.points)
                self._live.add(describe_encoder(row), points)
        for curve in self._live.take_due():
            failed = self._failed.get(curve.key, curve._replace(state="running"))
            self._log_curve(curve._replace(state=failed.state, error=failed.error))
        self._ask_again()

    def log_outcome(self, outcome: Outcome) -> None:
        """Logs what this outcome adds: a learning curve, rows that it completes, or why a job
        failed."""
        if outcome.blocked_by is not None:
            return
        if outcome.ok and outcome.stage == "finetune":
            self._live.end(outcome.fingerprint)
            job = self._runs.get(outcome.fingerprint)
            if job is not None and self._store.is_complete("finetune", job.fingerprint):
                self._log_curve(read_run_curve(job, self._store))
        elif outcome.ok and outcome.stage == "evaluate":
            self._log_rows_of(outcome.fingerprint)
        elif not outcome.ok:
            self._log_failure(outcome)

    def log_trial(self, row: EncoderRow) -> None:
        """Logs one trial of a search."""
        self._trials[row.key] = row
        self._log_row(row)

    def set_plan(self, plan: Plan) -> None:
        """Continues with the plan of the merge that a search selected; the sweep stays the same."""
        self._take_plan(plan)
        self._log_new_rows()

    def _take_plan(self, plan: Plan) -> None:
        self._plan = plan
        self._rows_by_evaluation = index_rows(plan)
        self._facts = RunFacts(plan, list(self._tunings.values()), self._store)
        self._runs = {job.fingerprint: job for job in plan.of_stage("finetune")} | self._tunings
        self._scale: Scale | None = None
        self._scored: dict[str, EncoderRow] = {}
        """Complete rows of the plan by key (``iterate_rows``): ten thousand manifests take seconds
        to read."""

    def finish(
        self,
        rows: Sequence[EncoderRow],
        report: Path | None,
        status: str,
        best: str | None = None,
        leaks: Mapping[str, Sequence[str]] = MappingProxyType({}),
        make_model: Callable[[EncoderRow], Model] | None = None,
        made: Mapping[str, str] = MappingProxyType({}),
    ) -> list[str]:
        """Sends to a tracker that was down what it lacks, ends the entry of the sweep with its
        report, then registers the winner: its weights are what most often fails.

        ``rows``: those of the plan, as they are in the store; ``best``: key of the merge with the
        best dev score; ``leaks``: sentences by key; ``make_model`` returns what is registered of
        it; ``made``: how the sweep was made. Returns ``how_to_open``.
        """
        rows = [self._facts.complete_row(row) for row in rows]
        scored = [row for row in rows if "trial" not in row.params]
        end = SweepEnd(
            status=status,
            report=report,
            # A part of the rows would stay in the chart.
            score_by_alpha=list_alpha_series(scored) if status != "stopped" else {},
            winner=next((row for row in rows if row.key == best and not row.untuned), None),
            tags=made,
            leaks=leaks,
        )
        winner = self._find_winner(rows, best)
        # The zero of their score was never measured.
        self._log_rows([row for row in rows if row.complete])
        self._ending = True
        for tracker in self._trackers:
            if self._down.pop(id(tracker), None):
                self._attempt(tracker, lambda tracker: self._log_all(tracker, rows))
        self._each(lambda tracker: tracker.finish(end))
        if winner is not None and make_model is not None:
            model = make_model(winner)
            self._each(lambda tracker: tracker.register_model(winner, model))
        return self.how_to_open()

    def how_to_open(self) -> list[str]:
        """Returns one sentence per tracker that is not down: how to open it."""
        return [
            tracker.how_to_open() for tracker in self._trackers if id(tracker) not in self._down
        ]

    def _find_winner(self, rows: Sequence[EncoderRow], best: str | None) -> EncoderRow | None:
        """Returns the row that was selected, if it is complete and tuned, and its weights are
        stored."""
        complete = (row for row in rows if row.complete and not row.untuned)
        row = next((row for row in complete if row.key == best), None)
        return row if row is not None and self._store.is_complete("merge", row.key) else None

    def _log_all(self, tracker: Tracker, rows: Sequence[EncoderRow]) -> None:
        tracker.start(self._sweep)
        for curve in self._read_curves():
            tracker.log_curve(self._facts.complete_curve(curve))
        for curve in self._failed.values():
            tracker.log_curve(self._facts.complete_curve(curve))
        for row in (*self._trials.values(), *rows):
            if row.flat():
                tracker.log_encoder(self._facts.complete_row(row))

    def _read_curves(self) -> list[Curve]:
        """Returns the learning curves of all runs that are complete."""
        return [
            read_run_curve(job, self._store)
            for key, job in self._runs.items()
            if self._store.is_complete("finetune", key)
        ]

    def _log_failure(self, outcome: Outcome) -> None:
        """Logs why a fine-tuning run, or an evaluation of encoders, failed or was stopped."""
        key, runs = outcome.fingerprint, []
        if key in self._runs:
            runs = [describe_run(self._runs[key])]
        elif outcome.stage == "evaluate":
            runs = [describe_encoder(row) for row in self._rows_by_evaluation.get(key, ())]
        for run in runs:
            error = f"{outcome.label}: {outcome.error}"
            state: Literal["stopped", "failed"] = "stopped" if outcome.stopped else "failed"
            self._failed[run.key] = run._replace(state=state, error=error)
            self._log_curve(self._failed[run.key])

    def _ask_again(self) -> None:
        """Sends everything to a tracker that is down, when its time has come."""
        for tracker in self._trackers:
            ends, waited = self._down.get(id(tracker), (float("inf"), 0.0))
            if self._clock() < ends:
                continue
            del self._down[id(tracker)]
            self._waits[id(tracker)] = 2 * waited
            self._attempt(
                tracker, lambda item: self._log_all(item, read_rows(self._plan, self._store))
            )

    def _log_new_rows(self) -> None:
        """Logs the rows that have a score, or a reason to have none, and were not logged before."""
        rows = iterate_rows(self._plan, self._store, self._scored)
        self._log_rows(row for row in rows if "score" in row.test or row.unscored)

    def _log_rows_of(self, evaluation: str) -> None:
        """Logs the rows that an evaluation completes. Reads those alone: a read of all after each
        of ten thousand evaluations would be a hundred million."""
        if self._scale is None:
            self._scale = read_scale(self._plan, self._store)
            if self._scale is not None:  # rows that were complete before their scale
                self._log_new_rows()
            return
        planned = [
            row
            for row in self._rows_by_evaluation.get(evaluation, ())
            if row.key not in self._logged_rows
            and all(self._store.is_complete("evaluate", key) for key in row.evaluations)
        ]
        names = [item.name for item in self._plan.spec.evaluate]
        rows = [read_row(row, names, self._store, self._scale) for row in planned]
        self._scored |= {row.key: row for row in rows}
        self._log_rows(row for row in rows if "score" in row.test or row.unscored)

    def read_rows(self, plan: Plan) -> list[EncoderRow]:
        """Returns every row of a plan as ``sweep.rows.read_rows`` does; does not read again what
        was logged of it."""
        complete = self._scored if plan is self._plan else {}
        return list(iterate_rows(plan, self._store, complete))

    def _log_rows(self, rows: Iterable[EncoderRow]) -> None:
        for row in rows:
            if row.key not in self._logged_rows:
                self._logged_rows.add(row.key)
                self._log_row(row)

    def _log_curve(self, curve: Curve) -> None:
        complete = self._facts.complete_curve(curve)
        self._each(lambda tracker: tracker.log_curve(complete))

    def _log_row(self, row: EncoderRow) -> None:
        self.on_row(row)
        if row.complete:
            self._live.end(row.key)
        complete = self._facts.complete_row(row)
        self._each(lambda tracker: tracker.log_encoder(complete))

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
            seconds = self._waits.setdefault(id(tracker), RETRY_SECONDS)
            self._down[id(tracker)] = (self._clock() + seconds, seconds)
            if self._ending:
                self._note(
                    f"{_describe(error)} Its results are in the store; `speechft report` with the "
                    "same options sends them."
                )
            elif seconds == RETRY_SECONDS:  # said once
                self._note(
                    f"{_describe(error)} The sweep goes on; its results wait in the store and are "
                    "sent when it answers again, at the end, or when the sweep runs again."
                )


def _describe(error: Exception) -> str:
    if isinstance(error, TrackerDown):
        return str(error)
    cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"A tracker does not take results ({cause})."
