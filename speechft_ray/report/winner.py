"""Records the winner of a sweep in ``<storage>/sweeps/<name>.json``, so that the name of the sweep
leads to an encoder.

The winner is the line with the star in the table. Where that line stands for several fine-tuning
seeds, the recorded encoder is the seed with the best dev score of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import write_json
from speechft_ray.core.records import Record
from speechft_ray.core.store import Store
from speechft_ray.report.lines import TableLine, find_winner
from speechft_ray.sweep.labels import label_sweep
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import EncoderRow

FOLDER = "sweeps"


class Winner(Record):
    """The encoder that was selected on dev."""

    merge: str
    """Fingerprint of the merged encoder."""
    title: str
    """Title of that encoder, for example ``linear alpha=0.25 narrow-phones seed=0``."""
    line: str
    """Title of its line in the table."""
    params: Mapping[str, str | float | int]
    dev_score: float
    test_score: float | None
    """Scores of this encoder alone."""
    seeds: tuple[str, ...]
    """Fingerprints of all encoders of the line, this one included."""


class SweepRecord(Record):
    """The record of one sweep, as of its last run."""

    sweep: str
    plan: str
    """Fingerprint of the plan."""
    status: str
    """``finished``, ``failed`` or ``stopped``."""
    winner: Winner | None
    """``None`` while no merge has a dev score."""
    rows: tuple[str, ...]
    """Fingerprints of all merged encoders, in the order of the plan."""


def label_plan(plan: Plan, store: Store) -> str:
    """Returns what a sweep is called in this store: its name, or name and fingerprint where
    another sweep of that name has a winner."""
    owner = None
    with suppress(UserError):
        record = read_record(store, plan.spec.name)
        owner = record.plan if record.winner is not None else None
    return label_sweep(plan.spec.name, plan.fingerprint, owner)


def write_record(plan: Plan, store: Store, lines: Sequence[TableLine], status: str) -> None:
    """Writes the record of a sweep (``label_plan``) over that of an earlier run of it.

    ``lines``: the lines of its table. ``status``: ``finished``, ``failed`` or ``stopped``.
    """
    label = label_plan(plan, store)
    record = SweepRecord(
        sweep=label,
        plan=plan.fingerprint,
        status=status,
        winner=select_winner(lines),
        rows=tuple(row.key for row in plan.rows),
    )
    path = _path(store, label)
    path.parent.mkdir(exist_ok=True)
    write_json(path, record.model_dump(mode="json"))


def select_winner(lines: Sequence[TableLine]) -> Winner | None:
    """Returns the best encoder on dev of the line with the star; ``None`` without such a line."""
    line = find_winner(lines)
    if line is None:
        return None
    best = select_seed(line)
    return Winner(
        merge=best.key,
        title=best.title,
        line=line.title,
        params=best.params,
        dev_score=best.dev["score"],
        test_score=best.test.get("score"),
        seeds=tuple(row.key for row in line.rows),
    )


def select_seed(line: TableLine) -> EncoderRow:
    """Returns the encoder of a line with the best dev score; the first where none has one."""
    return max(line.rows, key=lambda row: row.dev.get("score", -math.inf))


def list_records(store: Store) -> list[str]:
    """Returns the names of the sweeps that have a record in this store, sorted."""
    return sorted(
        path.stem for path in (store.root / FOLDER).glob("*.json") if not path.name.startswith(".")
    )


def read_record(store: Store, name: str) -> SweepRecord:
    """Returns the record of a sweep, one of ``list_records``. Raises ``UserError`` for a damaged
    file."""
    path = _path(store, name)
    try:
        return SweepRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason}): `speechft report` writes it again from the store."
        ) from None


def _path(store: Store, name: str) -> Path:
    return store.root / FOLDER / f"{name}.json"
