"""A tracker that is MLflow: one experiment per sweep name, one parent run per sweep, one child run
per curve and encoder.

A run is found again by its tag ``speechft.key``, never by an id that a crash could lose; times of
metrics are fixed, so that a point that is sent twice is stored once. Only the driver writes; the
database is thus made by one process (several that open a fresh one at a time damage it).
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, TrackerDown
from speechft_ray.tracking.base import TRACKERS

KEY, KIND, PARENT = "speechft.key", "speechft.kind", "mlflow.parentRunId"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment's page as one of training runs, not of chat traces."""

ALIAS = "champion"
"""Names the version of the registered model that the last run of a sweep chose:
``models:/NAME@champion``."""

STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
BATCH_POINTS = 1000
"""Most metrics that MLflow takes in one request (mlflow ``utils/validation.py``)."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 retries hold a caller for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for every run that ends
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment that MLflow reads; what the user has set stays."""

NOTE = (
    "One child run per merged encoder (`speechft.kind = encoder`) and per fine-tuning run (`finetune`). Charts: parallel "
    "coordinates or scatter of `alpha` against `score`; `score_by_alpha` of this run has alpha in percent as its step."
)


class _Run(NamedTuple):
    """What is stored of one run, so that only what is new is sent."""

    id: str
    status: str
    params: set[str]
    latest: dict[str, float]


