"""Tracker that logs to MLflow: one experiment per sweep name, one parent run per sweep, one child
run per learning curve and per merged encoder.

A run is found again by its tag ``speechft.key``, never by an id that a crash could lose. The time
of a metric is computed from its step, so that a point that is sent twice is stored once. Only the
driver writes, so one process creates the database (several that open a fresh one at once damage
it).
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.files import name_new_file
from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, TrackerDown
from speechft_ray.tracking._addresses import check_uri, remove_password
from speechft_ray.tracking.base import TRACKERS, TrackerKind

KEY, KIND, PARENT = "speechft.key", "speechft.kind", "mlflow.parentRunId"
UNSCORED = "speechft.unscored"
"""Tag of an encoder: which metrics are not part of its score, and why."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow show the experiment as training runs, not as chat traces."""

ALIAS = "champion"
"""Alias of the version of the registered model that the last run of a sweep selected:
``models:/NAME@champion``."""

STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
BATCH_POINTS = 1000
"""Most metrics that MLflow takes in one request (mlflow ``utils/validation.py``)."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default, 7 retries, takes four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per run
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment variables for MLflow; one that the user has set stays."""

NOTE = (
    "One child run per merged encoder (`speechft.kind = encoder`) and per fine-tuning run "
    "(`finetune`). Charts: parallel coordinates or scatter of `alpha` against `score`; "
    "`score_by_alpha` of this run has alpha in percent as its step."
)


