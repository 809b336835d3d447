"""Which node an evaluation prefers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from speechft_ray.cluster.affinity import select_node
from speechft_ray.core.records import Place, Stage
from tests.cluster.worker_jobs import job

NODES = ["4a", "7c", "b1", "e0"]
PLACE = Place(storage="/store", encoder="none", cache="/disk")
CORPORA = [{"name": "toy", "options": {"size": size, "seed": 3}} for size in range(200)]


def prefers(
    corpus: Any,
    nodes: list[str] = NODES,
    place: Place = PLACE,
    stage: Stage = "evaluate",
    **more: Any,
) -> str | None:
    return select_node(job("succeed", stage=stage, spec={"corpus": corpus, **more}), place, nodes)


def test_one_corpus_prefers_one_node_whatever_is_evaluated_on_it() -> None:
    turned = {"options": {"seed": 3, "size": 0}, "name": "toy"}
    preferences = {prefers(CORPORA[0], task=task) for task in ("pr", "sid")} | {
        prefers(turned),
        prefers(turned, NODES[::-1]),
    }
    assert len(preferences) == 1 and preferences <= set(NODES)


def test_corpora_spread_evenly() -> None:
    counts = Counter(prefers(corpus) for corpus in CORPORA)
    assert set(counts) == set(NODES)
    assert all(30 <= count <= 70 for count in counts.values()), (
        counts
    )  # 50 each, give or take three standard deviations


def test_a_lost_node_moves_its_own_corpora_only() -> None:
    left = NODES[:1] + NODES[2:]
    before, after = (
        [prefers(corpus) for corpus in CORPORA],
        [prefers(corpus, left) for corpus in CORPORA],
    )
    assert all(new == old for old, new in zip(before, after, strict=True) if old != NODES[1])
    assert {new for old, new in zip(before, after, strict=True) if old == NODES[1]} == set(left)


@pytest.mark.parametrize("stage", ["corpus", "finetune", "merge"])
def test_other_stages_have_no_preference(stage: Stage) -> None:
    assert prefers(CORPORA[0], stage=stage) is None


def test_nothing_is_preferred_where_nothing_is_gained() -> None:
    assert (
        prefers(CORPORA[0], place=PLACE.model_copy(update={"cache": None})) is None
    )  # all nodes share the storage's
    assert prefers(CORPORA[0], NODES[:1]) is None
    assert prefers(CORPORA[0], []) is None
    assert select_node(job("succeed"), PLACE, NODES) is None  # an evaluation of nothing known
