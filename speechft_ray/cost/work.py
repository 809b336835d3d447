"""Counts the work of jobs in units, and the bytes that they keep: pure functions of specs and
sizes.

The counts follow what the code does: features of an evaluation are encoded once where they are
stored and for every batch where they are not (``superb.features``); the output of the frozen front
end is computed once for all encoders of a sweep; equal features of one encoder are stored once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from speechft_ray.core.specs import EvalSpec, FinetuneSpec, Objective
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.cost.sizes import (
    EncoderSize,
    EvaluationSize,
    Lengths,
    ObjectiveSize,
    TaskSize,
    frames,
    mean_batch_samples,
    seconds,
)
from speechft_ray.finetuning.diagnostics import PROBE_SECONDS
from speechft_ray.finetuning.merge_statistics import EXAMPLES
from speechft_ray.finetuning.phases import head_only_updates
from speechft_ray.speech.heads.base import HEADS
from speechft_ray.speech.synthesis.workers import CHUNK_UTTERANCES
from speechft_ray.superb.feature_store import MEMORY_BYTES
from speechft_ray.superb.setup import make_schedule, select_learning_rates
from speechft_ray.superb.storage_plan import allot, count_frame_bytes
from speechft_ray.superb.tasks.base import TASKS, Task

FRONT_END_VALUE_BYTES = 4
"""Bytes of a cached value of the front end: float32 (``speech.features.front_end``)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one job or of several.

    ``units``: amounts by unit; a unit is ``KIND:NAME``, and one calibration gives its seconds.
    """

    units: Mapping[str, float] = field(default_factory=dict)
    encoded_seconds: float = 0.0
    """Audio through the layers of an encoder, FBank's too."""
    front_end_seconds: float = 0.0
    """Audio through the convolutional front end."""
    updates: float = 0.0
    """Updates of encoders, or of probes, each probe counted."""
    cache_bytes: float = 0.0
    """Features that are stored in the cache."""
    store_bytes: float = 0.0
    """Encoders that are published."""
    memory_bytes: float = 0.0
    """Features that one job holds in memory; of several jobs the largest."""

    def __add__(self, other: Work) -> Work:
        units = Counter(self.units)
        units.update(other.units)
        return Work(
            units=dict(units),
            encoded_seconds=self.encoded_seconds + other.encoded_seconds,
            front_end_seconds=self.front_end_seconds + other.front_end_seconds,
            updates=self.updates + other.updates,
            cache_bytes=self.cache_bytes + other.cache_bytes,
            store_bytes=self.store_bytes + other.store_bytes,
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
        )


def probe_unit(spec: EvalSpec, task: TaskSize, encoder: EncoderSize) -> str:
    """Returns the name behind ``probe:`` and ``score:`` of an evaluation. Equal names cost the same
    for an update and an utterance."""
    rates = len(select_learning_rates(TASKS.get(spec.task), spec))
    column = f"/{spec.column}" if spec.column else ""
    options = "".join(f" {name}={value}" for name, value in sorted(spec.options.items()))
    shape = f"{encoder.state_count}x{encoder.dim}"
    batch = f" batch={spec.batch_size}" if spec.batch_size else ""
    probes = f" probes={rates}x{spec.seeds}"
    return f"{spec.task}{column} on {task.corpus} {shape}{batch}{probes}{options}"


def tune_unit(spec: FinetuneSpec, sizes: list[ObjectiveSize]) -> str:
    """Returns the name behind ``tune:`` of a fine-tuning run."""
    parts = [
        f"{item.head} on {size.corpus} batch={item.batch_size}"
        + "".join(f" {name}={value}" for name, value in sorted(item.options.items()))
        for item, size in zip(spec.objectives, sizes, strict=True)
    ]
    crop = f" crop={spec.crop_seconds:g}" if spec.crop_seconds else ""
    adapter = f" {spec.adapter.kind}{spec.adapter.rank}" if spec.adapter else ""
    penalty = " penalty" if spec.anchor_penalty else ""
    front_end = "" if spec.freeze_front_end else " front end"
    dropout = "" if spec.head_phase_dropout else " no dropout"
    precision = f" {spec.precision}" if spec.precision != "float32" else ""
    return " + ".join(parts) + precision + crop + adapter + penalty + front_end + dropout


