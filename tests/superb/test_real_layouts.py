"""From a folder in a real layout to the metrics: every task on its SUPERB corpus, with a toy
encoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import read_scores
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.tasks.base import TASKS
from tests.speech.layouts import librispeech
from tests.superb.real_layouts import LAYOUTS, ROWS
from tests.superb.toy_models import ToyEncoder


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row[0] in TASKS.names()], ids=lambda row: row[0]
)
def test_a_task_runs_from_folder_to_metric(
    row: tuple[str, str, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    task, name, corpus_options, options = row
    kind = CORPORA.get(name)
    corpus = kind.open(
        kind.options.model_validate(corpus_options),
        LAYOUTS[name].lay_out(tmp_path / "root"),
        tmp_path / "cache",
    )
    spec = EvalSpec(
        task=task,
        corpus=CorpusSpec(name=name, options=corpus_options),
        updates=2,
        batch_size=4,
        options=options,
    )
    facts = evaluate(spec, ToyEncoder(), corpus, torch.device("cpu"), lambda _: None)
    scores = read_scores(facts)
    assert {score.metric for score in scores} == set(TASKS.get(task).metrics)
    assert all(math.isfinite(value) for score in scores for value in score.values)


def test_a_word_without_a_pronunciation_is_reported_by_the_task_that_needs_it(
    tmp_path: Path,
) -> None:
    root = librispeech.lay_out(tmp_path / "root")
    lexicon = root / "lexicon/librispeech-lexicon-allothers-g2p.txt"
    lexicon.write_text(lexicon.read_text().replace("SONG", "SANG"))
    kind = CORPORA.get("librispeech")
    corpus = kind.open(kind.options.model_validate({}), root, tmp_path / "cache")
    spec = EvalSpec(task="pr", corpus=CorpusSpec(name="librispeech"), updates=2)
    with pytest.raises(
        UserError, match=r"The column `phones`: 1 words have no pronunciation in .* \(SONG\)"
    ):
        evaluate(spec, ToyEncoder(), corpus, torch.device("cpu"), lambda _: None)
