"""Is a curve over alpha that is predicted from three encodings as good as one that is evaluated in
full? On the embedded tasks, through the real pipeline.

    python benchmarks/alpha_curve.py --storage runs/alpha_curve --donors phones --seeds 1
    python benchmarks/alpha_curve.py --donors phones,digits --manifest fsdd/manifest.tsv

For each donor and fine-tuning seed, ``alpha: {curve: 21, encode: [0, 0.5, 1], verify: 3}`` runs
first, and then all of its 21 alphas are merged and evaluated. What both need is computed once.
Prints for each donor and seed: the error of the predicted dev score; the regret, which is the best
alpha on dev of all 21 less the one that the predicted curve leads to, on dev and on test; what both
cost in CPU seconds of this process; and the error by task and by layer. Jobs run one after the
other, and finished ones are found again in the storage: run the same command after a stop.
``--picture FILE`` draws the curves. The donor ``digits`` learns the words of a manifest of your own
recordings: the columns ``path``, ``split`` and ``text``, one word each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.commands.parts import plan_sweep_inputs, resolve_place
from speechft_ray.core.records import Job, Place
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.report.curve_section import draw_predicted_curves, list_predicted_series
from speechft_ray.report.lines import group_rows
from speechft_ray.stages.perform import perform, publish_start
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.predictions import is_prediction
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.scheduler import jobs_to_run
from speechft_ray.sweep.verification import add_verified

POINTS = 21
DONORS: Mapping[str, Mapping[str, Any]] = {
    "phones": {
        "head": "frame",
        "corpus": {"options": {"part": "phones", "speakers": 6, "train": 86, "dev": 60, "test": 0}},
        "column": "phones",
        "batch_size": 8,
    },
    "speakers": {
        "head": "pooled",
        "corpus": {
            "options": {
                "part": "sid", "seed": 1, "speakers": 20, "train": 200, "dev": 60, "test": 0,
            }
        },
        "column": "speaker",
        "batch_size": 16,
    },
    "emotions": {
        "head": "pooled",
        "corpus": {"options": {"part": "er", "seed": 1, "train": 200, "dev": 60, "test": 0}},
        "column": "emotion",
        "batch_size": 16,
    },
    "commands": {
        "head": "pooled",
        "corpus": {"options": {"part": "ks", "seed": 1, "train": 200, "dev": 60, "test": 0}},
        "column": "keyword",
        "batch_size": 16,
    },
    "digits": {
        "head": "pooled",
        "corpus": {"name": "manifest"},
        "column": "text",
        "batch_size": 16,
    },
}  # fmt: skip
PEAK_RATES = {"phones": 3e-3}
POOLED = {"updates": 200, "learning_rate": 1e-2, "seeds": 2}
SIZES = {"train": 120, "dev": 200, "test": 100}
TASKS: Mapping[str, Mapping[str, Any]] = {
    "sid": {"corpus": {"options": {"part": "sid", **SIZES}}, **POOLED},
    "er": {"corpus": {"options": {"part": "er", **SIZES}}, **POOLED},
    "ks": {
        "corpus": {"options": {"part": "ks", **SIZES}},
        "options": {"protocol": "clean"},
        **POOLED,
    },
    "pr": {
        "corpus": {"options": {"part": "pr", "train": 100, "dev": 50, "test": 50}},
        "updates": 60,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "seeds": 2,
    },
}
METRICS = {"sid": "sid.accuracy", "er": "er.accuracy", "ks": "ks.accuracy", "pr": "pr.per"}


def make_space(donor: str, seed: int, tasks: Sequence[str], alpha: Mapping[str, Any]) -> SweepSpec:
    """Returns the sweep of one donor and one fine-tuning seed."""
    raw = {
        "name": f"{donor}-{seed}",
        "finetune": [
            {
                "name": donor,
                "objectives": [DONORS[donor]],
                "updates": 300,
                "peak_learning_rate": PEAK_RATES.get(donor, 1e-3),
                "validate_every_updates": 50,
                "seed": seed,
            }
        ],
        "merge": [{"alpha": dict(alpha)}],
        "evaluate": [{"task": task, **TASKS[task]} for task in tasks],
        "score": {
            "zero": "measured",
            "topline": {METRICS[task]: 0 if task == "pr" else 100 for task in tasks},
        },
    }
    return parse_space(raw, "the benchmark")


class Clock:
    """CPU seconds of jobs by fingerprint, kept in the storage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def perform(self, job: Job, place: Place) -> None:
        """Performs a job in this process."""
        began = time.process_time()
        perform(job, place, lambda values: None)
        self.seconds[job.fingerprint] = time.process_time() - began
        self.path.write_text(json.dumps(self.seconds))
        print(f"  {self.seconds[job.fingerprint]:6.1f} s  {job.label}", flush=True)


class Curves(NamedTuple):
    """One donor and seed, predicted and exact."""

    predicted: Plan
    exact: Plan


