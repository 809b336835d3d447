"""Peak memory of evaluations with more utterances: the section ``memory`` of ``superb.py``."""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.superb_loops import (
    HUBERT,
    make_merges,
    report,
)
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.extractor import Extractor
from speechft_ray.superb.feature_store import FeatureStorage, FeatureStore
from speechft_ray.superb.features import load_features, open_features, size_in_bytes
from speechft_ray.superb.selection import predict
from speechft_ray.superb.setup import build_task_data, make_schedule
from speechft_ray.superb.tasks.base import TASKS, TaskData
from speechft_ray.superb.training import train_probes

MEMORY_UTTERANCES, MEMORY_TIMES, MEMORY_BUDGET_BYTES = 75, (1, 10, 100), 1 << 20
"""75 utterances of two lengths fill the 20 s of audio that are encoded at once, so that more of
them fill no larger batch."""
MEMORY_GROWTH = 1.1
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc returns freed memory to the system at once (mallopt(3)); else the peak includes freed
memory, tens of MB by chance."""
CPU = torch.device("cpu")


def memory(options: argparse.Namespace, home: Path) -> bool:
    """Measures the peak memory of new processes that evaluate 1, 10 and 100 times the utterances
    within one budget."""
    print(
        f"\nmemory: a 2 x 64 HuBERT, at most {MEMORY_BUDGET_BYTES >> 20} MiB of features in "
        "memory, the rest on disk"
    )
    passed = True
    for task in ("sid", "pr"):
        peaks = []
        for times in MEMORY_TIMES:
            command = [
                sys.executable,
                "-m",
                "benchmarks.superb",
                "--peak-of",
                f"{task}:{times * MEMORY_UTTERANCES}",
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **GIVE_BACK}
            )
            peak, features = map(float, done.stdout.split())
            peaks.append(peak)
            print(
                f"  {task} {times * MEMORY_UTTERANCES:5} utterances, {features:7.2f} MB of "
                f"features: peak {peak:.1f} MB",
                flush=True,
            )
        growth = peaks[-1] / peaks[0]
        passed &= report(
            growth < MEMORY_GROWTH,
            f"{task}: {MEMORY_TIMES[-1]} times the utterances, {growth:.3f} times the memory",
        )
    return passed


def peak_of(task: str, count: int) -> None:
    """Evaluates in this process and prints its peak resident memory and the size of all features,
    in MB."""
    utterances = [
        _make_utterance(split, index)
        for split, n in (("train", count), ("dev", count // 5))
        for index in range(n)
    ]
    utterances += [_make_utterance("test", index) for index in range(count // 5)]
    corpus = Corpus(
        name="noise",
        fingerprint=str(count),
        utterances=utterances,
        read=_noise,
        columns=frozenset(utterances[0].labels),
    )
    spec = EvalSpec(task=task, corpus=CorpusSpec(), updates=100, validate_every_updates=50)
    row = TASKS.get(task)
    data = build_task_data(row, spec, corpus)
    assert isinstance(data, TaskData)
    extract = Extractor(HUBERT.build(make_merges(1, 2, 64)[0]), corpus, CPU, row.pooled)
    ordered = {
        split: [example.utterance for example in examples]
        for split, examples in data.examples.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        storage = FeatureStorage(
            MEMORY_BUDGET_BYTES // (64 if row.pooled else 1),
            FeatureCache(Path(folder), 1 << 30),
            "0",
        )
        store = FeatureStore(extract, ordered, storage)
        splits = {split: ordered[split] for split in ("train", "dev")}
        features = load_features(store, splits, lambda _: None)
        rates_and_seeds = [(row.learning_rate, 0)]
        trained = train_probes(
            data,
            features["train"],
            features["dev"],
            make_schedule(row, spec),
            rates_and_seeds,
            0,
            lambda _: None,
        )
        test = open_features(store, ordered["test"], lambda _: None)
        predict(data, [each.probe for each in trained], test)
    # Not ru_maxrss, which starts from the parent's memory at the time of the fork.
    (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(
        int(peak_kib) * 1024 / 1e6,
        sum(size_in_bytes(store, items) for items in ordered.values()) / 1e6,
    )


def _make_utterance(split: str, index: int) -> Utterance:
    rng = random.Random(f"{split}{index}")
    labels = {"speaker": f"s{index % 4}", "phones": " ".join(rng.choices("abcd", k=5))}
    return Utterance(
        key=f"{split}-{index:05}", split=split, samples=6400 * rng.randint(2, 3), labels=labels
    )


def _noise(utterance: Utterance) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(utterance.key.encode()))
    return rng.standard_normal(utterance.samples, dtype=np.float32) * 0.1
