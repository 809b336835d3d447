"""Section ``lengths`` of ``superb.py``: phone recognition at real lengths, where not all fits.

The corpus is noise with the lengths of LibriSpeech-100 and few utterances. The memory and the disk
budget are the default ones, as much smaller as the corpus and a frame of the encoder are. The
default form (``auto``, as ``plan`` chooses it from these sizes) and the exact one, which does not
fit and is encoded for every batch, are compared with s3prl's loop. The published protocol draws
each utterance 112 times; fewer draws are made here, and the ratio of a form that fits grows with
them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from benchmarks.lengths import CORPORA
from benchmarks.published import BASE_VALUES, PROTOCOLS
from benchmarks.rehearsal_corpora import simulate_corpora
from benchmarks.superb_loops import (
    HUBERT,
    SETTINGS,
    Passes,
    Setting,
    make_merges,
    report,
    run_ours,
    run_s3prl,
)
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.evaluate import SharedCaches, make_storage
from speechft_ray.superb.feature_store import MEMORY_BYTES, FeatureStorage
from speechft_ray.superb.storage_plan import (
    AUTO_BYTES,
    count_frame_bytes,
    count_frames,
    resolve_auto,
)

CORPUS, TARGET = "librispeech", 4.0
BATCH, VALIDATIONS = 8, 2


@dataclass(frozen=True, kw_only=True)
class Lengths(Setting):
    """Phone recognition on a corpus that is passed."""

    noise: Corpus

    def corpus(self, cache: Path) -> Corpus:
        return self.noise


def lengths(options: argparse.Namespace, home: Path) -> bool:
    """Compares both forms with s3prl's loop for one encoder."""
    (noise,) = simulate_corpora(CORPUS, options.factor)
    counts = {split: len(noise.split(split)) for split in ("train", "dev", "test")}
    pr = SETTINGS["pr"]
    setting = Lengths(
        task="pr",
        counts=counts,
        batch_size=min(BATCH, counts["train"]),
        draws_per_utterance=options.draws,
        validations=VALIDATIONS,
        stock=pr.stock,
        expert=pr.expert,
        forward=pr.forward,
        noise=noise,
    )
    (weights,) = make_merges(1, options.layers)
    shape = HUBERT.describe(weights.config)
    # The default budgets, for this share of the corpus and of a Base encoder's frame.
    share = sum(counts.values()) / sum(split.count for split in CORPORA[CORPUS].values())
    share *= shape.state_count * shape.dim / BASE_VALUES
    budget_bytes, frames = int(AUTO_BYTES * share), count_frames(noise.utterances)
    seconds = sum(item.samples for item in noise.utterances) / 16_000
    print(
        f"\nlengths: {counts} utterances, {seconds:.0f} s, {options.draws} draws of each training "
        f"utterance (published: {PROTOCOLS['pr'].count_draws():.0f}), {VALIDATIONS} validations; "
        f"{frames} frames, {budget_bytes / 1e6:.1f} MB on disk"
    )
    peer = Passes()
    folder = home / "s3prl"
    folder.mkdir()
    cost = run_s3prl(setting, weights, noise, folder, peer)
    print(f"  s3prl's loop: {cost.seconds:.1f} s", flush=True)
    ratios = {}
    for features in ("auto", "exact"):
        size = shape.state_count, shape.dim
        spec = resolve_auto(setting.spec(features=features), frames, *size, budget_bytes)
        basis_bytes = 0
        if spec.features == "compact":
            # Random weights have another spectrum: as many directions as the plan expects. A basis
            # does not shrink with the corpus: at full size it is 0.2 % of the budget.
            directions = count_frame_bytes(spec, *size) - 2
            spec = spec.model_copy(update={"rank": float(directions)})
            basis_bytes = 4 * (directions + 1) * shape.state_count * shape.dim
        cache = FeatureCache(home / features, budget_bytes + basis_bytes)
        storage = partial(_shrink_storage, share, cache)
        ours = Passes()
        with patch("speechft_ray.superb.evaluate.make_storage", storage):
            spent = run_ours(spec, weights, noise, home / features, ours)
        ratios[features] = cost.seconds / spent
        print(
            f"  ours, {features}: {spec.features}, {spent:.1f} s, "
            f"{ours.counts['encoder'] / len(noise.utterances):.2f} encodings of each utterance "
            f"(s3prl's loop: {peer.counts['encoder'] / len(noise.utterances):.2f}): "
            f"{ratios[features]:.1f} times",
            flush=True,
        )
    return report(
        ratios["auto"] >= TARGET,
        f"PR at real lengths under the default budget: {ratios['auto']:.1f} times >= {TARGET:g}",
    )


def _shrink_storage(
    share: float, cache: FeatureCache, caches: SharedCaches | None, spec: EvalSpec
) -> FeatureStorage:
    """Returns the storage of an evaluation with its memory and disk made smaller."""
    storage = make_storage(caches, spec)
    return storage._replace(memory_bytes=int(MEMORY_BYTES * share), cache=cache)
