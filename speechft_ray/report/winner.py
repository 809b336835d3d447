"""Which merge a sweep chose, kept as ``<storage>/sweeps/<name>.json``, so that a name leads to an
encoder later on.

The line is the one with the star in the table: the best mean dev score. Where it stands for several
fine-tuning seeds, the encoder is the seed with the best dev score of its own; what the table says
of the line stays the mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Record
from speechft_ray.core.store import Store, write_json
from speechft_ray.report.summary import find_winner, group_rows
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import EncoderRow

_FOLDER = "sweeps"


class Winner(Record):
    """The encoder that dev chose."""

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
    """What is kept of one sweep, as of its last run."""

    sweep: str
    plan: str
    """Fingerprint of the plan."""
    status: str
    """``finished``, ``failed`` or ``stopped``."""
    winner: Winner | None
    """``None`` while no merge has a dev score."""
    rows: tuple[str, ...]
    """Fingerprints of all merged encoders, in the order of the plan."""


def write_record(plan: Plan, store: Store, found: Sequence[EncoderRow], status: str) -> None:
    """Writes what a sweep has chosen so far, over what an earlier run of the same name wrote."""
    kept = SweepRecord(
        sweep=plan.spec.name,
        plan=plan.fingerprint,
        status=status,
        winner=select_winner(found, plan.winner),
        rows=tuple(row.key for row in plan.rows),
    )
    path = _path(store, plan.spec.name)
    path.parent.mkdir(exist_ok=True)
    write_json(path, kept.model_dump(mode="json"))


def select_winner(found: Sequence[EncoderRow], searched: str | None = None) -> Winner | None:
    """Returns the encoder behind the star of the table, ``None`` while there is no star;
    ``searched``: what a search chose."""
    line = find_winner(group_rows(found, chosen=searched))
    if line is None:
        return None
    best = max(
        (row for row in line.rows if "dev.score" in row.metrics),
        key=lambda row: row.metrics["dev.score"],
    )
    return Winner(
        merge=best.key,
        title=best.title,
        line=line.title,
        params=best.params,
        dev_score=best.metrics["dev.score"],
        test_score=best.metrics.get("score"),
        seeds=tuple(row.key for row in line.rows),
    )


def list_records(store: Store) -> list[str]:
    """Names of the sweeps that have run in this store, sorted."""
    return sorted(
        path.stem for path in (store.root / _FOLDER).glob("*.json") if not path.name.startswith(".")
    )


def read_record(store: Store, name: str) -> SweepRecord:
    """Returns what is kept of a sweep, one of ``list_records``. Raises ``UserError`` when the
    file is damaged."""
    path = _path(store, name)
    try:
        return SweepRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason}): `speechft report` writes it again from the store."
        ) from None


def _path(store: Store, name: str) -> Path:
    return store.root / _FOLDER / f"{name}.json"
