"""A calibration on a miniature sweep: each measurement is made, and only once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speechft_ray.cli import main
from speechft_ray.cost import calibration
from speechft_ray.cost.samples import repeat_utterances
from speechft_ray.speech.corpora.base import Estimate
from speechft_ray.speech.encoders.base import EncoderWeights
from tests.contracts.test_tasks import COUNTS, spec_of
from tests.e2e.small_world import write_space
from tests.fake_cuda import fake_cuda
from tests.superb.toy_models import DIM, STATE_COUNT, toy_corpus


def plan(
    folder: Path, capsys: pytest.CaptureFixture[str], *options: str, verb: str = "plan"
) -> str:
    space, storage = str(folder / "small.yaml"), str(folder / "runs")
    assert main([verb, "--space", space, "--storage", storage, *options]) == 0
    return capsys.readouterr().out


def test_a_plan_tells_hours_after_one_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "BUDGET_SECONDS", 0.02)
    monkeypatch.setenv("COLUMNS", "120")
    write_space(tmp_path)
    before = plan(tmp_path, capsys)
    assert "bill of what is to do" in before
    assert "measure it here with --calibrate" in before
    measured = plan(tmp_path, capsys, "--calibrate", "--cpu")
    assert "not calibrated" not in measured
    assert "--calibrate" not in measured  # nothing is left out
    assert "what would change it most" in measured
    (file,) = (tmp_path / "runs" / "calibration").iterdir()
    # A second plan reads what was measured.
    for name in ("measure_encoding", "measure_probe", "measure_finetuning", "measure_merge"):
        monkeypatch.setattr(f"speechft_ray.commands.calibrate.{name}", None)
    again = plan(tmp_path, capsys, "--cpu", "--calibrate")
    assert again == measured
    assert "as calibrated here" in plan(tmp_path, capsys, verb="status")
    # A damaged file is as good as none.
    file.write_text("{")
    os.utime(file)
    assert "measure it here" in plan(tmp_path, capsys, "--cpu")


def test_a_throughput_of_0_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--storage", str(tmp_path), "--throughput", "encode=0"]) == 2
    error = capsys.readouterr().err
    assert "--throughput encode must be a number above 0" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cpus-per-trial", "0"], "--cpus-per-trial must be above 0"),
        (["--gpus-per-trial", "-1"], "--gpus-per-trial must be a share of one GPU"),
        (["--gpus-per-trial", "1.5"], "--gpus-per-trial must be a share of one GPU"),
    ],
)
def test_impossible_resources_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["run", "--plan", "--storage", str(tmp_path), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_calibration_has_the_number_types_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself allows TF32 in convolutions."""
    allows: list[bool] = []

    def note_type(*arguments: Any) -> tuple[float, float]:
        allows.append(torch.backends.cudnn.allow_tf32)
        return 0.1, 0.1

    monkeypatch.setattr(calibration, "_time_updates", note_type)
    monkeypatch.setattr(calibration, "make_clock", lambda device: lambda: 0.0)
    with fake_cuda():
        calibration.measure_probe(
            spec_of("sid"), toy_corpus(COUNTS), STATE_COUNT, DIM, torch.device("cuda")
        )
    assert allows == [False, False]


def test_an_update_of_one_probe_is_a_share_of_the_updates_between_the_first_and_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2 rates x 3 seeds train together on a made-up clock: the first update takes 50 s with the
    setup, any other 6 s, and scoring 16 dev utterances, which follows the last one, 96 s."""
    now = 0.0

    def train(*arguments: Any) -> None:
        nonlocal now
        _, _, _, schedule, rates, seeds, advance = arguments
        assert (len(rates), seeds) == (2, 3)
        for update in range(schedule.updates):
            now += 50 if update == 0 else 6 if update < schedule.updates - 1 else 6 + 96
            advance(1)

    monkeypatch.setattr(calibration, "train_stacked", train)
    monkeypatch.setattr(calibration, "make_clock", lambda device: lambda: now)
    spec = spec_of("sid").model_copy(update={"learning_rate": (0.1, 0.01), "seeds": 3})
    cost = calibration.measure_probe(
        spec, toy_corpus({"train": 24, "dev": 16, "test": 4}), STATE_COUNT, DIM, torch.device("cpu")
    )
    assert cost == pytest.approx((6 / 6, 96 / 16 / 6))


def test_a_merge_of_a_part_is_scaled_to_the_whole_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the values takes 2 s."""
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(calibration, "MERGED_VALUES", 99)
    monkeypatch.setattr(calibration, "time", SimpleNamespace(process_time=lambda: next(ticks)))
    state = {f"layer{number}": torch.ones(10, 10) for number in range(4)}
    start = EncoderWeights(family="toy", config={}, state=state)
    assert calibration.measure_merge("linear", {}, 2, start) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("mean_seconds", "kept"), [(2.5, [1, 2, 3, 4]), (2.0, [1, 2, 3]), (1.0, [1, 2]), (9.0, [3, 4])]
)
def test_a_corpus_that_is_not_made_has_utterances_of_about_its_mean_length(
    mean_seconds: float, kept: list[int]
) -> None:
    """At least half of the utterances stay."""
    small = toy_corpus({"train": 4})
    utterances = [
        replace(item, samples=(index + 1) * 16_000) for index, item in enumerate(small.utterances)
    ]
    counts = {"train": 12, "dev": 12, "test": 12}
    estimate = Estimate(utterances=counts, mean_seconds=mean_seconds, columns=frozenset())
    repeated = repeat_utterances(replace(small, utterances=utterances), estimate)
    lengths = [item.samples // 16_000 for item in repeated.utterances]
    assert sorted(lengths) == sorted(kept * (36 // len(kept)))
