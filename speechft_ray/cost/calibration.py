"""Measures on this machine what a unit of work takes, by doing a little of it.

Every measurement runs the code of the jobs, in their number types: the extractor, the training of
probes, the step of fine-tuning, the merge. Times are CPU seconds of this process on a CPU, and wall
seconds with the device synchronised on a GPU.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from speechft_ray.core.specs import EvalSpec, FinetuneSpec, Precision
from speechft_ray.core.units import SAMPLE_RATE_HZ, frame_count
from speechft_ray.cost.samples import RandomFeatures, select_runs
from speechft_ray.cost.sizes import mean_batch_samples, seconds, split_lengths
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, AudioCache, BatchSampler
from speechft_ray.finetuning.data import ObjectiveData, load_objective
from speechft_ray.finetuning.features import FeatureLoader
from speechft_ray.finetuning.phases import head_only_updates
from speechft_ray.finetuning.pseudo_labels import with_pseudo_labels
from speechft_ray.finetuning.train_state import build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.merging.resident import ResidentMerger
from speechft_ray.speech.batching import choose_rule, make_batches
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.precision import encode_in, use_float32_products
from speechft_ray.superb.evaluate import one_thread
from speechft_ray.superb.extractor import Extractor, Features
from speechft_ray.superb.probe import Schedule
from speechft_ray.superb.saved_work import NOT_SAVED
from speechft_ray.superb.setup import build_task_data, make_schedule, select_learning_rates
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.tasks.base import TASKS, Task, TaskData, TrainingFreeTask
from speechft_ray.superb.training import train_probes

BUDGET_SECONDS = 0.6
"""Time that one measurement aims at; a single update of a large encoder may take longer."""

MERGED_VALUES = 4_000_000
"""Values of an encoder that a calibration merges; the time is scaled to all."""

SCORED = 32
"""Utterances that a calibration scores, at most."""

MOST_UPDATES = 60
"""Updates of probes that a calibration makes, at most."""

Clock = Callable[[], float]


def make_clock(device: torch.device) -> Clock:
    """Returns a function to seconds of work: CPU time of this process, or wall time of a GPU."""
    if device.type == "cpu":
        return time.process_time

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def find_device(device: str) -> torch.device:
    """Returns the device that a job uses on this machine (``Place.device``)."""
    use_gpu = device == "auto" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def describe_device(device: torch.device) -> str:
    """Returns the name of a GPU, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def read_child_seconds() -> float:
    """Returns the CPU time of ended child processes, which synthesise corpora."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class EncodingCost(NamedTuple):
    """Seconds that one second of audio takes. Reading it belongs to ``layers``."""

    layers: float
    front_end: float
    """0 for an encoder without a learned front end."""


def measure_encoding(
    weights: EncoderWeights, corpus: Corpus, device: torch.device, precision: Precision
) -> EncodingCost:
    """Encodes up to a minute of a corpus, in the batches in which all of it is encoded."""
    clock, family = make_clock(device), FAMILIES.get(weights.family)
    with one_thread(device):
        encoder = encode_in(precision, family.build(weights), device)
        extractor = Extractor(encoder, corpus, device, pooled=True)

        def encode(most_seconds: float) -> tuple[float, float]:
            """Returns the seconds of audio and of work."""
            utterances = select_runs(corpus.utterances, most_seconds)
            began = clock()
            for _ in extractor.encode_groups(utterances):
                pass
            return sum(item.seconds for item in utterances), clock() - began

        audio, spent = encode(1.0)  # warms up, and shows how fast this is
        audio, spent = encode(min(60.0, max(1.0, audio * BUDGET_SECONDS / max(spent, 1e-4))))
        if not family.front_end_prefixes:
            return EncodingCost(spent / audio, 0.0)
        utterances = select_runs(corpus.utterances, audio * 0.7)
        audio_again = sum(item.seconds for item in utterances)
        groups = make_batches([item.samples for item in utterances], choose_rule(device.type))
        waves = [torch.from_numpy(corpus.read(item)).to(device) for item in utterances]
        began = clock()
        with torch.no_grad():
            for group in groups:
                extractor.encoder.conv_features([waves[index] for index in group])
        front_end = (clock() - began) / audio_again
    return EncodingCost(max(0.0, spent / audio - front_end), front_end)


class ProbeCost(NamedTuple):
    """Seconds of one update of one probe, and of scoring one utterance with one probe."""

    update: float
    score: float


def measure_probe(
    spec: EvalSpec, corpus: Corpus, state_count: int, dim: int, device: torch.device
) -> ProbeCost:
    """Trains the probes of an evaluation for some updates on random features.

    Raises ``UserError`` for labels that do not fit, and for a task without a probe.
    """
    task = TASKS.get(spec.task)
    data = build_task_data(task, spec, corpus)
    assert isinstance(data, TaskData)
    every = max(1, len(data.examples["dev"]) // SCORED)
    examples = {"train": data.examples["train"], "dev": data.examples["dev"][::every][:SCORED]}
    data = replace(data, examples=examples, dev_indices=None)
    features = {
        split: RandomFeatures(
            [1 if task.pooled else frame_count(item.utterance.samples) for item in items],
            state_count,
            dim,
            task.pooled,
            device,
        )
        for split, items in examples.items()
    }
    rates, clock = select_learning_rates(task, spec), make_clock(device)
    schedule = make_schedule(task, spec)
    with one_thread(device), use_float32_products("float32", device):
        first = _time_updates(data, features, schedule, rates, spec.seeds, 4, clock)
        updates = int(max(4, min(MOST_UPDATES, BUDGET_SECONDS / max(first[0], 1e-5))))
        train_rows = features["train"].rows_read
        update, score = _time_updates(data, features, schedule, rates, spec.seeds, updates, clock)
    probes = spec.seeds * len(rates)
    if not task.pooled:
        # Batches differ in length: what was drawn is scaled to the mean over all of train.
        drawn = (features["train"].rows_read - train_rows) / updates
        expected = _mean_rows(task, schedule, data)
        update *= expected / max(1.0, drawn)
    return ProbeCost(update / probes, score / probes)


def _mean_rows(task: Task, schedule: Schedule, data: TaskData) -> float:
    """Returns the expected frames of one update."""
    examples = data.examples["train"]
    lengths = torch.tensor([item.utterance.samples for item in examples]).numpy()
    samples = mean_batch_samples(lengths, schedule.batch_size, task.sampling)
    rows = sum(frame_count(item.utterance.samples) for item in examples)
    return schedule.accumulate * samples * rows / float(lengths.sum())


def _time_updates(
    data: TaskData,
    features: Mapping[str, Features],
    schedule: Schedule,
    rates: Sequence[float],
    seeds: int,
    updates: int,
    clock: Clock,
) -> tuple[float, float]:
    """Returns the seconds of one update of all probes, and of scoring one utterance by all."""
    stamps = [clock()]
    short = replace(schedule, updates=updates, validate_every_updates=updates)

    def advance(count: int) -> None:
        stamps.append(clock())

    train, dev = features["train"], features["dev"]
    if data.pooled_head is not None:
        train_stacked(data, train, dev, short, rates, seeds, advance)
    else:
        pairs = [(rate, seed) for rate in rates for seed in range(seeds)]
        train_probes(data, train, dev, short, pairs, 0, advance)
    # The first stamp includes the setup, the last one the validation.
    update = (stamps[-2] - stamps[1]) / (updates - 2)
    score = max(0.0, stamps[-1] - stamps[-2] - update) / len(data.examples["dev"])
    return update, score


def measure_matching(
    spec: EvalSpec, corpus: Corpus, state_count: int, dim: int, device: torch.device
) -> float:
    """Returns the seconds of comparing one query with one document, for a task without a probe."""
    data = build_task_data(TASKS.get(spec.task), spec, corpus)
    assert isinstance(data, TrainingFreeTask)
    counts = {"train": 16, "dev": 4}
    features = {
        split: RandomFeatures(
            [frame_count(item.utterance.samples) for item in data.examples[split][:count]],
            state_count,
            dim,
            False,
            device,
        )
        for split, count in counts.items()
    }
    clock = make_clock(device)
    with one_thread(device), use_float32_products("float32", device):
        began = clock()
        data.predict(features, NOT_SAVED, lambda count: None)
        return (clock() - began) / (features["train"].count * features["dev"].count)


class TuningCost(NamedTuple):
    """Seconds of one update while only the head is trained, and of one afterwards; the frozen
    front end not counted."""

    head_only: float
    full: float


def measure_finetuning(
    spec: FinetuneSpec,
    start: EncoderWeights,
    corpora: Sequence[Corpus],
    device: torch.device,
    work: Path,
    encoding: EncodingCost,
) -> TuningCost:
    """Makes some updates of a run, with smaller batches where its own would take too long, and
    scales the time to its own by the audio. ``work``: an empty folder.

    Raises ``UserError`` for labels that do not fit.
    """
    clock = make_clock(device)
    objectives = [
        _shrink(load_objective(item, corpus, start), encoding)
        for item, corpus in zip(spec.objectives, corpora, strict=True)
    ]
    with (
        one_thread(device),
        use_float32_products(spec.precision, device),
        torch.random.fork_rng(devices=_fork(device)),
    ):
        state = build_train_state(spec, start, objectives, device)
        loader = FeatureLoader(
            encoder=state.encoder,
            device=device,
            freeze_front_end=spec.freeze_front_end,
            audio_caches=[AudioCache(corpus, 1 << 28) for corpus in corpora],
            precision=spec.precision,
        )
        objectives = with_pseudo_labels(
            objectives, loader, work, "calibration", lambda values: None
        )
        trainer = Trainer(spec, objectives, loader, MICRO_BATCH_SECONDS)
        state.train(True)
        frozen = encoding.front_end if spec.freeze_front_end else 0.0

        own_seconds = sum(
            objective.batch_size * seconds(lengths) / len(lengths)
            for objective, lengths in zip(
                spec.objectives, [split_lengths(corpus, "train") for corpus in corpora], strict=True
            )
        )

        def time_update(update: int) -> float:
            """Returns the seconds of an update of the run's own batches."""
            audio = _batch_seconds(spec, objectives, update)
            began = clock()
            trainer.train_step(state, update)
            per_second = (clock() - began) / audio - frozen
            return max(0.0, per_second) * own_seconds

        try:
            head_only = head_only_updates(spec.head_only_fraction, spec.updates)
            last = spec.updates - 1
            updates = range(max(head_only, last - 3), last + 1)
            time_update(updates[0])  # warms up
            full = [time_update(update) for update in updates[1:] or updates]
            head = [time_update(index) for index in range(min(2, head_only))]
        finally:
            trainer.close()
    return TuningCost(sum(head) / max(1, len(head)), sum(full) / len(full))


