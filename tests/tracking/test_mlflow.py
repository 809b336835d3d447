"""The MLflow tracker: the content of its database, and its errors when MLflow is down."""

from __future__ import annotations

import errno
import math
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.store import Store
from speechft_ray.report.search_summary import make_trial_row
from speechft_ray.sweep.predictions import is_prediction
from speechft_ray.sweep.protocols import (
    Curve,
    EncoderRow,
    Model,
    Span,
    SweepEnd,
    SweepInfo,
    TrackerDown,
)
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.verification import add_verified
from speechft_ray.tracking import _mlflow_client
from speechft_ray.tracking._damaged_database import is_damaged
from speechft_ray.tracking.mlflow import MlflowTracker
from tests.report.test_rungs import collect
from tests.search.test_rungs import screen_plan
from tests.sweep.fakes import inputs
from tests.sweep.test_predictions import plan_curve, run
from tests.tracking.storages import mlflow_storage, mlflow_template
from tests.tracking.views import query

__all__ = ["mlflow_storage", "mlflow_template"]  # fixtures
SWEEP = SweepInfo("sweep-key", "alpha", {"encoder": "tiny_hubert"})
SERIES = {"linear narrow lambda 0": [(0.25, 806.0)], "linear narrow lambda 0.01": [(1.0, 500.0)]}


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def open_tracker(root: Path) -> MlflowTracker:
    tracker = MlflowTracker(None, root)
    tracker.start(SWEEP)
    return tracker


def row(alpha: float = 0.25, **parts: Any) -> EncoderRow:
    return EncoderRow(
        key=f"merged-{alpha}",
        title=f"linear alpha={alpha}",
        params={"alpha": alpha, "method": "linear"},
        complete=True,
        **parts,
    )


