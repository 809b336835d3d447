"""``ls`` and ``gc``: what sweeps need stays, what none needs goes, and first it is only printed."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cli import main
from speechft_ray.commands import results, search, unused
from speechft_ray.commands import sweep as commands
from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.stored import list_sweeps
from speechft_ray.commands.unused import measure_use
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Job
from speechft_ray.core.store import Store
from speechft_ray.report.winner import read_record
from speechft_ray.sweep.claims import UnitClaims
from speechft_ray.sweep.mending import set_damaged_aside
from speechft_ray.sweep.scheduler import run_jobs
from speechft_ray.sweep.space_file import read_space


def list_paths(storage: Path) -> set[str]:
    return {str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file()}


def add_unit(store: Store, stage: str, key: str, **facts: object) -> None:
    with store.publish(stage, key, facts) as folder:
        (folder / "encoder.safetensors").write_bytes(b"0" * 1000)


def gc(storage: Path, *arguments: str) -> int:
    return main(["gc", "--storage", str(storage), "--older-than", "0", *arguments])


def test_nothing_of_a_finished_storage_is_unused(finished_storage: Path) -> None:
    use = measure_use(Store(finished_storage), hours=0)
    assert use.unused == [] and use.recent == [] and use.running == {}
    assert set(use.needed_by) == {"small-sweep", "small-search"}
    assert set().union(*use.needed_by.values()) >= use.bytes_of.keys()


def test_only_what_no_sweep_needs_is_removed(
    storage_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(storage_copy)
    before = list_paths(storage_copy)
    add_unit(store, "merge", "f" * 16, base="0" * 16, donors=["e" * 16])
    add_unit(store, "finetune", "e" * 16, start="0" * 16)
    add_unit(store, "evaluate", "d" * 16, encoder="f" * 16)
    (store.work_folder("finetune", "c" * 16) / "state").write_bytes(b"0" * 500)
    kept = storage_copy / "evaluate" / ("d" * 16)
    (storage_copy / "merge" / ".half-host-1").mkdir()
    (storage_copy / "merge" / ".half-host-1" / "file").write_bytes(b"0" * 500)
    shard = storage_copy / "cache" / "features" / ".shard-host-12-0123abcd"
    shard.mkdir(parents=True)
    (shard / "rows.bin").write_bytes(b"0" * 500)
    with_more = list_paths(storage_copy)
    # Younger than a day: a verb outside any sweep may be at work with them.
    assert main(["gc", "--storage", str(storage_copy), "--yes"]) == 0
    assert "younger than 24 h: 5 items, 4 kB" in capsys.readouterr().out
    assert list_paths(storage_copy) == with_more
    # First it is only printed.
    assert gc(storage_copy) == 0
    assert "would be removed: 5 items, 4 kB" in capsys.readouterr().out
    assert list_paths(storage_copy) == with_more
    assert gc(storage_copy, "--yes") == 0
    # An evaluation is never removed: it is small, and took long.
    evaluation = {str(path.relative_to(storage_copy)) for path in kept.iterdir()}
    assert evaluation and list_paths(storage_copy) == before | evaluation


def test_what_is_left_of_the_work_on_a_complete_unit_goes(storage_copy: Path) -> None:
    """Work on a unit that a sweep still needs stays until it is complete."""
    store = Store(storage_copy)
    key = store.fingerprints("finetune")[0]
    (store.work_folder("finetune", key) / "state").write_bytes(b"0" * 500)
    use = measure_use(store, hours=0)
    assert ("finetune", key) in set().union(*use.needed_by.values())
    assert [item.place for item in use.unused] == [("work", f"finetune-{key}")]
    store.discard("finetune", key)
    assert measure_use(store, hours=0).unused == []


def test_a_day_is_24_hours(storage_copy: Path) -> None:
    store, now = Store(storage_copy), time.time()
    ages = {"e" * 16: 23, "f" * 16: 25}
    for key, hours in ages.items():
        add_unit(store, "merge", key)
        changed = now - 3600 * hours
        os.utime(storage_copy / "merge" / key / "manifest.json", (changed, changed))
    use = measure_use(store)
    assert [item.place for item in use.recent] == [("merge", "e" * 16)]
    assert [item.place for item in use.unused] == [("merge", "f" * 16)]


def test_a_run_needs_the_merge_that_it_started_from_and_its_donors() -> None:
    """A stage of a chain starts from a merge of the stage before."""
    facts: dict[tuple[str, str], dict[str, Any]] = {
        ("finetune", "later"): {"start": "between"},
        ("merge", "between"): {"base": "first", "donors": ["earlier"]},
        ("finetune", "earlier"): {"start": "first"},
        ("encoder", "first"): {},
        ("merge", "other"): {"base": "first", "donors": ["later"]},
    }
    needed = unused._close([("finetune", "later")], facts)
    assert needed & facts.keys() == facts.keys() - {("merge", "other")}


def test_claims_of_killed_drivers_go_when_no_driver_runs(
    storage_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(storage_copy)
    job = Job(stage="finetune", fingerprint="e" * 16, label="tune", payload={})
    assert UnitClaims(store, "killed", lambda text: None).take(job)
    (claim,) = (storage_copy / "claims").iterdir()
    running = read_record(store, "small-sweep").plan
    monkeypatch.setattr(unused, "list_drivers", lambda _: {running: "node7, process 12"})
    assert gc(storage_copy, "--yes") == 0 and claim.is_file()
    monkeypatch.undo()
    assert gc(storage_copy, "--yes") == 0 and not claim.exists()
    assert UnitClaims(store, "next", lambda text: None).take(job)


def test_what_a_forgotten_sweep_shares_stays(storage_copy: Path) -> None:
    store = Store(storage_copy)
    use = measure_use(store)
    search, sweep = (
        use.needed_by[name] & use.bytes_of.keys() for name in ("small-search", "small-sweep")
    )
    assert search - sweep and sweep - search and search & sweep
    assert gc(storage_copy, "--sweep", "small-sweep", "--yes") == 0
    left = measure_use(store)
    assert set(left.needed_by) == {"small-search"}
    assert left.bytes_of.keys() == search and left.unused == []


def test_a_sweep_of_today_is_forgotten_as_a_whole(
    storage_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record went, and its units stayed for a day under no name."""
    (storage_copy / "sweeps" / "small-sweep.card.md").write_text("a card")
    before = measure_use(Store(storage_copy))
    others = before.needed_by["small-search"] & before.bytes_of.keys()
    assert main(["gc", "--storage", str(storage_copy), "--sweep", "small-sweep", "--yes"]) == 0
    assert "removed: 0 items" not in capsys.readouterr().out
    assert measure_use(Store(storage_copy)).bytes_of.keys() == others
    assert not list(storage_copy.glob("sweeps/small-sweep*"))


