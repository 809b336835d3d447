"""Prices, throughputs and the settings that change a bill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speechft_ray.commands import bill as commands
from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.cost.bill import (
    Change,
    add_up,
    check_throughput,
    make_bill,
    make_seconds,
    rank_changes,
)
from speechft_ray.cost.jobs import PlannedJob, count_jobs, halve_merges, halve_updates, use_one_seed
from speechft_ray.cost.memory import estimate_gpu_memory
from speechft_ray.cost.sizes import EncoderSize, EvaluationSize, ObjectiveSize, TaskSize
from speechft_ray.cost.work import Work
from speechft_ray.sweep.plan import make_plan
from tests.sweep.fakes import inputs, sweep

BASE = EncoderSize(
    name="encoder", state_count=13, dim=768, front_end_channels=512, weight_bytes=380_000_000
)


class OneCorpus:
    """Every corpus has 100 utterances of a second in each split."""

    encoder, fbank = BASE, EncoderSize(name="fbank", state_count=1, dim=80, front_end_channels=0)
    lengths = np.full(100, 16_000)

    def corpus(self, spec: CorpusSpec) -> tuple[str, int]:
        return "toy", 300

    def evaluation(self, spec: EvalSpec) -> EvaluationSize:
        splits = dict.fromkeys(("train", "dev", "test"), self.lengths)
        return EvaluationSize(folds=[TaskSize(corpus="toy", splits=splits)])

    def finetuning(self, spec: FinetuneSpec) -> list[ObjectiveSize]:
        return [ObjectiveSize(corpus="toy", train=self.lengths, dev=self.lengths)]


def plan_small_sweep() -> list[PlannedJob]:
    return [PlannedJob.of(job) for job in make_plan(sweep(), inputs()).jobs.values()]


@pytest.mark.parametrize("value", [0, -3, float("nan"), float("inf"), True, "fast"])
def test_a_throughput_is_a_number_above_0(value: Any) -> None:
    with pytest.raises(UserError, match="--throughput encode must be a number above 0"):
        check_throughput({"encode": value})


def test_an_unknown_throughput_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean `finetune`"):
        check_throughput({"finetunes": 1})


def test_a_throughput_replaces_what_was_calibrated() -> None:
    work = Work(units={"layers:toy encoder": 100.0, "front end:toy": 100.0, "score:x": 5.0})
    calibrated = {"layers:toy encoder": 0.1, "front end:toy": 0.05, "score:x": 1.0}
    assert add_up(make_bill([("evaluate", work)], make_seconds(calibrated))).seconds == 20.0
    bill = make_bill([("evaluate", work)], make_seconds(calibrated, {"encode": 50.0}))
    assert bill["evaluate"].seconds == 7.0


def test_what_has_no_seconds_is_named() -> None:
    work = Work(units={"layers:toy encoder": 100.0, "score:x": 5.0})
    cost = make_bill([("evaluate", work)], make_seconds({}, {"encode": 50.0}))["evaluate"]
    assert (cost.seconds, cost.uncounted) == (2.0, frozenset({"scoring"}))


def test_changes_are_ranked_by_what_they_save() -> None:
    def bill(seconds: float) -> Any:
        return make_bill([("evaluate", Work(units={"job:evaluate": seconds}))], lambda unit: 1.0)

    changes = [Change(text=str(value), bill=bill(value)) for value in (90, 100, 40)]
    ranked = rank_changes(bill(100), changes)
    assert [(change.text, round(share, 3)) for change, share in ranked] == [
        ("40", 0.6),
        ("90", 0.1),
    ]


def test_changes_are_ranked_by_audio_while_seconds_are_missing() -> None:
    """A part with a known time saves nothing; what would be encoded is what counts."""

    def bill(audio: float, job: float) -> Any:
        work = Work(units={"layers:x": audio, "job:evaluate": job}, encoded_seconds=audio)
        return make_bill([("evaluate", work)], {"job:evaluate": 1.0}.get)

    changes = [Change(text="audio", bill=bill(25, 8)), Change(text="time", bill=bill(100, 1))]
    ranked = rank_changes(bill(100, 8), changes)
    assert [(change.text, share) for change, share in ranked] == [("audio", 0.75)]


def test_the_seconds_of_jobs_are_expected_only_where_all_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the bar of a run would take a part of a job for all of it."""
    jobs = plan_small_sweep()
    calibration = {"job:merge": 2.0, "merge:linear 1": 3.0, "job:evaluate": 1.0}
    monkeypatch.setattr(commands, "read_calibration", lambda place: calibration)
    monkeypatch.setattr(commands, "PlaceSizes", lambda place: OneCorpus())
    small: Any = SimpleNamespace(
        place=SimpleNamespace(cache_gb=1.0), list_planned_jobs=lambda: jobs
    )
    merges = {job.key: len(job.payload["donors"]) for job in jobs if job.stage == "merge"}
    assert set(merges.values()) == {0, 1}
    expected = {key: 2.0 + 3.0 * donors for key, donors in merges.items()}
    assert commands.expect_seconds(small) == expected


