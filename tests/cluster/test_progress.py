"""Reports on their way to the driver, and what they add up to in Ray's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from speechft_ray.cluster import metrics as cluster_metrics
from speechft_ray.cluster import progress
from speechft_ray.cluster.metrics import ClusterMetrics, task_of
from speechft_ray.core.curves import Point
from speechft_ray.core.records import Outcome
from speechft_ray.sweep.protocols import Progress
from speechft_ray.sweep.status_file import Best, SweepStatus
from tests.cluster.worker_jobs import job


def test_reports_are_thinned_and_no_value_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("speechft_ray.cluster.progress.time.monotonic", lambda: now)
    sent: list[tuple[dict[str, float], list[Point]]] = []
    report = progress.throttle(lambda *item: sent.append(item), every_seconds=0.5)
    report({"done": 1})
    report({"done": 2, "update": 2, "loss": 0.5})  # too soon
    now += 0.4
    report({"done": 3, "update": 3, "loss": 0.25})  # still
    now += 0.2
    report({"done": 4})
    now += 0.6
    report({"done": 5})
    latest = {"update": 3.0, "loss": 0.25}
    assert sent == [
        ({"done": 1.0}, []),
        ({"done": 4.0, **latest}, [(2, {"loss": 0.5}), (3, {"loss": 0.25})]),
        ({"done": 5.0, **latest}, []),
    ]


def test_points_are_read_once() -> None:
    actor = progress.ProgressActor()
    actor.put("a", {"done": 1.0}, [(1, {"loss": 2.0})])
    actor.put("a", {"done": 3.0}, [(3, {"loss": 1.0})])
    assert actor.read() == {"a": ({"done": 3.0}, [(1, {"loss": 2.0}), (3, {"loss": 1.0})])}
    assert actor.read() == {"a": ({"done": 3.0}, [])}
    actor.put("a", {"done": 4.0}, [(4, {"loss": 0.5})])
    actor.remove("a")
    assert actor.read() == {}


def test_an_answer_that_comes_late_is_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [
        ray.exceptions.GetTimeoutError(),
        {"a": ({"done": 1.0}, [(1, {"loss": 2.0})])},
        ray.exceptions.RayActorError(),
        {"a": ({"done": 2.0}, [])},
    ]
    asked: list[object] = []

    def answer(reference: object, timeout: float) -> Any:
        asked.append(reference)
        item = answers.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    monkeypatch.setattr(ray, "get", answer)
    actor = SimpleNamespace(read=SimpleNamespace(remote=object))
    reader = progress.ProgressReader(actor, 0.5)
    assert reader.read() is None
    assert reader.read() == {"a": Progress(1.0, 0.0, {}, [(1, {"loss": 2.0})])}
    assert reader.read() is None
    assert reader.read() == {"a": Progress(2.0, 0.0, {}, [])}
    assert asked[0] is asked[1] and len(set(map(id, asked))) == 3


class FakeMetric:
    """Keeps the values that Ray would get, and refuses tags that were not declared."""

    made: Mapping[str, FakeMetric]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.keys = tag_keys
        self.values: dict[tuple[str, ...], float] = {}
        type(self).made = {**getattr(type(self), "made", {}), name: self}

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        assert set(tags) == set(self.keys)
        self.values[tuple(tags.values())] = value

    def inc(self, value: float, tags: Mapping[str, str]) -> None:
        self.set(self.values.get(tuple(tags.values()), 0.0) + value, tags)


def test_metrics_follow_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_metrics, "Counter", FakeMetric)
    monkeypatch.setattr(cluster_metrics, "Gauge", FakeMetric)
    metrics = ClusterMetrics()
    first, second = job("succeed", name="a"), job("succeed", name="b")
    scores: list[Any] = [{"metric": "pr.per", "split": "test", "values": [10.0, 20.0]}]
    facts: dict[str, Any] = {"scores": scores, "encoded_seconds": 1800.0}
    metrics.count_submitted(first)
    metrics.count_submitted(second)
    metrics.add_progress(first, Progress(5, 10, {}))
    metrics.add_progress(first, Progress(8, 10, {}))
    metrics.add_progress(first, Progress(2, 10, {}))  # its worker died: it began anew
    metrics.add_progress(first, Progress(4, 10, {}))
    metrics.count_ended(
        first,
        Outcome(stage="evaluate", fingerprint="evaluate-a", label="", facts=facts, seconds=3.0),
    )
    metrics.count_ended(
        second, Outcome(stage="evaluate", fingerprint="evaluate-b", label="", error="no")
    )
    metrics.set_status(
        SweepStatus(
            sweep="alpha",
            fingerprint="x",
            percent=40.0,
            jobs={"evaluate": {"to_do": 2, "done": 1}},
            seconds_left=None,
            best=Best(name="a=0.25", dev_score=900.0, test_score=None),
            failures=(),
            updated_at=0.0,
        )
    )
    metrics.set_busy({"CPU": 4.0}, {"CPU": 1.0})
    values = {name: item.values for name, item in FakeMetric.made.items()}
    assert values == {
        "speechft_encoded_audio_hours": {("pr",): 0.5},
        "speechft_jobs": {("alpha", "evaluate", "to_do"): 2, ("alpha", "evaluate", "done"): 1},
        "speechft_percent_done": {("alpha",): 40.0},
        "speechft_seconds_left": {},
        "speechft_best_score": {("alpha", "dev"): 900.0},
        "speechft_busy_share": {("CPU",): 0.75, ("GPU",): 0.0},
        "speechft_jobs_in_flight": {("evaluate", "pr"): 0},
        "speechft_jobs_ended": {("evaluate", "pr", "ok"): 1, ("evaluate", "pr", "failed"): 1},
        "speechft_job_seconds": {("evaluate", "pr"): 3.0},
        "speechft_work_done": {("evaluate", "pr"): 10.0},
        "speechft_last_score": {("pr.per", "test"): 15.0},
    }


@pytest.mark.parametrize(
    ("payload", "task"),
    [
        ({"task": "ks"}, "ks"),
        ({"spec": {"task": "pr"}, "encoder": "x"}, "pr"),
        ({"spec": {"name": "n"}}, ""),
        ({}, ""),
    ],
)
def test_the_task_of_a_job_is_found(payload: dict[str, Any], task: str) -> None:
    assert task_of(payload) == task