def test_a_sweep_that_was_killed_keeps_its_units_where_another_has_its_name(
    storage_copy: Path,
) -> None:
    """Its driver left a plan and no record; the same command goes on with it."""
    store = Store(storage_copy)
    killed = read_record(store, "small-search").plan
    plan = storage_copy / "plans" / f"{killed}.json"
    content = json.loads(plan.read_text())
    content["spec"]["name"] = "small-sweep"
    plan.write_text(json.dumps(content))
    (storage_copy / "sweeps" / "small-search.json").unlink()
    assert list(list_sweeps(store)) == ["small-sweep", f"small-sweep-{killed[:8]}"]
    before = measure_use(store).bytes_of.keys()
    assert gc(storage_copy, "--yes") == 0
    assert measure_use(store).bytes_of.keys() == before and plan.is_file()


def test_a_storage_without_plans_keeps_what_its_records_name(storage_copy: Path) -> None:
    """Sweeps of version 0.4.0 and before have no plan in the store."""
    shutil.rmtree(storage_copy / "plans")
    assert gc(storage_copy, "--yes") == 0
    store = Store(storage_copy)
    for name in ("small-sweep", "small-search"):
        assert all(store.is_complete("merge", key) for key in read_record(store, name).rows)
    assert len(store.fingerprints("evaluate")) > 20


