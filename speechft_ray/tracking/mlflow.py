"""Tracker that logs to MLflow: one experiment per sweep name, one parent run per sweep, one child
run per learning curve and per merged encoder.

A run is found again by its tag ``speechft.key``, never by an id that a crash could lose. The time
of a metric is computed from its step, so that a point that is sent twice is stored once. Only the
driver writes, so one process creates the database (several that open a fresh one at once damage
it).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speechft_ray.core.passwords import hide_passwords
from speechft_ray.sweep.predictions import is_prediction
from speechft_ray.sweep.protocols import Curve, EncoderRow, Model, SweepEnd, SweepInfo, TrackerDown
from speechft_ray.tracking._damaged_database import set_damaged_aside
from speechft_ray.tracking._logged_models import LoggedModels
from speechft_ray.tracking._mlflow_client import open_client
from speechft_ray.tracking._mlflow_runs import (
    KEY,
    KIND,
    PARENT,
    WINNER,
    Run,
    Runs,
    has_names,
)
from speechft_ray.tracking._model_registry import register_version
from speechft_ray.tracking._names import (
    clean_name,
    describe_metrics,
    is_result,
    name_metrics,
    name_params,
    name_run,
    split_points,
)
from speechft_ray.tracking._uris import advise, check_uri
from speechft_ray.tracking.addresses import DATABASE, make_database_uri, remember_address
from speechft_ray.tracking.base import TRACKERS, TrackerKind

ALPHA_STEPS = 1000
"""Steps of ``score_by_alpha`` from alpha 0 to 1."""

LEAKS, MADE = "speechft.leaks", "speechft.made"
"""Tags: overlaps of tuning data with test sets; what a sweep was made with, such as
``speechft.made.commit``."""

UNSCORED = "speechft.unscored"
"""Tag of an encoder: which metrics are not part of its score, and why."""

STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
NOTE = """\
One child run per merged encoder (`speechft.kind = encoder`), per fine-tuning run (`finetune`) and
per merge that was only predicted (`prediction`, with dev alone).
`score_by_alpha/SERIES` of this run has alpha in thousandths as its step; a series has one method,
one lambda and one donor. `dev/score` selects, `test/score` is reported; both are points of the
SUPERB score, 0 to 1000. `best/` are the values of the winner. `spread/` is the standard deviation
of a test metric over probe seeds, `seconds/` how long an evaluation took.

