"""Unfinished work of jobs in a bucket, and the records of drivers: they outlive any node, and are
removed by those who may."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.records import Job, Place
from speechft_ray.stages import perform as performing
from speechft_ray.storage import mirror
from speechft_ray.storage.object_store import ObjectStore
from tests.storage.test_object_store import open_on, publish

WHOLE = "whole"
"""Fingerprint of the evaluation that the rungs here belong to."""


def make_rung(update: int) -> Job:
    """Returns the evaluation of a trial up to an update."""
    pause: Any = {"evaluation": WHOLE, "update": update}
    payload = {"pause": pause}
    return Job(stage="evaluate", fingerprint=f"rung-{update}", label="trial 0", payload=payload)


def list_keys(store: ObjectStore, prefix: str) -> list[str]:
    return sorted(item.key for item in store.bucket.list(prefix))


def count_mirrors() -> int:
    return sum(thread.name == "speechft-mirror" for thread in threading.enumerate())


def wait_for(store: ObjectStore, keys: Collection[str]) -> None:
    """Waits until the bucket has these objects."""
    deadline = time.monotonic() + 60
    while not set(keys) <= set(list_keys(store, "")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are sent at once."""
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.01)


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Evaluations save one state where they end. Returns from which update each went on."""
    updates: list[int] = []

    def evaluate(job: Job, place: Place, store: ObjectStore, report: Any) -> None:
        pause: Any = job.payload.get("pause") or {"update": 50}
        work = store.work_folder("evaluate", job.work_key)
        states = sorted(work.iterdir())
        updates.append(max((int(state.name) for state in states), default=0))
        (work / f"{pause['update']:03d}").write_bytes(b"probes")
        for state in states[:-1]:
            state.unlink()
        publish(store, "evaluate", job.fingerprint, b"counts")

    monkeypatch.setitem(performing._STAGES, "evaluate", evaluate)
    return updates


def test_a_rung_goes_on_from_the_last_one_on_whatever_node_that_was(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: list[int]
) -> None:
    """No update is made twice, as in a folder. Both nodes have processes that stay."""
    nodes = {name: open_on(name, url, tmp_path, monkeypatch) for name in ("first", "second")}
    place, before = Place(storage=url, encoder="none"), count_mirrors()
    for name, update in (("first", 10), ("second", 30), ("first", 40)):
        monkeypatch.setattr(performing, "open_store", lambda _, name=name: nodes[name])
        performing.perform(make_rung(update), place, lambda values: None)
        assert f"work/evaluate-{WHOLE}/{update:03d}" in list_keys(nodes[name], "work/")
    assert resumed == [0, 10, 30] and count_mirrors() == before
    whole = Job(stage="evaluate", fingerprint=WHOLE, label="trial 0", payload={})
    performing.perform(whole, place, lambda values: None)
    assert resumed[-1] == 40 and list_keys(nodes["first"], "work/") == []
    assert count_mirrors() == before
    assert [path for node in nodes.values() for path in node.root.glob("work/*/*")] == []


def test_a_driver_removes_the_states_of_a_trial_that_does_not_go_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: list[int]
) -> None:
    """It has none of them itself: the search clears what the workers of other nodes saved."""
    worker = open_on("worker", url, tmp_path, monkeypatch)
    performing.perform(make_rung(10), Place(storage=url, encoder="none"), lambda values: None)
    (worker.root / "other").write_bytes(b"probes")
    worker.bucket.upload(f"work/evaluate-{WHOLE}2/010", worker.root / "other")
    driver = open_on("driver", url, tmp_path, monkeypatch)
    assert f"work/evaluate-{WHOLE}/010" in list_keys(driver, "work/")
    driver.clear_work("evaluate", WHOLE)
    assert list_keys(driver, "work/") == [f"work/evaluate-{WHOLE}2/010"]


def test_a_state_that_was_replaced_is_removed_whoever_sent_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on("first", url, tmp_path, monkeypatch)
    (first.work_folder("finetune", "abc") / "state-1").write_bytes(b"one")
    first.end_work("finetune", "abc")
    second = open_on("second", url, tmp_path, monkeypatch)
    work = second.work_folder("finetune", "abc")
    (work / "state-2").write_bytes(b"two")
    (work / "state-1").unlink()
    second.end_work("finetune", "abc")
    assert list_keys(second, "work/") == ["work/finetune-abc/state-2"]


@pytest.mark.usefixtures("is_eager")
@pytest.mark.parametrize("loss", ["all", "files"])
def test_a_cache_that_is_removed_costs_no_state(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    node = open_on("node", url, tmp_path, monkeypatch)
    work = node.work_folder("finetune", "abc")
    (work / "state-1").write_bytes(b"one")
    wait_for(node, ["work/finetune-abc/state-1"])
    if loss == "all":
        shutil.rmtree(node.root)
    else:
        (work / "state-1").unlink()
    node.end_work("finetune", "abc")
    assert list_keys(node, "work/") == ["work/finetune-abc/state-1"]


@pytest.mark.usefixtures("is_eager")
def test_a_folder_that_cannot_be_read_costs_no_state(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_on("node", url, tmp_path, monkeypatch)
    work = node.work_folder("evaluate", "abc")
    (work / "fold-1").mkdir()
    for name in ("fold-1/state-1", "state-1"):
        (work / name).write_bytes(b"one")
    wait_for(node, [f"work/evaluate-abc/{name}" for name in ("fold-1/state-1", "state-1")])
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("fold-1"):  # permissions do not stop root, as whom tests may run
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (work / "state-2").write_bytes(b"two")
    node.end_work("evaluate", "abc")
    names = ["fold-1/state-1", "state-1", "state-2"]
    assert list_keys(node, "work/") == [f"work/evaluate-abc/{name}" for name in names]
    assert work.is_dir()  # it may have what was not sent


@pytest.mark.usefixtures("is_eager")
def test_a_cache_that_is_removed_while_a_driver_runs_costs_no_record(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of all sweeps are on its node, and its own are no less needed."""
    first = open_on("first", url, tmp_path, monkeypatch)
    keys = ["plans/other.json", "sweeps/other.json", "plans/own.json", "plans/later.json"]
    for key in keys[:2]:
        first.bucket.write(key, b"{}")
    driver = open_on("driver", url, tmp_path, monkeypatch)
    with driver.keep_records():
        (driver.root / "plans" / "own.json").write_text("{}")
        wait_for(driver, keys[:3])
        shutil.rmtree(driver.root)
        (driver.root / "plans").mkdir(parents=True)
        (driver.root / "plans" / "later.json").write_text("{}")
        wait_for(driver, keys[3:])
    assert set(keys) <= set(list_keys(driver, ""))
