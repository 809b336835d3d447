"""Which trials are stopped: Tune's own rules, each among the runs of one title. No Ray runs
here."""

from __future__ import annotations

import pytest
from ray.tune.schedulers import TrialScheduler

from speechft_ray.cluster.stopping import EarlyStopping
from speechft_ray.core.specs import StopSpec
from tests.cluster.worker_jobs import job

ASHA = StopSpec(rule="asha", grace_period=0.25, reduction_factor=2)
MEDIAN = StopSpec(rule="median", grace_period=0.25)


class Trial:
    """What a scheduler sees of a trial."""

    def __init__(self, trial_id: str, config: dict[str, str]) -> None:
        self.trial_id, self.config = trial_id, config


class Sweep:
    """Trials that report by hand."""

    def __init__(self) -> None:
        self.stops = EarlyStopping()
        self.trials: dict[str, Trial] = {}

    def start(self, name: str, stop: StopSpec | None, title: str = "pr") -> None:
        more = {"title": title} | ({"stop": stop.model_dump(mode="json")} if stop else {})
        made = job("tune", name=name, stage="finetune", **more)
        self.trials[name] = Trial(name, {"job": made.model_dump_json()})
        self.stops.on_trial_add(None, self.trials[name])

    def goes_on(self, name: str, share: float, goodness: float) -> bool:
        result = {"share": share, "goodness": goodness, "training_iteration": 1, "config": {}}
        decision = self.stops.on_trial_result(None, self.trials[name], result)
        assert decision in (TrialScheduler.CONTINUE, TrialScheduler.STOP)
        if decision == TrialScheduler.STOP:
            self.end(name)
        return bool(decision == TrialScheduler.CONTINUE)

    def end(self, name: str) -> None:
        self.stops.on_trial_complete(None, self.trials[name], {"outcome": "..."})


def test_asha_keeps_the_best_at_every_rung() -> None:
    sweep = Sweep()
    for name in ("good", "fair", "bad"):
        sweep.start(name, ASHA)
    assert sweep.goes_on("bad", 0.2, 1) and sweep.goes_on(
        "good", 0.2, 90
    )  # grace period: nothing is compared yet
    assert sweep.goes_on("good", 0.3, 90)
    assert not sweep.goes_on("bad", 0.3, 10)
    assert sweep.goes_on("fair", 0.3, 80)  # the median of 90 and 10 is 50
    assert sweep.goes_on("good", 0.5, 95) and not sweep.goes_on("fair", 0.5, 90)
    assert sweep.goes_on("good", 0.75, 0) and sweep.goes_on("good", 1.0, 0)
    assert set(sweep.stops.stopped) == {"bad", "fair"}
    sentence = sweep.stops.stopped["bad"]
    assert sentence.startswith(
        "stopped early after 30 % of its updates, "
        "since its validation (goodness 10.00) was not among"
    )


def test_the_median_of_the_others_counts_once_there_are_three() -> None:
    sweep = Sweep()
    for name in ("a", "b", "c", "bad", "last"):
        sweep.start(name, MEDIAN)
    assert sweep.goes_on("a", 0.5, 80) and sweep.goes_on("b", 0.5, 70)
    assert sweep.goes_on("bad", 0.5, 10)  # two others are too few, and no trial is paused for one
    assert sweep.goes_on("c", 0.5, 75)
    assert sweep.goes_on("a", 1.0, 80)
    sweep.end("a")
    assert not sweep.goes_on("last", 0.5, 5)
    assert "was below the median of the runs `pr`" in sweep.stops.stopped["last"]


@pytest.mark.parametrize("stop", [ASHA, MEDIAN], ids=lambda stop: stop.rule)
def test_only_runs_of_one_title_are_compared(stop: StopSpec) -> None:
    sweep = Sweep()
    for index in range(4):
        sweep.start(f"good{index}", stop)
        assert sweep.goes_on(f"good{index}", 0.5, 90 + index)
    sweep.start("other", stop, title="pr>sid")
    sweep.start("free", None)
    assert sweep.goes_on("other", 0.5, 1) and sweep.goes_on("free", 0.5, 1)
    sweep.start("bad", stop)
    assert not sweep.goes_on("bad", 0.5, 1)


@pytest.mark.parametrize("stop", [ASHA, MEDIAN], ids=lambda stop: stop.rule)
def test_a_run_that_has_had_its_last_validation_is_never_lost(stop: StopSpec) -> None:
    sweep = Sweep()
    for index in range(5):
        sweep.start(f"run{index}", stop)
        assert sweep.goes_on(f"run{index}", 1.0, 90 - 10 * index)
        sweep.end(f"run{index}")


@pytest.mark.parametrize("stop", [ASHA, MEDIAN], ids=lambda stop: stop.rule)
def test_a_trial_that_lost_its_worker_reports_again(stop: StopSpec) -> None:
    sweep = Sweep()
    for name in ("a", "b", "c", "d"):
        sweep.start(name, stop)
    assert all(sweep.goes_on(name, 0.5, 50) for name in ("a", "b", "c", "d"))
    assert sweep.goes_on("d", 0.25, 50) and sweep.goes_on("d", 0.5, 50)
    for name in ("a", "b", "c", "d"):
        sweep.end(name)


def test_no_grace_and_full_grace_are_possible() -> None:
    for grace_period in (0.0, 1.0):
        for rule in ("asha", "median"):
            sweep = Sweep()
            sweep.start("a", StopSpec.model_validate({"rule": rule, "grace_period": grace_period}))
            assert sweep.goes_on("a", 0.5, 1)