def _fork(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _shrink(data: ObjectiveData, encoding: EncodingCost) -> ObjectiveData:
    """Returns the objective with a batch whose update takes about the budget; an update costs three
    passes, as forward and backward do."""
    mean = sum(item.utterance.seconds for item in data.train) / len(data.train)
    per_second = 3 * max(1e-6, encoding.layers + encoding.front_end)
    size = max(1, min(data.objective.batch_size, int(BUDGET_SECONDS / per_second / mean)))
    return replace(data, objective=data.objective.model_copy(update={"batch_size": size}))


def _batch_seconds(spec: FinetuneSpec, objectives: Sequence[ObjectiveData], update: int) -> float:
    """Returns the audio of one update."""
    total = 0.0
    for index, data in enumerate(objectives):
        lengths = [item.utterance.samples for item in data.train]
        sampler = BatchSampler(lengths, data.objective.batch_size, spec.seed, index)
        total += sum(lengths[place] for place in sampler.batch(update)) / SAMPLE_RATE_HZ
    return total


def measure_merge(
    method: str, params: Mapping[str, Any], donors: int, start: EncoderWeights
) -> float:
    """Merges a part of the encoder and scales the time to all of it. Raises ``UserError`` for a
    method that needs statistics of its donors."""
    part: dict[str, torch.Tensor] = {}
    for name, value in start.state.items():
        part[name] = value
        if sum(item.numel() for item in part.values()) > MERGED_VALUES:
            break
    tuned = {name: value * 1.01 for name, value in part.items()}
    merger = ResidentMerger(part, [tuned] * donors)
    share = sum(v.numel() for v in part.values()) / sum(v.numel() for v in start.state.values())
    with one_thread(torch.device("cpu")):
        began = time.process_time()
        merger.merge(method, params, 0.5)
        return (time.process_time() - began) / share


def measure_encoder_job(start: EncoderWeights, folder: Path) -> float:
    """Returns the seconds of what every job does beside its own work: writing an encoder, or
    reading one and building it."""
    began = time.process_time()
    write_encoder(folder / "encoder.safetensors", start, {})
    FAMILIES.get(start.family).build(read_encoder(folder / "encoder.safetensors"))
    return time.process_time() - began
