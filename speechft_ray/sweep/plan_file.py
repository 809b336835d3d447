"""Keeps plans in the store, ``plans/<fingerprint>.json``, so that the results of a sweep can be
read without its search space, its encoder and its corpora."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.core.records import Job, Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan, PlannedRow

FOLDER = "plans"
VERSION = 1


class StoredPlan(NamedTuple):
    """A plan as its last run left it, and where that run read and wrote."""

    plan: Plan
    """Of a search: with every job of the search by then, also those that no row needs."""
    place: Place


def write_plan(
    plan: Plan, place: Place, store: Store, more_jobs: Mapping[str, Job] | None = None
) -> None:
    """Writes a plan over the one of an earlier run of the same fingerprint.

    ``more_jobs``: jobs of the sweep that are not in its plan, as those of a search.
    """
    whole = replace(plan, jobs={**(more_jobs or {}), **plan.jobs})
    content = {
        "version": VERSION,
        "fingerprint": whole.fingerprint,
        "spec": whole.spec.model_dump(mode="json"),
        "place": place.model_dump(mode="json"),
        "rows": [
            {
                "key": row.key,
                "title": row.title,
                "params": list(row.params.items()),  # their order is that of titles
                "evaluations": list(row.evaluations),
            }
            for row in whole.rows
        ],
        "baseline": list(whole.baseline),
        "winner": whole.winner,
        "jobs": [job.model_dump(mode="json", exclude_defaults=True) for job in whole.jobs.values()],
    }
    path = find_plan(store, whole.fingerprint)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def read_plan(store: Store, fingerprint: str) -> StoredPlan:
    """Returns the plan of a sweep. Raises ``UserError`` where the store has none, which is so for
    sweeps of version 0.4.0 and before, and for a damaged file."""
    path = find_plan(store, fingerprint)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        jobs = [Job.model_validate(item) for item in content["jobs"]]
        plan = Plan(
            spec=SweepSpec.model_validate(content["spec"]),
            fingerprint=str(content["fingerprint"]),
            jobs={job.fingerprint: job for job in jobs},
            rows=tuple(
                PlannedRow(
                    key=row["key"],
                    title=row["title"],
                    params=dict(row["params"]),
                    evaluations=tuple(row["evaluations"]),
                )
                for row in content["rows"]
            ),
            baseline=tuple(content["baseline"]),
            winner=content["winner"],
        )
        return StoredPlan(plan, Place.model_validate(content["place"]))
    except FileNotFoundError:
        raise UserError(
            f"{store.address} has no plan of this sweep, as those of version 0.4.0 and before: "
            "`speechft report` with the space of the sweep writes it."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the plan {path} cannot be read ({reason}): `speechft report` with the space of this "
            "sweep writes it again."
        ) from None


class PlanName(NamedTuple):
    """Which sweep a plan in the store is of."""

    name: str
    fingerprint: str


def list_plans(store: Store) -> list[PlanName]:
    """Returns every plan in the store, the one written last at the end; damaged files are left
    out."""
    plans = []
    for path in sorted((store.root / FOLDER).glob("[!.]*.json"), key=_find_time):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8"))
            plans.append(PlanName(str(content["spec"]["name"]), path.stem))
    return plans


def _find_time(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def find_plan(store: Store, fingerprint: str) -> Path:
    """Returns the file of a plan, whether it is there or not."""
    return store.root / FOLDER / f"{fingerprint}.json"
