"""Rehearses a sweep over real corpora: how often is each utterance encoded, and what is stored.

    python -m benchmarks.rehearsal [pr asr sf sid er] [--factor 0.001] [--cache-gb 50] [--share 0.6]

The corpora are noise with the lengths of LibriSpeech-100, SNIPS, VoxCeleb1 and IEMOCAP
(``lengths.py``), ``--factor`` times their utterances and ``--factor`` times the published updates,
so that each utterance is drawn as often as at full size. The encoders are toy HuBERTs that share a
front end, like the merges of a sweep. The memory and disk budgets shrink by the same factor and by
the bytes of a frame (``BYTES_RATIO``). Everything else is the default of an evaluation. Forward
hooks count. Reported are encodings per utterance and encoder, front ends per utterance and sweep,
hours per encoder and gigabytes on disk, the last two scaled up to the real corpora and Base.

``--share 0.6`` sets the disk budget to that share of what the largest corpus needs to keep its
features. Exits with 1 when an aim is missed, unless ``--share`` is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.published import BASE_VALUES, PROTOCOLS
from benchmarks.rehearsal_corpora import simulate_corpora
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.core.units import frame_count
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.evaluate import SharedCaches
from speechft_ray.superb.feature_store import MEMORY_BYTES, FeatureStorage
from speechft_ray.superb.folds import evaluate_folds
from speechft_ray.superb.storage_plan import AUTO_BYTES, count_frames, resolve_auto
from speechft_ray.superb.tasks.base import TASKS

LAYERS, DIM = 8, 16
"""Of the toy encoder: 9 states x 16 values to 8 channels of the front end, about the proportion of
Base (13 x 768 to 512), so that budgets mean the same for both kinds of features."""
BYTES_RATIO = BASE_VALUES / ((LAYERS + 1) * DIM)
SMALL_RECURRENT = {"projection": 16, "lstm_layers": 1, "lstm_hidden": 16}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "pr": {"projection": 16},
    "asr": SMALL_RECURRENT,
    "sf": SMALL_RECURRENT,
    "sid": {},
    "er": {},
}
"""Heads are small: they do not change what is encoded."""
MOST_HOURS, MOST_DISK_GB = 600.0, 200.0
HUBERT = FAMILIES.get("hubert")
FRONT_END = HUBERT.front_end_prefixes[0]
FRAMES_PER_HOUR = 50 * 3600


class Passes:
    """Counts, by hooks, the utterances that go through front end and transformer, and the frames of
    the latter without padding."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count_in(self, encoder: Encoder) -> None:
        """Registers the hooks."""
        module: Any = encoder.module()
        module.feature_extractor.conv_layers[0].register_forward_hook(self._count_front_end)
        module.encoder.register_forward_hook(self._count_encoder, with_kwargs=True)

    def _count_front_end(self, module: Any, inputs: Any, output: Any) -> None:
        self.counts["front_ends"] += len(inputs[0])

    def _count_encoder(self, module: Any, inputs: Any, named: Any, output: Any) -> None:
        batch, padding = inputs[0], named.get("padding_mask")
        self.counts["encodings"] += len(batch)
        self.counts["frames"] += (
            batch.shape[0] * batch.shape[1] if padding is None else int((~padding).sum())
        )


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What one task cost."""

    task: str
    utterances: int
    draws: float
    """Of each training utterance."""
    encodings: float
    """Per utterance and encoder."""
    front_ends: float
    """Per utterance, all encoders together."""
    hours: float
    """Encoded per encoder, scaled to the real corpus."""
    loop_hours: float
    """What s3prl's loop encodes, calculated."""
    disk_gb: float
    """Stored after the task, scaled to the real corpora and a Base encoder."""


@dataclass
class Rehearsal:
    """The settings of a rehearsal."""

    factor: float = 0.001
    encoders: int = 2
    cache_gb: float = 50.0
    share: float | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of every evaluation's spec that differ from the defaults."""

    def budget_bytes(self, tasks: Sequence[str]) -> int:
        """Returns the disk budget of the toy."""
        if self.share is None:
            return int(self.cache_gb * 1e9 * self.factor / BYTES_RATIO)
        hours = max(PROTOCOLS[task].hours for task in tasks if not PROTOCOLS[task].pooled)
        values = hours * FRAMES_PER_HOUR * self.factor * BASE_VALUES / BYTES_RATIO
        return int(self.share * values * 2)  # float16


def make_encoders(count: int) -> list[EncoderWeights]:
    """Returns toy encoders between two random ones, with the front end of the first."""
    assert HUBERT.init_weights is not None and HUBERT.example_config is not None
    config = HUBERT.example_config(LAYERS, DIM, False)
    start, donor = (HUBERT.init_weights(config, seed).state for seed in (0, 1))
    return [
        EncoderWeights(
            family="hubert",
            config=config,
            state={
                name: value
                if name.startswith(FRONT_END)
                else torch.lerp(value, donor[name], index / count)
                for name, value in start.items()
            },
        )
        for index in range(count)
    ]


