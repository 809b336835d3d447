"""Reads what trackers stored without the code of the trackers: by SQL and a JSON parser."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tests.tracking.event_views import read_tensorboard_champion, read_tensorboard_runs


class View(NamedTuple):
    """The state of one sweep. Metrics of an encoder are named as the sweep names them."""

    curves: dict[str, dict[str, dict[int, float]]]
    """Of fine-tuning runs, and of the probes of encoders; those without points are left out."""
    encoders: dict[str, dict[str, float]]
    ended: str
    lines: int
    """Lines of the log, or rows of all tables that have results."""
    failures: dict[str, str]
    """Why the last attempt of a run failed, by key."""


def view_of(root: Path, sweep: str = "sweep-key") -> View:
    """Reads the view in a storage folder."""
    if (root / "mlflow.db").exists():
        return _view_of_mlflow(root / "mlflow.db", sweep)
    if (root / "tensorboard").exists():
        return view_of_tensorboard(root / "tensorboard", sweep)
    return _view_of_log(root / "log", sweep)


def read_registered_model(root: Path, sweep: str = "sweep-key") -> tuple[str, int]:
    """Returns the encoder that was registered last, and how many different ones were."""
    if (root / "mlflow.db").exists():
        aliases = query(
            root / "mlflow.db",
            "select name, version from registered_model_aliases where alias = 'champion'",
        )
        ((name, version),) = aliases
        tags = (
            "select version, value from model_version_tags where name = ? and key = 'speechft.key'"
        )
        keys = dict(query(root / "mlflow.db", tags, name))
        assert list(root.rglob("artifacts/artifacts/encoder/*.safetensors"))
        return keys[int(version)], len(keys)
    if (root / "tensorboard").exists():
        return read_tensorboard_champion(root / "tensorboard", sweep)
    (path,) = (root / "log").rglob(f"*-{sweep[:12]}.jsonl")
    chosen = [
        line
        for line in map(json.loads, path.read_text().splitlines())
        if line["kind"] == "champion"
    ]
    return chosen[-1]["encoder"], len(chosen)


def query(database: Path, statement: str, *values: Any) -> list[Any]:
    """Returns the rows of a query."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(statement, values).fetchall()


def view_of_tensorboard(folder: Path, sweep: str) -> View:
    """Returns what TensorBoard's own reader finds."""
    runs = read_tensorboard_runs(folder, sweep)
    own = runs.pop(sweep)
    curves, encoders = {}, {}
    for key, run in runs.items():
        points = {
            name: values
            for name, values in run.scalars.items()
            if name.startswith(("train/", "probe/"))
            or (name.startswith("dev/") and 0 not in values)
        }
        results = {
            name.removeprefix("test/").replace("dev/", "dev."): values[max(values)]
            for name, values in run.scalars.items()
            if name not in points
        }
        if points:
            curves[key] = points
        if results:
            encoders[key] = results
    failures = {
        key: run.texts["error"]
        for key, run in runs.items()
        if run.texts.get("state") == "failed" and run.texts["error"]
    }
    events = sum(run.events for run in (*runs.values(), own))
    return View(curves, encoders, own.texts.get("state", "running"), events, failures)


def _view_of_log(folder: Path, sweep: str) -> View:
    (path,) = folder.rglob(f"*-{sweep[:12]}.jsonl")
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    last = {(line["kind"], line["key"]): line for line in lines}
    curves: dict[str, dict[str, dict[int, float]]] = {}
    seen: set[tuple[str, str, int]] = set()
    for line in lines:
        if line["kind"] in ("points", "curve"):
            by_name = curves.setdefault(line["key"], {})
            for update, values in line["points"]:
                for name, value in values.items():
                    point = (line["key"], name, update)
                    assert line["kind"] == "curve" or point not in seen, "a point is there twice"
                    seen.add(point)
                    by_name.setdefault(name, {})[update] = value
    order = {(line["kind"], line["key"]): place for place, line in enumerate(lines)}
    failures = {
        key: line["error"]
        for (kind, key), line in last.items()
        if kind == "failure"
        and order["failure", key]
        > max(order.get((later, key), -1) for later in ("curve", "encoder"))
    }
    encoders = {key: line["metrics"] for (kind, key), line in last.items() if kind == "encoder"}
    ended = last.get(("finish", sweep), {"status": "running"})["status"]
    return View(curves, encoders, ended, len(lines), failures)


def _view_of_mlflow(database: Path, sweep: str) -> View:
    parents = query(
        database,
        "select r.run_uuid, r.status from runs r "
        "join tags k on k.run_uuid = r.run_uuid and k.key = 'speechft.key' "
        "join tags t on t.run_uuid = r.run_uuid and t.key = 'speechft.kind' "
        "where k.value = ? and t.value = 'sweep'",
        sweep,
    )
    ((parent, status),) = parents  # exactly one
    children = query(
        database,
        "select r.run_uuid, r.status, k.value, t.value from runs r "
        "join tags p on p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId' and p.value = ? "
        "join tags k on k.run_uuid = r.run_uuid and k.key = 'speechft.key' "
        "join tags t on t.run_uuid = r.run_uuid and t.key = 'speechft.kind'",
        parent,
    )
    assert len({key for _, _, key, _ in children}) == len(children), "a key has two runs"
    ended = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "running"}[
        status
    ]
    if ended != "running":
        assert all(state != "RUNNING" for _, state, _, _ in children), "a run was left open"
    curves = {key: _points(database, run) for run, _, key, _ in children}
    curves = {key: of_run for key, of_run in curves.items() if of_run}
    reasons = query(database, "select run_uuid, value from tags where key = 'speechft.error'")
    failed = {run: key for run, state, key, _ in children if state == "FAILED"}
    assert set(failed) == {run for run, _ in reasons}
    failures = {failed[run]: reason for run, reason in reasons}
    encoders = {key: _latest(database, run) for run, _, key, kind in children if kind == "encoder"}
    tables = ("runs", "metrics", "params", "tags")
    rows = sum(query(database, f"select count(*) from {table}")[0][0] for table in tables)
    return View(curves, encoders, ended, rows, failures)


def _points(database: Path, run: str) -> dict[str, dict[int, float]]:
    points = query(
        database,
        "select key, step, value from metrics where run_uuid = ? and (key like 'train/%' or "
        "key like 'probe/%' or key like 'dev/%' and step > 0)",
        run,
    )
    assert len({(key, step) for key, step, _ in points}) == len(points), "a point is there twice"
    by_name: dict[str, dict[int, float]] = defaultdict(dict)
    for key, step, value in points:
        by_name[key][step] = value
    return dict(by_name)


def _latest(database: Path, run: str) -> dict[str, float]:
    values = query(database, "select key, value from latest_metrics where run_uuid = ?", run)
    return {
        name.removeprefix("test/").replace("dev/", "dev.").replace("spread/", "spread."): value
        for name, value in values
        if not name.startswith("probe/")
    }
