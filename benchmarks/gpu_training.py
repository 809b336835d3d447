"""Sections ``finetune``, ``probes`` and ``oom`` of ``gpu.py``."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.gpu_bench import HUBERT, SECTION_SECONDS, Bench
from benchmarks.rehearsal_corpora import make_noise_corpus, make_utterance
from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec, Objective, Precision
from speechft_ray.core.units import frame_count
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, AudioCache, BatchSampler
from speechft_ray.finetuning.data import ObjectiveData, load_objective
from speechft_ray.finetuning.features import FeatureLoader, cache_conv_features
from speechft_ray.finetuning.train_state import build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.gpu_memory import is_out_of_memory
from speechft_ray.speech.heads.featurizer import Basis
from speechft_ray.speech.precision import autocast_products, use_float32_products
from speechft_ray.superb.extractor import Advance, Extractor, Features
from speechft_ray.superb.feature_forms import CompactForm, ExactForm, Form, Int8Form
from speechft_ray.superb.features import InMemoryFeatures
from speechft_ray.superb.row_features import MemoryRows, RowFeatures
from speechft_ray.superb.setup import build_task_data, make_schedule
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.tasks.base import TASKS, Example, TaskData
from speechft_ray.superb.training import train_probes

AUDIO_BYTES = 1 << 30
CACHE_BYTES = 4 << 30
COMPACT_DIRECTIONS = 1917
"""Directions that a Base encoder is estimated to need (docs/superb.md)."""
SPARE_BYTES = 200 << 20
"""Memory of the GPU that a batch which is too large may use."""

Update = Callable[[], object]


def make_corpus(bench: Bench) -> Corpus:
    """Returns noise with the lengths of the run, a few of them as dev and test."""
    utterances = [
        make_utterance(f"{split}-{place}", split, samples, place)
        for split, lengths in (("train", bench.samples), ("dev", bench.samples[:2]))
        for place, samples in enumerate(lengths)
    ]
    test = [replace(item, key=f"test-{item.key}", split="test") for item in utterances[-2:]]
    return make_noise_corpus("librispeech", [*utterances, *test])


def make_objective(bench: Bench, corpus: Corpus, weights: EncoderWeights) -> ObjectiveData:
    """Returns a CTC objective on phones, 8 utterances in an update."""
    objective = Objective(
        head="ctc", corpus=CorpusSpec(), column="phones", batch_size=2 if bench.toy else 8
    )
    return load_objective(objective, corpus, weights)


def make_finetune_spec(data: ObjectiveData, precision: Precision) -> FinetuneSpec:
    """Returns a run without a head-only phase, long enough for any measurement."""
    return FinetuneSpec(
        name="gpu",
        objectives=(data.objective,),
        updates=100_000,
        head_only_fraction=0.0,
        precision=precision,
    )


def measure_finetune(bench: Bench) -> None:
    """Measures updates with and without a cached front end, and those of a plain loop."""
    corpus = make_corpus(bench)
    for name in bench.shapes:
        if bench.count_seconds_left() < 2 * SECTION_SECONDS and not bench.toy:
            bench.add("finetune", f"{name}: left out", None, "", "no time was left")
            continue
        weights, encoder, _ = bench.build(name)
        del encoder
        data = make_objective(bench, corpus, weights)
        on_gpu: tuple[Precision, ...] = ("float32", "bfloat16")
        precisions = on_gpu if bench.device.type == "cuda" else on_gpu[:1]
        for precision, (case, make) in itertools.product(precisions, CASES.items()):
            bench.reset_peak()
            with (
                use_float32_products(precision, bench.device),
                make(bench, data, weights, precision) as update,
            ):
                seconds = bench.measure(update)
            note = f"{data.objective.batch_size} utterances each, {bench.format_peak()}"
            bench.add("finetune", f"{name}, {precision}, {case}", 1 / seconds, "updates/s", note)


@contextmanager
def make_plain_update(
    bench: Bench, data: ObjectiveData, weights: EncoderWeights, precision: Precision
) -> Iterator[Update]:
    """Yields an update as one would write it: pad, encode, head, loss, Adam."""
    encoder, device = HUBERT.build(weights), bench.device
    module = encoder.module().to(device).train()
    front_end = tuple(HUBERT.front_end_prefixes)
    for name, value in module.named_parameters():
        value.requires_grad_(not name.startswith(front_end))
    head = data.kind.build(data.options, encoder.dim, data.vocabulary.size).to(device)
    parameters = [
        value for model in (module, head) for value in model.parameters() if value.requires_grad
    ]
    optimizer = torch.optim.Adam(parameters, lr=1e-5, fused=True)
    samples = [item.utterance.samples for item in data.train]
    sampler, numbers = (
        BatchSampler(samples, data.objective.batch_size, 0, 0),
        itertools.count(),
    )
    waves = [torch.from_numpy(data.corpus.read(item.utterance)) for item in data.train]

    def update() -> None:
        places = sampler.batch(next(numbers))
        with autocast_products(precision, device):
            states = encoder.hidden_states([waves[place].to(device) for place in places])
            logits = head(states.states[-1], states.frames)
        targets = [data.train[place].target for place in places]
        loss = data.kind.loss(logits.float(), states.frames, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    yield update


@contextmanager
def make_our_update(
    bench: Bench,
    data: ObjectiveData,
    weights: EncoderWeights,
    precision: Precision,
    cache: FeatureCache | None = None,
) -> Iterator[Update]:
    """Yields an update of our trainer."""
    spec = make_finetune_spec(data, precision)
    state = build_train_state(spec, weights, [data], bench.device)
    loader = FeatureLoader(
        encoder=state.encoder,
        device=bench.device,
        freeze_front_end=True,
        audio_caches=[AudioCache(data.corpus, AUDIO_BYTES)],
        precision=precision,
    )
    cache_conv_features(loader, weights, [data], cache, spec, lambda _: None)
    state.train(True)
    trainer, numbers = Trainer(spec, [data], loader, MICRO_BATCH_SECONDS), itertools.count()
    try:
        yield lambda: trainer.train_step(state, next(numbers))
    finally:
        trainer.close()


@contextmanager
def make_cached_update(
    bench: Bench, data: ObjectiveData, weights: EncoderWeights, precision: Precision
) -> Iterator[Update]:
    """Yields an update that reads the front end's output from disk."""
    with (
        tempfile.TemporaryDirectory() as folder,
        make_our_update(
            bench, data, weights, precision, FeatureCache(Path(folder), CACHE_BYTES)
        ) as update,
    ):
        yield update


