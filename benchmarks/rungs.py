"""What do rungs save, and what do they risk? Every candidate is evaluated once up to each rung and
in full; then the real search with rungs runs on these results.

    python -m benchmarks.rungs --storage runs/rungs [--seeds 0 1 2] [--rungs 0.02 0.1 0.3 1]
        [--reduction-factor 4] [--updates 3000] [--probe-seeds 2] [--tune-updates 200]
        [--alphas 10] [--tasks ks sid] [--utterances 250 300 1000] [--whole 3]
        [--screen ridge]

Candidates are alpha x lambda x strategy of ``search_spaces/search_alpha_lambda.yaml`` on the
embedded corpora, in an order drawn once; each fine-tuning seed has donors of its own. CPU seconds
are those of the process, job by job; what the search with rungs costs is the sum over the jobs that
it asks for. ``--screen`` adds a screen before the first rung; where a run without it left its
features, the seconds of the screen do not count them. ``--whole N`` evaluates N candidates again in
one go, in a storage of its own: that checks that the scores are the same to the bit, and tells how
much the pauses cost. Everything finished is found again in the storage folder: give the same
command after a stop, or with other ``--reduction-factor`` values, which cost nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.search_idle import Silent
from benchmarks.search_vs_grid import DENSITY, Fixed, ListProposer, measure_test, spec_of
from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.search import plan_search
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.core.records import Job, Place
from speechft_ray.core.rung_spec import ScreenSpec
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.report.rank_correlation import correlate_ranks
from speechft_ray.report.rungs import name_rung_value
from speechft_ray.search.loop import open_evaluator, read_dev_values, run_search
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.rungs import find_pause
from speechft_ray.search.trials import TrialEvaluator
from speechft_ray.stages.perform import perform, publish_start
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.protocols import ReportProgress
from speechft_ray.sweep.scheduler import JobScheduler, missing_jobs

CPU_FILE = "cpu_seconds.jsonl"
"""``[fingerprint, seconds]`` of each job, one per line."""


def perform_measured(job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
    """Performs a job and notes its CPU seconds in the storage."""
    began = time.process_time()
    facts = perform(job, place, report)
    seconds = time.process_time() - began
    with (Path(place.storage) / CPU_FILE).open("a") as file:
        file.write(json.dumps([job.fingerprint, round(seconds, 4)]) + "\n")
    return facts


def read_cpu_seconds(storage: Path) -> dict[str, float]:
    """Returns the CPU seconds of each job, all its lives together."""
    seconds: dict[str, float] = {}
    for line in (storage / CPU_FILE).read_text().splitlines():
        key, spent = json.loads(line)
        seconds[key] = seconds.get(key, 0.0) + spent
    return seconds


def list_points(spec: SweepSpec, alphas: int) -> list[dict[str, Any]]:
    """Returns the candidates in an order that has nothing to do with their values."""
    penalties = [run.anchor_penalty for run in spec.finetune]
    points = [
        {"method": method, "anchor_penalty": penalty, "alpha": alpha, "ties.density": DENSITY}
        for alpha in [round((step + 1) / alphas, 4) for step in range(alphas)]
        for method, penalty in itertools.product(("linear", "ties"), penalties)
    ]
    random.Random(0).shuffle(points)
    return points


def make_spec(seed: int, arguments: argparse.Namespace) -> SweepSpec:
    """Returns the search with rungs over as many trials as there are candidates."""
    plain = spec_of(seed, "none", 1)
    count = len(list_points(plain, arguments.alphas)[: arguments.first])
    assert plain.search is not None
    search = plain.search.model_copy(
        update={
            "trials": count,
            "rungs": tuple(arguments.rungs),
            "reduction_factor": arguments.reduction_factor,
            "screen": ScreenSpec(by=arguments.screen) if arguments.screen else None,
        }
    )
    sizes = dict(zip(("train", "dev", "test"), arguments.utterances, strict=True))
    evaluate = tuple(
        item.model_copy(
            update={
                "updates": arguments.updates,
                "seeds": arguments.probe_seeds,
                "corpus": item.corpus.model_copy(
                    update={"options": {**item.corpus.options, **sizes}}
                ),
            }
        )
        for item in plain.evaluate
        if item.task in arguments.tasks
    )
    finetune = tuple(
        run.model_copy(update={"updates": arguments.tune_updates}) for run in plain.finetune
    )
    topline = {
        name: value
        for name, value in plain.score.topline.items()
        if name.split(".")[0] in arguments.tasks
    }
    score = plain.score.model_copy(update={"topline": topline})
    changes = {"search": search, "finetune": finetune, "evaluate": evaluate, "score": score}
    return plain.model_copy(update=changes)


def make_scheduler(place: Place) -> JobScheduler:
    """Returns a scheduler that performs jobs in this process and measures them."""
    executor = LocalExecutor(perform_measured, place)
    return JobScheduler(executor, Failing(), lambda outcome: None, threading.Event())


class Failing(Silent):
    """Ends the benchmark where a job fails."""

    def on_job_end(self, outcome: Any) -> None:
        if not outcome.ok:
            raise SystemExit(f"{outcome.label} failed: {outcome.error}")


def perform_all(keys: Sequence[str], plan: SearchPlan, store: Store, place: Place) -> None:
    """Performs these jobs and what they need, unless the store has them."""
    scheduler = make_scheduler(place)
    scheduler.add(missing_jobs(keys, plan.jobs, store))
    while scheduler.active:
        scheduler.poll()


def evaluate_all(
    plan: SearchPlan, points: Sequence[Mapping[str, Any]], place: Place
) -> list[list[list[str]]]:
    """Evaluates every candidate at every rung; returns the jobs by candidate and rung."""
    store = Store(Path(place.storage))
    perform_all([job.fingerprint for job in plan.controls.of_stage("evaluate")], plan, store, place)
    keys = []
    for number, point in enumerate(points):
        proposal = plan.space.draw(Fixed(point))
        keys.append(
            [
                plan.rung_evaluations(proposal, number, rung)
                for rung in range(len(plan.search.list_rungs()))
            ]
        )
        began = time.process_time()
        for of_rung in keys[-1]:
            perform_all(of_rung, plan, store, place)
        print(f"  candidate {number}: {time.process_time() - began:.1f} CPU s", flush=True)
    return keys


def read_values(
    plan: SearchPlan,
    keys: Sequence[Sequence[Sequence[str]]],
    store: Store,
    evaluator: TrialEvaluator,
) -> list[list[float]]:
    """Returns the value of every candidate at every rung: the objective, or that of the screen."""
    last = len(plan.search.list_rungs()) - 1
    values: list[list[float]] = []
    for of_candidate in keys:
        values.append([])
        for rung, of_rung in enumerate(of_candidate):
            metrics: dict[str, float] = {}
            tasks = plan.tasks if rung == last else plan.rung_tasks(rung)
            for key, task in zip(of_rung, tasks, strict=True):
                metrics |= read_dev_values(store.manifest("evaluate", key), task)
            values[-1].append(evaluator.rung_value(metrics, rung))
    return values


def run_seed(seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Evaluates all candidates of one fine-tuning seed and searches among them with rungs."""
    spec = make_spec(seed, arguments)
    place = resolve_place(spec, storage=arguments.storage, cpu=True)
    publish_start(place)
    plan, store = plan_search(spec, place), Store(Path(place.storage))
    points = list_points(spec, arguments.alphas)[: arguments.first]
    keys = evaluate_all(plan, points, place)
    # The real search on the same store: nothing is left to compute.
    proposer = ListProposer(plan.space, points)
    limit = plan.search.concurrency()
    proposer.needs = lambda number: max(0, number + 1 - limit)  # type: ignore[method-assign]
    trials = run_search(plan, store, make_scheduler(place), proposer, Silent())
    evaluator = open_evaluator(plan, store)
    assert evaluator is not None
    values = read_values(plan, keys, store, evaluator)
    spent = read_cpu_seconds(Path(place.storage))
    costs = [[sum(spent.get(key, 0.0) for key in of_rung) for of_rung in one] for one in keys]
    asked = sum(sum(costs[trial.number][: trial.rung + 1]) for trial in trials)
    updates = [0, *(sum(_updates_at(plan, rung)) for rung in plan.search.list_rungs())]
    all_updates = updates[-1] * len(trials)
    updated = sum(updates[trial.rung + 1] for trial in trials)
    full = [of_candidate[-1] for of_candidate in values]
    best_number = max(range(len(full)), key=lambda number: (full[number], -number))
    (winner,) = evaluator.select_best(trials)
    of_both = [trials[best_number]] + ([winner] if winner.number != best_number else [])
    scores = measure_test(plan, of_both, make_scheduler(place), store)
    best_on_test, winner_on_test = scores[trials[best_number].key], scores[winner.key]
    reached = [sum(trial.rung >= rung for trial in trials) for rung in range(len(updates) - 1)]
    print(f"seed {seed}: trials that reached each rung: {reached}")
    for rung, fraction in enumerate(plan.search.list_rungs()[:-1]):
        correlation = correlate_ranks([of_candidate[rung] for of_candidate in values], full)
        share = sum(one[rung] for one in costs) / sum(map(sum, costs))
        name = name_rung_value(plan.search, rung)
        print(
            f"  rung {fraction:g} ({name}): rank correlation with the full score {correlation}; "
            f"{share:.1%} of the cost of all"
        )
    return {
        "CPU seconds, all in full": sum(map(sum, costs)),
        "CPU seconds, rungs": asked,
        "share of CPU seconds": asked / sum(map(sum, costs)),
        "share of updates": updated / all_updates,
        "best on dev": full[best_number],
        "winner of rungs on dev": full[winner.number],
        "regret on dev": full[best_number] - full[winner.number],
        "test of the best on dev": best_on_test,
        "test of the winner of rungs": winner_on_test,
        "regret on test": best_on_test - winner_on_test,
        "spread of full scores on dev (sd)": statistics.stdev(full),
    }


