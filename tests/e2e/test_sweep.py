"""The main job as a person runs it: real synthesis, real training, real Ray, real MLflow."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.small_world import complete, manifests, places, run, start, table, write_space


@pytest.fixture(scope="module")
def reference_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that ran without a kill: the reference for everything below."""
    home = tmp_path_factory.mktemp("reference_home")
    done = run("sweep_alpha.py", *places(home))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "alpha" in done.stdout
    return home


def mlflow_content(storage: Path) -> dict[str, Any]:
    """Every run by key: status, parameters and metric histories, without run ids and clock
    times."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    content: dict[str, Any] = {}
    for experiment in client.search_experiments():
        for item in client.search_runs([experiment.experiment_id]):
            key = f"{experiment.name}/{item.data.tags['speechft.key']}"
            assert key not in content, f"two runs of {key}"
            history = {
                name: [
                    (point.step, point.value)
                    for point in client.get_metric_history(item.info.run_id, name)
                ]
                for name in item.data.metrics
                if "second" not in name
            }
            content[key] = (item.info.status, dict(item.data.params), history)
    return content


def test_the_report_is_complete(reference_home: Path) -> None:
    for name in ("table.csv", "table.md", "alpha_curve.png", "index.html"):
        assert (reference_home / "report" / name).stat().st_size > 0
    # pre-trained, alpha 0.25 and alpha 1, each with a score
    assert len(table(reference_home / "report")) == 1 + 3


def test_merges_say_how_far_they_are_from_the_pretrained_encoder(reference_home: Path) -> None:
    """Unmerged (alpha 1) as far as the fine-tuning run measured, else alpha times that."""
    units = manifests(reference_home / "runs")
    merges = [facts for name, facts in units.items() if name.startswith("merge/")]
    tuned = [facts for facts in merges if facts["donors"]]
    assert len(tuned) == len(merges) - 1 == 4
    for facts in tuned:
        run = units[f"finetune/{facts['donors'][0]}"]["diagnostics"]["best"]["weight_distance"]
        expected = {part: facts["alpha"] * value for part, value in run.items()}
        assert facts["weight_distance"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    page = (reference_home / "report" / "index.html").read_text(encoding="utf-8")
    for name in ("layer_weights", "layer_distances", "layer_features", "probe_curves"):
        assert f'<div class="charts" id="{name}">' in page


def test_mlflow_has_a_parent_with_children(reference_home: Path) -> None:
    content = mlflow_content(reference_home / "runs")
    # one sweep, five merged encoders (alpha 0; 0.25 and 1 for two seeds), two learning curves
    assert len(content) == 1 + 5 + 2
    assert {status for status, _, _ in content.values()} == {"FINISHED"}
    scores = [
        history["test/score"]
        for _, params, history in content.values()
        if "test/score" in history and "alpha" in params
    ]
    assert len(scores) == 5


def test_a_second_run_computes_nothing(reference_home: Path) -> None:
    before, content = manifests(reference_home / "runs"), mlflow_content(reference_home / "runs")
    units = complete(reference_home / "runs")
    space, storage = reference_home / "small.yaml", reference_home / "runs"
    again = run(
        "sweep_alpha.py",
        "--space",
        space,
        "--storage",
        storage,
        "--report",
        reference_home / "again",
    )
    assert again.returncode == 0, again.stderr
    assert complete(reference_home / "runs") == units, "a finished unit was written again"
    assert manifests(reference_home / "runs") == before
    assert mlflow_content(reference_home / "runs") == content
    assert table(reference_home / "again") == table(reference_home / "report")


def test_plan_counts_and_runs_nothing(tmp_path: Path) -> None:
    done = run(
        "sweep_alpha.py", "--space", write_space(tmp_path), "--storage", tmp_path / "runs", "--plan"
    )
    assert done.returncode == 0, done.stderr
    # 2 trials; alpha 0 once, 0.25 and 1 per seed; 5 encoders x 2 tasks + FBank on 2
    for line in ("corpus: 3,", "finetune: 2,", "merge: 5,", "evaluate: 12,", "Nothing was run."):
        assert line in done.stdout
    assert not (tmp_path / "runs" / "finetune").exists()


def test_without_ray_the_numbers_are_the_same(reference_home: Path, tmp_path: Path) -> None:
    """Executor, worker count and order change nothing: one plain process gives the same digits."""
    done = run("sweep_alpha.py", *places(tmp_path), "--in-process")
    assert done.returncode == 0, done.stderr
    assert manifests(tmp_path / "runs") == manifests(reference_home / "runs")


def test_killed_three_times_the_result_is_the_same(reference_home: Path, tmp_path: Path) -> None:
    """Kill -9 of the driver in the middle, on Ray and without: nothing finished is computed again,
    table and MLflow end equal."""
    arguments = places(tmp_path)
    finished: dict[str, float] = {}
    # Numbers of complete units at which the driver dies: among corpora, tuning and evaluations.
    for units, executor in ((4, ["--in-process"]), (9, []), (13, ["--in-process"])):
        driver = start("sweep_alpha.py", *arguments, *executor)
        while driver.poll() is None and len(complete(tmp_path / "runs")) < units:
            time.sleep(0.05)
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert driver.stderr
        driver.stderr.close()
        now = complete(tmp_path / "runs")
        assert all(now[unit] == written for unit, written in finished.items()), (
            "a finished unit was written again"
        )
        finished = now
    done = run("sweep_alpha.py", *arguments, "--in-process")
    assert done.returncode == 0, done.stderr
    now = complete(tmp_path / "runs")
    assert all(now[unit] == written for unit, written in finished.items())
    assert manifests(tmp_path / "runs") == manifests(reference_home / "runs")
    assert table(tmp_path / "report") == table(reference_home / "report")
    assert mlflow_content(tmp_path / "runs") == mlflow_content(reference_home / "runs")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_resumably(tmp_path: Path, number: signal.Signals) -> None:
    driver = start("sweep_alpha.py", *places(tmp_path), "--in-process")
    while driver.poll() is None and not complete(tmp_path / "runs"):
        time.sleep(0.05)
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=900)
    assert driver.returncode == 75, errors
    assert "run the same command again" in errors
    assert complete(tmp_path / "runs")