def test_what_a_running_sweep_needs_stays(
    storage_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(storage_copy)
    fingerprint = read_record(store, "small-sweep").plan
    monkeypatch.setattr(unused, "list_drivers", lambda _: {fingerprint: "node7, process 12"})
    assert fingerprint in store.list_leases()
    assert gc(storage_copy, "--sweep", "small-sweep", "--yes") == 2
    assert "`small-sweep` runs on node7, process 12 and needs its units" in capsys.readouterr().err
    # Also where no record names it any more.
    (storage_copy / "sweeps" / "small-sweep.json").unlink()
    use = measure_use(store, hours=0)
    assert use.unused == [] and len(use.needed_by) == 2
    (storage_copy / "plans" / f"{fingerprint}.json").unlink()
    with pytest.raises(UserError, match="what it needs is not known"):
        measure_use(store)


def test_what_a_search_selects_is_needed_while_it_runs(
    finished_storage: Path, storage_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier run, which was killed before it had a record, from the start."""
    home, store = finished_storage.parent, Store(storage_copy)
    unneeded: list[list[str]] = []
    (storage_copy / "sweeps" / "small-search.json").unlink()

    def look(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            unneeded.append([item.what for item in measure_use(store, hours=0).unused])
            return function(*arguments)

        return call

    monkeypatch.setattr(commands, "open_trackers", lambda *_: [])
    monkeypatch.setattr(results, "write_report", lambda *_: None)
    monkeypatch.setattr(commands, "set_damaged_aside", look(set_damaged_aside))
    monkeypatch.setattr(search, "run_jobs", look(run_jobs))
    spec = read_space(Path(__file__).parents[1] / "identity" / "small_search.yaml")
    place = resolve_place(
        spec,
        storage=storage_copy,
        encoder=str(home / "start.safetensors"),
        manifest=home / "recordings" / "manifest.tsv",
        cpu=True,
    )
    sweep = commands.open_sweep(spec, place)
    assert commands.run(sweep, None, tmp_path / "report", None, threading.Event()) == []
    assert unneeded == [[], []]


def test_a_sweep_that_starts_meanwhile_is_seen(
    storage_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(storage_copy)
    record = storage_copy / "sweeps" / "small-sweep.json"
    content = record.read_text()
    record.unlink()
    use = measure_use(store, "small-search", hours=0)
    assert use.unused
    record.write_text(content)
    with pytest.raises(UserError, match="needed now by a sweep that was started meanwhile"):
        unused.remove_unused(store, use.unused, None)


def test_a_sweep_that_starts_while_units_are_removed_ends_that(
    storage_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(storage_copy)
    for number in range(3):
        add_unit(store, "merge", f"{number}" * 16)
    use = measure_use(store, hours=0)
    drivers: dict[str, str] = {}
    discard = store.discard

    def discard_and_start(stage: str, key: str) -> None:
        discard(stage, key)
        drivers["f" * 16] = "node7, process 12"

    monkeypatch.setattr(unused, "LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(unused, "list_drivers", lambda _: dict(drivers))
    monkeypatch.setattr(store, "discard", discard_and_start)
    with pytest.raises(UserError, match="stopped after 1 of 3 items"):
        unused.remove_unused(store, use.unused, None)
    assert len([key for key in store.fingerprints("merge") if len(set(key)) == 1]) == 2


def test_sweeps_are_listed_with_their_sizes(
    finished_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "--storage", str(finished_storage)]) == 0
    text = capsys.readouterr().out
    total = sum(
        file["bytes"]
        for path in finished_storage.glob("merge/*/manifest.json")
        for file in json.loads(path.read_text())["files"].values()
    )
    assert "small-sweep" in text and "small-search" in text and "finished" in text
    assert f"merge {total / 1000:.0f} kB" in text and "unused" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gc", "--sweep", "small-swep"], "Did you mean `small-sweep`?"),
        (["compare", "small-sweep", "other"], "unknown sweep `other`"),
        (["tasks", "pr2"], "Did you mean `pr`?"),
    ],
)
def test_unknown_names_are_one_sentence(
    finished_storage: Path,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = [] if arguments[0] == "tasks" else ["--storage", str(finished_storage)]
    assert main([*arguments, *place]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["ls", "--storage", str(finished_storage / "none")]) == 2
    assert "there is no storage folder" in capsys.readouterr().err
    for verb in ("status", "report"):
        assert main([verb, "--space", "alpha", "--storage", str(finished_storage / "none")]) == 2
        assert "there is no storage folder" in capsys.readouterr().err
    assert not os.path.lexists(finished_storage / "none")