CASES = {
    "plain loop": make_plain_update,
    "ours": make_our_update,
    "ours, front end cached": make_cached_update,
}


def measure_probes(bench: Bench) -> None:
    """Measures updates of PR's probe on stored frames, and of SID's on stored means."""
    layers, dim = (3, 16) if bench.toy else (13, 768)
    data, schedule = _build_task("pr", make_corpus(bench), bench)
    updates = 4 if bench.toy else 60
    schedule = replace(schedule, updates=updates, validate_every_updates=updates)
    size = f"{schedule.accumulate} x {schedule.batch_size} utterances"
    for form in (
        ExactForm(layers, dim, torch.float16),
        Int8Form(layers, dim),
        CompactForm(_make_basis(8 if bench.toy else COMPACT_DIRECTIONS, layers, dim, bench.device)),
    ):
        bench.reset_peak()
        train, dev = (_make_frames(bench, form, data.examples[split]) for split in ("train", "dev"))
        stamps: list[float] = []
        advance = _make_clock(bench, stamps)
        train_probes(data, train, dev, schedule, [(schedule.learning_rate, 0)], 0, advance)
        name = str(form.identity.get("form", "exact"))
        note = f"{size}, {form.width * form.dtype.itemsize} bytes a frame, {bench.format_peak()}"
        bench.add("probes", f"pr, {name}", _count_per_second(stamps), "updates/s", note)
    _measure_pooled_probe(bench, layers, dim)


def _make_frames(bench: Bench, form: Form, examples: Sequence[Example]) -> Features:
    """Returns random features of utterances in a form, held by the device."""
    counts = [frame_count(example.utterance.samples) for example in examples]
    if isinstance(form, ExactForm):
        states = torch.randn(form.layers, sum(counts), form.dim, device=bench.device).half()
        return InMemoryFeatures(states, torch.tensor(counts))
    shape = (sum(counts), form.width)
    rows = torch.randint(-127, 128, shape, dtype=torch.int8, device=bench.device)
    groups = form.layers if isinstance(form, Int8Form) else 1
    scales = torch.full((len(rows), groups), 0.01, dtype=torch.float16, device=bench.device)
    rows[:, form.width - 2 * groups :] = scales.view(torch.int8)
    return RowFeatures(MemoryRows(rows, counts), form, bench.device, "memory")


