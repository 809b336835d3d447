"""The verb ``pretrain``."""

from __future__ import annotations

from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress

from speechft_ray.speech.corpora.base import CORPORA


def pretrain_tiny(out: Path, work: Path) -> None:
    """Pre-trains the tiny HuBERT with the recipe of the package; the same call goes on after an interruption."""
    from speechft_ray.pretraining.recipe import PretrainOptions
    from speechft_ray.pretraining.run import pretrain

    kind = CORPORA.get("synthetic")
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bars:
        sound, learn = bars.add_task("speech", total=None), bars.add_task("updates", total=None)
        options = kind.options.model_validate({"part": "pretrain"})
        corpus = kind.open(
            options,
            None,
            work / "corpora",
            lambda done, total: bars.update(sound, completed=done, total=total),
        )
        pretrain(
            PretrainOptions(),
            corpus,
            out,
            lambda done, total: bars.update(learn, completed=done, total=total),
            work,
        )
