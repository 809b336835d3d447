"""Damaged units are set aside, said, and computed again; nothing else is."""

from __future__ import annotations

import errno
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from speechft_ray.commands.verify import verify_store
from speechft_ray.core.fingerprint import file_sha256
from speechft_ray.core.store import MANIFEST, Store
from speechft_ray.sweep.mending import set_damaged_aside
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.rows import read_rows
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, sweep


def finish(plan: Plan, store: Store) -> list[str]:
    """Performs what is missing; returns the labels of what was performed."""
    executor = FakeExecutor(store)
    assert not run_plan(
        plan, store, executor, FakeObserver(), lambda outcome: None, threading.Event()
    )
    return executor.done


def test_what_is_damaged_is_computed_again_and_the_table_is_equal(tmp_path: Path) -> None:
    plan, store = make_plan(sweep(), inputs()), Store(tmp_path)
    finish(plan, store)
    before = read_rows(plan, store)
    notes: list[str] = []
    assert set_damaged_aside(plan, store, notes.append) == 0 and notes == []

    row = plan.rows[1]
    evaluation, merge = row.evaluations[0], row.key
    changed = store.folder("evaluate", evaluation) / MANIFEST
    changed.write_text(changed.read_text().replace('"values": [', '"values": [ 1'))
    # One bit of an encoder, which only what must be computed again will read.
    file = store.folder("merge", merge) / "content.txt"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)

    assert set_damaged_aside(plan, store, notes.append) == 2
    labels = {plan.jobs[evaluation].label, plan.jobs[merge].label}
    assert {note.partition(" is damaged")[0] for note in notes} == labels
    assert len(list((tmp_path / "damaged").iterdir())) == 2
    assert sorted(finish(plan, store)) == sorted(labels)
    assert read_rows(plan, store) == before
    assert set_damaged_aside(plan, store, notes.append) == 0


def test_a_file_that_cannot_be_read_is_damaged_and_verify_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad disk, or a file of somebody else."""
    plan, store = make_plan(sweep(), inputs()), Store(tmp_path)
    finish(plan, store)
    bad = store.folder("merge", plan.rows[1].key) / "content.txt"

    def fail(path: Path) -> str:
        if path == bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return file_sha256(path)

    monkeypatch.setattr("speechft_ray.core.store.file_sha256", fail)
    console = Console(record=True, width=400, file=io.StringIO())
    assert verify_store(store, False, console) == 1
    text = console.export_text()
    assert f"{bad} cannot be read (Input/output error)" in text
    assert f"{len(store.list_units())} units" in text


def test_verify_reads_all_and_sets_aside_when_asked(tmp_path: Path) -> None:
    plan, store = make_plan(sweep(), inputs()), Store(tmp_path)
    finish(plan, store)
    units = len(store.list_units())
    console = Console(record=True, width=400, file=io.StringIO())
    assert verify_store(store, False, console) == 0
    (store.folder("merge", plan.rows[1].key) / "content.txt").write_text("x")
    assert verify_store(store, False, console) == 1
    assert len(store.list_units()) == units
    assert verify_store(store, True, console) == 1
    assert len(store.list_units()) == units - 1
    text = console.export_text()
    assert f"damaged: merge {plan.rows[1].key}" in text and "Kept as" in text
    assert verify_store(store, True, console) == 0