class _Run(NamedTuple):
    """A run as MLflow has it, so that only new values are sent."""

    id: str
    status: str
    params: set[str]
    latest: dict[str, float]


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
        self._client: Any = None
        self._experiment = ""
        self._model_name = ""
        self._parent: _Run | None = None
        self._children: dict[str, _Run] = {}

    def start(self, sweep: SweepInfo) -> None:
        """Finds or creates the runs of this sweep. Closes runs that a killed driver left open."""
        with self._as_tracker_down():
            self._client = _open_client(self._uri)
            self._experiment = self._find_experiment(sweep.name)
            self._model_name = f"speechft-{sweep.name}"
            parents = self._search(f"tags.`{KEY}` = '{sweep.key}' and tags.`{KIND}` = 'sweep'")
            parent = next(iter(parents.values()), None)
            tags = {KEY: sweep.key, KIND: "sweep", "mlflow.note.content": NOTE}
            self._parent = parent or self._create(sweep.name, tags)
            self._children = self._search(
                f"tags.`{PARENT}` = '{self._parent.id}' and tags.`{KEY}` != ''"
            )
            self._close_open_children()
            self._parent = self._set_status(self._parent, "RUNNING")
            self._log_params(self._parent, sweep.params)

    def log_curve(self, curve: Curve) -> None:
        """Logs the points of a learning curve that MLflow lacks; their step is the update."""
        self._require_parent()
        with self._as_tracker_down():
            run = self._child(curve.key, curve.title, "finetune", curve.params)
            names = {name for _, values in curve.points for name in values}
            stored = {name: self._steps(run, name) for name in names if _clean(name) in run.latest}
            self._log_metrics(
                run,
                [
                    (name, value, step)
                    for step, values in curve.points
                    for name, value in values.items()
                    if step not in stored.get(name, ())
                ],
            )
            self._children[curve.key] = self._set_status(run, "FINISHED")

    def log_encoder(self, row: EncoderRow) -> None:
        """Logs one merged encoder. Its run stays open until every evaluation is in the store."""
        self._require_parent()
        with self._as_tracker_down():
            run = self._child(row.key, row.title, "encoder", row.params)
            values = _metric_keys(row)
            alpha = row.params.get("alpha")
            if isinstance(alpha, (int, float)):
                # MLflow charts scale params by rank and metrics by value.
                values["alpha"] = float(alpha)
            self._log_latest(run, values)
            if row.unscored:
                self._client.set_tag(run.id, UNSCORED, " ".join(row.unscored))
            status = "FINISHED" if row.complete else "RUNNING"
            self._children[row.key] = self._set_status(run, status)

    def register_model(self, row: EncoderRow, folder: Path) -> None:
        """Registers the selected encoder as a version of the model ``speechft-<sweep name>``, with
        the alias ``champion``."""
        parent = self._require_parent()
        with self._as_tracker_down():
            run = self._child(row.key, row.title, "encoder", row.params)
            name = self._model_name
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name, tags={KIND: "sweep"})
            versions = self._client.search_model_versions(f"name = '{name}'")
            version = next((item for item in versions if item.tags.get(KEY) == row.key), None)
            if version is None:
                self._client.log_artifacts(run.id, str(folder), "encoder")
                tags = {KEY: row.key, PARENT: parent.id}
                place = f"runs:/{run.id}/encoder"
                version = self._client.create_model_version(
                    name, place, run_id=run.id, tags=tags, description=row.title
                )
            self._client.set_registered_model_alias(name, ALIAS, version.version)
            self._children[row.key] = self._set_status(run, "FINISHED")

    def finish(
        self, report: Path | None, score_by_alpha: Sequence[tuple[float, float]], status: str
    ) -> None:
        """Logs the mean score of each alpha (step: alpha in percent), ends every run, and then
        attaches the report: where artifacts cannot be written, no run stays open."""
        parent = self._require_parent()
        with self._as_tracker_down():
            if status != "stopped":  # means of a part of the rows would stay in the chart
                self._log_metrics(parent, self._new_scores(parent, score_by_alpha))
            self._close_open_children()
            self._parent = self._set_status(parent, STATUS[status])
            if report is not None and report.is_dir():
                self._client.log_artifacts(parent.id, str(report), "report")
            elif report is not None and report.is_file():
                self._client.log_artifact(parent.id, str(report), "report")

    def how_to_open(self) -> str:
        """Returns the command or the address that opens the page of MLflow."""
        uri = remove_password(self._uri)
        if self._uri.startswith("http"):
            return f"MLflow: {uri.rstrip('/')}/#/experiments/{self._experiment}"
        command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        return f"MLflow: {command} --host 127.0.0.1 --port 5000"

    def _require_parent(self) -> _Run:
        if self._parent is None:
            raise RuntimeError("a tracker was called before `start`")
        return self._parent

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            on_server = self._uri.startswith("http")
            artifacts = None if on_server else (self._root / "mlartifacts" / name).as_uri()
            try:
                return str(
                    self._client.create_experiment(
                        name, artifact_location=artifacts, tags=EXPERIMENT_TAGS
                    )
                )
            except MlflowException:  # another driver created it in the meantime
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _search(self, condition: str) -> dict[str, _Run]:
        """Returns the runs that meet a condition by their key; deletes later runs of equal key."""
        runs: dict[str, _Run] = {}
        duplicates: list[str] = []
        order, token = ["attributes.start_time ASC"], None
        while True:
            page = self._client.search_runs([self._experiment], condition, 1, 1000, order, token)
            for run in page:
                key, info = run.data.tags[KEY], run.info
                if key in runs:
                    duplicates.append(info.run_id)
                else:
                    runs[key] = _Run(
                        info.run_id, info.status, set(run.data.params), dict(run.data.metrics)
                    )
            token = page.token
            if not token:
                break
        # A duplicate arises when the answer of the server is lost and the client asks again.
        for run_id in duplicates:
            self._client.delete_run(run_id)
        return runs

    def _create(self, title: str, tags: Mapping[str, str]) -> _Run:
        run = self._client.create_run(self._experiment, tags=dict(tags), run_name=title)
        return _Run(run.info.run_id, run.info.status, set(), {})

    def _child(self, key: str, title: str, kind: str, params: Mapping[str, object]) -> _Run:
        parent = self._require_parent()
        if key not in self._children:
            self._children[key] = self._create(title, {KEY: key, KIND: kind, PARENT: parent.id})
        run = self._children[key]
        self._log_params(run, params)
        return run

    def _log_params(self, run: _Run, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        # MLflow refuses a second, different value of a param, so only new ones are sent.
        fresh = {
            _clean(name): value for name, value in params.items() if _clean(name) not in run.params
        }
        if fresh:
            self._client.log_batch(
                run.id, params=[Param(name, str(value)) for name, value in fresh.items()]
            )
            run.params.update(fresh)

    def _log_latest(self, run: _Run, values: Mapping[str, float]) -> None:
        """Logs the values that differ from the stored ones; a changed one gets the next step, so
        that MLflow takes it for the latest."""
        changed = {name: value for name, value in values.items() if run.latest.get(name) != value}
        steps = {
            name: max(self._steps(run, name), default=-1) + 1
            for name in changed
            if name in run.latest
        }
        self._log_metrics(
            run, [(name, value, steps.get(name, 0)) for name, value in changed.items()]
        )

    def _new_scores(
        self, parent: _Run, score_by_alpha: Sequence[tuple[float, float]]
    ) -> list[tuple[str, float, int]]:
        name = "score_by_alpha"
        stored = self._history(parent, name)
        scores: dict[int, list[float]] = defaultdict(list)
        for alpha, score in score_by_alpha:
            scores[round(100 * alpha)].append(score)
        means = {percent: math.fsum(values) / len(values) for percent, values in scores.items()}
        return [
            (name, mean, percent)
            for percent, mean in sorted(means.items())
            if stored.get(percent) != mean
        ]

    def _steps(self, run: _Run, name: str) -> set[int]:
        return set(self._history(run, name))

    def _history(self, run: _Run, name: str) -> dict[int, float]:
        if _clean(name) not in run.latest:
            return {}
        return {
            int(point.step): float(point.value)
            for point in self._client.get_metric_history(run.id, _clean(name))
        }

    def _log_metrics(self, run: _Run, points: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        finite = [
            (_clean(name), float(value), step)
            for name, value, step in points
            if math.isfinite(value)
        ]
        for start in range(0, len(finite), BATCH_POINTS):
            # The time is computed from the step alone: a point sent again is the same database row.
            batch = [
                Metric(name, value, 1000 * step, step)
                for name, value, step in finite[start : start + BATCH_POINTS]
            ]
            self._client.log_batch(run.id, metrics=batch)
        run.latest.update({name: value for name, value, _ in finite})

    def _set_status(self, run: _Run, status: str) -> _Run:
        if run.status == status:
            return run
        if status == "RUNNING":
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status=status)
        return run._replace(status=status)

    def _close_open_children(self) -> None:
        for key, run in self._children.items():
            if run.status == "RUNNING":
                self._children[key] = self._set_status(run, "KILLED")

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


def _open_client(uri: str) -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    # Else they log every migration of a fresh database and every retry.
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        # Created under another name: a driver that is killed in these ten seconds would leave a
        # partial database, which MLflow refuses.
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            MlflowClient(tracking_uri=f"sqlite:///{fresh}")
            name_new_file(fresh, path)  # or another driver created one in the meantime
        finally:
            fresh.unlink(missing_ok=True)
    return MlflowClient(tracking_uri=uri)


def _metric_keys(row: EncoderRow) -> dict[str, float]:
    """Returns the numbers of a row by MLflow key. An ``extra`` metric is logged under its name."""
    keys = {
        **{name if name == "score" else f"test.{name}": value for name, value in row.test.items()},
        **{f"test.spread.{name}": value for name, value in row.spread.items()},
        **{f"dev.{name}": value for name, value in row.dev.items()},
        **row.extra,
    }
    return {_clean(key): value for key, value in keys.items()}


def _clean(name: str) -> str:
    """Returns a name that MLflow accepts: letters, digits, ``_ - . space : /`` (mlflow
    ``utils/validation.py``)."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


def _open(storage: Path, sweep: str, mlflow_uri: str | None) -> MlflowTracker:
    return MlflowTracker(mlflow_uri, storage)


TRACKERS.register("mlflow", TrackerKind(_open, blocks=True))