def _make_basis(rank: int, layers: int, dim: int, device: torch.device) -> Basis:
    vectors = torch.randn(rank, layers, dim, device=device) / (layers * dim) ** 0.5
    return Basis(vectors, torch.zeros(layers, dim, device=device))


def _make_clock(bench: Bench, stamps: list[float]) -> Advance:
    """Returns a function that notes the time whenever an update is done."""

    def advance(count: int) -> None:
        bench.synchronize()
        stamps.append(time.perf_counter())

    return advance


def _count_per_second(stamps: Sequence[float]) -> float:
    """Returns updates per second, by the median; the last one validates and does not count."""
    return 1 / median(later - earlier for earlier, later in itertools.pairwise(stamps[:-1]))


def _measure_pooled_probe(bench: Bench, layers: int, dim: int) -> None:
    speakers = 4 if bench.toy else 1251
    utterances = [
        replace(
            make_utterance(f"{split}-{place}", split, 16_000, place),
            labels={"speaker": f"s{place % speakers}"},
        )
        for split, count in (("train", 2 * speakers), ("dev", 8), ("test", 8))
        for place in range(count)
    ]
    data, schedule = _build_task("sid", make_noise_corpus("voxceleb1", utterances), bench)
    bench.reset_peak()
    means = [
        torch.randn(layers, len(data.examples[split]), dim, device=bench.device)
        for split in ("train", "dev")
    ]
    train, dev = (
        InMemoryFeatures(states, torch.ones(states.shape[1], dtype=torch.int64)) for states in means
    )
    updates = 5 if bench.toy else 300
    schedule = replace(schedule, updates=updates, validate_every_updates=updates)
    for rates, seeds in (((1e-1,), 1), ((1e-1, 1e-2, 1e-3, 1e-4, 1e-5), 3)):
        stamps: list[float] = []
        train_stacked(data, train, dev, schedule, rates, seeds, _make_clock(bench, stamps))
        case = f"sid, pooled, {len(rates)} rates x {seeds} seeds"
        rate = _count_per_second(stamps)
        bench.add("probes", case, rate, "updates/s of all", bench.format_peak())


def _build_task(name: str, corpus: Corpus, bench: Bench) -> tuple[TaskData, Any]:
    options: dict[str, Any] = {"projection": 8} if bench.toy else {}
    spec = EvalSpec(task=name, corpus=CorpusSpec(), updates=10, options=options)
    data = build_task_data(TASKS.get(name), spec, corpus)
    assert isinstance(data, TaskData)
    return data, make_schedule(TASKS.get(name), spec)


def measure_oom(bench: Bench) -> None:
    """Says what encoding and fine-tuning do when the memory is too small for a batch."""
    name = next(iter(bench.shapes))
    weights, encoder, _ = bench.build(name)
    corpus = make_corpus(bench)
    longest = sorted(corpus.split("train"), key=lambda item: -item.samples)
    extractor = Extractor(encoder, corpus, bench.device, False)

    with _lack_memory(bench, type(encoder), "hidden_states"):
        what = _describe_failure(lambda: list(extractor.encode_groups(longest)))
    bench.add("oom", f"{name}, encode", None, "", what)
    encoder.module().cpu()
    data = make_objective(bench, corpus, weights)
    with make_our_update(bench, data, weights, "float32") as update:
        bench.measure(update, warmups=1)  # the optimizer has its memory now
        with _lack_memory(bench, FeatureLoader, "encode"):
            what = _describe_failure(update)
    bench.add("oom", f"{name}, fine-tune", None, "", what)


@contextmanager
def _lack_memory(bench: Bench, owner: Any, method: str) -> Iterator[None]:
    """Limits the memory of a GPU to little more than what is in use; on a CPU a stand-in raises
    what a GPU raises."""
    if bench.device.type != "cuda":
        error = torch.OutOfMemoryError("a stand-in: no GPU here")
        with patch.object(owner, method, side_effect=error):
            yield
        return
    bench.reset_peak()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    allowed = torch.cuda.memory_reserved(bench.device) + SPARE_BYTES
    index = bench.device.index  # which torch asks for here
    index = torch.cuda.current_device() if index is None else index
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
        bench.reset_peak()


def _describe_failure(work: Callable[[], object]) -> str:
    try:
        work()
    except UserError as error:
        return f"one sentence: {error}"
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return f"{type(error).__name__}, not caught: {str(error).splitlines()[0][:120]}"
    return "goes on"
