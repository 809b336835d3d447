"""A unit that is bad fails, or is left out, with a sentence; everything else goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechft_ray.cli import main
from tests.e2e.small_world import complete, manifests
from tests.identity.recordings import write_recordings

pytestmark = pytest.mark.slow

CORPUS = {"name": "manifest", "options": {"on_bad_audio": "skip"}}
LABEL = {"task": "label", "corpus": CORPUS, "column": "sound", "updates": 6, "learning_rate": 1e-2}
NARROW = {"projection": 16, "lstm_layers": 1, "lstm_hidden": 16, "specaug": False}
CHARS = {"task": "chars", "corpus": CORPUS, "updates": 6, "options": NARROW}
TOPLINE = {"label.accuracy": 101, "chars.cer": -1}


def write_space(home: Path, **chars: Any) -> Path:
    objective = {"head": "pooled", "corpus": CORPUS, "column": "sound", "batch_size": 4}
    space = {
        "name": "bad-units",
        "encoder": "tiny_hubert",
        "finetune": [{"name": "sounds", "objectives": [objective], "updates": 4}],
        "merge": [{"alpha": 0.5}],
        "evaluate": [LABEL, {**CHARS, **chars}],
        "score": {"zero": "measured", "topline": TOPLINE},
    }
    path = home / "space.yaml"
    path.write_text(json.dumps(space))
    return path


def call(verb: str, home: Path, space: Path, *more: str) -> int:
    options: dict[str, str | Path] = {
        "--space": space,
        "--manifest": home / "recordings" / "manifest.tsv",
        "--storage": home / "runs",
        "--report": home / "report",
        "--track": "jsonl",
    }
    pairs = [str(item) for pair in options.items() for item in pair]
    return main([verb, *pairs, *more])


def count(home: Path, stage: str) -> int:
    return sum(unit.startswith(f"{stage}/") for unit in complete(home / "runs"))


def test_a_probe_that_diverges_fails_alone_and_its_reason_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_recordings(tmp_path / "recordings")
    wild = write_space(tmp_path, learning_rate=1e30)
    assert call("run", tmp_path, wild, "--in-process") == 1
    reason = "with seed 0 diverged at the learning rate"
    printed = capfd.readouterr()
    assert printed.err.count(reason) == 4 and "Traceback" not in printed.err
    # FBank and the encoders of alpha 0, 0.5 and 1, by the other task.
    assert count(tmp_path, "evaluate") == 4
    (log,) = (tmp_path / "runs").glob("**/*.jsonl")
    table = tmp_path / "report" / "table.md"

    def check_reason() -> None:
        assert reason in table.read_text()
        failed = [line for line in log.read_text().splitlines() if '"failure"' in line]
        assert failed and all(reason in line for line in failed)

    check_reason()
    table.unlink()
    log.unlink()
    assert call("report", tmp_path, wild) == 0
    assert reason in capfd.readouterr().err
    check_reason()


def test_a_recording_that_is_rotten_in_the_middle_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The sweep is the same to the last digit as one without that recording."""
    manifest = write_recordings(tmp_path / "recordings")
    without = manifest.read_text()
    rotten = manifest.parent / "train-99.flac"
    soundfile.write(rotten, np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    content = bytearray(rotten.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    rotten.write_bytes(content)
    manifest.write_text(f"{without}{rotten.name}\ttrain\tlow\tab\n")
    space = write_space(tmp_path, learning_rate=1e-2)
    assert call("run", tmp_path, space, "--in-process") == 0
    printed = "".join("".join(capfd.readouterr()).split())
    assert "1badfilesareleftout" in printed and rotten.name in printed
    results, units = manifests(tmp_path / "runs"), complete(tmp_path / "runs")
    skipped = [facts["skipped"] for name, facts in results.items() if name.startswith("evaluate")]
    assert skipped == [{"train": 1}] * 8
    manifest.write_text(without)
    assert call("run", tmp_path, space, "--in-process") == 0
    assert complete(tmp_path / "runs") == units
