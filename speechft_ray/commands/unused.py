"""Finds what no sweep of a storage needs: the verb ``gc``, and the sizes of ``ls``.

A unit is needed when a sweep has it in its plan, or when something needed was made of it. Sweeps
are those with a record or a running driver. Evaluations are always kept: they are small, took long,
and answer for the same encoder in any later sweep. While a sweep has no plan (version 0.4.0 and
before), every fine-tuning is kept, since those that a search may propose are not known.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.commands.stored import list_sweeps
from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.files import sync_folder
from speechft_ray.core.store import DAMAGED, MANIFEST, Store
from speechft_ray.report.winner import list_records, read_record
from speechft_ray.sweep.claims import FOLDER as CLAIMS
from speechft_ray.sweep.lock import describe_driver
from speechft_ray.sweep.plan_file import find_plan, list_plans, read_plan

STAGES = ("encoder", "finetune", "merge")
"""Stages whose units are removed; all others are small."""
HOURS = 24.0
"""What is younger is kept: an evaluation or merge that runs outside a sweep holds no lock."""

Unit = tuple[str, str]
"""Stage and fingerprint."""


class Unused(NamedTuple):
    """Something that can be removed."""

    what: str
    path: Path
    bytes: int
    unit: Unit | None = None


@dataclass(frozen=True, kw_only=True)
class StorageUse:
    """What a storage holds and who needs it."""

    bytes_of: Mapping[Unit, int]
    """Size of every unit that can be removed."""
    needed_by: Mapping[str, frozenset[Unit]]
    """Units that each sweep needs, by its name."""
    running: Mapping[str, str]
    """Driver of each sweep that runs now, by the fingerprint of its plan."""
    unused: Sequence[Unused]
    """What no sweep needs and is old enough."""
    recent: Sequence[Unused]
    """What no sweep needs, but is too young to be removed."""


def measure_use(store: Store, without: str | None = None, hours: float = HOURS) -> StorageUse:
    """Looks through a storage.

    ``without``: the name of a sweep that counts as none, so that what it alone needs is unused.
    ``hours``: what was changed since is too young. Raises ``UserError`` for an unknown sweep, for
    one that runs, and while a sweep runs whose needs are not known.
    """
    sweeps, running = list_sweeps(store), find_running(store)
    if without is not None and without not in sweeps:
        raise UserError(f"{unknown_name('sweep', without, sweeps)} (Storage {store.address}.)")
    if without is not None and sweeps[without] in running:
        raise UserError(
            f"the sweep `{without}` runs on {running[sweeps[without]]} and needs its units: wait "
            "for it or stop it, then run gc again."
        )
    names = {plan.fingerprint: plan.name for plan in list_plans(store)}
    for fingerprint, driver in running.items():
        if fingerprint not in names:
            raise UserError(
                f"a sweep whose plan is not in {store.address} runs on {driver}: what it needs is "
                "not known, so wait for it or stop it."
            )
    facts = _read_facts(store)
    keys = {name: key for name, key in sweeps.items() if name != without}
    for fingerprint in running.keys() - set(keys.values()):
        keys[f"{names[fingerprint]} ({fingerprint})"] = fingerprint
    needed_by = {name: _list_needs(store, name, key, facts) for name, key in keys.items()}
    needed = frozenset().union(*needed_by.values())
    sizes = {unit: _sum_files(of_unit) for unit, of_unit in facts.items()}
    items = list(_list_unused(store, sizes, needed, set(keys.values()) | running.keys()))
    if not running:  # else a driver may be about to take one of them over
        items += _list_claims(store)
    limit = time.time() - 3600 * hours
    old = [item for item in items if _find_time(item.path) < limit]
    return StorageUse(
        bytes_of=sizes,
        needed_by=needed_by,
        running=running,
        unused=old,
        recent=[item for item in items if item not in old],
    )


def find_running(store: Store) -> dict[str, str]:
    """Returns the drivers that run now, by the fingerprint of their plan. Of one that cannot be
    looked up from here, a renewal of its lock is waited for."""
    drivers = {key: describe_driver(store, key) for key in store.list_leases()}
    return {key: driver for key, driver in drivers.items() if driver}


def remove_unused(store: Store, items: Iterable[Unused], forget: str | None = None) -> int:
    """Removes what ``measure_use`` returned as unused, and the record of the sweep ``forget``.
    Returns the bytes that were freed.

    Raises ``UserError``, before anything is removed, when a sweep was started meanwhile.
    """
    items = list(items)
    again = measure_use(store, forget, hours=0.0)
    still = {item.path for item in (*again.unused, *again.recent)}
    if fresh := [item for item in items if item.path not in still and item.path.exists()]:
        raise UserError(
            f"{fresh[0].what} is needed now by a sweep that was started meanwhile: run gc again."
        )
    if forget is not None:  # before its units, so that no name leads to what is gone
        (store.root / "sweeps" / f"{forget}.json").unlink(missing_ok=True)
        sync_folder(store.root / "sweeps")
    for item in items:
        if item.unit is not None:
            store.discard(*item.unit)
        elif item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)
    return sum(item.bytes for item in items)


def _read_facts(store: Store) -> dict[Unit, dict[str, Any]]:
    """Returns the facts of the units that can be removed; a damaged one is left to ``verify``."""
    facts = {}
    for stage in STAGES:
        store.prefetch_stage(stage)
        for key in store.fingerprints(stage):
            with suppress(UserError):
                facts[stage, key] = store.manifest(stage, key)
    return facts


def _list_needs(
    store: Store, name: str, fingerprint: str, facts: Mapping[Unit, Mapping[str, Any]]
) -> frozenset[Unit]:
    """Returns the units of a sweep and all that they were made of."""
    roots: set[Unit] = set()
    if find_plan(store, fingerprint).is_file():
        plan = read_plan(store, fingerprint).plan
        roots |= {(job.stage, key) for key, job in plan.jobs.items()}
        inputs = [_list_inputs(job.stage, job.payload) for job in plan.jobs.values()]
        roots |= {unit for units in inputs for unit in units}
    else:
        roots |= {unit for unit in facts if unit[0] == "finetune"}
    if name in list_records(store):
        record = read_record(store, name)
        roots |= {("merge", key) for key in record.rows}
        if record.winner is not None:
            roots |= {("merge", key) for key in (record.winner.merge, *record.winner.seeds)}
    return frozenset(_close(roots, facts) & (facts.keys() | roots))


def _close(roots: Iterable[Unit], facts: Mapping[Unit, Mapping[str, Any]]) -> set[Unit]:
    needed: set[Unit] = set()
    waiting = list(roots)
    while waiting:
        unit = waiting.pop()
        if unit not in needed:
            needed.add(unit)
            waiting += _list_inputs(unit[0], facts.get(unit, {}))
    return needed


def _list_inputs(stage: str, facts: Mapping[str, Any]) -> list[Unit]:
    """Returns what a unit was made of; a start may be a merge or the pre-trained encoder."""
    recipe = facts.get("recipe")
    if stage == "evaluate":
        inputs = _list_inputs("merge", recipe) if isinstance(recipe, dict) else []
        encoder = facts.get("encoder")
        return [*inputs, ("merge", str(encoder))] if encoder else inputs
    starts = [facts[name] for name in ("base", "start") if name in facts]
    units = [(home, str(start)) for start in starts for home in ("merge", "encoder")]
    return units + [("finetune", str(donor)) for donor in facts.get("donors", ())]


def _list_unused(
    store: Store, sizes: Mapping[Unit, int], needed: frozenset[Unit], plans: set[str]
) -> Iterator[Unused]:
    for unit, size in sizes.items():
        if unit not in needed:
            yield Unused(f"{unit[0]} {unit[1]}", store.root / unit[0] / unit[1], size, unit)
    for path in sorted((store.root / "work").glob("*-*")):
        stage, _, key = path.name.partition("-")
        if (stage, key) not in needed or store.is_complete(stage, key):
            yield Unused(f"unfinished work {path.name}", path, measure_folder(path))
    for path in sorted((store.root / DAMAGED).glob("*")):
        yield Unused(f"damaged {path.name}", path, measure_folder(path))
    for stage in (*STAGES, "corpus", "evaluate"):
        for path in sorted((store.root / stage).glob(".*")):
            yield Unused(f"left over in {stage}: {path.name}", path, measure_folder(path))
    for plan in list_plans(store):
        if plan.fingerprint not in plans:
            path = find_plan(store, plan.fingerprint)
            yield Unused(f"plan {plan.fingerprint} of {plan.name}", path, path.stat().st_size)


def _list_claims(store: Store) -> list[Unused]:
    """Returns what killed drivers left of their claims, while no driver runs."""
    folder = store.root / CLAIMS
    size = measure_folder(folder)
    return [Unused("claims of drivers that were killed", folder, size)] if size else []


def measure_folder(path: Path) -> int:
    """Returns the bytes of the files in a folder, or of a file."""
    if not path.is_dir():
        with suppress(OSError):
            return path.stat().st_size
        return 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += (Path(folder) / name).stat().st_size
    return total


def _sum_files(facts: Mapping[str, Any]) -> int:
    return sum(int(file["bytes"]) for file in facts.get("files", {}).values())


def _find_time(path: Path) -> float:
    """Returns when a unit, a file or anything in a folder was changed last."""
    times = [0.0]
    marker = path / MANIFEST
    for one in [marker] if marker.is_file() else [path, *path.rglob("*")]:
        with suppress(OSError):
            times.append(one.stat().st_mtime)
    return max(times)
