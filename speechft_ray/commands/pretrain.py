"""The command ``pretrain``."""

from __future__ import annotations

from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress

from speechft_ray.speech.corpora.base import CORPORA


def pretrain_tiny(out: Path, work: Path) -> None:
    """Pre-trains the tiny HuBERT with the options of the package, and shows progress bars.

    The same call resumes an interrupted pre-training from ``work``.
    """
    from speechft_ray.pretraining.recipe import PretrainOptions
    from speechft_ray.pretraining.run import pretrain

    kind = CORPORA.get("synthetic")
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bars:
        speech, updates = bars.add_task("speech", total=None), bars.add_task("updates", total=None)
        options = kind.options.model_validate({"part": "pretrain"})
        corpus = kind.open(
            options,
            None,
            work / "corpora",
            lambda done, total: bars.update(speech, completed=done, total=total),
        )
        pretrain(
            PretrainOptions(),
            corpus,
            out,
            lambda done, total: bars.update(updates, completed=done, total=total),
            work,
        )
