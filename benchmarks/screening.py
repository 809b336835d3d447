"""Do screens without training order encoders as their scores do? On what ``alpha_curve.py`` left.

    python -m benchmarks.screening --storage runs/alpha_curve --donors phones --seeds 1 --tasks sid

For each donor, fine-tuning seed and task, the 21 merges that ``benchmarks/alpha_curve.py``
evaluated are screened on their stored features (``superb.screening``; `pr` by ABX). Prints the rank
correlation of each screen with the metric on dev over these merges, turned so that more is better
(Spearman, 95 % interval), and what it cost in CPU seconds beside what the evaluations cost.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.alpha_curve import METRICS, POINTS, Clock, make_space
from speechft_ray.commands.parts import plan_sweep_inputs, resolve_place
from speechft_ray.core.metrics import METRICS as METRIC_TABLE
from speechft_ray.core.records import Place, read_scores
from speechft_ray.core.specs import EvalSpec
from speechft_ray.core.store import Store
from speechft_ray.report.rank_correlation import correlate_ranks
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.stages.perform import ENCODER_FILE
from speechft_ray.stages.sources import open_corpus
from speechft_ray.superb.evaluate import FeatureOpener, SharedCaches, WeightedEncoder
from speechft_ray.superb.interpolation import FeatureSource
from speechft_ray.superb.screening import screen, screen_task
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS, TaskData, list_utterances
from speechft_ray.sweep.plan import Plan, make_plan

COLUMNS = ("ridge", "nearest_mean", "cka", "abx")


class Screener:
    """Screens merges of one task."""

    def __init__(self, spec: EvalSpec, place: Place, store: Store) -> None:
        self.spec, self.store = spec, store
        corpus = open_corpus(spec.corpus, place)
        data = build_task_data(TASKS.get(spec.task), spec, corpus)
        assert isinstance(data, TaskData)
        self.data, self.pooled = data, TASKS.get(spec.task).pooled
        self.utterances = {
            split: list_utterances(data.examples[split]) for split in ("train", "dev")
        }
        self.cache = FeatureCache(store.root / "cache", 50 * 10**9)

    def open(self, key: str) -> FeatureSource:
        """Opens the stored features of a merge."""
        weights = read_encoder(self.store.folder("merge", key) / ENCODER_FILE)
        family = FAMILIES.get(weights.family)
        front_end = (family.front_end_prefixes[0], family.describe(weights.config))
        caches = SharedCaches(cache=self.cache, encoder=key, front_end=front_end)
        opener = FeatureOpener(
            self.spec, self.data.corpus, torch.device("cpu"), self.pooled, self.utterances, None
        )
        return opener.open([WeightedEncoder(1.0, family.build(weights), caches)])

    def screen(self, key: str, pretrained: str) -> dict[str, float]:
        """Screens a merge."""
        if not self.pooled:
            return screen_task(self.data, self.open(key), lambda count: None)
        screens = screen(self.data, self.open(key), self.open(pretrained))
        return {**screens._asdict(), "cka": screens.cka or 0.0}


def compare(name: str, task: str, plan: Plan, screener: Screener, clock: Clock) -> list[str]:
    """Returns the lines of one donor, seed and task."""
    place = [item.task for item in plan.spec.evaluate].index(task)
    pretrained = next(row.key for row in plan.rows if row.params["method"] == "none")
    scores, screens, full = [], [], 0.0
    began = time.process_time()
    for row in plan.rows:
        key = row.evaluations[place]
        facts = screener.store.manifest("evaluate", key)
        sign = 1 if METRIC_TABLE[METRICS[task]].higher_is_better else -1
        scores += [
            sign * score.mean
            for score in read_scores(facts)
            if score.metric == METRICS[task] and score.split == "dev"
        ]
        screens.append(screener.screen(row.key, pretrained))
        full += clock.seconds.get(key, 0.0)
    cost = time.process_time() - began
    cells = " | ".join(
        str(correlate_ranks([one[by] for one in screens], scores)) if by in screens[0] else ""
        for by in COLUMNS
    )
    return [f"| {name} | {task} | {cells} | {cost:.1f} | {full:.0f} |"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, default=Path("runs/alpha_curve"))
    parser.add_argument("--donors", default="phones,speakers,emotions,commands")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default="sid,er,ks")
    options = parser.parse_args()
    tasks, store = options.tasks.split(","), Store(options.storage)
    clock = Clock(options.storage / "cpu_seconds.json")
    grid = {"grid": [round(number / (POINTS - 1), 6) for number in range(POINTS)]}
    print(f"| donor, seed | task | {' | '.join(COLUMNS)} | CPU s screens | CPU s evaluations |")
    for donor in options.donors.split(","):
        for seed in range(options.seeds):
            spec = make_space(donor, seed, tasks, grid)
            place = resolve_place(spec, storage=options.storage, cpu=True)
            plan = make_plan(spec, plan_sweep_inputs(spec, place))
            for item in spec.evaluate:
                screener = Screener(item, place, store)
                print("\n".join(compare(f"{donor} {seed}", item.task, plan, screener, clock)))


if __name__ == "__main__":
    main()
