"""What `patience` saves and costs on the embedded tasks.

    python -m benchmarks.patience [pr sid er ks] [--seeds 5] [--json FILE]

The shipped encoder on the evaluations of search_spaces/alpha.yaml, with twenty validations each.
Features are cached, so the CPU seconds are those of probes. A row has the share of the updates that
were made, the CPU seconds beside those of all updates, the metric on test, and the mean over seeds
of its difference to all updates with the largest loss of a seed (positive is worse).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch

from speechft_ray.core.metrics import metric
from speechft_ray.core.records import Place, read_scores
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.stages.sources import open_corpus
from speechft_ray.superb.evaluate import SharedCaches, evaluate
from speechft_ray.sweep.space_file import read_space

ENCODER, SPACE = "tiny_hubert", Path("search_spaces/alpha.yaml")
VALIDATIONS = 20
PATIENCES = (None, 1, 2, 3, 5)


def main() -> None:
    """Parses the command line, measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["pr", "sid", "er", "ks"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    print("| task | patience | updates made | CPU s | test | worse by, mean (most) |")
    print("|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for spec in read_space(SPACE).evaluate:
            if spec.task in options.tasks:
                results[spec.task] = compare(spec, options.seeds, Path(folder))
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1))


def compare(spec: EvalSpec, seeds: int, folder: Path) -> list[dict[str, Any]]:
    """Evaluates every patience on one task, and prints a row for each."""
    rows: list[dict[str, Any]] = []
    run(spec.model_copy(update={"updates": 2, "seeds": 1}), folder)  # fills the cache of features
    for patience in PATIENCES:
        fields = {
            "seeds": seeds,
            "patience": patience,
            "validate_every_updates": spec.updates // VALIDATIONS,
        }
        facts, seconds = run(spec.model_copy(update=fields), folder)
        score = next(item for item in read_scores(facts) if item.split == "test")
        ended = facts.get("last_update", [spec.updates] * seeds)
        share = fmean(ended) / spec.updates
        rows.append({"patience": patience, "share": share, "cpu": seconds, "test": score.values})
        sign = -1.0 if metric(score.metric).higher_is_better else 1.0
        pairs = zip(score.values, rows[0]["test"], strict=True)
        worse = [sign * (value - whole) for value, whole in pairs]
        print(
            f"| {spec.task} | {patience or 'off'} | {100 * share:.0f} % | {seconds:.1f} | "
            f"{fmean(score.values):.2f} ± {stdev(score.values):.2f} | "
            f"{fmean(worse):+.2f} ({max(worse):+.2f}) |",
            flush=True,
        )
    return rows


def run(spec: EvalSpec, folder: Path) -> tuple[Any, float]:
    """Returns the facts of an evaluation and its CPU seconds."""
    weights = load_encoder(ENCODER)
    encoder = FAMILIES.get(weights.family).build(weights)
    cache = SharedCaches(
        cache=FeatureCache(folder / "cache", 1 << 33), encoder=ENCODER, front_end=None
    )
    corpus = open_corpus(spec.corpus, Place(storage=str(folder), encoder=ENCODER))
    began = time.process_time()
    facts = evaluate(spec, encoder, corpus, torch.device("cpu"), lambda _: None, caches=cache)
    return facts, time.process_time() - began


if __name__ == "__main__":
    main()
