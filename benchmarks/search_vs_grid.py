"""Does a search find a better merge than a grid of the same cost? On the embedded tasks, through
the real pipeline: selected on dev, then the selected ones on test.

    python benchmarks/search_vs_grid.py --storage runs/search_vs_grid [--seeds 3] [--in-process]
        [--smoke]

For each seed the donors are fine-tuned anew (that seed) and searched with a sampler of that seed.
Beside the search of ``search_spaces/search_alpha_lambda.yaml`` stand two grids, evaluated on dev by
the same units: the six alphas of the usual scan (linear, lambda 0), and the same six for every
lambda and both strategies. The search gets as many trials as the large grid has points; early stops
make it cheaper, never dearer. Its best is also read off at the cost of the small grid. Everything
finished is found again in the storage folder: run the same command after a stop. ``--smoke`` takes
the sizes of ``speechft run --smoke``: minutes to see whether all of it works, and no finding.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechft_ray.commands.parts import open_executor, resolve_place
from speechft_ray.commands.search import open_proposer, plan_search
from speechft_ray.commands.smoke import rename_storage, shrink_sweep
from speechft_ray.core.records import Outcome, Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.search.loop import open_evaluator, run_search
from speechft_ray.search.plan import SearchPlan, make_selection_plan
from speechft_ray.search.proposals import Proposal, Proposer, SearchSpace, TrialResult
from speechft_ray.search.trials import Trial, TrialEvaluator
from speechft_ray.stages.perform import publish_start
from speechft_ray.sweep.protocols import Executor
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.scheduler import JobScheduler, jobs_to_run, run_jobs
from speechft_ray.sweep.space_file import read_space

SPACE = Path(__file__).resolve().parent.parent / "search_spaces" / "search_alpha_lambda.yaml"
ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
DENSITY = 0.2
"""Of TIES in the grid (the paper's)."""


class Fixed:
    """A ``Suggest`` that knows its answers."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def number(self, name: str, low: float, high: float, log: bool) -> float:
        """The given number."""
        return float(self.values[name])

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        """The given option."""
        return self.values[name]


class ListProposer:
    """A proposer of given points."""

    def __init__(self, space: SearchSpace, points: Sequence[Mapping[str, Any]]) -> None:
        self.proposals = iter([space.draw(Fixed(point)) for point in points])

    def needs(self, number: int) -> int:
        """Nothing: all points are known."""
        return 0

    def ask(self) -> Proposal | None:
        """The next point."""
        return next(self.proposals, None)

    def tell(self, number: int, result: TrialResult) -> None:
        """Nothing to learn."""

    def draw_ahead(self, number: int) -> Proposal | None:
        """Nothing: all start at once."""
        return None


class PrintingObserver:
    """A observer and an observer that print a line per result."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_trial_start(self, trial: Trial) -> None: ...
    def on_job_start(self, job: object) -> None: ...
    def on_result_reported(self, trial: Trial) -> None: ...
    def on_progress(self, progress: object) -> None: ...

    def on_job_end(self, outcome: Outcome) -> None:
        if not outcome.ok:
            print(f"  failed: {outcome.label}: {outcome.error}", flush=True)

    def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None:
        values = trial.result.values if trial.result else ()
        text = f"{values[0]:.2f}" if values else trial.state
        print(f"  {self.name} {trial.number}: {text}", flush=True)


def spec_of(seed: int, stop_early: str, trials: int, smoke: bool = False) -> SweepSpec:
    """The space of the search with donors and sampler of one seed."""
    spec = shrink_sweep(read_space(SPACE)) if smoke else read_space(SPACE)
    if spec.search is None:
        raise SystemExit(f"{SPACE} is no search")
    search = spec.search.model_copy(
        update={"seed": seed, "stop_early": stop_early, "trials": trials}
    )
    finetune = tuple(run.model_copy(update={"seed": seed}) for run in spec.finetune)
    return spec.model_copy(update={"finetune": finetune, "search": search})


def points_of(spec: SweepSpec) -> list[dict[str, Any]]:
    """The points of the large grid; the first six are the small one."""
    penalties = [run.anchor_penalty for run in spec.finetune]
    return [
        {"method": method, "anchor_penalty": penalty, "alpha": alpha, "ties.density": DENSITY}
        for method, penalty, alpha in itertools.product(("linear", "ties"), penalties, ALPHAS)
    ]


def best_at(trials: Sequence[Trial], evaluations: float) -> Trial:
    """The best trial among the first that together took no more than so many evaluations."""
    best, cost = None, 0
    for trial in trials:
        cost += 0 if trial.repeats is not None else trial.tasks
        if cost > evaluations:
            break
        if trial.feasible and (best is None or score_of(trial) > score_of(best)):
            best = trial
    if best is None:
        raise SystemExit("no trial was evaluated in full")
    return best


def score_of(trial: Trial) -> float:
    """The score of a trial on dev."""
    return trial.result.values[0] if trial.result else -math.inf


def measure_test(
    plan: SearchPlan, trials: Sequence[Trial], scheduler: JobScheduler, store: Store
) -> dict[str, float]:
    """Evaluates these trials on test, as a search does with its winner; returns their scores by
    merged encoder."""
    final = make_selection_plan(plan, [(trial.number, trial.proposal) for trial in trials])
    if jobs_to_run(final, store):
        run_jobs(final, store, scheduler)
    return {row.key: row.test["score"] for row in read_rows(final, store) if "score" in row.test}


def run_seed(seed: int, place: Place, executor: Executor, smoke: bool) -> dict[str, float]:
    """Runs both grids and the search of one seed and returns what the table needs."""
    count, small = len(points_of(spec_of(seed, "none", 1, smoke))), len(ALPHAS)
    trials: dict[str, list[Trial]] = {}
    best: dict[str, Trial] = {}
    test: dict[str, float] = {}
    for name, stop_early in (("grid", "none"), ("search", "bound")):
        plan = plan_search(spec_of(seed, stop_early, count, smoke), place)
        store = Store(Path(place.storage))
        proposer: Proposer = (
            ListProposer(plan.space, points_of(plan.spec))
            if name == "grid"
            else open_proposer(plan)
        )
        observer = PrintingObserver(f"seed {seed} {name}")
        scheduler = JobScheduler(
            executor, observer, lambda outcome: None, threading.Event(), by_priority=True
        )
        trials[name] = run_search(plan, store, scheduler, proposer, observer)
        if open_evaluator(plan, store) is None:
            raise SystemExit("the controls are incomplete")
        tasks = len(plan.tasks)
        of_strategy = (
            {
                f"grid of {small}": best_at(trials[name][:small], math.inf),
                f"grid of {count}": best_at(trials[name], math.inf),
            }
            if name == "grid"
            else {
                f"search at the cost of {small}": best_at(trials[name], small * tasks),
                f"search of {count}": best_at(trials[name], math.inf),
            }
        )
        distinct = list({trial.key: trial for trial in of_strategy.values()}.values())
        test |= measure_test(plan, distinct, scheduler, store)
        best |= of_strategy
    return {
        **{name: score_of(trial) for name, trial in best.items()},
        **{f"{name}, test": test[trial.key] for name, trial in best.items()},
        "evaluations of the search": sum(
            trial.tasks for trial in trials["search"] if trial.repeats is None
        ),
        f"evaluations of the grid of {count}": len({trial.key for trial in trials["grid"]}) * tasks,
    }


def main() -> None:
    """Prints a column per seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", type=Path, default=Path("runs/search_vs_grid"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    storage = rename_storage(arguments.storage) if arguments.smoke else arguments.storage
    place = resolve_place(spec_of(0, "none", 1), storage=storage, cpu=True)
    publish_start(place)
    executor = open_executor(None if arguments.in_process else "local", place)
    try:
        seeds = range(arguments.seeds)
        columns = [run_seed(seed, place, executor, arguments.smoke) for seed in seeds]
    finally:
        executor.stop()
    print(
        "score of the best of all on dev "
        + "".join(f"{f'seed {seed}':>10}" for seed in range(arguments.seeds))
        + "      mean"
    )
    for name in columns[0]:
        values = [column[name] for column in columns]
        print(
            f"{name:32}"
            + "".join(f"{value:10.2f}" for value in values)
            + f"{statistics.fmean(values):10.2f}"
        )


if __name__ == "__main__":
    main()
