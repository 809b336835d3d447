"""A search with rungs in a bucket ends as one in a folder."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from speechft_ray.commands import results
from speechft_ray.commands import sweep as commands
from speechft_ray.commands.parts import resolve_place
from speechft_ray.core.space import parse_space
from speechft_ray.stages import perform as performing
from speechft_ray.storage.address import parse_url
from speechft_ray.storage.bucket import Bucket
from speechft_ray.superb.stacked import _Heads
from speechft_ray.superb.training import ProbeTrainer
from tests.storage.test_object_store import open_on

SPACE = Path(__file__).parents[1] / "identity" / "small_search.yaml"


@pytest.fixture
def search(
    finished_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str | Path], list[Any]]:
    """Runs a search with rungs in this process; returns what became of its trials."""
    monkeypatch.setattr(commands, "open_trackers", lambda *_: [])
    monkeypatch.setattr(results, "write_report", lambda *_: None)
    raw = yaml.safe_load(SPACE.read_text())
    raw["name"], raw["evaluate"] = "rungs", raw["evaluate"][:1]
    raw["score"]["topline"] = {"label.accuracy": 101}
    raw["search"] |= {"rungs": [0.25, 0.5, 1], "reduction_factor": 2, "trials": 5, "window": 3}
    home = finished_storage.parent

    def run(storage: str | Path) -> list[Any]:
        spec = parse_space(raw, "test")
        place = resolve_place(
            spec,
            storage=storage,
            encoder=str(home / "start.safetensors"),
            manifest=home / "recordings" / "manifest.tsv",
            cpu=True,
        )
        sweep = commands.open_sweep(spec, place)
        assert commands.run(sweep, None, tmp_path / "report", None, threading.Event()) == []
        findings = sweep.findings()
        assert findings is not None
        return [
            (trial.state, trial.rung, trial.rung_values, trial.metrics) for trial in findings.trials
        ]

    return run


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has one item for each update of a probe, or of a stack of probes."""
    made: list[int] = []
    for owner in (ProbeTrainer, _Heads):
        step: Any = owner.step

        def count(self: Any, *arguments: Any, step: Any = step) -> Any:
            made.append(1)
            return step(self, *arguments)

        monkeypatch.setattr(owner, "step", count)
    return made


def test_a_search_with_rungs_is_as_in_a_folder(
    url: str,
    search: Callable[[str | Path], list[Any]],
    updates: list[int],
    finished_storage: Path,
    storage_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same trials by the same updates, and nothing is left, though no job runs on the node of
    the one before, nor on that of the driver."""
    for name in ("evaluate", "plans", "sweeps"):
        shutil.rmtree(storage_copy / name)
    in_folder = search(storage_copy)
    assert {state for state, *_ in in_folder} == {"complete", "pruned"}
    count = len(updates)

    bucket = Bucket(parse_url(url))
    for name in ("encoder", "finetune"):
        for path in (finished_storage / name).rglob("*.*"):
            bucket.upload(path.relative_to(finished_storage).as_posix(), path)
    nodes = [open_on(name, url, tmp_path, monkeypatch) for name in ("first", "second")]
    turns = itertools.cycle(nodes)
    open_on("driver", url, tmp_path, monkeypatch)
    monkeypatch.setattr(performing, "open_store", lambda storage: next(turns))
    monkeypatch.setattr(commands, "publish_start", lambda place: None)  # it opens the store, too
    assert search(url) == in_folder
    assert len(updates) == 2 * count
    assert bucket.list("work/") == []
    assert [path for node in nodes for path in node.root.glob("work/*")] == []
    assert "speechft-mirror" not in {thread.name for thread in threading.enumerate()}
