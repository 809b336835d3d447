"""What is stored follows from sizes: against a search over all possibilities."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import COMPACT_RANK, CorpusSpec, EvalSpec
from speechft_ray.superb.storage_plan import (
    FRONT_END_SHARE,
    allot,
    check_form,
    choose_form,
    cut_shards,
    list_shared,
    resolve_auto,
)
from tests.superb.toy_models import toy_corpus

HOUR = 50 * 3600
SPEC = EvalSpec(task="pr", corpus=CorpusSpec(), updates=1)
sizes = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@given(sizes, st.integers(0, 8), st.integers(1, 8), st.integers(0, 3000))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_what_is_stored_fits_and_the_next_would_not(
    frames: list[int], front_end: int, feature: int, budget: int
) -> None:
    features, front_ends = [feature * n for n in frames], [front_end * n for n in frames]
    stored, fronts = allot(features, front_ends, budget)
    assert sum(features[:stored]) + sum(front_ends[i] for i in fronts) <= budget
    if stored == len(frames):
        last = fronts.stop
        assert last == len(frames) or sum(features) + sum(front_ends[: last + 1]) > budget
    elif 0 < front_end < FRONT_END_SHARE * feature and sum(front_ends) <= budget:
        assert fronts == range(stored, len(frames))  # each has one of both
        assert sum(features[: stored + 1]) + sum(front_ends[stored + 1 :]) > budget
    elif not 0 < front_end < FRONT_END_SHARE * feature:
        assert sum(features[: stored + 1]) > budget


@given(sizes, st.integers(1, 100))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_shards_are_the_longest_that_fit(frames: list[int], most: int) -> None:
    shards = cut_shards(frames, most)
    assert [index for shard in shards for index in shard] == list(range(len(frames)))
    sums = [0, *accumulate(frames)]
    for shard in shards:
        assert len(shard) == 1 or sums[shard.stop] - sums[shard.start] <= most
        if shard.stop < len(frames):
            assert sums[shard.stop + 1] - sums[shard.start] > most


@pytest.mark.parametrize(
    ("hours", "layers", "dim", "form"),
    [
        (13.8, 13, 768, "exact"),  # 3.594 GB an hour
        (14.0, 13, 768, "int8"),
        (27.7, 13, 768, "int8"),
        (111.4, 13, 768, "compact"),  # LibriSpeech-100, HuBERT Base
        (100.0, 7, 192, "exact"),
        (111.4, 1, 240, "exact"),  # FBank
    ],
)
def test_auto_is_the_first_form_within_the_default_cache(
    hours: float, layers: int, dim: int, form: str
) -> None:
    frames = int(hours * HOUR)
    assert choose_form(frames, layers, dim) == form
    resolved = resolve_auto(SPEC, frames, layers, dim)
    assert (resolved.features, resolved.rank) == (
        form,
        COMPACT_RANK if form == "compact" else None,
    )
    stated = SPEC.model_copy(update={"features": "exact"})
    assert resolve_auto(stated, frames, layers, dim) is stated
    assert resolve_auto(SPEC, None, layers, dim) is SPEC


def test_only_forms_that_change_numbers_are_identity() -> None:
    stated = SPEC.model_copy(update={"features": "exact"})
    dumps = [spec.model_dump(mode="json") for spec in (SPEC, stated)]
    assert dumps[0] == dumps[1]
    assert not {"features", "rank"} & dumps[0].keys()
    compact = EvalSpec(task="pr", corpus=CorpusSpec(), updates=1, features="compact")
    assert compact.model_dump(mode="json") == {
        **dumps[0],
        "features": "compact",
        "rank": COMPACT_RANK,
    }
    assert EvalSpec.model_validate(compact.model_dump(mode="json")) == compact
    with pytest.raises(ValueError, match="`rank` belongs to `features: compact`"):
        EvalSpec(task="pr", corpus=CorpusSpec(), updates=1, rank=8)


@pytest.mark.parametrize(
    ("fields", "cache_gb", "message"),
    [
        ({"features": "compact", "rank": 9985}, 50.0, "`rank: 9985` is above the 9984 values"),
        ({"features": "int8"}, 1e-4, r"`--cache-gb 0.0001` holds no features: .* 0.0005 GB"),
        ({}, 1e-4, "Give more, or 0 to store nothing on purpose"),
        ({"features": "compact", "rank": 9984}, 50.0, None),
        ({"features": "int8"}, 0.0, None),
    ],
)
def test_a_form_that_cannot_be_is_refused(
    fields: dict[str, object], cache_gb: float, message: str | None
) -> None:
    spec = EvalSpec.model_validate({"task": "pr", "corpus": {}, "updates": 1, **fields})
    if message is None:
        check_form(spec, 13, 768, cache_gb)
    else:
        with pytest.raises(UserError, match=message):
            check_form(spec, 13, 768, cache_gb)


def test_tasks_with_most_of_a_split_share_all_of_it() -> None:
    corpus = toy_corpus({"train": 8, "dev": 4, "test": 2})
    train = corpus.split("train")
    assert list_shared(corpus, train[:3:-1]) == train  # half of it, in another order
    assert list_shared(corpus, train[:3]) == train[:3]
    assert list_shared(corpus, [train[2], train[1], train[2]]) == [train[2], train[1]]
    elsewhere = toy_corpus({"train": 9}).split("train")
    assert list_shared(corpus, elsewhere) == elsewhere
