"""Reads what trackers wrote, by means other than the trackers' own code: SQL and a JSON parser."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple


class View(NamedTuple):
    """The state of one sweep. Metrics of an encoder are named as the sweep names them."""

    curves: dict[str, dict[str, dict[int, float]]]
    encoders: dict[str, dict[str, float]]
    ended: str
    lines: int
    """Lines of the log, or rows of all tables that results go to."""


def view_of(root: Path, sweep: str = "sweep-key") -> View:
    """Reads the view in a storage folder."""
    return (
        _view_of_mlflow(root / "mlflow.db", sweep)
        if (root / "mlflow.db").exists()
        else _view_of_log(root / "log", sweep)
    )


def champion_of(root: Path, sweep: str = "sweep-key") -> tuple[str, int]:
    """The encoder that was chosen last, and how many different ones were."""
    if (root / "mlflow.db").exists():
        named = query(
            root / "mlflow.db",
            "select name, version from registered_model_aliases where alias = 'champion'",
        )
        ((name, version),) = named
        tags = (
            "select version, value from model_version_tags where name = ? and key = 'speechft.key'"
        )
        keys = dict(query(root / "mlflow.db", tags, name))
        assert list(root.rglob("artifacts/encoder/encoder.safetensors"))
        return keys[int(version)], len(keys)
    (path,) = (root / "log").glob(f"*-{sweep[:12]}.jsonl")
    told = [
        line
        for line in map(json.loads, path.read_text().splitlines())
        if line["kind"] == "champion"
    ]
    return told[-1]["encoder"], len(told)


def query(database: Path, statement: str, *values: Any) -> list[Any]:
    """Returns the rows of a query."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(statement, values).fetchall()


def _view_of_log(folder: Path, sweep: str) -> View:
    (path,) = folder.glob(f"*-{sweep[:12]}.jsonl")
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    last = {(line["kind"], line["key"]): line for line in lines}
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for (kind, key), line in last.items():
        if kind == "curve":
            named: dict[str, dict[int, float]] = defaultdict(dict)
            for update, values in line["points"]:
                for name, value in values.items():
                    named[name][update] = value
            curves[key] = dict(named)
    encoders = {key: line["metrics"] for (kind, key), line in last.items() if kind == "encoder"}
    ended = last.get(("finish", sweep), {"status": "running"})["status"]
    return View(curves, encoders, ended, len(lines))


def _view_of_mlflow(database: Path, sweep: str) -> View:
    parents = query(
        database,
        "select r.run_uuid, r.status from runs r join tags k on k.run_uuid = r.run_uuid and k.key = 'speechft.key' "
        "join tags t on t.run_uuid = r.run_uuid and t.key = 'speechft.kind' where k.value = ? and t.value = 'sweep'",
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
    curves = {key: _points(database, run) for run, _, key, kind in children if kind == "finetune"}
    encoders = {key: _latest(database, run) for run, _, key, kind in children if kind == "encoder"}
    tables = ("runs", "metrics", "params", "tags")
    rows = sum(query(database, f"select count(*) from {table}")[0][0] for table in tables)
    return View(curves, encoders, ended, rows)


def _points(database: Path, run: str) -> dict[str, dict[int, float]]:
    found = query(database, "select key, step, value from metrics where run_uuid = ?", run)
    assert len({(key, step) for key, step, _ in found}) == len(found), "a point is there twice"
    named: dict[str, dict[int, float]] = defaultdict(dict)
    for key, step, value in found:
        named[key][step] = value
    return dict(named)


def _latest(database: Path, run: str) -> dict[str, float]:
    found = query(database, "select key, value from latest_metrics where run_uuid = ?", run)
    return {name.removeprefix("test."): value for name, value in found}
