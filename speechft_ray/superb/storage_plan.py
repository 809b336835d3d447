"""Plans which features of a corpus are stored: pure functions of sizes, budget and nothing else.

Neither the form of the features nor which utterances are stored depends on what a disk has free, so
that a repeated run reads what an earlier one wrote. Which utterances are stored changes no number
but the last bits of those that then share other batches (``speech.batching``); the form does, and
is part of an evaluation's identity. ``auto`` therefore compares with a constant:
``--cache-gb`` belongs to a machine, and ``plan``, ``status`` and ``report`` do not have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import COMPACT_RANK, EvalSpec
from speechft_ray.core.units import FRAME_STRIDE_SAMPLES, SAMPLE_RATE_HZ, frame_count
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance

AUTO_BYTES = 50_000_000_000
"""Features of one encoder up to which ``auto`` stays with a form: the default of ``--cache-gb``."""

COMPACT_SHARES = {0.9: 0.05, 0.95: 0.08, 0.99: 0.2, 0.995: 0.27, 0.999: 0.48}
"""Directions that hold a fraction of the variance, as a share of the values of a frame: of the
shipped encoder, rounded up (benchmarks/feature_forms.py)."""

SHARD_FRAMES = 90_000
"""Frames in one file, 30 minutes of audio: what a job that is killed encodes again at most."""

FRONT_END_SHARE = 1 / 3
"""Share of the front end in the time of encoding with a Base encoder (docs/superb.md)."""


class Allotment(NamedTuple):
    """What a budget holds of a list of utterances."""

    stored: int
    """The first so many have their features stored."""
    front_ends: range
    """These have the output of their front end stored."""


def choose_form(
    frames: int, layers: int, dim: int, most_bytes: int = AUTO_BYTES
) -> Literal["exact", "int8", "compact"]:
    """Returns the first form in which so many frames take at most ``most_bytes``, else
    ``compact``."""
    if frames * layers * dim * 2 <= most_bytes:
        return "exact"
    return "int8" if frames * layers * (dim + 2) <= most_bytes else "compact"


def resolve_auto(
    spec: EvalSpec, frames: int | None, layers: int, dim: int, most_bytes: int = AUTO_BYTES
) -> EvalSpec:
    """Returns the spec with the form that ``auto`` stands for.

    ``frames``: of all utterances of the corpus; ``None`` where the plan does not know them, since a
    job synthesises the corpus first: then ``exact``.
    """
    if spec.features != "auto" or frames is None:
        return spec
    form = choose_form(frames, layers, dim, most_bytes)
    rank = COMPACT_RANK if form == "compact" else None
    return spec.model_copy(update={"features": form, "rank": rank})


def count_frame_bytes(spec: EvalSpec, layers: int, dim: int) -> int:
    """Returns the bytes of a frame in the form of a spec; for a basis that holds a fraction of the
    variance, as many as with the shipped encoder."""
    if spec.features == "int8":
        return layers * (dim + 2)
    if spec.features != "compact":
        return layers * dim * 2
    rank = spec.rank or COMPACT_RANK
    if rank >= 1:
        return int(rank) + 2
    shares = [share for fraction, share in COMPACT_SHARES.items() if rank <= fraction]
    return int(layers * dim * min(shares, default=1.0)) + 2


def check_form(spec: EvalSpec, layers: int, dim: int, cache_gb: float) -> None:
    """Raises ``UserError`` for more directions than a frame has values, and for a cache that may
    take something but does not hold a second of audio."""
    where = f"the evaluation `{spec.task}`"
    if spec.features == "compact":
        check_rank(spec.rank or COMPACT_RANK, layers, dim, where)
    frame_bytes = count_frame_bytes(spec, layers, dim)
    second_bytes = frame_bytes * SAMPLE_RATE_HZ // FRAME_STRIDE_SAMPLES
    if 0 < cache_gb * 1e9 < second_bytes:
        raise UserError(
            f"{where}: `--cache-gb {cache_gb:g}` holds no features: one second of audio takes "
            f"{second_bytes / 1e9:.2g} GB. Give more, or 0 to store nothing on purpose."
        )


def check_rank(rank: float, layers: int, dim: int, where: str) -> None:
    """Raises ``UserError`` for more directions than a frame has values."""
    if rank > layers * dim:
        raise UserError(
            f"{where}: `rank: {rank:g}` is above the {layers * dim} values of a frame ({layers} "
            f"hidden states of {dim}): give at most that many directions, or a fraction of the "
            "variance such as 0.99."
        )


def count_frames(utterances: Sequence[Utterance]) -> int:
    """Returns the frames of all utterances."""
    return sum(frame_count(utterance.samples) for utterance in utterances)


def allot(
    feature_bytes: Sequence[int] | np.ndarray,
    front_end_bytes: Sequence[int] | np.ndarray,
    budget_bytes: int,
) -> Allotment:
    """Returns what to store of utterances whose features and front ends have so many bytes.

    Stored features save all of an encoding, and stored front ends ``FRONT_END_SHARE`` of it. Where
    not all features fit, what saves more per byte comes first. Where features are stored, front
    ends serve only other encoders; they get what is left.
    """
    features, front_ends = _add_up(feature_bytes), _add_up(front_end_bytes)
    count, needed, all_front_ends = len(feature_bytes), int(features[-1]), int(front_ends[-1])
    if needed <= budget_bytes:
        return Allotment(count, range(_fit(front_ends, budget_bytes - needed)))
    if 0 < all_front_ends < FRONT_END_SHARE * needed:
        if all_front_ends > budget_bytes:
            return Allotment(0, range(_fit(front_ends, budget_bytes)))
        # The first x utterances have features, all others front ends.
        stored = _fit(features + all_front_ends - front_ends, budget_bytes)
        return Allotment(stored, range(stored, count))
    stored = _fit(features, budget_bytes)
    left = budget_bytes - int(features[stored]) + int(front_ends[stored])
    return Allotment(stored, range(stored, max(stored, _fit(front_ends, left))))


def _add_up(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the bytes of the first 0, 1, ... utterances."""
    sums = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=sums[1:])
    return sums


def _fit(sums: np.ndarray, budget_bytes: int) -> int:
    """Returns how many first utterances fit, by their sums, which ascend from 0."""
    return int(np.searchsorted(sums, budget_bytes, side="right")) - 1


def list_shared(corpus: Corpus, utterances: Sequence[Utterance]) -> Sequence[Utterance]:
    """Returns the utterances to store for a list of them, in an order that tasks share.

    It is all of the corpus in the splits of the list, where the list has at least half of that:
    tasks that leave some utterances out then share what is stored. Else it is the list, in which
    each utterance comes once.
    """
    keys = {(item.split, item.key) for item in utterances}
    present = {split for split, _ in keys}
    splits = [corpus.split(split) for split in SPLITS if split in present]
    shared = sum((item.split, item.key) in keys for split in splits for item in split)
    if shared == len(keys) and 2 * shared >= sum(map(len, splits)):
        return splits[0] if len(splits) == 1 else [item for split in splits for item in split]
    return list({(item.split, item.key): item for item in utterances}.values())


def cut_shards(frames: Sequence[int], most_frames: int = SHARD_FRAMES) -> list[range]:
    """Returns consecutive ranges of utterances of at most ``most_frames``, or of one utterance."""
    shards: list[range] = []
    inside = 0
    for index, count in enumerate(frames):
        if shards and inside + count <= most_frames:
            shards[-1] = range(shards[-1].start, index + 1)
            inside += count
        else:
            shards.append(range(index, index + 1))
            inside = count
    return shards
