"""A driver whose jobs only report made-up curves: python -m tests.sweep.live_driver FOLDER.

A fine-tuning run saves its state after every third update and waits at update 7 for a file ``go``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.curves import POINT
from speechft_ray.core.records import Job, Place
from speechft_ray.core.store import Store
from speechft_ray.sweep import curves
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import Progress, ReportProgress, Tracker
from speechft_ray.sweep.publishing import Publisher
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.scheduler import JobScheduler, run_jobs
from tests.sweep.fakes import FakeObserver, fake_facts, inputs, sweep

UPDATES, WAITS_AT, SAVES_EVERY = 10, 7, 3


def make_values(job: Job, update: int) -> dict[str, float]:
    """Returns the made-up values of a curve, as the store has them."""
    if job.stage == "evaluate":
        return {"loss": 2.0 / update, "pr.per": 50.0 - update}
    values = {"loss": 1.0 / update, "learning_rate": 1e-3 * update, "distance": 0.1 * update}
    return {**values, "dev": 50.0 + update} if update % 5 == 0 else values


def perform(job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
    """Reports a curve and publishes it; a fine-tuning run that was killed goes on from its last
    saved state."""
    root = Path(place.storage)
    store, facts = Store(root), fake_facts(job)
    if job.stage in ("finetune", "evaluate"):
        saved = root / f"saved-{job.fingerprint}"
        begin = int(saved.read_text()) if saved.exists() else 0
        facts["curve"] = [[step, make_values(job, step)] for step in range(1, UPDATES + 1)]
        facts["metric"], facts["objectives"] = "finetune.accuracy", [{}]
        facts["spec"] = job.payload["spec"]
        for update in range(begin + 1, UPDATES + 1):
            names = {"learning_rate": "train/lr", "dev": "dev/finetune.accuracy"}
            start = "probe" if job.stage == "evaluate" else "train"
            values = {
                names.get(name, f"{start}/dev_{name}" if "." in name else f"{start}/{name}"): value
                for name, value in make_values(job, update).items()
            }
            report({"done": update, "total": UPDATES, POINT: update, **values})
            if job.stage == "finetune" and update % SAVES_EVERY == 0:
                saved.write_text(str(update))
            while job.stage == "finetune" and update == WAITS_AT and not (root / "go").exists():
                time.sleep(0.02)
                report({"done": update, "total": UPDATES})
    with store.publish(job.stage, job.fingerprint, facts):
        pass
    return facts


def run(root: Path, trackers: list[Tracker]) -> Plan:
    """Runs the sweep to its end, as a driver does."""
    plan, store = make_plan(sweep(), inputs()), Store(root)
    publisher, observer = Publisher(plan, store, trackers, print), FakeObserver()

    def show(progress: Mapping[str, Progress]) -> None:
        publisher.log_progress(progress)

    publisher.start()
    executor = LocalExecutor(perform, Place(storage=str(root), encoder="none"), show)
    scheduler = JobScheduler(executor, observer, publisher.log_outcome, threading.Event())
    run_jobs(plan, store, scheduler)
    publisher.finish(read_rows(plan, store), None, "finished")
    return plan


def main(root: Path) -> None:
    """Runs the sweep with MLflow in the background."""
    from speechft_ray.sweep import local
    from speechft_ray.tracking.background import BackgroundTracker
    from speechft_ray.tracking.jsonl import JsonlTracker
    from speechft_ray.tracking.mlflow import MlflowTracker

    curves.LIVE_SECONDS = local.SHOW_EVERY_SECONDS = 0.0
    run(root, [BackgroundTracker(MlflowTracker(None, root)), JsonlTracker(root / "log")])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
