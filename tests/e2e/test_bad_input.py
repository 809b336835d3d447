"""Bad input gets one clear sentence and exit code 2, and nothing is left half written."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import soundfile
from ray._private.services import find_gcs_addresses

from speechft_ray.cli import main
from tests.e2e.small_world import SMALL, manifests, places, run, write_space


def run_refused(
    tmp_path: Path, space: Path, *arguments: str | Path, as_process: bool = False
) -> str:
    """Runs a sweep that must be refused, by default in this process, and returns what it says."""
    options = ["--space", space, "--storage", tmp_path / "runs", *arguments]
    if as_process:
        done = run("sweep_alpha.py", *options)
        code, out, error = done.returncode, done.stdout, done.stderr
    else:
        printed, refused = io.StringIO(), io.StringIO()
        with redirect_stdout(printed), redirect_stderr(refused):
            code = main(["run", *map(str, options)])
        out, error = printed.getvalue(), refused.getvalue()
    assert code == 2, out + error
    assert "Traceback" not in error + out
    assert not (tmp_path / "runs" / "evaluate").exists()
    return " ".join(error.split())


def change(section: str, **fields: Any) -> dict[str, Any]:
    return {section: [{**SMALL[section][0], **fields}, *SMALL[section][1:]]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            change("finetune", uptates=3),
            "finetune[0].uptates: unknown field `uptates`. Did you mean `updates`?",
        ),
        (change("merge", alpha=3), "merge[0].alpha: must be at most 1, but is 3 instead."),
        (change("evaluate", task="prr"), "unknown task `prr`. Did you mean `pr`?"),
        (change("merge", method="tise"), "unknown merge method `tise`. Did you mean `ties`?"),
        (change("merge", donors=["nobody"]), "unknown fine-tuning run `nobody`."),
    ],
)
def test_a_slip_in_the_space(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in run_refused(tmp_path, write_space(tmp_path, **changes), "--in-process")


def test_all_slips_at_once(tmp_path: Path) -> None:
    space = write_space(tmp_path, **change("finetune", uptates=3), **change("merge", alpha=3))
    text = run_refused(tmp_path, space, "--in-process", as_process=True)
    assert "uptates" in text
    assert "merge[0].alpha" in text


def test_no_such_space(tmp_path: Path) -> None:
    assert "there is no search space" in run_refused(tmp_path, tmp_path / "nothing.yaml")


def test_no_such_encoder(tmp_path: Path) -> None:
    assert "hubert_huge" in run_refused(tmp_path, write_space(tmp_path), "--encoder", "hubert_huge")


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = tmp_path / "file" / "runs"
    text = run_refused(tmp_path, write_space(tmp_path), "--storage", storage, "--in-process")
    assert "cannot be written" in text


@pytest.mark.skipif(
    bool(find_gcs_addresses()), reason="another Ray runs on this machine, and `auto` finds it"
)
def test_no_running_cluster(tmp_path: Path) -> None:
    text = run_refused(tmp_path, write_space(tmp_path), "--address", "auto", as_process=True)
    assert "ray start --head" in text
    assert "--address local" in text


def own_recordings(
    tmp_path: Path, rows: list[str], header: str = "path\tsplit\tspeaker\ttext"
) -> tuple[Path, Path]:
    """Writes a manifest with one real wav and the space of the product's own example."""
    manifest = tmp_path / "corpus" / "manifest.tsv"
    manifest.parent.mkdir(exist_ok=True)
    tone = 0.1 * np.sin(np.arange(8000) * 0.05)
    soundfile.write(manifest.parent / "tone.wav", tone, 16_000)
    manifest.write_text("\n".join([header, *rows]) + "\n")
    corpus = {"name": "manifest"}
    objective = {"head": "pooled", "corpus": corpus, "column": "text", "batch_size": 2}
    finetune = [{**SMALL["finetune"][0], "objectives": [objective]}]
    evaluate = [{"task": "sid", "corpus": corpus, "updates": 2}]
    return manifest, write_space(tmp_path, finetune=finetune, evaluate=evaluate)


@pytest.mark.parametrize(
    ("rows", "header", "sentence"),
    [
        (["tone.wav\ttrain\ta\tone"], "file\tsplit\tspeaker\ttext", "path"),
        (["../../secret.wav\ttrain\ta\tone"], "path\tsplit\tspeaker\ttext", "secret.wav"),
        (["missing.wav\ttrain\ta\tone"], "path\tsplit\tspeaker\ttext", "missing.wav"),
        (["text.wav\ttrain\ta\tone"], "path\tsplit\tspeaker\ttext", "text.wav"),
        (["tone.wav\ttraining\ta\tone"], "path\tsplit\tspeaker\ttext", "training"),
    ],
)
def test_a_faulty_manifest(tmp_path: Path, rows: list[str], header: str, sentence: str) -> None:
    manifest, space = own_recordings(tmp_path, rows, header)
    (manifest.parent / "text.wav").write_text("this is no sound")
    assert sentence in run_refused(tmp_path, space, "--manifest", manifest, "--in-process")


def test_manifest_not_given(tmp_path: Path) -> None:
    _, space = own_recordings(tmp_path, ["tone.wav\ttrain\ta\tone"])
    assert "--manifest FILE.tsv" in run_refused(tmp_path, space, "--in-process")


def test_one_failing_task_does_not_stop_the_others(tmp_path: Path) -> None:
    """A learning rate at which a probe diverges: that task fails alone, exit code 1, and the report
    names it."""
    wrong = {**SMALL["evaluate"][0], "learning_rate": 1e30}
    space = write_space(tmp_path, evaluate=[SMALL["evaluate"][1], wrong])
    done = run(
        "sweep_alpha.py",
        "--space",
        space,
        "--storage",
        tmp_path / "runs",
        "--report",
        tmp_path / "report",
        "--in-process",
    )
    assert done.returncode == 1, done.stderr
    assert "diverged at the learning rate" in (tmp_path / "report" / "table.md").read_text()
    assert (
        len(list((tmp_path / "runs" / "evaluate").glob("*/manifest.json"))) == 6
    )  # sid on five encoders and FBank


def test_a_silent_mlflow_does_not_stop_the_sweep(tmp_path: Path) -> None:
    """The sweep goes on, says so, and a later run with a server that answers sends everything."""
    finetune = [{**SMALL["finetune"][0], "seed": 0}]
    score = {"zero": "measured", "topline": {"sid.accuracy": 100}}
    space = write_space(tmp_path, finetune=finetune, evaluate=[SMALL["evaluate"][1]], score=score)
    arguments = [*places(tmp_path, space), "--in-process"]
    done = run("sweep_alpha.py", *arguments, "--mlflow", "http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The sweep goes on" in " ".join(done.stdout.split())
    assert (tmp_path / "report" / "index.html").is_file()
    before = manifests(tmp_path / "runs")
    again = run("sweep_alpha.py", *arguments)
    assert again.returncode == 0, again.stderr
    assert manifests(tmp_path / "runs") == before
    runs = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db").search_runs(["1"])
    assert len(runs) == 1 + 3 + 1  # the sweep; alpha 0, 0.25 and 1; one learning curve
