"""Kill -9 of workers at random updates, for every task of SUPERB: ``make test-faults`` (minutes, so
no pytest). ``python -m tests.e2e.faults --seconds 4 --ray`` runs two of the tasks on Ray as well.

Each task is evaluated once undisturbed and once by a job whose worker is killed three times, at
updates that are drawn anew in every run and printed. The scores must be the same to the bit. The
table has, for each kill, the update of the death and the one of the state that the next life took
up, and how much of the work was repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from speechft_ray.core.records import Job, Place
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.saved_work import SavedWork
from speechft_ray.sweep.protocols import ReportProgress
from tests.contracts.test_tasks import spec_of
from tests.superb.real_layouts import ROWS
from tests.superb.test_resume import is_as_good
from tests.superb.toy_models import ToyEncoder, toy_corpus

ELEVEN = [row[0] for row in ROWS]
ON_RAY = ("pr", "sid")
COUNTS = {"train": 24, "dev": 8, "test": 8}
DOCUMENTS = {"train": 1600, "dev": 8, "test": 8}
SEEDS, KILLS = 2, 3
CHANCE = random.SystemRandom()


def evaluate_toy(
    task: str, updates: int, work: Path | None, report: ReportProgress
) -> dict[str, Any]:
    """Returns the facts of one evaluation, without clock times."""
    spec = spec_of(task, updates=updates, seeds=SEEDS, validate_every_updates=max(1, updates // 5))
    counts = DOCUMENTS if task == "qbe" else COUNTS
    cpu = torch.device("cpu")
    with patch("speechft_ray.superb.selection.is_better", is_as_good):
        facts = evaluate(spec, ToyEncoder(), toy_corpus(counts), cpu, report, work=work)
    plain: dict[str, object] = json.loads(
        json.dumps({**facts, "seconds": None, "encoded_seconds": None})
    )
    return plain


def count_done(task: str, done: float) -> int:
    """Turns the work that a report counts into updates; for QbE into documents."""
    if task == "qbe":
        return int(done) - sum(DOCUMENTS.values())
    return (int(done) - COUNTS["train"] - COUNTS["dev"]) // SEEDS


def live(task: str, updates: int, deaths: list[int], home: Path, report: ReportProgress) -> Any:
    """One life of a job: goes on from the saved state, and ends by SIGKILL at the update of this
    life. Lines of ``home/lives`` say what was taken up and when it died."""
    log = home / "lives"
    life = log.read_text().count("died") if log.exists() else 0
    load = SavedWork.load

    def note(work: SavedWork, *arguments: Any) -> Any:
        state = load(work, *arguments)
        if state is not None and "mean" not in state:
            done = state["costs"].shape[2] if "costs" in state else state["done"]
            _append(log, f"resumed {done}")
        return state

    def die(values: Mapping[str, float]) -> None:
        report(values)
        done = count_done(task, values["done"])
        if life < len(deaths) and done >= deaths[life]:
            _append(log, f"died {done}")
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(SavedWork, "load", note):
        return evaluate_toy(task, updates, home, die)


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def perform(job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
    """A job for Ray; workers import it by name."""
    payload: Any = job.payload
    home = Path(place.storage) / job.fingerprint
    home.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    facts: Mapping[str, Any] = live(
        payload["task"], payload["updates"], payload["deaths"], home, report
    )
    return facts


def run_killed(task: str, updates: int, deaths: list[int], home: Path) -> Any:
    """Runs lives in processes of their own until one ends by itself; returns its facts."""
    context = multiprocessing.get_context("fork")
    while True:
        receiver, sender = context.Pipe(duplex=False)

        def run(end: Any = sender) -> None:
            end.send(live(task, updates, deaths, home, lambda values: None))

        process = context.Process(target=run)
        process.start()
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            process.join()
            assert process.exitcode == -signal.SIGKILL, process.exitcode


def choose_updates(task: str, seconds: float) -> int:
    """Returns how many updates take about so long; for QbE 1."""
    if task == "qbe":
        return 1
    evaluate_toy(task, 10, None, lambda values: None)  # the first one of a process is slow
    began = time.process_time()
    evaluate_toy(task, 10, None, lambda values: None)
    middle = time.process_time()
    evaluate_toy(task, 60, None, lambda values: None)
    update = max(1e-5, (time.process_time() - middle - (middle - began)) / 50)
    return max(50, int(seconds / update))


def describe(task: str, total: int, home: Path, equal: bool, where: str) -> bool:
    """Prints the row of one task; returns whether the scores are equal and the job was killed as
    often as it should be."""
    lines = [line.split() for line in (home / "lives").read_text().splitlines()]
    deaths: list[tuple[int, int]] = []
    resumed = 0
    for word, number in [*lines, ["died", "0"]]:
        if word == "resumed":
            resumed += int(number)  # QbE's state is the sum of its pieces
            continue
        if deaths:
            deaths[-1] = (deaths[-1][0], min(resumed, deaths[-1][0]))
        deaths.append((int(number), 0))
        resumed = 0
    deaths.pop()
    repeated = sum(died - taken_up for died, taken_up in deaths) / total
    kills = "  ".join(f"{died}->{taken_up}" for died, taken_up in deaths)
    passed = equal and len(deaths) == KILLS
    print(
        f"{'PASS' if passed else 'FAIL'}  {task:<7} {where:<8} of {total:<7} {kills:<40} "
        f"repeated {100 * repeated:.1f} %",
        flush=True,
    )
    return passed


def draw_deaths(total: int) -> list[int]:
    """Returns the updates at which the lives end, in order."""
    return sorted(CHANCE.sample(range(1, total), KILLS))


def run_on_ray(work: Mapping[str, tuple[int, Any]], home: Path) -> list[bool]:
    """Runs tasks as jobs of the Ray executor, which starts a lost job again by itself."""
    from speechft_ray.cluster.connect import connect
    from speechft_ray.cluster.executor import RayExecutor

    os.environ.update(
        PYTHONPATH=str(Path(__file__).parents[2]), RAY_TMPDIR=str(home), HOME=str(home)
    )
    cluster = connect("local", cpus=2, store_bytes=80 << 20)
    executor = RayExecutor(perform, Place(storage=str(home), encoder="none"), cluster=cluster)
    for task, (updates, _) in work.items():
        payload: Any = {"task": task, "updates": updates, "deaths": draw_deaths(updates)}
        executor.submit(Job(stage="evaluate", fingerprint=task, label=task, payload=payload))
    passed: list[bool] = []
    while len(passed) < len(work):
        for outcome in executor.outcomes(1.0):
            updates, whole = work[outcome.fingerprint]
            own = home / outcome.fingerprint
            equal = outcome.ok and dict(outcome.facts or {}) == whole
            passed.append(describe(outcome.fingerprint, updates, own, equal, "on Ray"))
    executor.stop()
    return passed


def main() -> int:
    """Runs all tasks; returns 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one undisturbed training")
    parser.add_argument("--tasks", nargs="+", choices=ELEVEN, default=ELEVEN)
    parser.add_argument("--ray", action="store_true", help=f"{', '.join(ON_RAY)} on Ray as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp(prefix="sft", dir="/tmp"))  # short: Ray makes sockets there
    print("task, where, updates (QbE: documents), update of each death -> of the state, repeated")
    passed: list[bool] = []
    undisturbed: dict[str, tuple[int, Any]] = {}
    try:
        for task in arguments.tasks:
            updates = choose_updates(task, arguments.seconds)
            total = 2 * DOCUMENTS["train"] if task == "qbe" else updates
            whole = evaluate_toy(task, updates, None, lambda values: None)
            undisturbed[task] = updates, whole
            own = home / task
            own.mkdir()
            killed = run_killed(task, updates, draw_deaths(total), own)
            passed.append(describe(task, total, own, killed == whole, "process"))
        if arguments.ray:
            (home / "ray-jobs").mkdir()
            on_ray = {task: undisturbed[task] for task in ON_RAY if task in undisturbed}
            passed += run_on_ray(on_ray, home / "ray-jobs")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{sum(passed)} of {len(passed)} passed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