def make_spec(task: str, corpora: Sequence[Corpus], changes: Mapping[str, Any]) -> EvalSpec:
    """Returns an evaluation that draws each training utterance as often as the published one."""
    protocol, row = PROTOCOLS[task], TASKS.get(task)
    train = len(corpora[0].split("train"))
    parts = row.accumulate * min(train, row.batch_size // row.accumulate)
    updates = max(1, round(protocol.count_draws() * train / parts))
    return EvalSpec(
        task=task,
        corpus=CorpusSpec(name=protocol.corpus),
        updates=updates,
        validate_every_updates=max(1, updates // protocol.validations),
        options=dict(OPTIONS[task]),
        **changes,
    )


def resolve_form(spec: EvalSpec, corpora: Sequence[Corpus], factor: float) -> EvalSpec:
    """Returns the spec with the form that ``auto`` stands for at full size and a Base encoder."""
    if TASKS.get(spec.task).pooled:
        return spec
    frames = sum(count_frames(corpus.utterances) for corpus in corpora)
    return resolve_auto(spec, frames, LAYERS + 1, DIM, int(AUTO_BYTES * factor / BYTES_RATIO))


def rehearse(settings: Rehearsal, tasks: Sequence[str], folder: Path) -> list[TaskResult]:
    """Evaluates the tasks for every encoder with one cache, and returns what each cost."""
    corpora = {
        PROTOCOLS[task].corpus: simulate_corpora(PROTOCOLS[task].corpus, settings.factor)
        for task in tasks
    }
    cache = FeatureCache(folder, settings.budget_bytes(tasks))
    memory_bytes = int(MEMORY_BYTES * settings.factor / BYTES_RATIO)
    passes = {task: Passes() for task in tasks}
    disk_gb: dict[str, float] = {}
    for weights in make_encoders(settings.encoders):
        caches = SharedCaches(
            cache=cache,
            encoder=weights_fingerprint(weights),
            front_end=(FRONT_END, HUBERT.describe(weights.config)),
        )
        storage = FeatureStorage(memory_bytes, cache, caches.encoder)

        def use_storage(
            caches: SharedCaches, spec: EvalSpec, storage: FeatureStorage = storage
        ) -> FeatureStorage:
            return storage._replace(form=spec.features, rank=spec.rank)

        for task in tasks:
            encoder = HUBERT.build(weights)
            passes[task].count_in(encoder)
            folds = corpora[PROTOCOLS[task].corpus]
            with (
                patch("speechft_ray.superb.evaluate.make_storage", use_storage),
                patch("speechft_ray.superb.folds.make_storage", use_storage),
            ):
                evaluate_folds(
                    resolve_form(make_spec(task, folds, settings.changes), folds, settings.factor),
                    encoder,
                    folds,
                    torch.device("cpu"),
                    lambda _: None,
                    caches=caches,
                )
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            disk_gb[task] = max(disk_gb.get(task, 0.0), size / 1e9 / settings.factor * BYTES_RATIO)
    return [
        _make_result(task, corpora[PROTOCOLS[task].corpus], passes[task], settings, disk_gb[task])
        for task in tasks
    ]


def _make_result(
    task: str, folds: Sequence[Corpus], passes: Passes, settings: Rehearsal, disk_gb: float
) -> TaskResult:
    protocol, counts = PROTOCOLS[task], passes.counts
    utterances = folds[0].utterances  # each fold has them all
    frames = sum(frame_count(item.samples) for item in utterances)
    return TaskResult(
        task=task,
        utterances=len(utterances),
        draws=protocol.count_draws(),
        encodings=counts["encodings"] / len(utterances) / settings.encoders,
        front_ends=counts["front_ends"] / len(utterances),
        hours=counts["frames"] / frames / settings.encoders * protocol.hours,
        loop_hours=protocol.loop_hours(),
        disk_gb=disk_gb,
    )


def format_table(results: Sequence[TaskResult]) -> str:
    """Returns a Markdown table with a row per task and their sum."""
    lines = [
        "| task | utterances | draws | encodings | front ends | hours | s3prl, h | disk, GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one.task} | {one.utterances} | {one.draws:.0f} | {one.encodings:.2f} | "
        f"{one.front_ends:.2f} | {one.hours:,.1f} | {one.loop_hours:,.0f} | {one.disk_gb:.1f} |"
        for one in results
    ]
    hours, loop = (sum(getattr(one, name) for one in results) for name in ("hours", "loop_hours"))
    disk = max(one.disk_gb for one in results)
    return "\n".join([*lines, f"| sum | | | | | {hours:,.1f} | {loop:,.0f} | {disk:.1f} |"])


def find_missed_aims(results: Sequence[TaskResult]) -> list[str]:
    """Returns a line for each aim that the results miss."""
    hours, disk = sum(one.hours for one in results), max(one.disk_gb for one in results)
    missed = [
        f"{one.task}: {what} {value:.2f} times, aim 1"
        for one in results
        for what, value in (
            ("each utterance encoded", one.encodings),
            ("front end computed", one.front_ends),
        )
        if value > 1
    ]
    missed += [f"{hours:,.0f} hours per encoder, aim {MOST_HOURS:g}"] if hours > MOST_HOURS else []
    missed += [f"{disk:,.0f} GB on disk, aim {MOST_DISK_GB:g}"] if disk > MOST_DISK_GB else []
    return missed


def main() -> None:
    """Prints the table, writes it as JSON where asked, and names the aims that are missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(PROTOCOLS)}; all unless given")
    parser.add_argument("--factor", type=float, default=0.001, help="scale of corpora and updates")
    parser.add_argument("--encoders", type=int, default=2)
    parser.add_argument("--cache-gb", type=float, default=50.0, help="disk budget at full size")
    parser.add_argument("--share", type=float, help="disk budget as a share of the largest corpus")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # s3prl's weight norm
    settings = Rehearsal(
        factor=options.factor,
        encoders=options.encoders,
        cache_gb=options.cache_gb,
        share=options.share,
    )
    with tempfile.TemporaryDirectory() as folder:
        results = rehearse(settings, options.tasks or list(PROTOCOLS), Path(folder))
    print(format_table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in results], indent=1))
    missed = find_missed_aims(results)
    print("\n".join(f"FAIL  {line}" for line in missed) or "PASS  every aim is met")
    sys.exit(1 if missed and options.share is None else 0)


if __name__ == "__main__":
    main()
