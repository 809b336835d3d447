"""``corpora check``, a plan and an evaluation say the same about one faulty manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from speechft_ray.cli import main
from speechft_ray.commands import labels
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import Task

SPACE: dict[str, Any] = {
    "name": "own",
    "encoder": "tiny_hubert",
    "finetune": [
        {
            "name": "characters",
            "objectives": [
                {
                    "head": "ctc",
                    "corpus": {"name": "manifest"},
                    "column": "text",
                    "batch_size": 2,
                    "options": {"unit": "characters"},
                }
            ],
            "updates": 2,
            "seed": {"grid": [0, 1]},
        }
    ],
    "merge": [{"alpha": 0.5}],
    "evaluate": [{"task": "sid", "corpus": {"name": "manifest"}, "updates": 2}],
}
SCORE = {
    "zero": "measured",
    "topline": {"label.accuracy": 100, "pr.per": 0, "sid.accuracy": 100},
}
EVALUATE = ["evaluate", "--encoder", "tiny_hubert", "--task", "sid", "--updates", "2"]
ROWS = [
    ("u0.wav", "train", "ann", "yes it is"),
    ("u1.wav", "train", "bob", "no"),
    ("u2.wav", "dev", "ann", "yes it is"),
    ("u3.wav", "dev", "bob", "no"),
    ("u4.wav", "test", "ann", "no"),
]


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Returns what the verbs print about rows with these changes: check, plan, evaluate."""

    def refuse_rows(changes: dict[int, tuple[str, ...]], space: dict[str, Any]) -> list[str]:
        home = tmp_path / "home"
        home.mkdir()
        rows = [changes.get(index, row) for index, row in enumerate(ROWS)]
        for row in ROWS:
            soundfile.write(home / row[0], np.full(4000, 0.1), 16_000)
        header = ("path", "split", "speaker", "text")
        text = "\n".join("\t".join(row) for row in [header, *rows])
        (home / "manifest.tsv").write_text(text)
        (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SPACE, **space}))
        storage = ("--storage", str(tmp_path / "runs"))
        place = ("--manifest", str(home), "--space", str(tmp_path / "space.yaml"), "--plan")
        printed = []
        for arguments, code in (
            (["corpora", "check", "manifest", str(home), *storage], 0),
            (["run", *place, *storage], 2),
            ([*EVALUATE, "--corpus", str(home)], 2),
        ):
            if arguments[0] == "evaluate":
                arguments = [*arguments, *storage, "--in-process"]
            assert main(arguments) == code, capsys.readouterr()
            output = capsys.readouterr()
            assert "Traceback" not in output.err
            printed.append(" ".join((output.out + output.err).split()))
        assert not list((tmp_path / "runs").glob("[!c]*/*")), "nothing was computed"
        return printed

    return refuse_rows


def test_a_missing_label(refuse: Callable[..., list[str]]) -> None:
    check, plan, evaluation = refuse({1: ("u1.wav", "train", "", "no")}, {})
    sentence = "the utterance `u1.wav` has no label in the column `speaker` (1 of 2 in train); "
    assert f"note: {sentence}tasks and heads that read this column refuse the corpus." in check
    for printed in (plan, evaluation):
        assert f"{sentence}the task `sid` needs one everywhere: add it" in printed
    assert plan.count("no label in the column") == 2, "a note, and the mistake"
    assert "evaluate[0]" in plan and "finetune[0]" not in plan


def test_a_label_of_test_that_train_lacks(refuse: Callable[..., list[str]]) -> None:
    _, plan, evaluation = refuse({4: ("u4.wav", "test", "eve", "no")}, {})
    for printed in (plan, evaluation):
        assert (
            "the column `speaker` has 1 label in test that train does not have (`eve`); train has "
            "2 (`ann`, `bob`): correct them, or add training utterances that have them." in printed
        )


def test_columns_that_a_manifest_lacks(refuse: Callable[..., list[str]]) -> None:
    """Every place that names one, once for all seeds, with the nearest name."""
    finetune = [{**SPACE["finetune"][0]}]
    finetune[0]["objectives"] = [{**finetune[0]["objectives"][0], "column": "txet"}]
    entries = [
        {"task": "label", "column": "spaeker", "corpus": {"name": "manifest"}, "updates": 2},
        {"task": "pr", "corpus": {"name": "manifest"}, "updates": 2},
        *SPACE["evaluate"],
    ]
    changes = {4: ("u4.wav", "test", "eve", "no")}
    _, plan, _ = refuse(changes, {"finetune": finetune, "evaluate": entries, "score": SCORE})
    assert "space.yaml has 4 mistakes" in plan
    assert "unknown label column `txet`. Did you mean `text`?" in plan
    assert "`spaeker`, which the corpus `manifest/home` does not have" in plan
    assert "Did you mean `speaker`?" in plan and "evaluate[1]: the task `pr` needs" in plan


@pytest.mark.parametrize("verb", ["status", "report"])
def test_what_only_reads_the_store_checks_no_labels(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for row in ROWS:
        soundfile.write(home / row[0], np.full(4000, 0.1), 16_000)
    rows = [("path", "split", "speaker", "text"), *ROWS[:4], ("u4.wav", "test", "eve", "no")]
    (home / "manifest.tsv").write_text("\n".join("\t".join(row) for row in rows))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    place = ("--manifest", str(home), "--space", str(tmp_path / "space.yaml"))
    storage = ("--storage", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    assert main([verb, *place, *storage]) == 0, capsys.readouterr()
    assert main(["run", "--plan", *place, *storage]) == 2
    assert "has 1 label in test that train does not have" in " ".join(
        capsys.readouterr().err.split()
    )


def test_labels_that_were_right_are_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until a row changes: then its mistake is found although the check was passed before."""
    home = tmp_path / "home"
    home.mkdir()
    for row in ROWS:
        soundfile.write(home / row[0], np.full(4000, 0.1), 16_000)
    table = "\n".join("\t".join(row) for row in [("path", "split", "speaker", "text"), *ROWS])
    (home / "manifest.tsv").write_text(table)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    plan = ["run", "--plan", "--manifest", str(home), "--space", str(tmp_path / "space.yaml")]
    plan += ["--storage", str(tmp_path / "runs")]
    assert main(plan) == 0, capsys.readouterr()
    built: list[str] = []

    def count_builds(task: Task, spec: EvalSpec, corpus: Corpus) -> object:
        built.append(task.name)
        return build_task_data(task, spec, corpus)

    monkeypatch.setattr(labels, "build_task_data", count_builds)
    assert main(plan) == 0 and built == []
    (home / "manifest.tsv").write_text(table.replace("u4.wav\ttest\tann", "u4.wav\ttest\teve"))
    assert main(plan) == 2 and built == ["sid"]
    assert "1 label in test that train does not have" in " ".join(capsys.readouterr().err.split())
