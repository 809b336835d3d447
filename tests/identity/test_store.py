"""A store that was written before the renaming answers the same sweep and the same search.

``tests/data/store_before_renaming`` was written by the commit before it (925bdd4), in one process
on a CPU, from ``small_sweep.yaml`` and then ``small_search.yaml``, on the recordings of
``recordings.py`` and an encoder of ``speechft new hubert --layers 2 --dim 16``. Its caches were
left out. ``tables`` are the tables of the two reports.
"""

from __future__ import annotations

import csv
import shutil
import threading
from pathlib import Path

import pytest

from speechft_ray.commands import parts
from speechft_ray.commands import sweep as commands
from speechft_ray.commands.parts import resolve_place
from speechft_ray.sweep.space_file import read_space
from tests.identity.recordings import write_recordings

HERE = Path(__file__).parent
STORE = HERE.parent / "data" / "store_before_renaming"


def list_units(storage: Path) -> dict[str, bytes]:
    """Returns the manifest of every complete unit by its path."""
    return {
        str(path.relative_to(storage)): path.read_bytes()
        for path in storage.glob("*/*/manifest.json")
    }


def read_numbers(table: Path) -> list[dict[str, str]]:
    """Returns a table without its intervals, which later versions compute in another way, and
    without the column that they add."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            name: text
            for name, text in row.items()
            if not name.endswith((".low", ".high")) and name != "untuned"
        }
        for row in rows
    ]


def fail_to_open(*arguments: object, **more: object) -> None:
    raise AssertionError("a job was to be computed")


@pytest.mark.parametrize("name", ["small_sweep", "small_search"])
def test_nothing_is_computed_and_the_table_is_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "open_executor", fail_to_open)
    monkeypatch.setattr(commands, "open_trackers", lambda *_: [])
    storage, report = tmp_path / "runs", tmp_path / "report"
    shutil.copytree(STORE, storage, ignore=shutil.ignore_patterns("tables"))
    units = list_units(storage)
    (encoder,) = storage.glob("encoder/*/encoder.safetensors")
    spec = read_space(HERE / f"{name}.yaml")
    place = resolve_place(
        spec,
        storage=storage,
        encoder=str(encoder),
        manifest=write_recordings(tmp_path / "recordings"),
        cpu=True,
    )
    sweep = commands.open_sweep(spec, place)
    assert commands.run(sweep, None, report, None, threading.Event()) == []
    # Nothing is new, nothing written again, but overlaps: version 2 compares decoded audio as well.
    after = list_units(storage)
    added = {Path(path).parts[0] for path in after.keys() - units.keys()}
    assert added == {"overlap"} and {path: after[path] for path in units} == units
    assert read_numbers(report / "table.csv") == read_numbers(STORE / "tables" / f"{name}.csv")
    if name == "small_search":
        trials = (STORE / "tables" / "small_search_trials.csv").read_bytes()
        assert (report / "trials.csv").read_bytes() == trials
    choice = f"sweeps/{spec.name}.json"
    assert (storage / choice).read_bytes() == (STORE / choice).read_bytes()
