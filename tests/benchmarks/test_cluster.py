"""The simulated cluster: its baseline, its saved states, and what the scheduler makes of kills."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.cluster import (
    SAVE_SECONDS,
    draw_seconds,
    find_bound,
    find_saved,
    plan_jobs,
    run_killed,
    schedule_list,
    simulate,
)
from speechft_ray.core.records import Job
from speechft_ray.speech import checkpointing
from speechft_ray.superb.saved_work import SavedWork


def test_list_scheduling_by_hand() -> None:
    """Two workers: a and b from 0, c after a, d after b and c."""
    needs = {"a": (), "b": (), "c": ("a",), "d": ("b", "c")}
    jobs = {
        key: Job(stage="merge", fingerprint=key, label=key, payload={}, needs=needs[key])
        for key in needs
    }
    seconds = {"a": 2.0, "b": 5.0, "c": 1.0, "d": 4.0}
    assert schedule_list(jobs, seconds, 2) == 5 + 4
    assert schedule_list(jobs, seconds, 1) == 12
    assert find_bound(jobs, seconds, 2) == 9 and find_bound(jobs, seconds, 1) == 12


def test_one_worker_takes_the_time_of_all_jobs() -> None:
    plan = plan_jobs(finetunings=2, alphas=2)
    seconds = {key: draw_seconds(job, "pareto", 3) for key, job in plan.jobs.items()}
    cluster, failed = run_killed(plan, seconds, 1, 0.0, 0)
    assert cluster.now == pytest.approx(sum(seconds.values())) == cluster.busy_seconds
    assert failed == cluster.kills == 0


def test_saved_states_are_those_of_the_real_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the real class on a clock that goes by tenths of a second."""
    now, saved = 0.0, 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    def save(*arguments: object) -> None:
        nonlocal now
        now += SAVE_SECONDS["evaluate"]

    monkeypatch.setattr(checkpointing, "save", save)
    work = SavedWork(tmp_path)
    while now < 600.0:
        if work.is_due():
            saved = now
            work.save("probes", 0, {})
        now = round(now + 0.1, 1)
    assert find_saved("evaluate", 600.0) == pytest.approx(saved, abs=15.0)
    assert find_saved("merge", 600.0) == 0.0 == find_saved("evaluate", 1.0)


def test_kills_cost_little_and_nothing_fails() -> None:
    """16 workers for 16 hours, of which 30 % are killed an hour."""
    plan = plan_jobs(finetunings=12, alphas=20)
    draws = [simulate(plan, 16, [0.3], "lognormal", seed)[0] for seed in range(3)]
    assert all(result.kills > 30 and result.failed == 0 for result in draws)
    assert max(result.repeated for result in draws) <= 0.02
    assert statistics.fmean(result.over_list for result in draws) <= 1.05
