"""The command ``pretrain``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from rich.progress import MofNCompleteColumn, Progress

from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.core.validation import validate
from speechft_ray.speech.corpora.base import CORPORA, Corpus, Utterance

SYNTHETIC = "synthetic"


def pretrain_tiny(
    out: Path,
    work: Path,
    name: str = SYNTHETIC,
    options: Mapping[str, JsonValue] | None = None,
    corpora: Path | None = None,
) -> None:
    """Pre-trains the tiny HuBERT on a corpus, with the options of the package, and shows progress
    bars.

    The same call resumes an interrupted pre-training from ``work``. Raises ``UserError`` for an
    unknown corpus or option, and for a corpus that is nowhere to be found.
    """
    from speechft_ray.pretraining.recipe import PretrainOptions
    from speechft_ray.pretraining.run import pretrain
    from speechft_ray.stages.perform import open_corpus

    values = {**({"part": "pretrain"} if name == SYNTHETIC else {}), **(options or {})}
    validate(CORPORA.get(name).options, values, where=f"corpus `{name}`")
    place = Place(
        storage=str(work.absolute()),
        encoder="none",
        corpora=str(corpora.expanduser().absolute()) if corpora else None,
    )
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bars:
        speech, updates = bars.add_task("speech", total=None), bars.add_task("updates", total=None)
        corpus = open_corpus(
            CorpusSpec(name=name, options=values),
            place,
            lambda done, total: bars.update(speech, completed=done, total=total),
        )
        for note in corpus.notes:
            bars.console.print(f"note: {corpus.name}: {note}", markup=False)
        pretrain(
            PretrainOptions(),
            corpus if corpus.is_in_memory else read_once(corpus),
            out,
            lambda done, total: bars.update(updates, completed=done, total=total),
            work,
        )


def read_once(corpus: Corpus) -> Corpus:
    """Returns a corpus that keeps every recording in memory after its first reading: crops of each
    are drawn dozens of times. An hour takes 230 MB."""
    waves: dict[str, np.ndarray] = {}

    def read(utterance: Utterance) -> np.ndarray:
        if utterance.key not in waves:
            waves[utterance.key] = corpus.read(utterance)
        wave: np.ndarray = waves[utterance.key].copy()
        return wave

    return replace(corpus, read=read, is_in_memory=True)
