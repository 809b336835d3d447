"""A driver of its own to be killed: the real loop, store, sampler and view; only the evaluations
are made up.

python -m tests.search.driver STORAGE TRIALS.json [RUNG ...]

The rung 0 is a screen.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.search_idle import Silent
from speechft_ray.core.records import Job, Place
from speechft_ray.core.store import Store
from speechft_ray.search.loop import run_search
from speechft_ray.search.optuna_proposer import OptunaProposer
from speechft_ray.search.optuna_view import StudyView
from speechft_ray.search.trials import Trial
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.protocols import ReportProgress
from speechft_ray.sweep.scheduler import JobScheduler
from tests.search.search_fakes import evaluator_of, search_plan, smooth, summarize


def perform(job: Job, place: Place, report: ReportProgress) -> dict[str, Any]:
    """Takes a moment, publishes made-up scores, and notes that it did."""
    store = Store(Path(place.storage))
    time.sleep(0.01)
    facts = smooth(job)
    with store.publish(job.stage, job.fingerprint, facts):
        pass
    with (store.root / "done.txt").open("a") as file:
        file.write(f"{job.fingerprint}\n")
    return facts


class Copies(Silent):
    """Has the view written as a real run does."""

    def __init__(self, view: StudyView) -> None:
        self.view = view

    def on_result_reported(self, trial: Trial) -> None:
        self.view.copy(trial.number)


def main(storage: Path, out: Path, rungs: list[float]) -> None:
    """Runs the search and writes what came of it."""
    screen = {"screen": {"by": "ridge"}} if 0 in rungs else {}
    plan = search_plan(trials=30, rungs=[rung for rung in rungs if rung], **screen)
    store = Store(storage)
    proposer = OptunaProposer(plan.search, plan.space.draw)
    view = StudyView(storage / "search", "killed", proposer, plan.search)
    executor = LocalExecutor(perform, Place(storage=str(storage), encoder="none"))
    scheduler = JobScheduler(
        executor, Silent(), lambda outcome: None, threading.Event(), by_priority=True
    )
    trials = run_search(plan, store, scheduler, proposer, Copies(view))
    view.check()
    winner = evaluator_of(plan, store).select_best(trials)[0].number
    out.write_text(
        json.dumps(
            {
                "trials": summarize(trials),
                "winner": winner,
                "study": [t.state.name for t in _load_study(view)],
            }
        )
    )


def _load_study(view: StudyView) -> list[Any]:
    import optuna

    return optuna.load_study(study_name="killed", storage=f"sqlite:///{view.path}").trials


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), list(map(float, sys.argv[3:])))
