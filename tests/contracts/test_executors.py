"""The contract of every executor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.curves import Point
from speechft_ray.core.records import Place, Stage
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.protocols import Executor, Progress
from tests.cluster.ray_clusters import collect, eventually, local_cluster, ray_folder
from tests.cluster.worker_jobs import job, perform

__all__ = ["local_cluster", "ray_folder"]  # fixtures
STAGES: list[Stage] = ["evaluate", "finetune"]  # with Ray: a task, and a trial of Ray Tune


@pytest.fixture(scope="module", params=["local", "ray"])
def kind(request: pytest.FixtureRequest) -> type[LocalExecutor] | type[RayExecutor]:
    if request.param == "ray":
        request.getfixturevalue("local_cluster")
    return {"local": LocalExecutor, "ray": RayExecutor}[request.param]


@pytest.fixture
def executor(kind: Callable[..., Executor], tmp_path: Path) -> Iterator[Executor]:
    made = kind(perform, Place(storage=str(tmp_path), encoder="none"))
    yield made
    made.stop()


@pytest.mark.parametrize("stage", STAGES)
def test_facts_come_back_and_failures_stay_where_they_happen(
    executor: Executor, stage: Stage
) -> None:
    kinds = ["succeed", "divide", "blame-user", "return-object"]
    for kind in kinds:
        executor.submit(job(kind, name=kind, stage=stage, alpha=0.25))
    ended = collect(executor, len(kinds))
    done, broken, refused, odd = (ended[f"{stage}-{kind}"] for kind in kinds)

    assert done.ok and done.label == f"{stage} succeed" and done.stage == stage and done.seconds > 0
    assert done.facts["given"] == {"do": "succeed", "spec": {"task": "pr"}, "alpha": 0.25}
    assert done.facts["cwd"] == str(Path.cwd())  # relative paths mean the same everywhere
    assert broken.error == "ZeroDivisionError: nothing to divide by"
    assert broken.traceback is not None and "in _divide" in broken.traceback
    assert (
        refused.error == "`alpha` must be within [0, 1], but is 3 instead: change it."
        and refused.traceback is None
    )
    assert odd.error is not None and "ValidationError" in odd.error and not odd.facts


@pytest.mark.parametrize("stage", STAGES)
def test_progress_is_seen_while_a_job_runs_and_then_gone(
    executor: Executor, stage: Stage, tmp_path: Path
) -> None:
    key = job("wait", stage=stage).fingerprint
    points: list[Point] = []
    seen = Progress(0, 0, {})

    def look(progress: Mapping[str, Progress]) -> bool:
        nonlocal seen
        if key in progress:
            seen = progress[key]
            points.extend(seen.points)
        return seen.done >= 2 and len(points) >= 2

    if isinstance(executor, LocalExecutor):  # it performs jobs in the thread that asks
        executor._show = look  # type: ignore[assignment]
    executor.submit(job("wait", stage=stage))
    ended = []
    waiting = threading.Thread(target=lambda: ended.append(collect(executor, 1)))
    waiting.start()
    try:
        assert eventually(lambda: look(executor.progress()))
        assert seen.total == 10_000 and seen.values == {"loss": pytest.approx(1.0 / seen.done)}
        # Every point of the curve is seen once.
        updates = [update for update, _ in points]
        assert updates == list(range(1, len(points) + 1))
        assert all(values == {"loss": 1.0 / update} for update, values in points)
    finally:
        (tmp_path / "go").touch()
        waiting.join()
    beats: Any = ended[0][key].facts["beats"]
    assert beats >= seen.done
    assert executor.progress() == {}


def test_nothing_to_do_is_no_outcome(executor: Executor) -> None:
    assert executor.outcomes(0.01) == []


def test_stopping_twice_is_fine_and_final(executor: Executor) -> None:
    executor.submit(job("succeed"))
    executor.stop()
    executor.stop()
    assert executor.outcomes(0.5) == [] and executor.progress() == {}
    with pytest.raises(RuntimeError, match="after the executor was stopped"):
        executor.submit(job("succeed", name="late"))
