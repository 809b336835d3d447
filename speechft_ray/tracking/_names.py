"""Names of runs, params and metrics in trackers; docs/tracking.md lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speechft_ray.core.metrics import METRICS
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.titles import PENALTY, format_value, name_param

Params = Mapping[str, str | float | int]

Point = tuple[str, float, int]
"""Name, value and step of a metric."""


def split_points(points: Iterable[tuple[int, Mapping[str, float]]]) -> list[Point]:
    """Returns the values of the points of a curve one by one; the step is the update."""
    return [(name, value, step) for step, values in points for name, value in values.items()]


def clean_name(name: str) -> str:
    """Returns a name that MLflow accepts: letters, digits, ``_ - . space : /`` (mlflow
    ``utils/validation.py``)."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


def name_params(params: Params, fields: Mapping[str, str]) -> dict[str, str]:
    """Returns the params of a run: what varies under short names (``alpha``, ``lambda``,
    ``method``, ``finetune``, ``seed``), and its whole resolved spec (``fields``)."""
    short = {name_param(name): str(item) for name, item in params.items()}
    penalty = fields.get(f"finetune.{PENALTY}")
    if penalty is not None:
        short.setdefault("lambda", penalty)
    return {**short, **fields}


def name_run(params: Params, fields: Mapping[str, str], kind: str = "encoder") -> str:
    """Returns the name of a run, what matters most first, since tables cut it:
    ``a=0.25 l=0 linear s1 phones``. That of a fine-tuning run (``kind`` is ``finetune``) begins
    with ``tune``, that of an encoder outside any sweep is ``evaluate pr,sid hubert_base``."""
    rest = {name: format_value(value) for name, value in params.items() if name != "state"}
    penalty = rest.pop(PENALTY, None) or fields.get(f"finetune.{PENALTY}")
    alpha, trial, seed = (rest.pop(name, None) for name in ("alpha", "trial", "seed"))
    method, finetune = (rest.pop(name, None) for name in ("method", "finetune"))
    tasks, encoder = (rest.pop(name, "") for name in ("tasks", "encoder"))
    parts = ["tune" if kind == "finetune" else "evaluate" if tasks else ""]
    parts += [tasks, Path(encoder).name]
    parts += [f"t{trial}" if trial is not None else ""]
    parts += [f"a={alpha}" if alpha is not None else ""]
    parts += [f"l={_format_number(penalty)}" if penalty is not None else ""]
    parts += ["pre-trained" if method == "none" else method or ""]
    parts += [f"{name_param(name)}={value}" for name, value in rest.items()]
    parts += [f"s{seed}" if seed is not None else ""]
    parts += [finetune if finetune not in (None, "none") else ""]
    return " ".join(filter(None, parts))


def name_metrics(row: EncoderRow) -> dict[str, float]:
    """Returns the numbers of a row by metric key: ``test/pr.per``, ``dev/score``,
    ``spread/pr.per``, ``seconds/pr``. An ``extra`` metric keeps its name."""
    keys = {
        **{f"test/{name}": value for name, value in row.test.items()},
        **{f"dev/{name}": value for name, value in row.dev.items()},
        **{f"spread/{name}": value for name, value in row.spread.items()},
        **{f"seconds/{name}": value for name, value in row.seconds.items()},
        **row.extra,
    }
    return {clean_name(key): value for key, value in keys.items()}


def is_result(key: str) -> bool:
    """Whether a metric key is of a measured result: of test, dev or the spread over seeds."""
    return key.partition("/")[0] in ("test", "dev", "spread")


def describe_metrics(names: Sequence[str]) -> str:
    """Returns a table in Markdown: what each metric of a task is, its unit, and what is better."""
    lines = ["| metric | meaning | unit | better |", "|---|---|---|---|"]
    for name in names:
        item = METRICS[name]
        better = "higher" if item.higher_is_better else "lower"
        lines.append(f"| `test/{name}`, `dev/{name}` | {item.title} | {item.unit} | {better} |")
    return "\n".join(lines)


def _format_number(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:  # several donors, with several values
        return text
