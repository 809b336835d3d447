"""Finds what no sweep of a storage needs: the verb ``gc``, and the sizes of ``ls``.

A unit is needed when a sweep has it in its plan, or when something needed was made of it. Sweeps
are those with a record or a running driver. Evaluations are always kept: they are small, took long,
and answer for the same encoder in any later sweep. While a sweep has no plan (version 0.4.0 and
before), every fine-tuning is kept, since those that a search may propose are not known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from speechft_ray.commands.stored import list_sweeps
from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.store import CACHE, DAMAGED, FEATURES, WORK, Entry, Store
from speechft_ray.report.winner import FOLDER as SWEEPS
from speechft_ray.report.winner import list_records, read_record
from speechft_ray.sweep.claims import FOLDER as CLAIMS
from speechft_ray.sweep.lock import list_drivers
from speechft_ray.sweep.plan_file import FOLDER as PLANS
from speechft_ray.sweep.plan_file import find_plan, list_plans, read_plan

STAGES = ("encoder", "finetune", "merge")
"""Stages whose units are removed; all others are small."""
HOURS = 24.0
"""What is younger is kept: an evaluation or merge that runs outside a sweep holds no lock."""

LOOK_AGAIN_SECONDS = 1.0
"""How often it is looked, while units are removed, whether a sweep has started."""

Unit = tuple[str, str]
"""Stage and fingerprint."""


class Unused(NamedTuple):
    """Something that can be removed."""

    what: str
    place: tuple[str, str]
    """Folder of the store and name in it; of a unit its stage and fingerprint."""
    bytes: int
    modified: float
    """Seconds since 1970."""
    is_unit: bool = False


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

    ``without``: the name of a sweep that counts as none, so that what it alone needs is unused, of
    whatever age. ``hours``: what else was changed since is too young. Raises ``UserError`` for an
    unknown sweep, for one that runs, and while a sweep runs whose needs are not known.
    """
    sweeps, running = list_sweeps(store), list_drivers(store)
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
        items += [
            _make_unused(f"claim of a driver that was killed: {entry.name}", CLAIMS, entry)
            for entry in store.list_entries(CLAIMS)
        ]
    limit = time.time() - 3600 * hours
    # Of a sweep that is to go, nothing is too young: no other verb is at work with its plan.
    own: set[Unit] = set()
    if without is not None:
        key = sweeps[without]
        own = {(PLANS, f"{key}.json"), *_list_needs(store, without, key, facts)}
    old = [item for item in items if item.modified < limit or item.place in own]
    return StorageUse(
        bytes_of=sizes,
        needed_by=needed_by,
        running=running,
        unused=old,
        recent=[item for item in items if item not in old],
    )


def remove_unused(store: Store, items: Iterable[Unused], forget: str | None = None) -> int:
    """Removes what ``measure_use`` returned as unused, and the record of the sweep ``forget``.
    Returns the bytes that were freed.

    Raises ``UserError`` when a sweep was started meanwhile, and removes nothing more then.
    """
    items = list(items)
    store.pull_records()
    again = measure_use(store, forget, hours=0.0)
    still = {item.place for item in (*again.unused, *again.recent)}
    if fresh := [item for item in items if item.place not in still and _is_there(store, item)]:
        raise UserError(
            f"{fresh[0].what} is needed now by a sweep that was started meanwhile: run gc again."
        )
    if forget is not None:  # before its units, so that no name leads to what is gone
        store.remove_entry(SWEEPS, f"{forget}.json")
        store.remove_entry(SWEEPS, f"{forget}.card.md")
    looked = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - looked >= LOOK_AGAIN_SECONDS:
            looked = time.monotonic()
            if list_drivers(store).keys() - again.running.keys():
                raise UserError(
                    f"a sweep was started while gc removed: it stopped after {number} of "
                    f"{len(items)} items. Run it again, and it keeps what that sweep needs."
                )
        if item.is_unit:
            store.discard(*item.place)
        else:
            store.remove_entry(*item.place)
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
            modified = store.find_time(*unit) or 0.0
            yield Unused(f"{unit[0]} {unit[1]}", unit, size, modified, is_unit=True)
    for entry in store.list_entries(WORK):
        stage, _, key = entry.name.partition("-")
        if (stage, key) not in needed or store.is_complete(stage, key):
            yield _make_unused(f"unfinished work {entry.name}", WORK, entry)
    for entry in store.list_entries(DAMAGED):
        yield _make_unused(f"damaged {entry.name}", DAMAGED, entry)
    for stage in (*STAGES, "corpus", "evaluate", f"{CACHE}/{FEATURES}"):
        for entry in store.list_left_over(stage):
            yield _make_unused(f"left over in {stage}: {entry.name}", stage, entry)
    stored = {entry.name: entry for entry in store.list_entries(PLANS)}
    for plan in list_plans(store):
        name = f"{plan.fingerprint}.json"
        if plan.fingerprint not in plans and name in stored:
            yield _make_unused(f"plan {plan.fingerprint} of {plan.name}", PLANS, stored[name])


def _is_there(store: Store, item: Unused) -> bool:
    if item.is_unit:
        return store.look_again(*item.place)
    folder, name = item.place
    return any(entry.name == name for entry in store.list_entries(folder))


def _make_unused(what: str, folder: str, entry: Entry) -> Unused:
    return Unused(what, (folder, entry.name), entry.bytes, entry.modified)


def _sum_files(facts: Mapping[str, Any]) -> int:
    return sum(int(file["bytes"]) for file in facts.get("files", {}).values())