class MlflowTracker:
    """Writes to a database (sqlite and others) or to a server.

    The default, with ``uri`` ``None``, is ``MLFLOW_TRACKING_URI`` or else ``mlflow.db`` in the
    storage folder, with artifacts in ``mlartifacts`` beside it. Calls wait for MLflow, the first
    one up to ten seconds while it makes its database: wrap this in ``BackgroundTracker`` where waiting
    hurts.
    """

    def __init__(self, uri: str | None, root: Path) -> None:
        """Raises ``UserError`` for a URI that is neither a database nor a server."""
        self._root = root.expanduser().absolute()
        self._uri = (
            uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self._root / 'mlflow.db'}"
        )
        if not re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|https?://", self._uri):
            raise UserError(
                f"the MLflow URI `{_shown(self._uri)}` must start with http://, https://, sqlite:///, postgresql://, "
                "mysql:// or mssql://: leave --mlflow out for a database in the storage folder."
            )
        self._client: Any = None
        self._experiment = ""
        self._model_name = ""
        self._parent: _Run | None = None
        self._children: dict[str, _Run] = {}

    def start(self, sweep: SweepInfo) -> None:
        """Finds or opens the runs of this sweep. Runs that a killed driver left open are closed."""
        with self._answering():
            self._client = _open_client(self._uri)
            self._experiment = self._find_experiment(sweep.name)
            self._model_name = f"speechft-{sweep.name}"
            found = self._search(f"tags.`{KEY}` = '{sweep.key}' and tags.`{KIND}` = 'sweep'")
            parent = next(iter(found.values()), None)
            tags = {KEY: sweep.key, KIND: "sweep", "mlflow.note.content": NOTE}
            self._parent = parent or self._create(sweep.name, tags)
            self._children = self._search(
                f"tags.`{PARENT}` = '{self._parent.id}' and tags.`{KEY}` != ''"
            )
            self._close_open_children()
            self._parent = self._status(self._parent, "RUNNING")
            self._params(self._parent, sweep.params)

    def log_curve(self, curve: Curve) -> None:
        """Adds the points of a learning curve that are not there yet, with the update as their
        step."""
        with self._answering():
            run = self._child(curve.key, curve.title, "finetune", curve.params)
            names = {name for _, values in curve.points for name in values}
            stored = {name: self._steps(run, name) for name in names if _clean(name) in run.latest}
            self._log(
                run,
                [
                    (name, value, step)
                    for step, values in curve.points
                    for name, value in values.items()
                    if step not in stored.get(name, ())
                ],
            )
            self._children[curve.key] = self._status(run, "FINISHED")

    def log_encoder(self, row: EncoderRow) -> None:
        """Adds or completes one merged encoder. Its run stays open until every evaluation is in."""
        with self._answering():
            run = self._child(row.key, row.title, "encoder", row.params)
            values = {_metric_name(name): value for name, value in row.metrics.items()}
            alpha = row.params.get("alpha")
            if isinstance(alpha, (int, float)):
                values["alpha"] = float(
                    alpha
                )  # the charts draw params on a scale of their own, metrics on a real one
            self._log_latest(run, values)
            self._children[row.key] = self._status(run, "FINISHED" if row.complete else "RUNNING")

    def register_model(self, row: EncoderRow, folder: Path) -> None:
        """Registers the chosen encoder under the name of its experiment; the alias ``champion`` is
        its version."""
        parent = self._started()
        with self._answering():
            run = self._child(row.key, row.title, "encoder", row.params)
            name = self._model_name
            if not self._client.search_registered_models(f"name = '{name}'"):
                self._client.create_registered_model(name, tags={KIND: "sweep"})
            known = self._client.search_model_versions(f"name = '{name}'")
            version = next((item for item in known if item.tags.get(KEY) == row.key), None)
            if version is None:
                self._client.log_artifacts(run.id, str(folder), "encoder")
                tags = {KEY: row.key, PARENT: parent.id}
                place = f"runs:/{run.id}/encoder"
                version = self._client.create_model_version(
                    name, place, run_id=run.id, tags=tags, description=row.title
                )
            self._client.set_registered_model_alias(name, ALIAS, version.version)

    def finish(
        self, report: Path | None, score_by_alpha: Sequence[tuple[float, float]], status: str
    ) -> None:
        """Adds the mean score of each alpha (step: alpha in percent) and the report, and closes
        every run."""
        parent = self._started()
        with self._answering():
            if (
                status != "stopped"
            ):  # the means of a part would stay in the chart beside those of the whole
                self._log(parent, self._new_scores(parent, score_by_alpha))
            if report is not None and report.is_dir():
                self._client.log_artifacts(parent.id, str(report), "report")
            elif report is not None and report.is_file():
                self._client.log_artifact(parent.id, str(report), "report")
            self._close_open_children()
            self._parent = self._status(parent, STATUS[status])

    def how_to_open(self) -> str:
        """The command or address that opens the view."""
        if self._uri.startswith("http"):
            return f"MLflow: {_shown(self._uri).rstrip('/')}/#/experiments/{self._experiment}"
        return f"MLflow: mlflow ui --backend-store-uri {shlex.quote(_shown(self._uri))} --host 127.0.0.1 --port 5000"

    def _started(self) -> _Run:
        if self._parent is None:
            raise RuntimeError("a tracker was told results before `start`")
        return self._parent

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        def known() -> Any:
            return self._client.get_experiment_by_name(name)

        found = known()
        if found is None:
            place = (
                None
                if self._uri.startswith("http")
                else (self._root / "mlartifacts" / name).as_uri()
            )
            try:
                return str(
                    self._client.create_experiment(
                        name, artifact_location=place, tags=EXPERIMENT_TAGS
                    )
                )
            except MlflowException:  # another driver was faster
                found = known()
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _search(self, condition: str) -> dict[str, _Run]:
        found: dict[str, _Run] = {}
        extra: list[str] = []
        order, token = ["attributes.start_time ASC"], None
        while True:
            page = self._client.search_runs([self._experiment], condition, 1, 1000, order, token)
            for run in page:
                key, info = run.data.tags[KEY], run.info
                if key in found:
                    extra.append(info.run_id)
                else:
                    found[key] = _Run(
                        info.run_id, info.status, set(run.data.params), dict(run.data.metrics)
                    )
            token = page.token
            if not token:
                break
        for (
            run_id
        ) in extra:  # the server made it, but its answer was lost, and the client asked again
            self._client.delete_run(run_id)
        return found

    def _create(self, title: str, tags: Mapping[str, str]) -> _Run:
        run = self._client.create_run(self._experiment, tags=dict(tags), run_name=title)
        return _Run(run.info.run_id, run.info.status, set(), {})

    def _child(self, key: str, title: str, kind: str, params: Mapping[str, object]) -> _Run:
        parent = self._started()
        if key not in self._children:
            self._children[key] = self._create(title, {KEY: key, KIND: kind, PARENT: parent.id})
        run = self._children[key]
        self._params(run, params)
        return run

    def _params(self, run: _Run, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        fresh = {
            _clean(name): value for name, value in params.items() if _clean(name) not in run.params
        }
        if (
            fresh
        ):  # MLflow refuses a second, different value of a param; the key says that it is the same
            self._client.log_batch(
                run.id, params=[Param(name, str(value)) for name, value in fresh.items()]
            )
            run.params.update(fresh)

    def _log_latest(self, run: _Run, values: Mapping[str, float]) -> None:
        """Sends the values that differ from the stored ones; a changed one gets the next step, so
        that it is the latest."""
        changed = {name: value for name, value in values.items() if run.latest.get(name) != value}
        steps = {
            name: max(self._steps(run, name), default=-1) + 1
            for name in changed
            if name in run.latest
        }
        self._log(run, [(name, value, steps.get(name, 0)) for name, value in changed.items()])

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

    def _log(self, run: _Run, points: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        finite = [
            (_clean(name), float(value), step)
            for name, value, step in points
            if math.isfinite(value)
        ]
        for start in range(0, len(finite), BATCH_POINTS):
            # The time is made from the step alone: the same point sent again is then the same row
            # of the database.
            batch = [
                Metric(name, value, 1000 * step, step)
                for name, value, step in finite[start : start + BATCH_POINTS]
            ]
            self._client.log_batch(run.id, metrics=batch)
        run.latest.update({name: value for name, value, _ in finite})

    def _status(self, run: _Run, status: str) -> _Run:
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
                self._children[key] = self._status(run, "KILLED")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except _failures() as error:
            where = _shown(self._uri)
            first = " ".join(str(error).replace(self._uri.rstrip("/"), where).split())[:200]
            raise TrackerDown(
                f"MLflow at `{where}` does not take results ({type(error).__name__}: {first})."
            ) from error


def _open_client(uri: str) -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(
            logging.ERROR
        )  # every migration of a fresh database, every retry
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        # Made under another name: a run that is killed in these ten seconds would leave half a
        # database, which MLflow refuses.
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        MlflowClient(tracking_uri=f"sqlite:///{fresh}")
        with suppress(FileExistsError):  # another driver was faster: its database is as good
            os.link(fresh, path)
        fresh.unlink()
    return MlflowClient(tracking_uri=uri)


def _failures() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)  # `requests` raises OSError's children


def _shown(uri: str) -> str:
    """Returns a URI without its password."""
    return re.sub(r"://([^:/@]*):[^@/]+@", r"://\1:***@", uri)


def _metric_name(name: str) -> str:
    return (
        name
        if name in ("score", "distance") or name.startswith(("dev.", "test."))
        else f"test.{name}"
    )


def _clean(name: str) -> str:
    """Returns a name that MLflow takes: letters, digits, ``_ - . space : /`` (mlflow
    ``utils/validation.py``)."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


TRACKERS.register("mlflow", lambda root: MlflowTracker(None, root))
