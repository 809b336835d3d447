"""The verbs of the command line as functions: run, evaluate, merge."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechft_ray.api.frames import make_frame
from speechft_ray.api.results import SweepResults
from speechft_ray.commands.evaluate import evaluate_tasks
from speechft_ray.commands.merge import merge_models
from speechft_ray.commands.parts import resolve_encoder
from speechft_ray.commands.spaces import (
    SweepOptions,
    find_report_folder,
    make_cache_fields,
    open_space_sweep,
)
from speechft_ray.commands.stored import read_sweep
from speechft_ray.commands.sweep import run as run_sweep
from speechft_ray.commands.trackers import parse_trackers
from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import metric
from speechft_ray.core.records import Limits, Place, read_scores
from speechft_ray.core.signals import stop_on_signals
from speechft_ray.report.winner import label_plan
from speechft_ray.storage.address import resolve_storage
from speechft_ray.sweep.space_changes import make_changes

if TYPE_CHECKING:
    import pandas as pd


def run(
    space: str | Path | Mapping[str, Any] = "alpha",
    *,
    address: str | None = "local",
    storage: str | Path = "runs",
    encoder: str | None = None,
    corpora: str | Path | None = None,
    manifest: str | Path | None = None,
    report: str | Path | None = None,
    mlflow: str | None = None,
    track: str | None = None,
    changes: Mapping[str, Any] | None = None,
    smoke: bool = False,
    cpu: bool = False,
    cache: str | Path | None = None,
    cache_gb: float = 50.0,
    retries: int = 3,
) -> SweepResults:
    """Runs a sweep as ``speechft run`` does and returns its results; finished work is not repeated.

    ``space``: a YAML file, the name of a packaged space, or its content as a mapping. ``address``:
    ``local`` starts Ray here, ``auto`` or ``HOST:PORT`` is a running cluster, ``None`` is this
    process without Ray. ``track``: trackers with commas between them, or ``none``. ``changes``:
    other values by path, ``{"evaluate[0].updates": 50}``. ``smoke``: a few updates of everything on
    small synthetic corpora, in a storage of its own. ``storage``: a folder or a URL of a bucket.
    ``cache_gb``: 10^9 bytes.

    Jobs that failed are printed and missing in the results. Raises ``UserError`` for bad input
    before anything is computed, and ``Interrupted`` when it is stopped (Ctrl-C); the same call
    goes on.
    """
    trackers = parse_trackers(track, mlflow)
    options = SweepOptions(
        storage=storage,
        encoder=encoder,
        corpora=_as_path(corpora),
        manifest=_as_path(manifest),
        cpu=cpu,
        smoke=smoke,
        changes=make_changes(changes or {}),
        place=make_cache_fields(cache, cache_gb),
    )
    sweep = open_space_sweep(space, options, _print_note)
    folder = _as_path(report) or find_report_folder(sweep)
    with stop_on_signals() as stop:
        run_sweep(sweep, address, folder, mlflow, stop, Limits(retries=retries), trackers)
    return SweepResults(sweep.store, read_sweep(sweep.store, label_plan(sweep.plan, sweep.store)))


def evaluate(
    encoder: str | Path,
    tasks: str | Sequence[str],
    *,
    address: str | None = "local",
    storage: str | Path = "runs",
    corpus: str | Path | None = None,
    cpu: bool = False,
    **fields: Any,
) -> pd.DataFrame:
    """Evaluates one encoder on tasks, as ``speechft evaluate`` does; what the store has is not
    computed again.

    ``encoder``: a name of ``speechft encoders``, a file or folder, or ``fbank``. ``corpus``: folder
    of the tasks' corpus or a manifest; ``None`` is synthetic speech, made for each task.
    ``fields`` are those of an evaluation in a search space (``updates``, ``learning_rate``,
    ``seeds``, ``options``, ...), and ``corpus_options``; the rest is the published protocol.

    Returns one row per metric and split: ``task``, ``metric``, ``unit``, ``split``, ``value`` (mean
    over probe seeds), ``spread`` (their sample standard deviation), ``seeds``. Raises ``UserError``
    for bad input, and where a task failed.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    place = Place(
        storage=resolve_storage(storage),
        encoder=resolve_encoder(str(encoder)),
        device="cpu" if cpu else "auto",
    )
    with stop_on_signals() as stop:
        results = evaluate_tasks(names, _as_path(corpus), fields, place, address, stop)
    if failed := [task for task, facts in results.items() if facts is None]:
        raise UserError(f"no result of {', '.join(failed)}: the reason is printed above.")
    records = [
        {
            "task": task,
            "metric": score.metric,
            "unit": metric(score.metric).unit,
            "split": score.split,
            "value": score.mean,
            "spread": statistics.stdev(score.values) if len(score.values) > 1 else None,
            "seeds": len(score.values),
        }
        for task, facts in results.items()
        for score in read_scores(facts or {})
    ]
    return make_frame(records, ["task", "metric", "unit", "split", "value", "spread", "seeds"])


def merge(
    method: str,
    base: str | Path,
    donors: Sequence[str | Path],
    out: str | Path,
    *,
    alpha: float = 1.0,
    params: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Merges models that were tuned from ``base``, as ``speechft merge`` does, and writes ``out``.

    ``alpha``: 0 is the base, 1 the whole merge. ``params`` are those of the method. Returns
    ``out``. Raises ``UserError`` for models and parameters that do not fit.
    """
    path = Path(out).expanduser()
    merge_models(
        method, dict(params or {}), str(base), list(map(str, donors)), alpha, path, replace
    )
    return path


def _as_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def _print_note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
