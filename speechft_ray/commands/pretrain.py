"""The command ``pretrain``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from rich.progress import MofNCompleteColumn, Progress

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.core.units import format_duration
from speechft_ray.core.validation import validate
from speechft_ray.speech.corpora.base import CORPORA, Corpus, Utterance

SYNTHETIC = "synthetic"
LINE_SECONDS = 30.0
"""Between two lines of progress in a log."""


def pretrain_tiny(
    out: Path,
    work: Path,
    name: str = SYNTHETIC,
    options: Mapping[str, JsonValue] | None = None,
    corpora: Path | None = None,
    start: str | None = None,
    updates: int | None = None,
) -> None:
    """Pre-trains the tiny HuBERT on a corpus, and shows progress bars, or where there is no
    terminal a line every 30 s.

    From new weights it has the two rounds of the package. From ``start`` it has one round of
    ``updates`` (default: as many as the last of the package), which predicts as many clusters as
    the last of the package. The same call resumes an interrupted pre-training from ``work``.
    Raises ``UserError`` for an unknown corpus, option or start, for ``updates`` without a start,
    and for a corpus that is nowhere to be found.
    """
    from speechft_ray.pretraining.recipe import PretrainOptions, has_fast_bfloat16
    from speechft_ray.pretraining.run import pretrain
    from speechft_ray.speech.checkpoints.load import load_encoder
    from speechft_ray.stages.sources import open_corpus

    if updates is not None and start is None:
        raise UserError(
            "--updates is for pre-training from a --start, which has one round; from new weights "
            "there are the two rounds of the package."
        )
    recipe = PretrainOptions(bfloat16=has_fast_bfloat16())
    if start is not None:
        rounds = {"updates": (updates or recipe.updates[-1],), "clusters": recipe.clusters[-1:]}
        recipe = recipe.model_copy(update=rounds)

    values = {**({"part": "pretrain"} if name == SYNTHETIC else {}), **(options or {})}
    validate(CORPORA.get(name).options, values, where=f"corpus `{name}`")
    place = Place(
        storage=str(work.absolute()),
        encoder="none",
        corpora=str(corpora.expanduser().absolute()) if corpora else None,
    )
    weights = None if start is None else load_encoder(start)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bars:
        speech, labels, training = (
            bars.add_task(name, total=None) for name in ("speech", "labels", "updates")
        )
        corpus = open_corpus(
            CorpusSpec(name=name, options=values),
            place,
            lambda done, total: bars.update(speech, completed=done, total=total),
        )
        print_update, print_label = (
            _make_printer(bars, name) for name in ("updates", "utterances labelled")
        )

        def label(done: int, total: int) -> None:
            bars.update(labels, completed=done, total=total)
            print_label(done, total)

        def advance(done: int, total: int) -> None:
            bars.update(training, completed=done, total=total)
            print_update(done, total)

        for note in corpus.notes:
            bars.console.print(f"note: {corpus.name}: {note}", markup=False)
        pretrain(
            recipe,
            corpus if corpus.is_in_memory else read_once(corpus),
            out,
            advance,
            work,
            weights,
            label,
        )


def _make_printer(bars: Progress, name: str) -> Callable[[int, int], None]:
    """Returns a function that prints a line of progress where no terminal shows the bars. What is
    counted may begin again, as utterances do in every round."""
    began = last = time.monotonic()
    first = before = math.inf

    def print_line(done: int, total: int) -> None:
        nonlocal began, last, first, before
        now = time.monotonic()
        if done <= before:  # what an earlier call did took no time in this one
            began, last, first = now, now, done
        elif not bars.console.is_terminal and (now - last >= LINE_SECONDS or done == total):
            last = now
            left = format_duration((now - began) / (done - first) * (total - done))
            bars.console.print(f"{done} of {total} {name}, about {left} left", highlight=False)
        before = done

    return print_line


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