@dataclass(frozen=True, kw_only=False)
class _Part:
    """Utterances of a split: which are meant, and which have the output of their front end
    stored."""

    corpus: str
    split: str
    lengths: Lengths
    selected: np.ndarray
    has_front_end: np.ndarray

    def name(self) -> tuple[object, ...]:
        """Returns what tells these utterances from others."""
        selected = self.lengths[self.selected]
        return self.corpus, self.split, len(selected), int(selected.sum())


class WorkCounter:
    """Counts the work of jobs in the order in which they run. What an earlier job stores in the
    cache is not counted again."""

    def __init__(self, cache_bytes: float) -> None:
        self._budget = cache_bytes
        self._stored: set[tuple[object, ...]] = set()

    def count_evaluation(
        self,
        spec: EvalSpec,
        size: EvaluationSize,
        encoder: EncoderSize,
        key: str,
        *,
        dev_only: bool = False,
        predicted_from: Sequence[str] = (),
        screens: bool = False,
    ) -> Work:
        """Counts one evaluation. ``key`` identifies the encoder, ``predicted_from`` those that its
        features are interpolated between. Of one that ``screens``, the encoding is all that
        counts."""
        task, encoder = TASKS.get(spec.task), encoder.at(spec.precision)
        work = Work(units={"job:evaluate": 1})
        for one in predicted_from or [key]:
            work += self._count_all_features(task, spec, size, encoder, one, dev_only)
        for fold in () if screens else size.folds:
            work += _count_probe(task, spec, fold, encoder, dev_only)
        return work

    def _count_all_features(
        self,
        task: Task,
        spec: EvalSpec,
        size: EvaluationSize,
        encoder: EncoderSize,
        key: str,
        dev_only: bool,
    ) -> Work:
        """Counts the encoding of all folds by one encoder."""
        work = Work()
        if len(size.folds) > 1 and task.pooled and size.recordings is not None:
            # The recordings of all folds are encoded at once.
            every = {"train": size.recordings}
            union = TaskSize(corpus=size.folds[0].corpus, splits=every)
            work += self._count_features(task, spec, union, encoder, key)
        else:
            for fold in size.folds:
                splits = {
                    split: lengths
                    for split, lengths in fold.splits.items()
                    if split != "test" or not dev_only
                }
                scored = replace(fold, splits=splits)
                work += self._count_features(task, spec, scored, encoder, key)
        return work

    def _count_features(
        self, task: Task, spec: EvalSpec, fold: TaskSize, encoder: EncoderSize, key: str
    ) -> Work:
        """Counts the encoding of one fold (``superb.features.load_features``): on disk as far as
        the budget goes, in memory while it fits, else for every batch."""
        lengths = {split: fold.recordings(split) for split in fold.splits}
        together = np.concatenate(list(lengths.values()))
        row_bytes = count_row_bytes(spec, encoder)
        sizes = np.full(len(together), row_bytes) if task.pooled else frames(together) * row_bytes
        front_ends = frames(together) * encoder.front_end_channels * FRONT_END_VALUE_BYTES
        fits = allot(sizes, front_ends, int(self._budget))
        places = np.arange(len(together))
        has_front_end = (places >= fits.front_ends.start) & (places < fits.front_ends.stop)
        work, free_bytes, start = Work(), float(MEMORY_BYTES), 0
        for split, of_split in lengths.items():
            part = slice(start, start + len(of_split))
            start += len(of_split)
            size_bytes, missing = sizes[part], places[part] >= fits.stored
            once = ~missing
            is_read_once = split == "test" and fold.trains and not task.pooled
            if is_read_once:
                once |= missing
            elif size_bytes.sum() <= free_bytes or (task.pooled and missing.any()):
                free_bytes -= float(size_bytes.sum())
                once |= missing
            else:
                in_memory = missing & ((size_bytes * missing).cumsum() <= free_bytes)
                free_bytes -= float(size_bytes[in_memory].sum())
                once |= in_memory
            work += Work(memory_bytes=min(MEMORY_BYTES - free_bytes, MEMORY_BYTES))
            form = "means" if task.pooled else f"{spec.features} {spec.rank}"
            work += self._store(
                _Part(fold.corpus, split, of_split, ~missing, has_front_end[part]),
                encoder,
                (key, form),
                float(size_bytes[~missing].sum()),
            )
            work += self._encode(
                _Part(fold.corpus, split, of_split, once & missing, has_front_end[part]), encoder
            )
            anew = _Part(fold.corpus, split, of_split, ~once, has_front_end[part])
            work += self._encode(anew, encoder, _count_draws(task, spec, split, fold))
        return work

    def _store(
        self, part: _Part, encoder: EncoderSize, key: tuple[str, str], size_bytes: float
    ) -> Work:
        """Counts features that the cache keeps for other evaluations of the encoder."""
        entry = ("features", encoder.name, *part.name(), *key)
        if entry in self._stored or not part.selected.any():
            return Work()
        self._stored.add(entry)
        return self._encode(part, encoder) + Work(cache_bytes=size_bytes)

    def _encode(self, part: _Part, encoder: EncoderSize, times: float = 1.0) -> Work:
        """Counts the encoding of the utterances that are selected, so many times each. A front end
        that is stored is computed once for all encoders, any other every time."""
        if not part.selected.any() or not times:
            return Work()
        stored = part.lengths[part.selected & part.has_front_end]
        anew = seconds(part.lengths[part.selected & ~part.has_front_end])
        work = _encode_seconds(
            part.corpus, encoder, times * seconds(part.lengths[part.selected]), times * anew
        )
        return work + self._compute_front_end(part.corpus, part.split, stored, encoder)

    def _compute_front_end(
        self, corpus: str, split: str, lengths: Lengths, encoder: EncoderSize
    ) -> Work:
        if not encoder.front_end_channels or not len(lengths):
            return Work()
        audio = seconds(lengths)
        size_bytes = frames(lengths).sum() * encoder.front_end_channels * FRONT_END_VALUE_BYTES
        entry = ("front end", encoder.name, corpus, split, len(lengths), int(lengths.sum()))
        if entry in self._stored:
            return Work()
        self._stored.add(entry)
        units = {f"front end:{corpus} {encoder.name}": audio}
        return Work(units=units, front_end_seconds=audio, cache_bytes=float(size_bytes))

    def count_finetuning(
        self, spec: FinetuneSpec, sizes: list[ObjectiveSize], encoder: EncoderSize
    ) -> Work:
        """Counts one fine-tuning run."""
        name, encoder = tune_unit(spec, sizes), encoder.at(spec.precision)
        head_only = head_only_updates(spec.head_only_fraction, spec.updates)
        validations = -(-spec.updates // spec.validate_every_updates)
        work = Work(
            units={
                "job:finetune": 1,
                f"tune head:{name}": head_only,
                f"tune:{name}": spec.updates - head_only,
            },
            updates=spec.updates,
            store_bytes=encoder.weight_bytes * (1 + len(spec.keep_at)),
        )
        for objective, size in zip(spec.objectives, sizes, strict=True):
            # Validation, then the comparison of each checkpoint with the start on some dev audio.
            probe = min(PROBE_SECONDS / len(sizes), seconds(size.dev))
            audio = validations * seconds(size.dev) + 2 * (1 + len(spec.keep_at)) * probe
            if HEADS.get(objective.head).masking is not None:  # pseudo-labels
                audio += seconds(size.train) + seconds(size.dev)
            # Statistics: one pass for all kinds, by a sample that reads no cache.
            statistics = 0.0
            if set(spec.gather) - {"waves"}:
                share = min(1.0, EXAMPLES / len(size.train))
                statistics = share * seconds(_crop(spec, objective, size.train))
            front_end = statistics + (0.0 if spec.freeze_front_end else audio)
            work += _encode_seconds(size.corpus, encoder, audio + statistics, front_end)
            work += self._count_front_end(spec, objective, size, encoder)
        return work

    def _count_front_end(
        self, spec: FinetuneSpec, objective: Objective, size: ObjectiveSize, encoder: EncoderSize
    ) -> Work:
        """Counts the frozen front end (``finetuning.features.cache_conv_features``): once where it
        is cached, else for every batch and validation."""
        if not spec.freeze_front_end or not encoder.front_end_channels:
            return Work()
        draws = spec.updates * objective.batch_size
        both = frames(size.train).sum() + frames(size.dev).sum()
        fits = both * encoder.front_end_channels * FRONT_END_VALUE_BYTES <= self._budget
        lengths = _crop(spec, objective, size.train)
        if draws >= len(size.train) and fits and lengths.sum() == size.train.sum():
            return self._compute_front_end(
                size.corpus, "tuned train", size.train, encoder
            ) + self._compute_front_end(size.corpus, "tuned dev", size.dev, encoder)
        audio = draws * seconds(lengths) / len(lengths)
        audio += -(-spec.updates // spec.validate_every_updates) * seconds(size.dev)
        return Work(
            units={f"front end:{size.corpus} {encoder.name}": audio}, front_end_seconds=audio
        )


def _crop(spec: FinetuneSpec, objective: Objective, lengths: Lengths) -> Lengths:
    """Returns the lengths of training clips (``finetuning.data.max_crop_samples``)."""
    if spec.crop_seconds is None or not HEADS.get(objective.head).croppable:
        return lengths
    return lengths.clip(max=round(spec.crop_seconds * SAMPLE_RATE_HZ))


def count_merge(method: str, donors: int, encoder: EncoderSize) -> Work:
    """Counts one merge that is published; without donors, the copy of the start."""
    units = {"job:merge": 1.0, **({f"merge:{method} {donors}": 1.0} if donors else {})}
    return Work(units=units, store_bytes=encoder.weight_bytes)


def count_corpus(name: str, utterances: int) -> Work:
    """Counts the synthesis of a corpus, and the worker processes that it starts (about: each split
    has a last one of its own)."""
    chunks = -(-utterances // CHUNK_UTTERANCES)
    return Work(units={f"synthesise:{name}": utterances, "synthesise start:": chunks})


def count_row_bytes(spec: EvalSpec, encoder: EncoderSize) -> int:
    """Returns the bytes of a row of features: of a mean in float32, or of a frame in the form of
    the spec."""
    if TASKS.get(spec.task).pooled:
        return encoder.state_count * encoder.dim * 4
    return count_frame_bytes(spec, encoder.state_count, encoder.dim)


def _count_draws(task: Task, spec: EvalSpec, split: str, fold: TaskSize) -> float:
    """Returns how often training, or validation, reads an utterance of a split on average."""
    schedule = make_schedule(task, spec)
    if split != "train":
        return -(-spec.updates // schedule.validate_every_updates)
    lengths = fold.splits[split]
    batch = mean_batch_samples(lengths, schedule.batch_size, task.sampling)
    return float(spec.updates * schedule.accumulate * batch / lengths.sum())


def _encode_seconds(corpus: str, encoder: EncoderSize, audio: float, front_end: float) -> Work:
    """Counts audio through the layers, and through the front end of an encoder that has one."""
    name = f"{corpus} {encoder.name}"
    front_end = front_end if encoder.front_end_channels else 0.0
    units = {f"layers:{name}": audio, f"front end:{corpus} {encoder.name}": front_end}
    return Work(
        units={unit: amount for unit, amount in units.items() if amount},
        encoded_seconds=audio,
        front_end_seconds=front_end,
    )


def _count_probe(
    task: Task, spec: EvalSpec, fold: TaskSize, encoder: EncoderSize, dev_only: bool
) -> Work:
    """Counts the updates of all probes and the utterances that they are scored on."""
    name = probe_unit(spec, fold, encoder)
    counts = {split: len(lengths) for split, lengths in fold.splits.items()}
    if not fold.trains:
        queries = counts["dev"] + (0 if dev_only else counts["test"])
        return Work(units={f"match:{name}": queries * counts["train"]})
    probes = spec.seeds * len(select_learning_rates(task, spec))
    validations = -(-spec.updates // make_schedule(task, spec).validate_every_updates)
    scored = validations * counts["dev"] + (0 if dev_only else counts["test"])
    return Work(
        units={f"probe:{name}": probes * spec.updates, f"score:{name}": probes * scored},
        updates=probes * spec.updates,
    )


def scale(work: Work, factor: float) -> Work:
    """Returns the work of so many equal jobs; the memory is that of one."""
    return replace(
        work,
        units={unit: amount * factor for unit, amount in work.units.items()},
        encoded_seconds=work.encoded_seconds * factor,
        front_end_seconds=work.front_end_seconds * factor,
        updates=work.updates * factor,
        cache_bytes=work.cache_bytes * factor,
        store_bytes=work.store_bytes * factor,
    )
