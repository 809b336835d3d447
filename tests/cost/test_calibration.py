"""A calibration on a miniature sweep: each measurement is made, and only once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.cli import main
from speechft_ray.cost import calibration
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
