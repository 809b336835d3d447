"""The paper's ablation over alpha, for comparison: phoneme classification on TIMIT, HuBERT Base,
linear merge.

Source: Speech-FT, arXiv 2502.12672v1, Table 9 (scores) and Table 14 (the metrics behind them). One
run per number. Measured on the real SUPERB corpora: only the shape of the curve can be compared
with a sweep over other recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from speechft_ray.core.specs import FinetuneSpec, SweepSpec

SOURCE = "Speech-FT, Tables 9 and 14: phoneme classification on TIMIT, HuBERT Base"
LINK = "https://arxiv.org/abs/2502.12672"


@dataclass(frozen=True, kw_only=True)
class PublishedPoint:
    """One row of Tables 9 and 14. ``metrics`` are percent, by metric name."""

    alpha: float
    score: float
    metrics: Mapping[str, float]


def _point(
    alpha: float, score: float, per: float, sid: float, er: float, slot_f1: float, slot_cer: float
) -> PublishedPoint:
    values = {
        "pr.per": per,
        "sid.accuracy": sid,
        "er.accuracy": er,
        "sf.slot_type_f1": slot_f1,
        "sf.slot_value_cer": slot_cer,
    }
    return PublishedPoint(alpha=alpha, score=score, metrics=values)


ALPHA_ABLATION: tuple[PublishedPoint, ...] = (
    _point(0.00, 870.20, 5.17, 81.86, 64.99, 88.54, 24.70),
    _point(0.10, 874.68, 4.99, 81.19, 65.33, 88.69, 24.01),
    _point(0.25, 877.66, 4.76, 81.78, 65.48, 88.65, 24.05),
    _point(0.50, 843.75, 5.15, 80.24, 64.28, 87.03, 27.22),
    _point(0.75, 810.79, 6.63, 75.34, 63.10, 86.55, 28.47),
    _point(1.00, 726.64, 10.34, 66.34, 61.25, 83.50, 33.82),
)
"""Score and metrics by alpha; 0 is the pre-trained encoder, 1 stable fine-tuning alone."""

ENCODER = "hubert_base"
TUNING = ("timit", "frame", 300_000)
"""Corpus, head and updates of the fine-tuning behind these numbers."""
EVALUATIONS = {"pr": "librispeech", "sid": "voxceleb1", "er": "iemocap", "sf": "snips"}
"""Corpus by task."""


def is_paper_recipe(spec: SweepSpec) -> bool:
    """Whether a sweep has the encoder, a fine-tuning run and the evaluations behind the published
    numbers, each on the whole real corpus: elsewhere the numbers measure something else."""
    corpora = {item.task: item.corpus for item in spec.evaluate if item.in_score}
    names = {task: corpus.name for task, corpus in corpora.items() if not corpus.options}
    return (
        spec.encoder == ENCODER
        and names == EVALUATIONS
        and any(map(_is_paper_tuning, spec.finetune))
    )


def _is_paper_tuning(run: FinetuneSpec) -> bool:
    if len(run.objectives) != 1 or run.objectives[0].corpus.options:
        return False
    objective = run.objectives[0]
    return (objective.corpus.name, objective.head, run.updates) == TUNING
