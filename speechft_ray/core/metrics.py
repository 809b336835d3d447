"""The table of metrics: name, unit, direction and format of every number that is reported."""

from __future__ import annotations

from dataclasses import dataclass, replace

from speechft_ray.core.errors import UserError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. ``name`` is ``<task>.<measure>``; ``unit`` is ``percent`` or ``value``."""

    name: str
    title: str
    task: str
    higher_is_better: bool
    unit: str = "percent"
    fbank: float | None = None
    """Value that counts as 0 in the score (paper Table 15, FBank)."""
    sota: float | None = None
    """Value that counts as 1 in the score (paper Table 15, best of several models)."""

    def format(self, value: float) -> str:
        """Returns the value as tables print it."""
        return f"{value:.4f}" if self.unit == "value" else f"{value:.2f}"


class MetricTable(dict[str, Metric]):
    """Metrics by name. Beside those listed it has each of them under the name of an evaluation
    (``name_metric``): ``pr.per.czech``, titled ``PR PER (czech)``."""

    def __missing__(self, name: str) -> Metric:
        task, _, rest = name.partition(".")
        measure, _, evaluation = rest.partition(".")
        base = self.get(f"{task}.{measure}")
        if base is None or not evaluation:
            raise KeyError(name)
        title = f"{base.title} ({evaluation})"
        return replace(base, name=name, title=title, task=label_evaluation(task, evaluation))

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        try:
            return isinstance(name, str) and bool(self[name])
        except KeyError:
            return False


def label_evaluation(task: str, name: str | None) -> str:
    """Returns what tells an evaluation from the others of a sweep: its task, and its name if it has
    one."""
    return task if name is None else f"{task}.{name}"


def name_metric(metric: str, name: str | None) -> str:
    """Returns a metric of an evaluation with this name, ``pr.per.czech`` for ``pr.per``."""
    return metric if name is None else f"{metric}.{name}"


def _table(*metrics: Metric) -> MetricTable:
    return MetricTable({metric.name: metric for metric in metrics})


METRICS = _table(
    Metric(
        name="pr.per", title="PR PER", task="pr", higher_is_better=False, fbank=82.01, sota=2.55
    ),
    Metric(
        name="asr.wer", title="ASR WER", task="asr", higher_is_better=False, fbank=23.18, sota=3.36
    ),
    Metric(
        name="ks.accuracy", title="KS ACC", task="ks", higher_is_better=True, fbank=8.63, sota=97.89
    ),
    Metric(
        name="qbe.mtwv",
        title="QbE MTWV",
        task="qbe",
        higher_is_better=True,
        unit="value",
        fbank=0.0058,
        sota=0.1125,
    ),
    Metric(
        name="sid.accuracy",
        title="SID ACC",
        task="sid",
        higher_is_better=True,
        fbank=0.09,
        sota=95.25,
    ),
    Metric(
        name="asv.eer", title="ASV EER", task="asv", higher_is_better=False, fbank=9.56, sota=3.84
    ),
    Metric(
        name="sd.der", title="SD DER", task="sd", higher_is_better=False, fbank=10.05, sota=3.47
    ),
    Metric(
        name="er.accuracy",
        title="ER ACC",
        task="er",
        higher_is_better=True,
        fbank=35.39,
        sota=70.68,
    ),
    Metric(
        name="ic.accuracy",
        title="IC ACC",
        task="ic",
        higher_is_better=True,
        fbank=10.44,
        sota=99.34,
    ),
    Metric(
        name="sf.slot_type_f1",
        title="SF F1",
        task="sf",
        higher_is_better=True,
        fbank=69.64,
        sota=92.35,
    ),
    Metric(
        name="sf.slot_value_cer",
        title="SF CER",
        task="sf",
        higher_is_better=False,
        fbank=52.92,
        sota=17.61,
    ),
    Metric(name="asr_zh.cer", title="zh ASR CER", task="asr_zh", higher_is_better=False),
    Metric(name="chars.cer", title="CER", task="chars", higher_is_better=False),
    Metric(name="label.accuracy", title="Label ACC", task="label", higher_is_better=True),
    Metric(name="finetune.accuracy", title="Dev ACC", task="finetune", higher_is_better=True),
    Metric(
        name="finetune.masked_accuracy",
        title="Dev masked ACC",
        task="finetune",
        higher_is_better=True,
    ),
    Metric(
        name="finetune.token_error_rate", title="Dev TER", task="finetune", higher_is_better=False
    ),
)
"""Every metric. ``fbank`` and ``sota`` are Table 15 of the paper; metrics without them need stated
references."""


def metric(name: str) -> Metric:
    """Returns the metric of that name. Raises ``UserError`` with the nearest name and the list."""
    if name not in METRICS:
        raise UserError(unknown_name("metric", name, METRICS))
    return METRICS[name]


def metrics_of(task: str, name: str | None = None) -> list[Metric]:
    """Returns the metrics of one task, in table order; those of an evaluation with this name."""
    return [METRICS[name_metric(key, name)] for key, item in METRICS.items() if item.task == task]


def is_better(name: str, value: float, than: float) -> bool:
    """Whether ``value`` is strictly better than ``than`` in this metric."""
    return value > than if metric(name).higher_is_better else value < than