def test_a_larger_cache_is_a_change_of_its_own() -> None:
    jobs, place = plan_small_sweep(), SimpleNamespace(cache_gb=2.5)
    calls: list[tuple[int, float | None]] = []

    def compute(jobs: list[PlannedJob], cache_gb: float | None = None) -> Any:
        calls.append((len(jobs), cache_gb))
        return {}

    changes = commands.list_changes(jobs, compute, place)  # type: ignore[arg-type]
    texts = [change.text for change in changes]
    assert [call for call in zip(texts, calls, strict=True) if "cache" in call[0]] == [
        ("--cache-gb 10", (len(jobs), 10.0))
    ]
    assert {cache_gb for _, cache_gb in calls} == {None, 10.0}


def test_a_proposal_of_a_search_is_merged_for_each_of_its_evaluations() -> None:
    spec = EvalSpec(task="sid", corpus=CorpusSpec(), updates=5).model_dump(mode="json")

    def count(recipe: Any) -> Work:
        payload = {"spec": spec, "encoder": "merged", "recipe": recipe}
        jobs = [PlannedJob("evaluate", "e", "e", payload)]
        ((_, work),) = count_jobs(jobs, OneCorpus(), 1e9)
        return work

    plain = count(None)
    assert plain.store_bytes == 0
    assert count({"method": "ties", "donors": []}) == plain
    merged = count({"method": "ties", "donors": ["a", "b"]})
    assert merged.units == {**plain.units, "merge:ties 2": 1}  # nothing is opened or published
    assert merged.store_bytes == 0


def test_settings_change_the_jobs_that_they_name() -> None:
    jobs, sizes = plan_small_sweep(), OneCorpus()

    def updates(changed: list[PlannedJob]) -> tuple[float, float]:
        bill = make_bill(count_jobs(changed, sizes, 1e9), lambda unit: 1.0)
        return bill["finetune"].work.updates, bill["evaluate"].work.updates

    # 2 seeds x alphas (0.25, 0.5, 1) and alpha 0, FBank; 2 tasks of 5 updates and 2 probe seeds
    assert updates(jobs) == (20, 8 * 2 * 10)
    assert updates(halve_updates(jobs, "finetune", "narrow")) == (10, 160)
    assert updates(halve_updates(jobs, "evaluate", "pr")) == (20, 8 * (4 + 10))
    assert updates(use_one_seed(jobs, "sid")) == (20, 8 * (10 + 5))
    assert updates(halve_merges(jobs)) == (20, 5 * 20)


def test_the_memory_of_an_evaluation_follows_encoder_batch_and_features() -> None:
    def need(task: str, size: EncoderSize = BASE, utterances: int = 0, **fields: Any) -> float:
        spec = EvalSpec(task=task, corpus=CorpusSpec(), updates=5, **fields)
        return estimate_gpu_memory(spec, size, utterances) / 2**30

    large = EncoderSize(name="encoder", state_count=25, dim=1024, front_end_channels=512)
    # Means: context, weights, and 4 GB of activations for a batch of 160 s
    assert need("sid") == pytest.approx(0.78 + 0.35 + 3.73, abs=0.05)
    assert need("sid", large) > need("sid")
    assert need("pr") > need("sid") + 1  # frames are held in memory
    assert need("pr", seeds=3) - need("pr") == pytest.approx(2 * 700 / 1024)
    # 16 more utterances of 20 s at 50 frames a second, and the gradient of their states
    more = 2 * 16 * 20 * 50 * 13 * 768 * 4 / 2**30
    assert need("pr", batch_size=32) - need("pr", batch_size=16) == pytest.approx(more)
    # VoxCeleb1: 13 x 768 means of each utterance, and once more
    means = 2 * 150_000 * 13 * 768 * 4 / 2**30
    assert need("sid", utterances=150_000) - need("sid") == pytest.approx(means)
    assert need("pr", utterances=150_000) == need("pr")
    # Six matrices of 25600 x 25600 float64 for the basis of a Large encoder
    basis = 6 * (25 * 1024) ** 2 * 8 / 2**30
    assert need("pr", large, features="compact") == pytest.approx(0.78 + basis, abs=0.05)
    assert need("pr", features="compact") >= need("pr", features="int8")
