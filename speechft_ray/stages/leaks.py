"""Leaks of a sweep: test utterances and speakers that a fine-tuning has seen, computed from the
corpora and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.core.store import Store
from speechft_ray.speech.corpora.overlap import Overlap, compute_overlap
from speechft_ray.stages.perform import open_corpus
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Leak

STAGE = "overlap"
"""Folder of the store: what two corpora share, computed once for both."""
VERSION = 1
"""Raised when the same corpora would be compared differently."""


Identity = Callable[[CorpusSpec], tuple[str, bool]]
"""A corpus to its identity, and whether a job must make it first (``sweep.plan.Inputs.corpus``)."""


def find_leaks(
    plan: Plan, store: Store, place: Place, identity: Identity
) -> dict[str, tuple[Leak, ...]]:
    """Returns the leaks of every merged encoder that has some, by its key.

    Corpora that are not made yet are left out, since nothing was measured on them.
    """
    found: dict[str, tuple[Leak, ...]] = {}
    known: dict[tuple[str, str], Leak | None] = {}
    for row in plan.rows:
        pairs = [(donor, key) for donor in _donors(plan, row.key) for key in row.evaluations]
        for donor, key in pairs:
            if (donor, key) not in known:
                known[donor, key] = _between(plan, store, place, identity, donor, key)
        mine = tuple(dict.fromkeys(leak for pair in pairs if (leak := known[pair]) is not None))
        if mine:
            found[row.key] = mine
    return found


def _donors(plan: Plan, merged: str) -> list[str]:
    """The fine-tuning runs behind a merged encoder: its donors, and those of the earlier merges of
    its chain."""
    found: list[str] = []
    while merged in plan.jobs:  # the pre-trained encoder is no job
        recipe: Any = plan.jobs[merged].payload
        found = [*recipe["donors"], *found]
        merged = str(recipe["base"])
    return found


def _between(
    plan: Plan, store: Store, place: Place, identity: Identity, donor: str, evaluation: str
) -> Leak | None:
    """Returns the leak from one fine-tuning into one evaluation; of several objectives or folds the
    largest."""
    tuned = FinetuneSpec.model_validate(plan.jobs[donor].payload["spec"])
    tested = EvalSpec.model_validate(plan.jobs[evaluation].payload["spec"])
    shared = [
        _shared(objective.corpus, corpus, store, place, identity)
        for objective in tuned.objectives
        for corpus in tested.corpora()
    ]
    worst = max((found for found in shared if found is not None), default=None)
    if worst is None or not (worst.utterances or worst.speakers):
        return None
    return Leak(tuned.name, tested.task, *worst)


def _shared(
    tuned: CorpusSpec, tested: CorpusSpec, store: Store, place: Place, identity: Identity
) -> Overlap | None:
    known = [identity(spec) for spec in (tuned, tested)]
    key = fingerprint({"stage": STAGE, "version": VERSION, "corpora": [name for name, _ in known]})
    if not store.is_complete(STAGE, key):
        if not all(store.is_complete("corpus", name) for name, made in known if made):
            return None
        found = compute_overlap(open_corpus(tuned, place), open_corpus(tested, place))
        with store.publish(STAGE, key, {**found._asdict(), "corpora": [name for name, _ in known]}):
            pass
    facts = store.manifest(STAGE, key)
    return Overlap(*(int(facts[name]) for name in Overlap._fields))
