"""Reading ahead of the device: how much of reading and computing overlaps, and what it costs.

    .venv/bin/python -m benchmarks.readers [overlap cpu] [--rounds 3] [--threads 1 4]

``overlap``: a stand-in device sleeps for every batch, and a stand-in disk sleeps for every
utterance, so that the machine at hand does not matter. Each case runs with both, with a disk that
takes no time (computing alone) and with a device that takes none (reading alone). The wall time of
both should be at most 1.1 times the longer of the two.

``cpu``: FLAC files of 2 to 17 s and the encoder of the package on this machine, with one reading
thread and with none, in turns; also with the process held to one processor, and with clips of 1 s
that lie in memory, which are read without a thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
from torch import nn

from benchmarks.lengths import CORPORA, simulate_samples
from benchmarks.rehearsal_corpora import make_utterance
from benchmarks.superb_loops import HUBERT, report
from speechft_ray.core.specs import CorpusSpec, FinetuneSpec, Objective
from speechft_ray.core.units import SAMPLE_RATE_HZ, frame_count
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, AudioCache
from speechft_ray.finetuning.data import load_objective
from speechft_ray.finetuning.features import AudioClip, FeatureLoader
from speechft_ray.finetuning.train_state import build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.speech.audio import read_audio
from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import FAMILIES, HiddenStates
from speechft_ray.superb.extractor import Extractor
from speechft_ray.superb.feature_store import FeatureStorage
from speechft_ray.superb.features import prepare_features

CPU = torch.device("cpu")
LIMIT = 1.1
UTTERANCES, BATCH, UPDATES = 160, 8, 40
READING_SECONDS = 0.02
"""What the stand-in disk takes for an utterance."""
COMPUTING = (0.3, 1.0, 3.0)
"""What the stand-in device takes for a batch, in units of what its reading takes."""
CLIPS, CLIP_SECONDS = 200, 1.0


def make_corpus(read: Callable[[Utterance], np.ndarray], samples: Sequence[int]) -> Corpus:
    """Returns a corpus of these lengths, with one dev utterance for every eight of train."""
    utterances = [
        make_utterance(f"{split}-{place}", split, length, place)
        for split, some in (("train", samples), ("dev", samples[::8]))
        for place, length in enumerate(some)
    ]
    return Corpus(
        name="readers",
        fingerprint="readers",
        utterances=utterances,
        read=read,
        columns=frozenset(utterances[0].labels),
    )


def read_slowly(seconds: float, utterance: Utterance) -> np.ndarray:
    time.sleep(seconds)
    return np.full(utterance.samples, 0.01, np.float32)


class SleepingEncoder(nn.Module):
    """States of one value, after a sleep for every batch."""

    dim, state_count = 1, 2

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def module(self) -> nn.Module:
        return self

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        time.sleep(self.seconds)
        frames = [frame_count(len(wave)) for wave in waves]
        states = torch.zeros(len(waves), max(frames), self.dim)
        return HiddenStates((states, states), torch.tensor(frames))

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise NotImplementedError

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SleepingLoader(FeatureLoader):
    """States of zeros, after a sleep for every batch."""

    seconds: float

    def encode(
        self, clips: Sequence[AudioClip], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        time.sleep(self.seconds)
        frames = [frame_count(clip.samples) for clip in clips]
        states = torch.zeros(len(clips), max(frames), self.encoder.dim)
        return HiddenStates((states,), torch.tensor(frames))


def time_encoding(threads: int, reading: float, computing: float, on_the_fly: bool) -> float:
    """Encodes a split once, or for every batch; returns the wall seconds."""
    samples = [SAMPLE_RATE_HZ] * UTTERANCES
    corpus = make_corpus(partial(read_slowly, reading), samples)
    extractor = Extractor(SleepingEncoder(computing), corpus, CPU, pooled=not on_the_fly)
    extractor.readers, extractor.rule = threads, extractor.rule._replace(max_seconds=float(BATCH))
    began = time.perf_counter()
    splits, storage = {"train": corpus.split("train")}, FeatureStorage(memory_bytes=0)
    features = prepare_features(extractor, splits, lambda count: None, storage)["train"]
    if on_the_fly:
        for _ in features.read_batches(torch.split(torch.randperm(UTTERANCES), BATCH)):
            pass
    return time.perf_counter() - began


def time_finetuning(threads: int, reading: float, computing: float) -> float:
    """Makes some updates; returns their wall seconds."""
    corpus = make_corpus(partial(read_slowly, reading), [SAMPLE_RATE_HZ // 4] * UTTERANCES)
    objective = Objective(head="pooled", column="speaker", corpus=CorpusSpec(), batch_size=BATCH)
    spec = FinetuneSpec(name="readers", objectives=(objective,), updates=UPDATES)
    config = HUBERT.example_config(1, 16, False)  # type: ignore[misc]
    weights = HUBERT.init_weights(config, 0)  # type: ignore[misc]
    objectives = [load_objective(objective, corpus, weights)]
    state = build_train_state(spec, weights, objectives, CPU)
    loader = SleepingLoader(
        encoder=state.encoder,
        device=CPU,
        freeze_front_end=True,
        audio_caches=[AudioCache(corpus, 0)],
        readers=threads,
        seconds=computing,
    )
    state.train(True)
    trainer = Trainer(spec, objectives, loader, MICRO_BATCH_SECONDS)
    began = time.perf_counter()
    for update in range(UPDATES):
        trainer.train_step(state, update)
    trainer.close()
    return time.perf_counter() - began


def overlap(rounds: int, threads: Sequence[int]) -> bool:
    """Compares the wall time of reading and computing with the longer of the two."""
    cases: dict[str, Callable[[int, float, float], float]] = {
        "evaluation": partial(time_encoding, on_the_fly=False),
        "on the fly": partial(time_encoding, on_the_fly=True),
        "fine-tuning": time_finetuning,
    }
    torch.set_num_threads(1)
    all_ok = True
    for name, measure in cases.items():
        for count in threads:
            for share in COMPUTING:
                computing = share * BATCH * READING_SECONDS / count
                both, read, compute = (
                    median(measure(count, *seconds) for _ in range(rounds))
                    for seconds in (
                        (READING_SECONDS, computing),
                        (READING_SECONDS, 0.0),
                        (0.0, computing),
                    )
                )
                ratio = both / max(read, compute)
                line = (
                    f"{name}, {count} thread(s): reading {read:.2f} s, computing {compute:.2f} s, "
                    f"both {both:.2f} s: {ratio:.2f} times the longer (at most {LIMIT}), "
                    f"{both / (read + compute):.2f} times one after the other"
                )
                all_ok &= report(ratio <= LIMIT, line)
    return all_ok


def write_recordings(folder: Path, count: int) -> Corpus:
    """Writes FLAC files of noise with lengths of LibriSpeech, and returns them as a corpus."""
    samples = simulate_samples(CORPORA["librispeech"]["train"], count)
    for place, length in enumerate(samples):
        noise = 0.1 * np.random.default_rng(place).standard_normal(length)
        soundfile.write(folder / f"{place}.flac", noise.clip(-1, 1), SAMPLE_RATE_HZ)

    def read(utterance: Utterance) -> np.ndarray:
        return read_audio(folder / f"{utterance.key.split('-')[1]}.flac")

    return make_corpus(read, [int(length) for length in samples])


def cpu(rounds: int, files: int) -> bool:
    """Encodes on this machine with and without a reading thread, in turns."""
    torch.set_num_threads(1)
    weights = load_encoder("tiny_hubert")
    encoder = FAMILIES.get(weights.family).build(weights)
    rng = np.random.default_rng(0)
    clips = make_corpus(
        lambda utterance: rng.standard_normal(utterance.samples).astype(np.float32),
        [int(CLIP_SECONDS * SAMPLE_RATE_HZ)] * CLIPS,
    )
    usable = os.sched_getaffinity(0)

    def encode(corpus: Corpus, threads: int | None) -> tuple[float, float]:
        extractor = Extractor(encoder, corpus, CPU, pooled=True)
        if threads is not None:
            extractor.readers = threads
        began, cpu_began = time.perf_counter(), time.process_time()
        splits = {"train": corpus.split("train")}
        prepare_features(extractor, splits, lambda count: None)
        return time.perf_counter() - began, time.process_time() - cpu_began

    with tempfile.TemporaryDirectory() as folder:
        recordings = write_recordings(Path(folder), files)
        cases: list[tuple[str, Corpus, int | None, set[int]]] = [
            ("FLAC, one thread", recordings, 1, usable),
            ("FLAC, one thread, one processor", recordings, 1, {min(usable)}),
            ("clips in memory", replace(clips, is_in_memory=True), None, usable),
        ]
        for name, corpus, threads, processors in cases:
            os.sched_setaffinity(0, processors)
            pairs = [(encode(corpus, threads), encode(corpus, 0)) for _ in range(rounds)]
            ahead, before = (
                [median(pair[side][kind] for pair in pairs) for kind in (0, 1)] for side in (0, 1)
            )
            print(
                f"      {name}: {ahead[0]:.2f} s ({ahead[1]:.2f} CPU s), without reading ahead "
                f"{before[0]:.2f} s ({before[1]:.2f} CPU s): {ahead[0] / before[0]:.2f} times the "
                f"time, {ahead[1] / before[1]:.2f} times the CPU time",
                flush=True,
            )
        os.sched_setaffinity(0, usable)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", default=["overlap", "cpu"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--files", type=int, default=24)
    options = parser.parse_args()
    sections = {
        "overlap": lambda: overlap(options.rounds, options.threads),
        "cpu": lambda: cpu(options.rounds, options.files),
    }
    outcomes = [sections[name]() for name in options.sections]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
