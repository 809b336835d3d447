"""Rehearses a sweep over real corpora: how often is each utterance encoded, and what is stored.

    python -m benchmarks.rehearsal [pr asr sf sid er] [--factor 0.001] [--cache-gb 50]

The corpora are noise with the lengths of LibriSpeech-100, SNIPS, VoxCeleb1 and IEMOCAP
(``lengths.py``), ``--factor`` times their utterances and ``--factor`` times the published updates,
so that each utterance is drawn as often as at full size. The encoders are toy HuBERTs that share a
front end, like the merges of a sweep. The memory and disk budgets shrink by the same factor and by
the bytes of a frame (``BYTES_RATIO``). Everything else is the default of an evaluation. Forward
hooks count. Reported are encodings per utterance and encoder, front ends per utterance and sweep,
hours per encoder, and gigabytes that it stores, the last two scaled up to the real corpora and
Base.

``--share 0.6`` sets the disk budget to that share of what the largest corpus needs to keep its
features in the form of ``--features``. Exits with 1 when an aim is missed, unless ``--share`` is
given.
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

from benchmarks.published import (
    BASE_CHANNELS,
    BASE_SHAPE,
    BASE_VALUES,
    FORM_BYTES,
    FRAMES_PER_HOUR,
    PROTOCOLS,
)
from benchmarks.rehearsal_corpora import simulate_corpora
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.core.units import frame_count
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.evaluate import SharedCaches
from speechft_ray.superb.feature_store import IN_MEMORY, MEMORY_BYTES
from speechft_ray.superb.folds import evaluate_folds
from speechft_ray.superb.storage_plan import SHARD_FRAMES, resolve_auto
from speechft_ray.superb.tasks.base import TASKS

LAYERS, DIM = 8, 16
"""Of the toy encoder: 9 states x 16 values to 8 channels of the front end, about the proportion of
Base (13 x 768 to 512), so that budgets mean the same for both kinds of features."""
TOY_VALUES, CHANNELS = (LAYERS + 1) * DIM, DIM // 2
BYTES_RATIO = BASE_VALUES / TOY_VALUES
SMALL_RECURRENT = {"projection": 16, "lstm_layers": 1, "lstm_hidden": 16}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "pr": {"projection": 16},
    "asr": SMALL_RECURRENT,
    "sf": SMALL_RECURRENT,
    "sid": {},
    "er": {},
}
"""Heads are small: they do not change what is encoded."""
MOST_HOURS, MOST_DISK_GB = 600.0, 201.0
"""Encoded per encoder, and stored of one corpus: LibriSpeech-100 in int8 takes 200.7 GB."""
HUBERT = FAMILIES.get("hubert")
FRONT_END = HUBERT.front_end_prefixes[0]


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
    form: str
    """Of the stored features."""
    features_gb: float
    """Frame features that the last encoder stored, scaled to the real corpus and Base."""
    front_ends_gb: float
    """Front ends that the evaluations of all encoders added, scaled likewise."""


@dataclass
class Rehearsal:
    """The settings of a rehearsal."""

    factor: float = 0.001
    encoders: int = 2
    cache_gb: float = 50.0
    share: float | None = None
    draws: float = 1.0
    """Share of the published draws."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of every evaluation's spec that differ from the defaults."""

    def budget_bytes(self, corpora: Sequence[Corpus]) -> int:
        """Returns the disk budget of the toy. Raises ``ValueError`` for a share of a form whose
        size is not known ahead."""
        if self.share is None:
            return int(self.cache_gb * 1e9 * self.factor / BYTES_RATIO)
        form = self.changes.get("features")
        if form not in ("exact", "int8"):
            raise ValueError("a share needs the form exact or int8")
        frame_bytes = 2 * TOY_VALUES if form == "exact" else TOY_VALUES + 2 * (LAYERS + 1)
        frames = [sum(frame_count(item.samples) for item in one.utterances) for one in corpora]
        return int(self.share * max(frames) * frame_bytes)


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