def _updates_at(plan: SearchPlan, fraction: float) -> list[int]:
    return [
        find_pause(task, fraction) * task.seeds
        for task in (plan.tasks if fraction == 1 else plan.probe_tasks())
    ]


def check_whole(arguments: argparse.Namespace) -> None:
    """Evaluates some candidates in one go: the same scores to the bit, and the cost of pauses."""
    spec = make_spec(0, arguments)
    place = resolve_place(spec, storage=arguments.storage, cpu=True)
    plan, store = plan_search(spec, place), Store(Path(place.storage))
    points = list_points(spec, arguments.alphas)[: arguments.whole]
    apart = place.model_copy(update={"storage": f"{place.storage}-whole"})
    publish_start(apart)
    second = Store(Path(apart.storage))
    for donor in store.fingerprints("finetune"):
        target = second.folder("finetune", donor)
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            target.symlink_to(store.folder("finetune", donor))
    spent = read_cpu_seconds(Path(place.storage))
    in_pieces = in_one_go = 0.0
    for number, point in enumerate(points):
        proposal = plan.space.draw(Fixed(point))
        whole = [plan.evaluation(proposal, number, task) for task in plan.tasks]
        perform_all(whole, plan, second, apart)
        for key in whole:
            pieces, again = (item.manifest("evaluate", key)["scores"] for item in (store, second))
            if canonical_json(pieces) != canonical_json(again):
                raise SystemExit(f"{key} has other scores in one go")
        rungs = range(len(plan.search.list_rungs()))
        keys = [key for rung in rungs for key in plan.rung_evaluations(proposal, number, rung)]
        in_pieces += sum(spent[key] for key in keys)
        in_one_go += sum(read_cpu_seconds(Path(apart.storage))[key] for key in whole)
    print(
        f"{len(points)} candidates in one go: the same scores to the bit; {in_one_go:.1f} CPU s, "
        f"with pauses {in_pieces:.1f}"
    )


