"""The verb ``tasks``: what can be evaluated, on which corpora, with which metrics and settings."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from speechft_ray.core.metrics import METRICS, Metric
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.superb.tasks.base import TASKS, Task


def print_tasks(console: Console) -> None:
    """Prints every task with its metrics, label columns, published corpus and steps."""
    table = Table("task", "metrics", "label columns", "published corpus", "updates", box=None)
    for name, task in TASKS.items():
        table.add_row(
            name,
            ", ".join(map(_describe_briefly, task.metrics)),
            ", ".join(task.columns) or "any",
            task.published.corpus if task.published else "own recordings",
            f"{task.published.updates:,}" if task.published else "",
        )
    console.print(table)
    console.print("`speechft tasks TASK` prints one in full; docs/superb.md has the protocols.")


def print_task(name: str, console: Console) -> None:
    """Prints all of one task. Raises ``UserError`` for an unknown one."""
    task = TASKS.get(name)
    table = Table.grid(padding=(0, 2, 0, 0))
    for title, text in _list_facts(name, task):
        table.add_row(f"[bold]{title}[/bold]", text)
    console.print(table)


def _list_facts(name: str, task: Task) -> list[tuple[str, str]]:
    rows = [("task", name)]
    rows += [("metric", _describe(METRICS[metric])) for metric in task.metrics]
    rows.append(("label columns", ", ".join(task.columns) or "any; say which with `column`"))
    if task.published is not None:
        corpus = task.published.corpus
        rows.append(("published corpus", corpus))
        rows.append(("its files", CORPORA.get(corpus).layout))
        rows.append(("updates", f"{task.published.updates:,}"))
        rows += [
            ("folds", f"{option}: {list(values)}")
            for option, values in task.published.folds.items()
        ]
    rows.append(("probe", f"learning rate {task.learning_rate:g}, batch {task.batch_size}"))
    rows.append(("features", "mean over frames" if task.pooled else "all frames"))
    defaults = task.options().model_dump(mode="json")
    rows += [("option", f"{key}={json.dumps(value)}") for key, value in defaults.items()]
    return rows


def _describe_briefly(name: str) -> str:
    return f"{name} {'↑' if METRICS[name].higher_is_better else '↓'}"


def _describe(metric: Metric) -> str:
    way = "higher is better" if metric.higher_is_better else "lower is better"
    scale = (
        f"; scores 0 at {metric.fbank:g} and 1000 at {metric.sota:g} (paper, Table 15)"
        if metric.fbank is not None and metric.sota is not None
        else ""
    )
    return f"{metric.name} ({metric.title}), {metric.unit}, {way}{scale}"