def run_curves(donor: str, seed: int, tasks: Sequence[str], place: Place, clock: Clock) -> Curves:
    """Performs both sweeps of a donor and a seed."""
    store = Store(Path(place.storage))
    spec = make_space(donor, seed, tasks, {"curve": POINTS, "encode": [0, 0.5, 1], "verify": 3})
    inputs = plan_sweep_inputs(spec, place)
    grid = [round(number / (POINTS - 1), 6) for number in range(POINTS)]
    exact = make_plan(make_space(donor, seed, tasks, {"grid": grid}), inputs)
    plan = make_plan(spec, inputs)
    for job in jobs_to_run(plan, store).values():
        clock.perform(job, place)
    plan = add_verified(plan, store, inputs)
    for part in (plan, exact):
        for job in jobs_to_run(part, store).values():
            clock.perform(job, place)
    return Curves(plan, exact)


def count_seconds(plan: Plan, clock: Clock) -> float:
    """Returns the CPU seconds of the merges and evaluations of a plan, without FBank's."""
    return sum(
        clock.seconds.get(job.fingerprint, 0.0)
        for job in plan.jobs.values()
        if job.stage in ("merge", "evaluate") and job.fingerprint not in plan.baseline
    )


def list_by_alpha(rows: Sequence[EncoderRow]) -> dict[float, EncoderRow]:
    """Returns rows by alpha."""
    return {float(row.params["alpha"]): row for row in rows}


def describe(name: str, curves: Curves, tasks: Sequence[str], store: Store, clock: Clock) -> str:
    """Returns one line of the table, with a line for each task below."""
    exact = list_by_alpha(read_rows(curves.exact, store))
    rows = read_rows(curves.predicted, store)
    predicted = list_by_alpha([row for row in rows if is_prediction(row.params)])
    real = list_by_alpha([row for row in rows if not is_prediction(row.params)])
    # Controls cannot win, as in a sweep.
    merges = {alpha: row for alpha, row in exact.items() if 0 < alpha < 1}
    candidates = {alpha: row for alpha, row in real.items() if 0 < alpha < 1}
    best = max(merges, key=lambda alpha: merges[alpha].dev["score"])
    selected = max(candidates, key=lambda alpha: candidates[alpha].dev["score"])
    cost, full = count_seconds(curves.predicted, clock), count_seconds(curves.exact, clock)
    errors = [predicted[alpha].dev["score"] - exact[alpha].dev["score"] for alpha in predicted]
    spread = statistics.fmean(row.spread.get("score", 0.0) for row in merges.values())
    lines = [
        (
            f"| {name} | {best:g} | {selected:g} | {statistics.fmean(map(abs, errors)):.1f} | "
            f"{exact[best].dev['score'] - exact[selected].dev['score']:.1f} | "
            f"{exact[best].test['score'] - exact[selected].test['score']:+.1f} | {spread:.1f} | "
            f"{cost:.0f} | {full:.0f} | {cost / full:.0%} |"
        )
    ]
    for task in tasks:
        metric = METRICS[task]
        wrong = [abs(predicted[a].dev[metric] - exact[a].dev[metric]) for a in predicted]
        steps = [abs(exact[a].dev[metric] - exact[0.0].dev[metric]) for a in predicted]
        lines.append(
            f"    {task}: predicted {metric} on dev is wrong by {statistics.fmean(wrong):.2f} "
            f"(largest {max(wrong):.2f}); it moves by {statistics.fmean(steps):.2f} from alpha 0"
        )
    layers = [
        (alpha, name, value) for alpha, row in real.items() for name, value in row.extra.items()
    ]
    lines += [
        f"    feature error at {alpha:g}: {name} {value:.4f}" for alpha, name, value in layers
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, default=Path("runs/alpha_curve"))
    parser.add_argument("--donors", default="phones,speakers,emotions,commands")
    parser.add_argument("--manifest", type=Path, help="recordings of the donor `digits`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    tasks, donors = options.tasks.split(","), options.donors.split(",")
    first = make_space(donors[0], 0, tasks, {"grid": [0.5]})
    place = resolve_place(first, storage=options.storage, manifest=options.manifest)
    place = place.model_copy(update={"device": "cpu"})
    options.storage.mkdir(parents=True, exist_ok=True)
    publish_start(place)
    store, clock = Store(options.storage), Clock(options.storage / "cpu_seconds.json")
    texts: list[str] = []
    rows: list[EncoderRow] = []
    for donor in donors:
        for seed in range(options.seeds):
            curves = run_curves(donor, seed, tasks, place, clock)
            texts.append(describe(f"{donor} {seed}", curves, tasks, store, clock))
            print(texts[-1], flush=True)
            rows += [*read_rows(curves.predicted, store), *read_rows(curves.exact, store)]
    print(
        "| donor, seed | best alpha | curve's alpha | error | regret dev | regret test | spread | "
        "CPU s curve | CPU s all | share |"
    )
    print("\n".join(texts))
    if options.picture:
        image = draw_predicted_curves(list_predicted_series(group_rows(rows)))
        options.picture.write_bytes(image or b"")


if __name__ == "__main__":
    main()
