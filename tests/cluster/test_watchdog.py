"""Which jobs count as hanging, by a clock that the test sets."""

from __future__ import annotations

import pytest

from speechft_ray.cli.options import parse_stall_minutes
from speechft_ray.cluster.watchdog import Watchdog
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Limits
from speechft_ray.sweep.protocols import Progress
from tests.cluster.worker_jobs import job

JOBS = {"a": job("succeed"), "m": job("succeed", stage="merge")}


def look(watchdog: Watchdog, **done: float) -> list[tuple[str, float, bool]]:
    running = {key: Progress(value, 100, {}) for key, value in done.items()}
    return [
        (stall.job.stage, stall.minutes, stall.is_over) for stall in watchdog.look(running, JOBS)
    ]


def test_a_stall_is_remarked_on_then_ends_and_counts_anew() -> None:
    now = 0.0
    limits = Limits(stall_minutes={"evaluate": 10.0, "merge": 0.0})
    watchdog = Watchdog(limits, clock=lambda: now)
    assert look(watchdog, a=1, m=1, unknown=1) == []
    now = 299.0
    assert look(watchdog, a=1, m=1) == []
    now = 300.0
    assert look(watchdog, a=1, m=1) == [("evaluate", 5.0, False)]
    now = 599.0
    assert look(watchdog, a=1, m=1) == []  # said once
    now = 600.0
    assert look(watchdog, a=1, m=1) == [("evaluate", 10.0, True)]
    now = 601.0
    assert look(watchdog, a=1) == []
    now = 1200.0
    assert look(watchdog, a=1) == [("evaluate", 10.0, True)]  # it could not be killed


def test_progress_and_a_new_life_begin_the_time_again() -> None:
    now = 0.0
    watchdog = Watchdog(Limits(stall_minutes={"evaluate": 1.0}), clock=lambda: now)
    for step in range(100):
        now = 50.0 * step
        assert not any(over for _, _, over in look(watchdog, a=step))
    now += 30
    assert look(watchdog) == []  # it waits for a worker
    now += 1000
    assert look(watchdog, a=99) == []


def test_minutes_are_of_all_stages_or_of_one() -> None:
    assert parse_stall_minutes([]) == {}
    assert Limits().stall_minutes["evaluate"] == 60
    minutes = parse_stall_minutes(["evaluate=5", "20"])["stall_minutes"]
    assert minutes == {"corpus": 20, "finetune": 20, "merge": 20, "evaluate": 5}
    assert parse_stall_minutes(["merge=0"])["stall_minutes"]["merge"] == 0


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "probe=3", "=3", "evaluate="])
def test_wrong_minutes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--stall-minutes .* must be a number of minutes"):
        parse_stall_minutes([text])
