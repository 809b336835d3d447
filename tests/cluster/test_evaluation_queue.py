"""Which evaluations Ray gets, by what trials wait for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from speechft_ray.cluster import evaluation_queue
from speechft_ray.cluster.evaluation_queue import FEWEST, PER_PLACE, EvaluationQueue
from speechft_ray.core.resources import ResourceRequest
from tests.cluster.worker_jobs import job


class Clock:
    """Stands for the module ``time``."""

    seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(evaluation_queue, "time", clock)
    return clock


def make_queue(count: int, places: int = 1) -> tuple[EvaluationQueue, Any]:
    state = SimpleNamespace(has=True, lost=False, slots=places)
    trials: Any = SimpleNamespace(have_places=lambda: state.has, are_lost=lambda: state.lost)
    queue = EvaluationQueue(trials, lambda request: state.slots)
    for number in range(count):
        queue.put(job("wait", f"{number:03d}"))
    return queue, state


def take(queue: EvaluationQueue, is_preparing: bool = False) -> list[str]:
    return [item.fingerprint for item in queue.take(is_preparing=is_preparing)]


def test_ray_has_a_few_for_each_that_can_run(clock: Clock) -> None:
    queue, state = make_queue(100)
    first = take(queue)
    assert len(first) == FEWEST and take(queue) == []
    for fingerprint in first[:3]:
        queue.end(fingerprint)
    queue.end("merge-a")  # of another stage
    assert take(queue) == [f"evaluate-{FEWEST + number:03d}" for number in range(3)]
    state.slots = 20  # nodes have come
    clock.seconds += 2
    assert len(take(queue)) == PER_PLACE * 20 - FEWEST
    queue.clear()
    queue.end(first[-1])
    assert take(queue) == []


def test_small_requests_leave_room_for_large_ones(clock: Clock) -> None:
    """On eight GPUs: twenty evaluations of an eighth of a GPU come before those of a whole one."""
    trials: Any = SimpleNamespace(have_places=lambda: True, are_lost=lambda: False)
    queue = EvaluationQueue(trials, lambda request: int(8 / request.gpus))
    for number in range(20):
        queue.put(job("wait", f"small-{number}", resources=ResourceRequest(gpus=0.125)))
    for number in range(40):
        queue.put(job("wait", f"large-{number}", resources=ResourceRequest(gpus=1.0)))
    taken = take(queue)
    assert sum("small" in name for name in taken) == 20
    # 20 / 64 of the cluster and 14 / 8 of it are more than twice the cluster.
    assert sum("large" in name for name in taken) == 14


def test_submitted_trials_have_a_head_start_after_the_corpora(clock: Clock) -> None:
    queue, state = make_queue(1)
    state.has = False
    queue.give_head_start()
    clock.seconds += 15
    assert take(queue, is_preparing=True) == []
    clock.seconds += 15  # it began anew
    assert take(queue) == []
    clock.seconds += 6
    assert take(queue) == ["evaluate-000"]


def test_a_lost_trial_waits_for_evaluations_that_run_and_not_for_those_that_wait(
    clock: Clock,
) -> None:
    queue, state = make_queue(FEWEST + 2)
    running = take(queue)
    state.has, state.lost = False, True
    queue.end(running[0])
    assert take(queue) == []
    state.has, state.lost = True, False  # what it freed, the trial got
    assert len(take(queue)) == 1
    state.has, state.lost = False, True
    queue.end(running[1])
    assert take(queue) == []
    for fingerprint in [*running[2:], f"evaluate-{FEWEST:03d}"]:
        queue.end(fingerprint)
    assert len(take(queue)) == 1  # nothing runs that could free its resources
