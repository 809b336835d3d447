"""Reads the sweeps of a storage by their names, without their search spaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from speechft_ray.commands.parts import corpus_identity
from speechft_ray.commands.results import read_report_data
from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.core.records import Job, Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.core.store import Store
from speechft_ray.report.winner import list_records, read_record
from speechft_ray.report.write import ReportData
from speechft_ray.stages.leaks import Identity, find_leaks, has_overlaps
from speechft_ray.storage.address import resolve_storage
from speechft_ray.storage.open import open_existing
from speechft_ray.sweep.labels import label_sweep
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.plan_file import StoredPlan, list_plans, read_plan
from speechft_ray.sweep.protocols import Leak


@dataclass(frozen=True, kw_only=True)
class StoredSweep:
    """A sweep as its last run left it."""

    name: str
    status: str
    """``finished``, ``failed`` or ``stopped``; ``not reported yet`` before the first run ended."""
    plan: Plan
    place: Place
    data: ReportData


def open_store(storage: str | Path) -> Store:
    """Returns the store of a folder that is there, or of a bucket, with the small files of its
    drivers. Raises ``UserError``."""
    return open_existing(resolve_storage(storage))


def list_sweeps(store: Store) -> dict[str, str]:
    """Returns the fingerprint of the plan of every sweep by its name, sorted by name.

    A sweep that never ended has no record; of several with one name, the one that was planned last
    has it. Where the name belongs to one with a record, its fingerprint is behind it
    (``label_sweep``), and ``gc`` keeps what both need.
    """
    sweeps = {name: read_record(store, name).plan for name in list_records(store)}
    recorded = dict(sweeps)
    for plan in list_plans(store):
        if plan.fingerprint not in recorded.values():
            label = label_sweep(plan.name, plan.fingerprint, recorded.get(plan.name))
            sweeps[label] = plan.fingerprint
    return dict(sorted(sweeps.items()))


def find_sweep(store: Store, name: str) -> StoredPlan:
    """Returns the plan of a sweep. Raises ``UserError`` for a name that is not there, and for a
    sweep whose plan is not in the store."""
    sweeps = list_sweeps(store)
    if name not in sweeps:
        raise UserError(f"{unknown_name('sweep', name, sweeps)} (Storage {store.address}.)")
    plan, place = read_plan(store, sweeps[name])
    # The folder may have been moved, or be mounted elsewhere.
    return StoredPlan(plan, place.model_copy(update={"storage": store.address}))


def read_sweep(store: Store, name: str) -> StoredSweep:
    """Returns the results of a sweep that are in the store. Raises ``UserError``."""
    plan, place = find_sweep(store, name)
    has_record = name in list_records(store)
    return StoredSweep(
        name=name,
        status=read_record(store, name).status if has_record else "not reported yet",
        plan=plan,
        place=place,
        data=read_report_data(plan, store, place, identity=_identify_corpora(plan, place)),
    )


def read_leaks(store: Store, merge: str) -> list[Leak] | None:
    """Returns the leaks of a merged encoder in all sweeps of the store that have it, from the
    overlaps that their reports computed; ``None`` where no sweep with it has them all."""
    leaks: dict[Leak, None] = {}
    is_checked = False
    for name in list_plans(store):
        with suppress(UserError):  # a plan or corpus that cannot be read checks nothing
            plan, place = read_plan(store, name.fingerprint)
            rows = tuple(row for row in plan.rows if row.key == merge)
            plan, identity = replace(plan, rows=rows), _identify_corpora(plan, place)
            if rows and has_overlaps(plan, store, identity):
                items = find_leaks(plan, store, place, identity).get(merge, ())
                leaks |= dict.fromkeys(items)
                is_checked = True
    return list(leaks) if is_checked else None


def _identify_corpora(plan: Plan, place: Place) -> Identity:
    """Returns the function that identifies the corpora of a plan as their jobs did: corpora on disk
    are not looked for."""
    on_disk = {
        canonical_json(spec): identity
        for job in plan.jobs.values()
        for spec, identity in _list_corpora(job)
        if identity
    }

    def identify(spec: CorpusSpec) -> tuple[str, bool]:
        identity = on_disk.get(canonical_json(spec))
        return corpus_identity(spec, place) if identity is None else (identity, False)

    return identify


def _list_corpora(job: Job) -> Iterator[tuple[CorpusSpec, str]]:
    if job.stage == "finetune":
        tuning = FinetuneSpec.model_validate(job.payload["spec"])
        specs = [objective.corpus for objective in tuning.objectives]
    elif job.stage == "evaluate":
        specs = list(EvalSpec.model_validate(job.payload["spec"]).corpora())
    else:
        return
    yield from zip(specs, job.corpora, strict=False)
