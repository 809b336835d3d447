"""Train/test contamination of a sweep: test utterances and speakers in fine-tuning data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.core.store import Store
from speechft_ray.speech.corpora.overlap import Overlap, compute_overlap
from speechft_ray.stages.sources import open_corpus
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Leak

STAGE = "overlap"
"""Folder of the store: the overlap of two corpora, computed once for each pair."""
VERSION = 2
"""Raised when the overlap of the same corpora would change. 2: decoded audio is compared, too."""

Identity = Callable[[CorpusSpec], tuple[str, bool]]
"""Maps a corpus to its identity and whether a job must make it (``sweep.plan.Inputs.corpus``)."""


def find_leaks(
    plan: Plan, store: Store, place: Place, identity: Identity
) -> dict[str, tuple[Leak, ...]]:
    """Returns the leaks of every merged encoder that has some, by its key.

    Corpora that are not made yet are left out: no result depends on them.
    """
    leaks_by_row: dict[str, tuple[Leak, ...]] = {}
    # Thousands of evaluations differ in their encoder alone.
    leak_of_pair: dict[tuple[str, str], Leak | None] = {}
    evaluations = {item.label: item for item in plan.spec.evaluate}
    for row in plan.rows:
        donors = [donor for recipe in list_recipes(plan, row.key) for donor in recipe["donors"]]
        pairs = [(donor, item.label) for donor in donors for item in plan.spec.evaluate]
        for donor, label in pairs:
            if (donor, label) not in leak_of_pair:
                leak_of_pair[donor, label] = _compute_leak(
                    plan, store, place, identity, donor, evaluations[label]
                )
        row_leaks = dict.fromkeys(
            leak for pair in pairs if (leak := leak_of_pair[pair]) is not None
        )
        if row_leaks:
            leaks_by_row[row.key] = tuple(row_leaks)
    return leaks_by_row


def has_overlaps(plan: Plan, store: Store, identity: Identity) -> bool:
    """Whether the store has every overlap that the leaks of this plan need."""
    recipes = [recipe for row in plan.rows for recipe in list_recipes(plan, row.key)]
    tunings = [
        FinetuneSpec.model_validate(plan.jobs[donor].payload["spec"])
        for donor in dict.fromkeys(donor for recipe in recipes for donor in recipe["donors"])
    ]
    return all(
        store.is_complete(STAGE, _make_key(identity(objective.corpus)[0], identity(corpus)[0]))
        for tuning in tunings
        for objective in tuning.objectives
        for evaluation in plan.spec.evaluate
        for corpus in evaluation.corpora()
    )


def list_recipes(plan: Plan, merged: str) -> list[dict[str, Any]]:
    """Returns the recipes of a merged encoder and of the earlier merges of its chain, first stage
    first."""
    recipes: list[dict[str, Any]] = []
    while merged in plan.jobs:  # the pre-trained encoder is no job
        recipe = dict(plan.jobs[merged].payload)
        recipes.insert(0, recipe)
        merged = str(recipe["base"])
    return recipes


def _compute_leak(
    plan: Plan, store: Store, place: Place, identity: Identity, donor: str, evaluation: EvalSpec
) -> Leak | None:
    """Returns the leak from one fine-tuning into one evaluation.

    With several objectives or folds it is the largest.
    """
    finetuning = FinetuneSpec.model_validate(plan.jobs[donor].payload["spec"])
    overlaps = [
        _load_or_compute_overlap(objective.corpus, corpus, store, place, identity)
        for objective in finetuning.objectives
        for corpus in evaluation.corpora()
    ]
    worst = max((overlap for overlap in overlaps if overlap is not None), default=None)
    if worst is None or not (worst.utterances or worst.speakers):
        return None
    return Leak(finetuning.name, evaluation.label, *worst)


def _load_or_compute_overlap(
    finetuning: CorpusSpec, evaluation: CorpusSpec, store: Store, place: Place, identity: Identity
) -> Overlap | None:
    identities = [identity(spec) for spec in (finetuning, evaluation)]
    names = [name for name, _ in identities]
    key = _make_key(*names)
    if not store.is_complete(STAGE, key):
        if not all(store.is_complete("corpus", name) for name, is_made in identities if is_made):
            return None
        overlap = compute_overlap(open_corpus(finetuning, place), open_corpus(evaluation, place))
        with store.publish(STAGE, key, {**overlap._asdict(), "corpora": names}):
            pass
    facts = store.manifest(STAGE, key)
    return Overlap(*(int(facts[name]) for name in Overlap._fields))


def _make_key(finetuning: str, evaluation: str) -> str:
    return fingerprint({"stage": STAGE, "version": VERSION, "corpora": [finetuning, evaluation]})
