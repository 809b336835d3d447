"""The runs of one MLflow experiment: finds and creates them, and sends only what MLflow lacks.

A run is found again by its tag ``speechft.key``, never by an id that a crash could lose. The time
of a metric is computed from its step, so that a point that is sent twice is stored once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.tracking._names import Point, clean_name

KEY, KIND, PARENT = "speechft.key", "speechft.kind", "mlflow.parentRunId"

ERROR = "speechft.error"
"""Tag of a run that failed or was stopped early: why, in one sentence."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow show the experiment as training runs, not as chat traces."""

BATCH_POINTS = 1000
"""Most metrics that MLflow takes in one request (mlflow ``utils/validation.py``)."""


class Run(NamedTuple):
    """A run as MLflow has it, so that only new values are sent."""

    id: str
    status: str
    params: set[str]
    latest: dict[str, float]
    has_error: bool = False


class Runs:
    """The runs of one experiment, through a client of MLflow. Its errors are raised as they are."""

    def __init__(self, client: Any, name: str, artifacts: Path | None) -> None:
        """Finds the experiment ``name`` or creates it. ``artifacts``: the folder for the files of
        a new one; ``None`` leaves it to the server."""
        self.client = client
        self._steps: dict[tuple[str, str], set[int]] = {}
        """Steps of a metric that MLflow has, by run and name."""
        self.experiment = self._find_experiment(name, artifacts)

    def search(self, condition: str) -> dict[str, Run]:
        """Returns the runs that meet a condition by their key; deletes later runs of equal key."""
        runs: dict[str, Run] = {}
        duplicates: list[str] = []
        order, token = ["attributes.start_time ASC"], None
        while True:
            page = self.client.search_runs([self.experiment], condition, 1, 1000, order, token)
            for run in page:
                key, info = run.data.tags[KEY], run.info
                if key in runs:
                    duplicates.append(info.run_id)
                else:
                    params, latest = set(run.data.params), dict(run.data.metrics)
                    runs[key] = Run(
                        info.run_id, info.status, params, latest, ERROR in run.data.tags
                    )
            token = page.token
            if not token:
                break
        # A duplicate arises when the answer of the server is lost and the client asks again.
        for run_id in duplicates:
            self.client.delete_run(run_id)
        return runs

    def create(self, title: str, tags: Mapping[str, str]) -> Run:
        """Creates a run; it is open."""
        run = self.client.create_run(self.experiment, tags=dict(tags), run_name=title)
        return Run(run.info.run_id, run.info.status, set(), {})

    def log_params(self, run: Run, params: Mapping[str, object]) -> None:
        """Logs the params that the run lacks: MLflow refuses a second value of a param."""
        from mlflow.entities import Param

        fresh = {
            clean_name(name): value
            for name, value in params.items()
            if clean_name(name) not in run.params
        }
        if fresh:
            self.client.log_batch(
                run.id, params=[Param(name, str(value)) for name, value in fresh.items()]
            )
            run.params.update(fresh)

    def log_latest(self, run: Run, values: Mapping[str, float]) -> None:
        """Logs the values that differ from the stored ones; a changed one gets the next step, so
        that MLflow takes it for the latest."""
        changed = {name: value for name, value in values.items() if run.latest.get(name) != value}
        steps = {
            name: max(self.read_history(run, name), default=-1) + 1
            for name in changed
            if name in run.latest
        }
        self.log_points(run, [(name, value, steps.get(name, 0)) for name, value in changed.items()])

    def read_history(self, run: Run, name: str) -> dict[int, float]:
        """Returns the values of a metric that MLflow has, by step."""
        if clean_name(name) not in run.latest:
            return {}
        return {
            int(point.step): float(point.value)
            for point in self.client.get_metric_history(run.id, clean_name(name))
        }

    def log_new_points(self, run: Run, points: Sequence[Point]) -> None:
        """Logs those points whose step MLflow lacks. It is asked once for each name; from then on
        this process, the only writer, knows."""
        names = {name for name, _, _ in points}
        for name in names:
            if (run.id, name) not in self._steps:
                self._steps[run.id, name] = set(self.read_history(run, name))
        steps = {name: self._steps[run.id, name] for name in names}
        new = [(name, value, step) for name, value, step in points if step not in steps[name]]
        self.log_points(run, new)
        for name, _, step in new:
            steps[name].add(step)

    def log_points(self, run: Run, points: Iterable[Point]) -> None:
        """Logs points; a value that is not finite is left out."""
        from mlflow.entities import Metric

        finite = [
            (clean_name(name), float(value), step)
            for name, value, step in points
            if math.isfinite(value)
        ]
        for start in range(0, len(finite), BATCH_POINTS):
            # The time is computed from the step alone: a point sent again is the same database row.
            batch = [
                Metric(name, value, 1000 * step, step)
                for name, value, step in finite[start : start + BATCH_POINTS]
            ]
            self.client.log_batch(run.id, metrics=batch)
        run.latest.update({name: value for name, value, _ in finite})

    def set_status(self, run: Run, status: str) -> Run:
        """Opens (``RUNNING``) or ends a run, and returns it with its status."""
        if run.status == status:
            return run
        if status == "RUNNING":
            self.client.update_run(run.id, status=status)
        else:
            self.client.set_terminated(run.id, status=status)
        return run._replace(status=status)

    def set_error(self, run: Run, error: str | None) -> Run:
        """Sets why a run failed or was stopped, or removes that (``None``)."""
        if error is not None:
            self.client.set_tag(run.id, ERROR, error)
        elif run.has_error:
            self.client.delete_tag(run.id, ERROR)
        return run._replace(has_error=error is not None)

    def _find_experiment(self, name: str, artifacts: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            location = None if artifacts is None else artifacts.as_uri()
            try:
                return str(
                    self.client.create_experiment(
                        name, artifact_location=location, tags=EXPERIMENT_TAGS
                    )
                )
            except MlflowException:  # another driver created it in the meantime
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            self.client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)


def has_names(run: Run, points: Iterable[Point]) -> bool:
    """Whether MLflow has the metrics of all these points, with whatever steps."""
    return all(clean_name(name) in run.latest for name, _, _ in points)
