"""The runs of one MLflow experiment: finds and creates them, and sends only what MLflow lacks.

A run is found again by its tag ``speechft.key``, never by an id that a crash could lose. The time
of a metric is computed from its step, so that a point that is sent twice is stored once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.sweep.protocols import Span
from speechft_ray.tracking._names import Point, clean_name

KEY, KIND, PARENT = "speechft.key", "speechft.kind", "mlflow.parentRunId"

WINNER = "speechft.winner"
"""Tag of the run of a sweep: name of its winner; of the winner itself, ``true``."""

ERROR = "speechft.error"
"""Tag of a run that failed or was stopped early: why, in one sentence."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow show the experiment as training runs, not as chat traces."""

ACTIVE_ONLY, DELETED_ONLY = 1, 2
"""Runs that a search looks at (mlflow ``entities/view_type.py``)."""

BATCH_POINTS = 1000
"""Most metrics that MLflow takes in one request (mlflow ``utils/validation.py``)."""

DIGEST_LENGTH = 36
"""Most characters of the digest of a dataset (mlflow ``utils/validation.py``)."""


class Link(NamedTuple):
    """What metrics of a run are linked to: a model, and the corpus of each evaluation."""

    model: str
    datasets: Mapping[str, str]
    """Fingerprint of the corpora by the label of their evaluation."""

    def entities_of(self, metric: str) -> dict[str, str]:
        """Returns model and dataset of a metric such as ``dev/pr.per``, as MLflow's ``Metric``
        takes them. One of several evaluations, as the score, has no dataset."""
        name = metric.partition("/")[2]
        entities = {"model_id": self.model}
        for label, key in self.datasets.items():
            if name == label or name.startswith(f"{label}."):
                return {
                    **entities,
                    "dataset_name": label,
                    "dataset_digest": key[:DIGEST_LENGTH],
                }
        return entities


class Run(NamedTuple):
    """A run as MLflow has it, so that only new values are sent."""

    id: str
    status: str
    params: set[str]
    latest: dict[str, float]
    has_error: bool = False
    name: str = ""
    tags: Mapping[str, str] = {}
    began: int = 0
    """Milliseconds since 1970."""


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
            page = self.client.search_runs(
                [self.experiment], condition, ACTIVE_ONLY, 1000, order, token
            )
            for run in page:
                key, info = run.data.tags[KEY], run.info
                if key in runs:
                    duplicates.append(info.run_id)
                else:
                    params, latest = set(run.data.params), dict(run.data.metrics)
                    runs[key] = Run(
                        info.run_id,
                        info.status,
                        params,
                        latest,
                        ERROR in run.data.tags,
                        info.run_name,
                        dict(run.data.tags),
                        info.start_time,
                    )
            token = page.token
            if not token:
                break
        # A duplicate arises when the answer of the server is lost and the client asks again.
        for run_id in duplicates:
            self.client.delete_run(run_id)
        return runs

    def restore(self, condition: str) -> Run | None:
        """Restores the first run that meets a condition and was deleted; ``None`` where there is
        none."""
        order = ["attributes.start_time ASC"]
        page = self.client.search_runs([self.experiment], condition, DELETED_ONLY, 1, order)
        if not page:
            return None
        self.client.restore_run(page[0].info.run_id)
        return next(iter(self.search(condition).values()))

    def create(self, name: str, tags: Mapping[str, str], span: Span | None = None) -> Run:
        """Creates a run; it is open. It began at the start of ``span``, or now."""
        began = None if span is None else round(1000 * span.start)
        run = self.client.create_run(self.experiment, began, dict(tags), name)
        info = run.info
        return Run(
            info.run_id, info.status, set(), {}, name=name, tags=dict(tags), began=info.start_time
        )

    def rename(self, run: Run, name: str) -> Run:
        """Gives a run another name, such as one that an earlier version named."""
        if run.name != name:
            self.client.update_run(run.id, name=name)
        return run._replace(name=name)

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Sets tags whose value differs from the stored one."""
        for name, value in tags.items():
            if run.tags.get(clean_name(name)) != value:
                self.client.set_tag(run.id, clean_name(name), value)

    def replace_tags(self, run: Run, name: str, tags: Mapping[str, str]) -> None:
        """Sets ``tags`` and removes others of that name and below it: those of an earlier run."""
        kept = {clean_name(tag) for tag in tags}
        for tag in run.tags:
            if (tag == name or tag.startswith(f"{name}.")) and tag not in kept:
                self.client.delete_tag(run.id, tag)
        self.set_tags(run, tags)

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

    def log_latest(
        self,
        run: Run,
        values: Mapping[str, float],
        span: Span | None = None,
        link: Link | None = None,
    ) -> None:
        """Logs the values that differ from the stored ones, measured at the end of ``span``; a
        changed one gets the next step, so that MLflow takes it for the latest. ``link``: see
        ``log_points``."""
        changed = {name: value for name, value in values.items() if run.latest.get(name) != value}
        steps = {
            name: max(self.read_history(run, name), default=-1) + 1
            for name in changed
            if name in run.latest
        }
        points = [(name, value, steps.get(name, 0)) for name, value in changed.items()]
        self.log_points(run, points, None if span is None else round(1000 * span.end), link)

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

    def log_points(
        self,
        run: Run,
        points: Iterable[Point],
        milliseconds: int | None = None,
        link: Link | None = None,
    ) -> None:
        """Logs points; a value that is not finite is left out. ``milliseconds``: their time since
        1970; ``None``: a second for each step. ``link``: model and datasets that they are of."""
        from mlflow.entities import Metric

        finite = [
            (clean_name(name), float(value), step)
            for name, value, step in points
            if math.isfinite(value)
        ]
        for start in range(0, len(finite), BATCH_POINTS):
            # The time is that of the store or of the step: a point sent again is the same row.
            batch = [
                Metric(
                    name,
                    value,
                    1000 * step if milliseconds is None else milliseconds,
                    step,
                    run_id=run.id,
                    **(link.entities_of(name) if link is not None else {}),
                )
                for name, value, step in finite[start : start + BATCH_POINTS]
            ]
            self.client.log_batch(run.id, metrics=batch)
        run.latest.update({name: value for name, value, _ in finite})

    def set_status(self, run: Run, status: str, span: Span | None = None) -> Run:
        """Opens (``RUNNING``) or ends a run, at the end of ``span`` or now, and returns it with its
        status."""
        if run.status == status:
            return run
        if status == "RUNNING":
            self.client.update_run(run.id, status=status)
        else:
            # A run is created when its first value arrives, which may be after the end of its job.
            ended = None if span is None else max(run.began, round(1000 * span.end))
            self.client.set_terminated(run.id, status, ended)
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
