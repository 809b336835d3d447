"""The cost of an evaluation: against s3prl's own loop, with a grid, with more merges, with more
utterances. One run, one thread.

    make peers-s3prl && .venv/bin/python -m benchmarks.superb [SECTION ...]

Sections are front-end, speed, lengths, grid, merges and memory.

Encoders are HuBERT Base cut to ``--layers`` transformer layers (front end of 512 channels and width
768 as published) with random weights; the "merges" lie between two of them; the corpus is
synthetic speech of 1 to 2 seconds. Fewer layers make the front end a larger share of an encoder
than in Base (the share is printed). All times are processor seconds of one process, so that other
work on the machine matters little; loading an encoder is excluded on both sides. The speed-up
follows from how often s3prl encodes each utterance: that number is printed, and the one of its own
config on the real corpus.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.s3prl_peer import PEERS
from benchmarks.superb_lengths import lengths
from benchmarks.superb_loops import (
    FRONT_END,
    HUBERT,
    SETTINGS,
    Cost,
    Passes,
    Setting,
    make_merges,
    report,
    run_ours,
    run_s3prl,
)
from benchmarks.superb_memory import memory, peak_of
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.superb.extractor import Extractor
from speechft_ray.superb.features import (
    prepare_features,
)
from speechft_ray.superb.setup import GRID, build_task_data, make_schedule, select_learning_rates
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.tasks.base import TASKS, TaskData

ENCODERS = 6
MERGES = (1, 2, 4, 8, 16)
ROUNDS = 3
TARGETS = {"sid": 25.0, "pr": 4.0}
GRID_SEEDS, GRID_TARGET = 4, 2.0
CPU = torch.device("cpu")


def speed(options: argparse.Namespace, home: Path) -> bool:
    """Compares the two loops for six encoders on a pooled and on a frame task, and how often each
    encodes an utterance."""
    encoders = make_merges(ENCODERS, options.layers)
    return min(
        [_speed(setting, encoders, options.s3prl_encoders, home) for setting in SETTINGS.values()]
    )


def _speed(setting: Setting, encoders: list[Any], measured: int, home: Path) -> bool:
    corpus = setting.corpus(home / "corpora")
    utterances = sum(setting.counts.values())
    seconds = sum(item.samples for item in corpus.utterances) / 16_000 / utterances
    print(
        f"\n{setting.task}: {setting.counts} utterances of {seconds:.2f} s, {setting.updates} "
        f"updates of {setting.batch_size} ({setting.draws_per_utterance} draws of each training "
        "utterance), "
        f"{setting.validations} validations; s3prl's config: {setting.stock}"
    )
    our_seconds, our_passes = [], Passes()
    for weights in encoders:
        our_seconds.append(
            run_ours(setting.spec(), weights, corpus, home / f"cache-{setting.task}", our_passes)
        )
        print(f"  ours, encoder {len(our_seconds)}: {our_seconds[-1]:.2f} s", flush=True)
    costs, their_passes = [], Passes()
    for weights in encoders[:measured]:
        with tempfile.TemporaryDirectory(dir=home) as folder:
            costs.append(run_s3prl(setting, weights, corpus, Path(folder), their_passes))
        print(f"  s3prl's loop, encoder {len(costs)}: {_parts(costs[-1])}", flush=True)
    their_sum = sum(cost.seconds for cost in costs)
    total = their_sum / measured * len(encoders)
    how = (
        "measured"
        if measured == len(encoders)
        else f"{measured} measured: {their_sum:.1f} s, times {len(encoders)}/{measured}"
    )
    print("  forwards per utterance and encoder   front end   transformer")
    for name, passes, count in (
        ("ours", our_passes, len(encoders)),
        ("s3prl's loop", their_passes, measured),
    ):
        front, rest = (
            passes.counts[part] / utterances / count for part in ("feature_extractor", "encoder")
        )
        print(f"  {name:34} {front:11.3f} {rest:13.3f}")
    once = our_passes.counts == {
        "feature_extractor": utterances,
        "encoder": utterances * len(encoders),
    }
    ratio, target = total / sum(our_seconds), TARGETS[setting.task]
    line = (
        f"{len(encoders)} encoders: ours {sum(our_seconds):.1f} s, s3prl's loop {total:.1f} s "
        f"({how}): {ratio:.1f} times >= {target:g}"
    )
    return report(once, "each utterance once per encoder, its front end once for all") & report(
        ratio >= target, line
    )


def _parts(cost: Cost) -> str:
    parts = ", ".join(
        f"{count} {phase}s {spent / count:.4f} s each"
        for phase, (spent, count) in cost.parts.items()
    )
    return f"{cost.seconds:.1f} s ({parts})"


def front_end(options: argparse.Namespace, home: Path) -> bool:
    """Measures the share of the front end in one pass of an encoder over the pooled corpus."""
    extract, utterances = (
        _extractor(make_merges(1, options.layers)[0], home),
        SETTINGS["sid"].corpus(home / "corpora").utterances,
    )
    module = extract.encoder.module().get_submodule("feature_extractor")
    spent, begun = [0.0], [0.0]
    module.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.process_time()))
    module.register_forward_hook(lambda *_: spent.append(time.process_time() - begun[0]))
    whole, front = [], []
    for _ in range(ROUNDS):
        spent.clear()
        whole.append(
            _seconds(lambda: prepare_features(extract, {"train": utterances}, lambda _: None))
        )
        front.append(sum(spent))
    shares = [one / all_ for one, all_ in zip(front, whole, strict=True)]
    print(
        f"\nfront end: {median(front):.2f} s of {median(whole):.2f} s of a pass over the pooled "
        f"corpus: {median(shares):.0%}"
    )
    return True


def grid(options: argparse.Namespace, home: Path) -> bool:
    """Compares five rates with four seeds to one head: whole evaluations, and training alone."""
    setting, weights = SETTINGS["sid"], make_merges(1, options.layers)[0]
    corpus = setting.corpus(home / "corpora")
    specs = {
        "one head": setting.spec(),
        "grid": setting.spec(learning_rate="grid", seeds=GRID_SEEDS),
    }
    whole: dict[str, list[float]] = {name: [] for name in specs}
    training: dict[str, list[float]] = {name: [] for name in specs}
    extract = _extractor(weights, home)
    for _ in range(ROUNDS):
        for name, spec in specs.items():
            with tempfile.TemporaryDirectory(dir=home) as cache:
                whole[name].append(run_ours(spec, weights, corpus, Path(cache)))
            training[name].append(_training(spec, extract, corpus))
    print(
        f"\ngrid: {len(GRID)} rates x {GRID_SEEDS} seeds against one head, {setting.updates} "
        f"updates, medians of {ROUNDS}"
    )
    ratios = {}
    for what, seconds in (("whole evaluation", whole), ("training and validating alone", training)):
        one, many = (median(seconds[name]) for name in specs)
        ratios[what] = many / one
        print(f"  {what:30} one head {one:7.3f} s, grid {many:7.3f} s: {many / one:.2f} times")
    ratio = ratios["whole evaluation"]
    return report(
        ratio < GRID_TARGET, f"the grid costs {ratio:.2f} times a single head < {GRID_TARGET:g}"
    )


def _training(spec: EvalSpec, extract: Extractor, corpus: Corpus) -> float:
    data, task = build_task_data(TASKS.get(spec.task), spec, corpus), TASKS.get(spec.task)
    assert isinstance(data, TaskData)
    splits = {split: corpus.split(split) for split in ("train", "dev")}
    features = prepare_features(extract, splits, lambda _: None)
    schedule, rates = make_schedule(task, spec), select_learning_rates(task, spec)
    return _seconds(
        lambda: train_stacked(
            data, features["train"], features["dev"], schedule, rates, spec.seeds, lambda _: None
        )
    )


def merges(options: argparse.Namespace, home: Path) -> bool:
    """Measures sweeps of 1 to 16 merges, each with a new cache, and fits a line."""
    setting, encoders = SETTINGS["sid"], make_merges(max(MERGES), options.layers)
    corpus = setting.corpus(home / "corpora")
    costs: list[float] = []
    print("\nmerges: processor seconds of whole sweeps on the pooled task")
    for count in MERGES:
        with tempfile.TemporaryDirectory(dir=home) as cache:
            costs.append(
                sum(
                    run_ours(setting.spec(), weights, corpus, Path(cache))
                    for weights in encoders[:count]
                )
            )
        print(f"  {count:2} merges: {costs[-1]:7.2f} s", flush=True)
    slope, intercept = np.polyfit(MERGES, costs, 1)
    residuals = np.asarray(costs) - (slope * np.asarray(MERGES) + intercept)
    fit = 1 - float((residuals**2).sum() / ((np.asarray(costs) - np.mean(costs)) ** 2).sum())
    extract = _extractor(encoders[0], home, shared=True)
    splits = {split: corpus.split(split) for split in ("train", "dev", "test")}
    first = _seconds(lambda: prepare_features(extract, splits, lambda _: None))
    one_pass = median(
        _seconds(lambda: prepare_features(extract, splits, lambda _: None)) for _ in range(ROUNDS)
    )
    training = median(_training(setting.spec(), extract, corpus) for _ in range(ROUNDS))
    print(
        f"  line: {slope:.3f} s per merge + {intercept:.3f} s, R2 {fit:.5f}\n"
        f"  measured separately: a pass without front end {one_pass:.3f} s, with front end "
        f"{first:.3f} s (the difference {first - one_pass:.3f} s is the intercept's part), "
        f"training and validating {training:.3f} s"
    )
    ratio = float(slope) / one_pass
    return report(
        fit > 0.99,
        f"cost is linear in the merges, slope {ratio:.2f} times a pass without front end",
    )


def _extractor(weights: Any, home: Path, shared: bool = False) -> Extractor:
    encoder, corpus = HUBERT.build(weights), SETTINGS["sid"].corpus(home / "corpora")
    cache = FeatureCache(home / "extractor", 1 << 30)
    shared_front_end = (
        SharedFrontEnd(cache, encoder.module(), FRONT_END, HUBERT.describe(weights.config), corpus)
        if shared
        else None
    )
    return Extractor(encoder, corpus, CPU, True, shared_front_end)


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


SECTIONS = {
    "front-end": front_end,
    "speed": speed,
    "lengths": lengths,
    "grid": grid,
    "merges": merges,
    "memory": memory,
}


def main() -> None:
    """Prints the named sections, or all; exits with 1 if a line fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all unless given")
    parser.add_argument("--layers", type=int, default=4, help="transformer layers (4)")
    parser.add_argument(
        "--s3prl-encoders",
        type=int,
        default=2,
        help=f"how many of {ENCODERS} s3prl's loop evaluates (2)",
    )
    parser.add_argument(
        "--factor", type=float, default=0.0003, help="lengths: share of LibriSpeech (0.0003)"
    )
    parser.add_argument(
        "--draws", type=int, default=16, help="lengths: draws of each training utterance (16)"
    )
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # s3prl's weight norm
    if options.peak_of:
        task, count = options.peak_of.split(":")
        return peak_of(task, int(count))
    if not PEERS.is_dir():
        sys.exit(
            "s3prl's downstream code needs editdistance, h5py and lxml: run `make peers-s3prl` "
            "first."
        )
    print(
        f"HuBERT, front end of 512 channels, {options.layers} layers x 768, random weights; "
        "processor seconds, one thread"
    )
    with tempfile.TemporaryDirectory() as home:
        passed = [SECTIONS[name](options, Path(home)) for name in options.sections or SECTIONS]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
