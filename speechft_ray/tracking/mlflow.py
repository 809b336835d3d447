"""Tracker that logs to MLflow: one experiment per sweep name, one parent run per sweep, one child
run per learning curve and per merged encoder.

A run is found again by its tag ``speechft.key``, never by an id that a crash could lose. The time
of a metric is computed from its step, so that a point that is sent twice is stored once. Only the
driver writes, so one process creates the database (several that open a fresh one at once damage
it).
"""

from __future__ import annotations

import math
import os
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, TrackerDown
from speechft_ray.tracking._addresses import check_uri, remove_password
from speechft_ray.tracking._mlflow_client import open_client
from speechft_ray.tracking._mlflow_runs import (
    KEY,
    KIND,
    PARENT,
    Run,
    Runs,
    has_names,
)
from speechft_ray.tracking._names import Point, name_metrics, split_points
from speechft_ray.tracking.addresses import remember_address
from speechft_ray.tracking.base import TRACKERS, TrackerKind

UNSCORED = "speechft.unscored"
"""Tag of an encoder: which metrics are not part of its score, and why."""

ALIAS = "champion"
"""Alias of the version of the registered model that the last run of a sweep selected:
``models:/NAME@champion``."""

STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
NOTE = (
    "One child run per merged encoder (`speechft.kind = encoder`) and per fine-tuning run "
    "(`finetune`). Charts: parallel coordinates or scatter of `alpha` against `score`; "
    "`score_by_alpha` of this run has alpha in percent as its step."
)


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
        self._uri = uri or from_environment or f"sqlite:///{self._root / 'mlflow.db'}"
        where = "" if uri or not from_environment else " in MLFLOW_TRACKING_URI"
        check_uri(self._uri, where)
        self._opened: Runs | None = None
        self._model_name = ""
        self._parent: Run | None = None
        self._children: dict[str, Run] = {}

    def start(self, sweep: SweepInfo) -> None:
        """Finds or creates the runs of this sweep. Closes runs that a killed driver left open."""
        with self._as_tracker_down():
            on_server = self._uri.startswith("http")
            artifacts = None if on_server else self._root / "mlartifacts" / sweep.name
            runs = self._opened = Runs(open_client(self._uri), sweep.name, artifacts)
            self._model_name = f"speechft-{sweep.name}"
            parents = runs.search(f"tags.`{KEY}` = '{sweep.key}' and tags.`{KIND}` = 'sweep'")
            parent = next(iter(parents.values()), None)
            tags = {KEY: sweep.key, KIND: "sweep", "mlflow.note.content": NOTE}
            self._parent = parent or runs.create(sweep.name, tags)
            self._children = runs.search(
                f"tags.`{PARENT}` = '{self._parent.id}' and tags.`{KEY}` != ''"
            )
            self._close_open_children()
            self._parent = runs.set_status(self._parent, "RUNNING")
            runs.log_params(self._parent, sweep.params)

    def log_curve(self, curve: Curve) -> None:
        """Logs the points of a learning curve that MLflow lacks, and the state of its run; the step
        of a point is the update. A run that had finished has them all."""
        self._require_parent()
        with self._as_tracker_down():
            run = self._child(curve.key, curve.title, curve.kind, curve.params)
            points = split_points(curve.points)
            status = STATUS[curve.state]
            if status == run.status == "FINISHED" and has_names(run, points):
                return
            self._runs.log_new_points(run, points)
            run = self._runs.set_error(run, curve.error)
            self._children[curve.key] = self._runs.set_status(run, status)

    def log_encoder(self, row: EncoderRow) -> None:
        """Logs one merged encoder. Its run stays open until every evaluation is in the store."""
        self._require_parent()
        with self._as_tracker_down():
            run = self._child(row.key, row.title, "encoder", row.params)
            values = name_metrics(row)
            alpha = row.params.get("alpha")
            if isinstance(alpha, (int, float)):
                # MLflow charts scale params by rank and metrics by value.
                values["alpha"] = float(alpha)
            self._runs.log_latest(run, values)
            points = split_points(row.curve)
            if run.status != "FINISHED" or not has_names(run, points):
                self._runs.log_new_points(run, points)
            if row.complete:
                run = self._runs.set_error(run, None)
            if row.unscored:
                self._runs.client.set_tag(run.id, UNSCORED, " ".join(row.unscored))
            status = "FINISHED" if row.complete else "RUNNING"
            self._children[row.key] = self._runs.set_status(run, status)

    def register_model(self, row: EncoderRow, folder: Path) -> None:
        """Registers the selected encoder as a version of the model ``speechft-<sweep name>``, with
        the alias ``champion``."""
        parent = self._require_parent()
        with self._as_tracker_down():
            run = self._child(row.key, row.title, "encoder", row.params)
            name = self._model_name
            if not self._runs.client.search_registered_models(f"name = '{name}'"):
                self._runs.client.create_registered_model(name, tags={KIND: "sweep"})
            versions = self._runs.client.search_model_versions(f"name = '{name}'")
            version = next((item for item in versions if item.tags.get(KEY) == row.key), None)
            if version is None:
                self._runs.client.log_artifacts(run.id, str(folder), "encoder")
                tags = {KEY: row.key, PARENT: parent.id}
                place = f"runs:/{run.id}/encoder"
                version = self._runs.client.create_model_version(
                    name, place, run_id=run.id, tags=tags, description=row.title
                )
            self._runs.client.set_registered_model_alias(name, ALIAS, version.version)
            self._children[row.key] = self._runs.set_status(run, "FINISHED")

    def finish(
        self, report: Path | None, score_by_alpha: Sequence[tuple[float, float]], status: str
    ) -> None:
        """Logs the mean score of each alpha (step: alpha in percent), ends every run, and then
        attaches the report: where artifacts cannot be written, no run stays open."""
        parent = self._require_parent()
        with self._as_tracker_down():
            if status != "stopped":  # means of a part of the rows would stay in the chart
                self._runs.log_points(parent, self._new_scores(parent, score_by_alpha))
            self._close_open_children()
            self._parent = self._runs.set_status(parent, STATUS[status])
            if report is not None and report.is_dir():
                self._runs.client.log_artifacts(parent.id, str(report), "report")
            elif report is not None and report.is_file():
                self._runs.client.log_artifact(parent.id, str(report), "report")

    def how_to_open(self) -> str:
        """Returns the command or the address that opens the page of MLflow."""
        uri = remove_password(self._uri)
        if self._uri.startswith("http"):
            experiment = self._opened.experiment if self._opened else ""
            return f"MLflow: {uri.rstrip('/')}/#/experiments/{experiment}"
        return f"MLflow: speechft ui {shlex.quote(str(self._root))}"

    @property
    def _runs(self) -> Runs:
        if self._opened is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._opened

    def _require_parent(self) -> Run:
        if self._parent is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._parent

    def _child(self, key: str, title: str, kind: str, params: Mapping[str, object]) -> Run:
        parent = self._require_parent()
        if key not in self._children:
            self._children[key] = self._runs.create(
                title, {KEY: key, KIND: kind, PARENT: parent.id}
            )
        run = self._children[key]
        self._runs.log_params(run, params)
        return run

    def _new_scores(
        self, parent: Run, score_by_alpha: Sequence[tuple[float, float]]
    ) -> list[Point]:
        name = "score_by_alpha"
        stored = self._runs.read_history(parent, name)
        scores: dict[int, list[float]] = defaultdict(list)
        for alpha, score in score_by_alpha:
            scores[round(100 * alpha)].append(score)
        means = {percent: math.fsum(values) / len(values) for percent, values in scores.items()}
        return [
            (name, mean, percent)
            for percent, mean in sorted(means.items())
            if stored.get(percent) != mean
        ]

    def _close_open_children(self) -> None:
        for key, run in self._children.items():
            if run.status == "RUNNING":
                self._children[key] = self._runs.set_status(run, "KILLED")

    @contextmanager
    def _as_tracker_down(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of MLflow, a database, `requests` or a cloud's library
            uri = remove_password(self._uri)
            reason = " ".join(str(error).replace(self._uri.rstrip("/"), uri).split())[:200]
            raise TrackerDown(
                f"MLflow at `{uri}` does not take results ({type(error).__name__}: {reason})."
            ) from error


def _open(storage: Path, sweep: str, mlflow_uri: str | None) -> MlflowTracker:
    tracker = MlflowTracker(mlflow_uri, storage)
    remember_address(storage, sweep, mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI"))
    return tracker


TRACKERS.register("mlflow", TrackerKind(_open, blocks=True))