"""
"""Description of the run of a sweep."""


class MlflowTracker:
    """Logs to a database (sqlite and others) or to a server.

    The default, with ``uri`` ``None``, is ``MLFLOW_TRACKING_URI`` or else ``mlflow.db`` in the
    storage folder ``root``, with artifacts in ``mlartifacts`` beside it. Calls wait for MLflow, the
    first one up to ten seconds while it creates the database; ``BackgroundTracker`` avoids that.
    """

    def __init__(self, uri: str | None, root: Path) -> None:
        """Raises ``UserError`` for a URI that is neither a database nor a server, and for a
        database whose driver is not installed."""
        self._root = root.expanduser().absolute()
        from_environment = os.environ.get("MLFLOW_TRACKING_URI")
        self._uri = uri or from_environment or make_database_uri(self._root)
        where = "" if uri or not from_environment else " in MLFLOW_TRACKING_URI"
        check_uri(self._uri, where)
        self._opened: Runs | None = None
        self._opened_models: LoggedModels | None = None
        self._sweep = SweepInfo("", "", {})
        self._model_name = ""
        self._parent: Run | None = None
        self._children: dict[str, Run] = {}

    def start(self, sweep: SweepInfo) -> None:
        """Finds or creates the runs of this sweep. Closes runs that a killed driver left open. A
        run of the sweep that was deleted comes back: its children would be made a second time."""
        with self._as_tracker_down():
            on_server = self._uri.startswith("http")
            artifacts = None if on_server else self._root / "mlartifacts" / sweep.name
            runs = self._opened = Runs(open_client(self._uri), sweep.name, artifacts)
            self._sweep, label = sweep, sweep.label or sweep.name
            self._model_name = f"speechft-{label}"
            condition = f"tags.`{KEY}` = '{sweep.key}' and tags.`{KIND}` = 'sweep'"
            parent = next(iter(runs.search(condition).values()), None)
            parent = parent or runs.restore(condition)
            note = NOTE + describe_metrics(sweep.metrics)
            tags = {KEY: sweep.key, KIND: "sweep", "mlflow.note.content": note}
            self._parent = parent or runs.create(label, tags)
            self._children = runs.search(
                f"tags.`{PARENT}` = '{self._parent.id}' and tags.`{KEY}` != ''"
            )
            self._opened_models = LoggedModels(runs.client, runs.experiment, sweep.key)
            self._close_open_children()
            self._parent = runs.set_status(self._parent, "RUNNING")
            runs.log_params(self._parent, {**sweep.params, **sweep.fields})
            facts = {f"{MADE}.{name}": value for name, value in sweep.tags.items()}
            runs.set_tags(self._parent, facts)

    def log_curve(self, curve: Curve) -> None:
        """Logs the points of a learning curve that MLflow lacks, and the state of its run; the step
        of a point is the update. A run that had finished has them all."""
        self._require_parent()
        with self._as_tracker_down():
            run = self._child(curve.key, curve.kind, curve)
            points = split_points(curve.points)
            status = STATUS[curve.state]
            if status == run.status == "FINISHED" and has_names(run, points):
                return
            self._runs.log_new_points(run, points)
            run = self._runs.set_error(run, curve.error)
            self._children[curve.key] = self._runs.set_status(run, status, curve.span)

    def log_encoder(self, row: EncoderRow) -> None:
        """Logs one merged encoder. Its run stays open until every evaluation is in the store."""
        self._require_parent()
        with self._as_tracker_down():
            run = self._child(row.key, "encoder", row)
            link = None if is_prediction(row.params) else self._models.log(run, row)
            self._runs.log_latest(run, name_metrics(row), row.span, link)
            points = split_points(row.curve)
            if run.status != "FINISHED" or not has_names(run, points):
                self._runs.log_new_points(run, points)
            if row.complete:
                run = self._runs.set_error(run, None)
            if row.unscored:
                self._runs.client.set_tag(run.id, UNSCORED, " ".join(row.unscored))
            status = "FINISHED" if row.complete else "RUNNING"
            self._children[row.key] = self._runs.set_status(run, status, row.span)

    def register_model(self, row: EncoderRow, model: Model) -> None:
        """Registers the selected encoder as a version of the model ``speechft-<sweep name>``, with
        the alias ``champion``."""
        parent = self._require_parent()
        with self._as_tracker_down():
            run = self._child(row.key, "encoder", row)
            work, client = self._root / "work", self._runs.client
            register_version(client, self._models, self._model_name, run, parent, row, model, work)
            self._children[row.key] = self._runs.set_status(run, "FINISHED", row.span)

    def finish(self, end: SweepEnd) -> None:
        """Logs the score of each alpha (step: alpha in thousandths), leaks and the winner, ends
        every run, and then attaches the report: where artifacts cannot be written, no run stays
        open."""
        parent = self._require_parent()
        with self._as_tracker_down():
            self._log_scores(parent, end)
            self._log_marks(parent, end)
            self._close_open_children()
            self._parent = self._runs.set_status(parent, STATUS[end.status])
            for name, text in self._sweep.files.items():
                self._runs.client.log_text(parent.id, text, f"provenance/{name}")
            if end.report is not None and end.report.is_dir():
                self._runs.client.log_artifacts(parent.id, str(end.report), "report")
            elif end.report is not None and end.report.is_file():
                self._runs.client.log_artifact(parent.id, str(end.report), "report")

    def how_to_open(self) -> str:
        """Returns the command or the address that opens the page of MLflow."""
        uri = hide_passwords(self._uri)
        if self._uri.startswith("http"):
            experiment = self._opened.experiment if self._opened else ""
            return f"MLflow: {uri.rstrip('/')}/#/experiments/{experiment}"
        return f"MLflow: speechft ui {shlex.quote(str(self._root))}"

    @property
    def _runs(self) -> Runs:
        if self._opened is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._opened

    @property
    def _models(self) -> LoggedModels:
        if self._opened_models is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._opened_models

    def _require_parent(self) -> Run:
        if self._parent is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._parent

    def _child(self, key: str, kind: str, item: Curve | EncoderRow) -> Run:
        """Returns the run of an encoder or of a learning curve; creates it if need be."""
        parent = self._require_parent()
        name = name_run(item.params, item.fields, kind)
        if key not in self._children:
            kind = "prediction" if is_prediction(item.params) else kind
            tags = {KEY: key, KIND: kind, PARENT: parent.id}
            self._children[key] = self._runs.create(name, tags, item.span)
        run = self._children[key] = self._runs.rename(self._children[key], name)
        self._runs.log_params(run, name_params(item.params, item.fields))
        return run

    def _log_scores(self, parent: Run, end: SweepEnd) -> None:
        for title, points in end.score_by_alpha.items():
            name = clean_name(f"score_by_alpha/{title}")
            stored = self._runs.read_history(parent, name)
            by_step = {round(ALPHA_STEPS * alpha): score for alpha, score in points}
            new = [
                (name, score, step) for step, score in by_step.items() if stored.get(step) != score
            ]
            self._runs.log_points(parent, new)

    def _log_marks(self, parent: Run, end: SweepEnd) -> None:
        """Tags runs with leaks, and the run of the sweep with its winner and that one's numbers."""
        self._runs.set_tags(parent, {f"{MADE}.{name}": text for name, text in end.tags.items()})
        sentences = dict.fromkeys(text for texts in end.leaks.values() for text in texts)
        if sentences:
            self._runs.set_tags(parent, {LEAKS: "; ".join(sentences)})
        for key, texts in end.leaks.items():
            if key in self._children:
                self._runs.set_tags(self._children[key], {LEAKS: "; ".join(texts)})
        for key, run in self._children.items():
            starred = end.winner is not None and key == end.winner.key
            if starred or run.tags.get(WINNER):
                self._runs.set_tags(run, {WINNER: "true" if starred else ""})
        tags: dict[str, str] = {}
        if end.winner is not None:
            name = name_run(end.winner.params, end.winner.fields)
            tags = {WINNER: name, f"{WINNER}.key": end.winner.key}
            short = name_params(end.winner.params, {})
            tags |= {f"{WINNER}.{param}": value for param, value in short.items()}
        self._runs.replace_tags(parent, WINNER, tags)
        if end.winner is not None:
            self._models.set_winner(end.winner.key)
            values = name_metrics(end.winner).items()
            best = {f"best/{key}": value for key, value in values if is_result(key)}
            self._runs.log_latest(parent, best, end.winner.span)

    def _close_open_children(self) -> None:
        for key, run in self._children.items():
            if run.status == "RUNNING":
                self._children[key] = self._runs.set_status(run, "KILLED")

    def _set_damaged_aside(self) -> str | None:
        """Makes room for a new database where that of the storage is damaged, and says so; one that
        a user named is left alone."""
        if self._uri != make_database_uri(self._root):
            return None
        database = self._root / DATABASE
        with suppress(OSError):
            place = set_damaged_aside(database, self._root / "damaged")
            if place is not None:
                return (
                    f"MLflow's database {database} is damaged: it was moved to {place}, and all of "
                    "this sweep goes into a new one. For other sweeps of this storage, "
                    "`speechft report` with their options sends theirs."
                )
        return None

    @contextmanager
    def _as_tracker_down(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of MLflow, a database, `requests` or a cloud's library
            if (sentence := self._set_damaged_aside()) is not None:
                raise TrackerDown(sentence) from error
            uri = hide_passwords(self._uri)
            reason = " ".join(str(error).replace(self._uri.rstrip("/"), uri).split())[:200]
            raise TrackerDown(
                f"MLflow at `{uri}` does not take results ({type(error).__name__}: {reason})."
                f"{advise(str(error))}"
            ) from error


def _open(storage: Path, sweep: str, mlflow_uri: str | None) -> MlflowTracker:
    tracker = MlflowTracker(mlflow_uri, storage)
    remember_address(storage, sweep, mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI"))
    return tracker


TRACKERS.register("mlflow", TrackerKind(_open, blocks=True))
