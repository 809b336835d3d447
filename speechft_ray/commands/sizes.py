"""Reads how large the corpora of a sweep are, and opens what a calibration measures on."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechft_ray.commands.parts import corpus_identity
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.cost.calibration import read_child_seconds
from speechft_ray.cost.samples import repeat_utterances
from speechft_ray.cost.sizes import (
    EncoderSize,
    EvaluationSize,
    ObjectiveSize,
    TaskSize,
    estimate_lengths,
    join_recordings,
    measure_task,
    split_lengths,
)
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Corpus, Estimate
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.stages.sources import open_corpus, start_encoder
from speechft_ray.storage.open import open_store
from speechft_ray.superb.tasks.base import TASKS
from speechft_ray.sweep.plan import FBANK

SAMPLE_UTTERANCES = 40
"""Utterances that stand in for a corpus that is not made yet, while a calibration measures."""


class PlaceSizes:
    """The sizes of encoders and corpora, read where they are on disk or in the store, else
    estimated (``cost.jobs.Sizes``)."""

    def __init__(self, place: Place) -> None:
        self._place, self._store = place, open_store(place.storage)
        self._opened: dict[str, Corpus | None] = {}
        self._small: dict[str, Corpus] = {}
        self._evaluations: dict[str, EvaluationSize] = {}
        weights = start_encoder(place.encoder).weights
        weight_bytes = sum(item.numel() * item.element_size() for item in weights.state.values())
        shape = FAMILIES.get(weights.family).describe(weights.config)
        self.encoder = EncoderSize.of("encoder", shape, weight_bytes)
        self.fbank = EncoderSize.of(FBANK, FAMILIES.get(FBANK).describe({}))

    def corpus(self, spec: CorpusSpec) -> tuple[str, int]:
        """Returns the name of a corpus, the same for all its folds and sizes, and the number of
        its utterances."""
        estimate = self._estimate(spec)
        if estimate is not None:
            return self.name(spec), sum(estimate.utterances.values())
        return self.name(spec), len(open_corpus(spec, self._place).utterances)

    def name(self, spec: CorpusSpec) -> str:
        """Returns what a corpus is called in units of work."""
        if CORPORA.get(spec.name).needs_root:
            return f"{spec.name} {open_corpus(spec, self._place).fingerprint[:8]}"
        return f"{spec.name} {spec.options.get('part', '')}".strip()

    def evaluation(self, spec: EvalSpec) -> EvaluationSize:
        """Returns the utterances of an evaluation, as its task reads them."""
        key = spec.model_dump_json(include={"task", "corpus", "column", "options", "folds"})
        if key not in self._evaluations:
            self._evaluations[key] = self._measure_evaluation(spec)
        return self._evaluations[key]

    def _measure_evaluation(self, spec: EvalSpec) -> EvaluationSize:
        corpora = [self._open(corpus) for corpus in spec.corpora()]
        folds = []
        for corpus_spec, corpus in zip(spec.corpora(), corpora, strict=True):
            name = self.name(corpus_spec)
            estimate = self._estimate(corpus_spec)
            if corpus is not None:
                folds.append(measure_task(spec, corpus, name))
            elif estimate is not None:
                folds.append(TaskSize(corpus=name, splits=estimate_lengths(estimate)))
        opened = [corpus for corpus in corpora if corpus is not None]
        recordings = (
            join_recordings(opened, SPLITS)
            if len(opened) == len(corpora) > 1 and TASKS.get(spec.task).pooled
            else None
        )
        return EvaluationSize(folds=folds, recordings=recordings)

    def finetuning(self, spec: FinetuneSpec) -> list[ObjectiveSize]:
        """Returns the utterances of each objective."""
        return [self._measure_objective(objective.corpus) for objective in spec.objectives]

    def _measure_objective(self, spec: CorpusSpec) -> ObjectiveSize:
        corpus, estimate = self._open(spec), self._estimate(spec)
        if corpus is not None:
            lengths = {split: split_lengths(corpus, split) for split in ("train", "dev")}
        else:
            assert estimate is not None
            lengths = estimate_lengths(estimate)
        return ObjectiveSize(corpus=self.name(spec), train=lengths["train"], dev=lengths["dev"])

    def _estimate(self, spec: CorpusSpec) -> Estimate | None:
        kind = CORPORA.get(spec.name)
        return kind.estimate(kind.options.model_validate(spec.options)) if kind.estimate else None

    def _open(self, spec: CorpusSpec) -> Corpus | None:
        """Returns a corpus that is on disk or in the store; ``None`` for one that a job makes."""
        key = canonical_json(spec)
        if key not in self._opened:
            identity, needs_job = corpus_identity(spec, self._place)
            is_there = not needs_job or self._store.is_complete("corpus", identity)
            self._opened[key] = open_corpus(spec, self._place) if is_there else None
        return self._opened[key]

    def sample(self, spec: CorpusSpec) -> Corpus:
        """Returns the corpus, or one like it: some utterances, made now and repeated."""
        corpus, estimate = self._open(spec), self._estimate(spec)
        if corpus is not None:
            # Audio is read when it is asked for: what threads read ahead would be measured too.
            return replace(corpus, is_in_memory=True)
        assert estimate is not None
        if self.name(spec) not in self._small:
            self.time_synthesis(spec, SAMPLE_UTTERANCES)
        return repeat_utterances(self._small[self.name(spec)], estimate)

    def time_synthesis(self, spec: CorpusSpec, utterances: int) -> float:
        """Returns the CPU seconds of making the first training utterances of a corpus, which
        ``sample`` then repeats."""
        kind = CORPORA.get(spec.name)
        sizes = {"train": utterances, "dev": 0, "test": 0}
        options = kind.options.model_validate({**spec.options, **sizes})
        began = read_child_seconds()
        with tempfile.TemporaryDirectory(prefix="speechft-calibration-") as folder:
            corpus = kind.open(options, None, Path(folder))
            waves = {item.key: np.array(corpus.read(item)) for item in corpus.utterances}
        self._small[self.name(spec)] = replace(corpus, read=lambda utterance: waves[utterance.key])
        return read_child_seconds() - began