def test_the_layout(mlflow_storage: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.mkdir()
    (report / "table.csv").write_text("alpha,score\n")
    tracker = open_tracker(mlflow_storage)
    tracker.log_encoder(row(test={"score": 812.5, "pr.per": 7.25}, dev={"pr.per": 7.0}))
    tracker.log_curve(Curve("tuned", "narrow", {"seed": 0}, [(10, {"loss": 2.0})]))
    tracker.finish(SweepEnd("finished", report, SERIES))

    database = mlflow_storage / "mlflow.db"
    ((place,),) = query(database, "select artifact_location from experiments where name = 'alpha'")
    assert place == (mlflow_storage / "mlartifacts" / "alpha").as_uri()
    names = (
        "select r.name, r.status from runs r join experiments e using (experiment_id) "
        "where e.name = 'alpha'"
    )
    assert sorted(query(database, names)) == [
        (name, "FINISHED") for name in ("a=0.25 linear", "alpha", "tune s0")
    ]
    metrics = (
        "select key, value, step, timestamp from metrics join runs using (run_uuid) "
        "where name = ? order by key, step"
    )
    assert query(database, metrics, "a=0.25 linear") == [
        ("dev/pr.per", 7.0, 0, 0),
        ("test/pr.per", 7.25, 0, 0),
        ("test/score", 812.5, 0, 0),
    ]
    assert query(database, metrics, "tune s0") == [("loss", 2.0, 10, 10_000)]
    assert query(database, metrics, "alpha") == [
        ("score_by_alpha/linear narrow lambda 0", 806.0, 250, 250_000),
        ("score_by_alpha/linear narrow lambda 0.01", 500.0, 1000, 1_000_000),
    ]
    params = (
        "select key, p.value from params p join runs using (run_uuid) where name = ? order by key"
    )
    assert query(database, params, "a=0.25 linear") == [("alpha", "0.25"), ("method", "linear")]
    assert query(database, params, "alpha") == [("encoder", "tiny_hubert")]
    (copied,) = (mlflow_storage / "mlartifacts").rglob("table.csv")
    assert copied.read_text() == "alpha,score\n"


def test_every_part_of_a_row_has_its_keys_and_an_extra_metric_its_own_name(
    mlflow_storage: Path,
) -> None:
    tracker = open_tracker(mlflow_storage)
    parts: dict[str, Any] = {
        "test": {"pr.per": 7.0},
        "dev": {"pr.per": 6.0},
        "spread": {"pr.per": 0.5},
    }
    tracker.log_encoder(row(**parts, extra={"real_time_factor": 0.25}))
    stored = query(mlflow_storage / "mlflow.db", "select key, value from latest_metrics")
    assert dict(stored) == {
        "test/pr.per": 7.0,
        "dev/pr.per": 6.0,
        "spread/pr.per": 0.5,
        "real_time_factor": 0.25,
    }


def test_mlflow_tells_predictions_by_their_kind(mlflow_storage: Path, tmp_path: Path) -> None:
    """A predicted alpha is a run of the kind `prediction` with dev alone and without a model; its
    verification beside it is an encoder like any other."""
    plan, store = plan_curve(), Store(tmp_path / "curve")
    run(plan, store)
    plan = add_verified(plan, store, inputs())
    run(plan, store)
    rows = read_rows(plan, store)
    real = next(row for row in rows if row.extra)  # a verified one has the feature error
    alpha, seed = real.params["alpha"], real.params["seed"]
    (predicted,) = [
        row
        for row in rows
        if is_prediction(row.params) and (row.params["alpha"], row.params["seed"]) == (alpha, seed)
    ]
    tracker = open_tracker(mlflow_storage)
    for row in (predicted, real):
        tracker.log_encoder(row)
    database = mlflow_storage / "mlflow.db"

    def list_tags(key: str) -> dict[str, str]:
        return dict(query(database, "select run_uuid, value from tags where key = ?", key))

    keys, kinds = list_tags("speechft.key"), list_tags("speechft.kind")
    kind_by_key = {keys[run]: kinds[run] for run in kinds}
    assert (kind_by_key[predicted.key], kind_by_key[real.key]) == ("prediction", "encoder")
    names = "select m.key from metrics m join tags t using (run_uuid) where t.value = ?"
    logged = {key: {name for (name,) in query(database, names, key)} for key in kind_by_key}
    assert "dev/score" in logged[predicted.key]
    assert not any(name.startswith("test/") for name in logged[predicted.key])
    assert {"dev/score", "test/score", "feature_error/pr.layer_1"} <= logged[real.key]
    models = "select tag_value from logged_model_tags where tag_key = 'speechft.key'"
    assert query(database, models) == [(real.key,)]


def test_mlflow_has_a_trial_with_updates_as_steps(mlflow_storage: Path) -> None:
    """Read back from the database: the screen at 0, and each rung at the updates by then."""
    results = collect(screen_plan(trials=8, screen={"by": "ridge", "reduction_factor": 2}))
    assert results.evaluator is not None
    trial = max(results.trials, key=lambda trial: trial.rung)
    assert trial.rung == 3
    open_tracker(mlflow_storage).log_encoder(make_trial_row(results.plan, trial, results.evaluator))
    points = query(
        mlflow_storage / "mlflow.db",
        "select key, step, value from metrics where key like 'rung/s%' or key like 'screen/%' "
        "order by step",
    )
    assert points == [
        (name, step, pytest.approx(value))
        for name, step, value in zip(
            ("screen/ridge", "rung/score", "rung/score"), (0, 2, 6), trial.rung_values, strict=True
        )
    ]


def test_another_winner_leaves_nothing_of_the_one_before(mlflow_storage: Path) -> None:
    """A run that was repeated after a failure can select another merge."""
    first = replace(row(0.5), params={"alpha": 0.5, "method": "ties", "density": 0.2})
    tags = (
        "select t.key, t.value from tags t join runs using (run_uuid) "
        "where name = 'alpha' and t.key like 'speechft.winner%' order by t.key"
    )
    database = mlflow_storage / "mlflow.db"
    for winner in (first, row(0.25), None):
        tracker = open_tracker(mlflow_storage)
        for each in (first, row(0.25)):
            tracker.log_encoder(each)
        tracker.finish(SweepEnd("finished", None, {}, winner))
        stored = dict(query(database, tags))
        expected = {} if winner is None else {f"speechft.winner.{n}" for n in winner.params}
        others = set() if winner is None else {"speechft.winner", "speechft.winner.key"}
        assert stored.keys() == {*expected, *others}
        assert winner is None or stored["speechft.winner.key"] == winner.key


def test_a_changed_value_becomes_the_latest(mlflow_storage: Path) -> None:
    """Of several values at one step and time MLflow takes the largest for the latest, so a smaller
    one needs a later step."""
    tracker = open_tracker(mlflow_storage)
    tracker.log_encoder(row(test={"score": 900.0}))
    tracker.log_encoder(row(test={"score": 100.0}))
    open_tracker(mlflow_storage).log_encoder(row(test={"score": 50.0}))
    database = mlflow_storage / "mlflow.db"
    assert query(database, "select value from latest_metrics where key = 'test/score'") == [(50.0,)]
    assert query(database, "select value from metrics where key = 'test/score' order by step") == [
        (900.0,),
        (100.0,),
        (50.0,),
    ]


def test_a_run_ends_after_it_began(mlflow_storage: Path) -> None:
    """It begins with its first value, which may come after the end of the job."""
    tracker = open_tracker(mlflow_storage)
    tracker.log_encoder(replace(row(), complete=False))
    tracker.log_encoder(row(test={"score": 900.0}, span=Span(1.0, 2.0)))
    times = "select start_time, end_time from runs where status = 'FINISHED'"
    ((began, ended),) = query(mlflow_storage / "mlflow.db", times)
    assert began == ended > 2000


def test_values_that_are_no_numbers_and_odd_names_are_taken(mlflow_storage: Path) -> None:
    tracker = open_tracker(mlflow_storage)
    tracker.log_encoder(row(test={"a=b%": 1.0, "nothing": math.nan, "endless": math.inf}))
    names = query(mlflow_storage / "mlflow.db", "select key from latest_metrics order by key")
    assert names == [("test/a_b_",)]


def test_long_curves_are_sent_in_parts(mlflow_storage: Path) -> None:
    points = [(step, {"loss": 1.0 / (step + 1), "dev": float(step)}) for step in range(1200)]
    open_tracker(mlflow_storage).log_curve(Curve("tuned", "narrow", {}, points))
    assert query(
        mlflow_storage / "mlflow.db", "select key, count(*) from metrics group by key"
    ) == [
        ("dev", 1200),
        ("loss", 1200),
    ]


def test_an_experiment_that_was_deleted_comes_back(mlflow_storage: Path) -> None:
    open_tracker(mlflow_storage)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{mlflow_storage / 'mlflow.db'}")
    client.delete_experiment(client.get_experiment_by_name("alpha").experiment_id)
    open_tracker(mlflow_storage).log_encoder(row(test={"score": 1.0}))
    stage = "select lifecycle_stage from experiments where name = 'alpha'"
    assert query(mlflow_storage / "mlflow.db", stage) == [("active",)]


def test_a_sweep_that_was_deleted_comes_back_with_its_children(mlflow_storage: Path) -> None:
    from mlflow.tracking import MlflowClient

    open_tracker(mlflow_storage).log_encoder(row(test={"score": 1.0}))
    database = mlflow_storage / "mlflow.db"
    runs = "select run_uuid, lifecycle_stage from runs order by run_uuid"
    before = query(database, runs)
    ((parent,),) = query(
        database, "select distinct value from tags where key = 'mlflow.parentRunId'"
    )
    MlflowClient(f"sqlite:///{database}").delete_run(parent)
    assert query(database, runs) != before
    open_tracker(mlflow_storage).log_encoder(row(test={"score": 1.0}))
    assert query(database, runs) == before and len(before) > 1


def test_a_run_that_was_made_twice_by_a_lost_answer_is_there_once(mlflow_storage: Path) -> None:
    from mlflow.tracking import MlflowClient

    open_tracker(mlflow_storage).log_encoder(row(test={"score": 1.0}))
    database = mlflow_storage / "mlflow.db"
    ((first,),) = query(database, "select run_uuid from runs where name = 'a=0.25 linear'")
    client = MlflowClient(f"sqlite:///{database}")
    original = client.get_run(first)
    client.create_run(
        original.info.experiment_id, tags=original.data.tags, run_name="a=0.25 linear"
    )
    parent = {"mlflow.parentRunId": original.data.tags["mlflow.parentRunId"]}
    foreign = client.create_run(original.info.experiment_id, tags=parent, run_name="somebody's own")
    open_tracker(mlflow_storage).log_encoder(row(test={"score": 2.0}))
    active = "select run_uuid from runs where lifecycle_stage = 'active' and name = ?"
    assert query(database, active, "a=0.25 linear") == [(first,)]
    assert query(database, active, "somebody's own") == [(foreign.info.run_id,)]


@pytest.mark.parametrize(
    ("status", "body", "way_out"),
    [
        (401, "no", "MLFLOW_TRACKING_USERNAME"),
        (403, "no", "permission EDIT"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
    ],
)
def test_a_server_that_refuses_has_a_way_out(
    tmp_path: Path, status: int, body: str, way_out: str
) -> None:
    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        tracker = MlflowTracker(f"http://127.0.0.1:{server.server_port}", tmp_path)
        with pytest.raises(TrackerDown, match="does not take results") as caught:
            tracker.start(SWEEP)
        server.shutdown()
    assert way_out in str(caught.value)


def test_a_server_that_does_not_answer_is_said_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []  # between attempts, which nothing refuses at once
    monkeypatch.setattr("time.sleep", pauses.append)
    tracker = MlflowTracker("http://user:password@127.0.0.1:9", tmp_path)
    with pytest.raises(
        TrackerDown, match=r"MLflow at `http://user:\*\*\*@127.0.0.1:9` does not take results"
    ) as caught:
        tracker.start(SWEEP)
    assert sum(pauses) < 15
    assert "\n" not in str(caught.value) and "password" not in str(caught.value)


@pytest.mark.slow
def test_a_damaged_database_is_set_aside_with_a_sentence(mlflow_storage: Path) -> None:
    """It is cut while a tracker writes to it. The results go into the next one; a healthy, a locked
    and a missing one stay as they are."""
    database = mlflow_storage / "mlflow.db"
    fresh = shutil.copy(database, mlflow_storage / "fresh.db")
    tracker = open_tracker(mlflow_storage)
    tracker.log_encoder(row(0.25))
    with closing(sqlite3.connect(database, isolation_level="EXCLUSIVE")) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        assert not is_damaged(database) and not is_damaged(mlflow_storage / "missing.db")
    os.truncate(database, database.stat().st_size // 2)
    cut = database.read_bytes()
    with pytest.raises(TrackerDown) as caught:
        tracker.log_encoder(row(0.5, test={"pr.per": 7.0}))
    place = mlflow_storage / "damaged" / "mlflow.db-1"
    assert f"{database} is damaged: it was moved to {place}" in str(caught.value)
    assert not database.exists() and place.read_bytes()[100:] == cut[100:]
    shutil.copy(fresh, database)  # what `start` would take ten seconds to make
    tracker.start(SWEEP)
    for alpha in (0.25, 0.5):
        tracker.log_encoder(row(alpha))
    tracker.finish(SweepEnd("finished", None, {}))
    statuses = "select name, status from runs where name != 'template'"
    assert sorted(query(database, statuses)) == [
        ("a=0.25 linear", "FINISHED"),
        ("a=0.5 linear", "FINISHED"),
        ("alpha", "FINISHED"),
    ]


def test_a_database_that_a_user_named_is_left_alone(tmp_path: Path) -> None:
    named = tmp_path / "own.db"
    named.write_bytes(b"not a database" * 100)
    tracker = MlflowTracker(f"sqlite:///{named}", tmp_path / "storage")
    with pytest.raises(TrackerDown, match="does not take results"):
        tracker.start(SWEEP)
    assert named.read_bytes() == b"not a database" * 100


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my runs"
    assert MlflowTracker(None, path).how_to_open() == f"MLflow: speechft ui '{path}'"
    assert (
        "http://tracking:5000/#/experiments"
        in MlflowTracker("http://tracking:5000/", path).how_to_open()
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:password@tracking")
    assert "https://user:***@tracking" in MlflowTracker(None, path).how_to_open()


@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///tmp/mlruns", "databricks", "sqlite:mlflow.db"]
)
def test_other_places_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must start with http://"):
        MlflowTracker(uri, tmp_path)


def test_a_half_made_database_is_never_seen(mlflow_template: Path) -> None:
    """The database is created under another name: a driver that is killed meanwhile leaves none
    instead of a partial one."""
    assert [path.name for path in mlflow_template.iterdir() if path.is_file()] == ["mlflow.db"]
    assert (mlflow_template / "mlflow.db").stat().st_nlink == 1


@pytest.mark.parametrize("place", ["s3://bucket/folder", "gs://bucket/folder", "unknown://x/y"])
def test_artifacts_that_cannot_be_written_leave_no_run_open(
    mlflow_storage: Path, tmp_path: Path, place: str
) -> None:
    """The package of the cloud is not installed, which is not an error of MLflow's own."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{mlflow_storage / 'mlflow.db'}"
    MlflowClient(tracking_uri=uri).create_experiment("alpha", artifact_location=place)
    report = tmp_path / "report"
    report.mkdir()
    (report / "table.csv").write_text("alpha,score\n")
    tracker = open_tracker(mlflow_storage)
    tracker.log_encoder(row(test={"score": 812.5}))
    with pytest.raises(TrackerDown, match="does not take results"):
        tracker.finish(SweepEnd("finished", report, SERIES))
    with pytest.raises(TrackerDown):
        tracker.register_model(row(test={"score": 812.5}), Model(report, "", lambda folder: None))
    statuses = "select r.name, r.status from runs r where r.name in ('alpha', 'a=0.25 linear')"
    assert sorted(query(mlflow_storage / "mlflow.db", statuses)) == [
        ("a=0.25 linear", "FINISHED"),
        ("alpha", "FINISHED"),
    ]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("postgresql+psycopg2://me:secret@host/db", r"`psycopg2`.*install psycopg2-binary with"),
        ("mysql+pymysql://me:secret@host/db", "`pymysql`.*install pymysql with pip"),
        ("mssql+pyodbc://me:secret@host/db", "`pyodbc`.*install pyodbc with pip"),
        ("postgresql+nothing://me:secret@host/db", "cannot be read as the address of a database"),
        ("postgresql://me:secret@host:port/db", "cannot be read as the address of a database"),
    ],
)
def test_a_database_without_its_driver_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, sentence: str
) -> None:
    for driver in ("psycopg2", "pymysql", "pyodbc"):
        monkeypatch.setitem(sys.modules, driver, None)  # as where it is not installed
    with pytest.raises(UserError, match=sentence) as caught:
        MlflowTracker(uri, tmp_path)
    assert "secret" not in str(caught.value) and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="` in MLFLOW_TRACKING_URI "):
        MlflowTracker(None, tmp_path)


@pytest.mark.parametrize("link", ["none", "works"])
def test_a_file_system_without_hard_links_gets_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    def create(tracking_uri: str) -> None:
        Path(tracking_uri.removeprefix("sqlite:///")).touch()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("mlflow.tracking.MlflowClient", create)
    if link == "none":
        monkeypatch.setattr(os, "link", refuse)
    _mlflow_client.open_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