def main() -> None:
    """Prints a column per seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", type=Path, default=Path("runs/rungs"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rungs", type=float, nargs="*", default=[0.02, 0.1, 0.3, 1.0])
    parser.add_argument("--reduction-factor", type=int, default=4)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--probe-seeds", type=int, default=2)
    parser.add_argument("--tune-updates", type=int, default=200)
    parser.add_argument("--utterances", type=int, nargs=3, default=[250, 300, 1000])
    parser.add_argument("--alphas", type=int, default=10)
    parser.add_argument("--first", type=int, help="so many of the candidates; all by default")
    parser.add_argument("--tasks", nargs="*", default=["ks", "sid"])
    parser.add_argument("--screen", choices=["ridge", "nearest_mean", "abx"])
    parser.add_argument("--whole", type=int, default=0)
    arguments = parser.parse_args()
    columns = {seed: run_seed(seed, arguments) for seed in arguments.seeds}
    if arguments.whole:
        check_whole(arguments)
    print(f"{'':36}" + "".join(f"{f'seed {seed}':>10}" for seed in columns) + "      mean")
    for name in next(iter(columns.values())):
        values = [column[name] for column in columns.values()]
        cells = "".join(f"{value:10.3f}" for value in values)
        print(f"{name:36}{cells}{statistics.fmean(values):10.3f}")


if __name__ == "__main__":
    main()