def make_spec(task: str, corpora: Sequence[Corpus], settings: Rehearsal) -> EvalSpec:
    """Returns an evaluation that draws each training utterance as often as the published one."""
    protocol, row = PROTOCOLS[task], TASKS.get(task)
    train = len(corpora[0].split("train"))
    parts = row.accumulate * min(train, row.batch_size // row.accumulate)
    updates = max(1, round(settings.draws * protocol.count_draws() * train / parts))
    spec = EvalSpec(
        task=task,
        corpus=CorpusSpec(name=protocol.corpus),
        updates=updates,
        validate_every_updates=max(1, updates // protocol.validations),
        options=dict(OPTIONS[task]),
        **({} if protocol.pooled else settings.changes),
    )
    if protocol.pooled:
        return spec
    # The plan chooses the form by the size of the real corpus and of a Base encoder.
    return resolve_auto(spec, round(protocol.hours * FRAMES_PER_HOUR), *BASE_SHAPE)


def rehearse(settings: Rehearsal, tasks: Sequence[str], folder: Path) -> list[TaskResult]:
    """Evaluates the tasks for every encoder with one cache, and returns what each cost."""
    corpora = {
        PROTOCOLS[task].corpus: simulate_corpora(PROTOCOLS[task].corpus, settings.factor)
        for task in tasks
    }
    cache = FeatureCache(folder, settings.budget_bytes([folds[0] for folds in corpora.values()]))
    storage = IN_MEMORY._replace(
        memory_bytes=int(MEMORY_BYTES * settings.factor / BYTES_RATIO),
        shard_frames=max(1, int(SHARD_FRAMES * settings.factor)),
    )
    passes = {task: Passes() for task in tasks}
    frames: dict[str, tuple[int, int]] = {}
    entries: set[str] = set()
    stored: dict[str, Any] = {}
    for weights in make_encoders(settings.encoders):
        caches = SharedCaches(
            cache=cache,
            encoder=weights_fingerprint(weights),
            front_end=(FRONT_END, HUBERT.describe(weights.config)),
        )
        for task in tasks:
            encoder = HUBERT.build(weights)
            passes[task].count_in(encoder)
            folds = corpora[PROTOCOLS[task].corpus]
            with patch("speechft_ray.superb.evaluate.IN_MEMORY", storage):
                facts = evaluate_folds(
                    make_spec(task, folds, settings),
                    encoder,
                    folds,
                    torch.device("cpu"),
                    lambda _: None,
                    caches=caches,
                )
            stored[task] = facts.get("features")
            features, front_ends = _count_new_frames(folder, entries)
            frames[task] = (features, frames.get(task, (0, 0))[1] + front_ends)
    return [
        _make_result(
            task,
            corpora[PROTOCOLS[task].corpus],
            passes[task],
            settings,
            stored[task],
            frames[task],
        )
        for task in tasks
    ]


def _make_result(
    task: str,
    folds: Sequence[Corpus],
    passes: Passes,
    settings: Rehearsal,
    facts: Mapping[str, Any] | None,
    stored: tuple[int, int],
) -> TaskResult:
    protocol, counts = PROTOCOLS[task], passes.counts
    utterances = folds[0].utterances  # each fold has them all
    frames = sum(frame_count(item.samples) for item in utterances)
    scale = protocol.hours * FRAMES_PER_HOUR / frames
    return TaskResult(
        task=task,
        utterances=len(utterances),
        draws=settings.draws * protocol.count_draws(),
        encodings=counts["encodings"] / len(utterances) / settings.encoders,
        front_ends=counts["front_ends"] / len(utterances),
        hours=counts["frames"] / frames / settings.encoders * protocol.hours,
        loop_hours=protocol.loop_hours(),
        form=_describe_form(task, facts),
        features_gb=stored[0] * scale * _count_base_bytes(facts) / 1e9,
        front_ends_gb=stored[1] * scale * 4 * BASE_CHANNELS / 1e9,
    )


def _describe_form(task: str, facts: Mapping[str, Any] | None) -> str:
    """Returns the form, and for a basis the share of its directions in the values of a frame."""
    if PROTOCOLS[task].pooled:
        return "means"
    if facts is None:
        return "exact"
    rank = facts["rank"]
    return f"compact, {rank / TOY_VALUES:.0%}" if rank else str(facts["form"])


def _count_base_bytes(facts: Mapping[str, Any] | None) -> float:
    """Returns the bytes of a frame of a Base encoder in the form; a basis has the same share of
    directions."""
    if facts is None or facts["form"] == "exact":
        return FORM_BYTES["exact"]
    rank = facts["rank"]
    return rank / TOY_VALUES * BASE_VALUES + 2 if rank else FORM_BYTES["int8"]


def _count_new_frames(folder: Path, entries: set[str]) -> tuple[int, int]:
    """Returns the frames of features and of front ends in entries of the cache that are not among
    ``entries``, and adds these. A frame of the front end has as many values as channels; means
    and a basis count for nothing."""
    features = front_ends = 0
    for path in folder.rglob("manifest.json"):
        if path.parent.name in entries:
            continue
        entries.add(path.parent.name)
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["width"] == CHANNELS:
            front_ends += sum(manifest["counts"])
        elif manifest["dtype"] != "float32":
            features += sum(manifest["counts"])
    return features, front_ends


def format_table(results: Sequence[TaskResult]) -> str:
    """Returns a Markdown table with a row per task and their sum."""
    titles = ("task", "utterances", "draws", "encodings", "front ends", "hours", "s3prl, h")
    lines = [
        "| " + " | ".join([*titles, "form", "features, GB", "front ends, GB"]) + " |",
        "|---" * 10 + "|",
    ]
    for one in results:
        cells = (
            *(one.task, str(one.utterances), f"{one.draws:.0f}", f"{one.encodings:.2f}"),
            *(f"{one.front_ends:.2f}", f"{one.hours:,.1f}", f"{one.loop_hours:,.0f}"),
            *(one.form, f"{one.features_gb:.1f}", f"{one.front_ends_gb:.1f}"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    names = ("hours", "loop_hours", "features_gb", "front_ends_gb")
    sums = [f"{sum(getattr(one, name) for one in results):,.0f}" for name in names]
    total = ["sum", *[""] * 4, *sums[:2], "", *sums[2:]]
    return "\n".join([*lines, "| " + " | ".join(total) + " |"])


def find_missed_aims(results: Sequence[TaskResult]) -> list[str]:
    """Returns a line for each aim that the results miss."""
    hours, disk = sum(one.hours for one in results), max(one.features_gb for one in results)
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
    missed += [f"{disk:,.0f} GB of features, aim {MOST_DISK_GB:g}"] if disk > MOST_DISK_GB else []
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
    parser.add_argument("--draws", type=float, default=1.0, help="share of the published draws")
    parser.add_argument("--features", help="auto, exact, int8 or compact")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # s3prl's weight norm
    if options.share is not None and options.features not in ("exact", "int8"):
        parser.error("--share needs --features exact or int8")
    settings = Rehearsal(
        factor=options.factor,
        encoders=options.encoders,
        cache_gb=options.cache_gb,
        share=options.share,
        draws=options.draws,
        changes={"features": options.features} if options.features else {},
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
