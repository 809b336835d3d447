"""The two evaluation loops that ``superb.py`` compares on the same corpus: ours, and s3prl's with
its own parts.

s3prl's loop is that of its ``downstream/runner.py``. That file does not import with a current
torchaudio: its order of calls is repeated here around its own upstream expert, featurizer,
downstream expert and losses. The encoder runs in every micro-step, and over dev and test at every
validation. Utterances are read from memory on both sides.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.s3prl_cases import ctc_expert, ctc_forward, forward_pooled, mean_pooling_expert
from benchmarks.s3prl_peer import Encoding, Forward, Peer
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.checkpoints import s3prl
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import CORPORA, Corpus
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.evaluate import SharedCaches, evaluate
from speechft_ray.superb.sampling import sample_batches
from speechft_ray.superb.setup import build_task_data, make_schedule
from speechft_ray.superb.tasks.base import TASKS, TaskData

HUBERT = FAMILIES.get("hubert")
FRONT_END = HUBERT.front_end_prefixes[0]
DISK_BYTES = 4 << 30
MICRO_BATCH = 8
"""Utterances that s3prl encodes at once: its SID config has 8, accumulated; its PR config 16,
halved for a small corpus."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One task at the size of the comparison. ``draws_per_utterance``: how often training samples
    an utterance."""

    task: str
    counts: Mapping[str, int]
    batch_size: int
    draws_per_utterance: int
    validations: int
    stock: str
    """The same numbers for s3prl's own config on the real corpus."""
    expert: Callable[[TaskData, Any], Any]
    forward: Forward

    @property
    def updates(self) -> int:
        return self.draws_per_utterance * self.counts["train"] // self.batch_size

    def spec(self, **changes: Any) -> EvalSpec:
        every = self.updates // self.validations
        fields = {
            "updates": self.updates,
            "validate_every_updates": every,
            "batch_size": self.batch_size,
            **changes,
        }
        return EvalSpec(task=self.task, corpus=CorpusSpec(), **fields)

    def corpus(self, cache: Path) -> Corpus:
        kind = CORPORA.get("synthetic")
        options = kind.options.model_validate({"part": self.task, "speakers": 4, **self.counts})
        return kind.open(options, None, cache, None)


def _phone_expert(data: TaskData, folder: Path) -> Callable[..., nn.Module]:
    phones = {
        phone
        for example in data.examples["train"]
        for phone in example.utterance.labels["phones"].split()
    }
    build: Callable[..., nn.Module] = ctc_expert("word", sorted(phones), ["per"], linear=True)
    return build


SETTINGS = {
    "sid": Setting(
        task="sid",
        counts={"train": 16, "dev": 4, "test": 4},
        batch_size=16,
        draws_per_utterance=45,
        validations=9,
        stock="46 draws of each, 40 validations of dev and test",
        expert=lambda data, folder: mean_pooling_expert("voxceleb1.expert"),
        forward=forward_pooled,
    ),
    "pr": Setting(
        task="pr",
        counts={"train": 16, "dev": 4, "test": 4},
        batch_size=8,
        draws_per_utterance=16,
        validations=8,
        stock="112 draws of each, 100 validations of dev and test",
        expert=_phone_expert,
        forward=ctc_forward(lambda expert, labels: expert.tokenizer.encode(labels["phones"])),
    ),
}


def make_merges(count: int, layers: int, dim: int = 768) -> list[EncoderWeights]:
    """Returns encoders between two random ones: like merges of stable fine-tuning, they share the
    front end of the first."""
    config = HUBERT.example_config(layers, dim, False)  # type: ignore[misc]
    start, donor = (HUBERT.init_weights(config, seed) for seed in (0, 1))  # type: ignore[misc]
    encoders = []
    for index in range(count):
        state = {
            name: value
            if name.startswith(FRONT_END)
            else torch.lerp(value, donor.state[name], index / count)
            for name, value in start.state.items()
        }
        encoders.append(EncoderWeights(family="hubert", config=config, state=state))
    return encoders


class Passes:
    """Counts, by hooks, the utterances that go through the front end and the transformer of a
    HuBERT."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count_in(self, model: nn.Module) -> None:
        for name in ("feature_extractor", "encoder"):
            getattr(model, name).register_forward_hook(partial(self._count, name))

    def _count(
        self, name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any
    ) -> None:
        self.counts[name] += len(inputs[0])


@dataclass
class Cost:
    """Processor seconds of one evaluation. ``parts``: by phase, with how often each ran."""

    seconds: float = 0.0
    parts: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, phase: str, seconds: float) -> None:
        spent, count = self.parts.get(phase, (0.0, 0))
        self.parts[phase] = spent + seconds, count + 1
        self.seconds += seconds


def run_ours(
    spec: EvalSpec,
    weights: EncoderWeights,
    corpus: Corpus,
    cache: Path,
    passes: Passes | None = None,
) -> float:
    """Evaluates one encoder as a worker does and returns the processor seconds, without those of
    building the encoder."""
    encoder = HUBERT.build(weights)
    if passes is not None:
        passes.count_in(encoder.module())
    began = time.process_time()
    caches = SharedCaches(
        cache=FeatureCache(cache, DISK_BYTES),
        encoder=weights_fingerprint(weights),
        front_end=(FRONT_END, HUBERT.describe(weights.config)),
    )
    evaluate(spec, encoder, corpus, torch.device("cpu"), lambda _: None, caches=caches)
    return time.process_time() - began


def run_s3prl(
    setting: Setting, weights: EncoderWeights, corpus: Corpus, folder: Path, passes: Passes
) -> Cost:
    """Evaluates one encoder in the order of s3prl's runner; loading the encoder does not count."""
    data = build_task_data(TASKS.get(setting.task), setting.spec(), corpus)
    assert isinstance(data, TaskData)
    s3prl.write(folder / "encoder.pt", weights, {})
    upstream = Encoding(folder / "encoder.pt")
    torch.manual_seed(0)
    dim = HUBERT.describe(weights.config).dim
    expert = setting.expert(data, folder)(data, data.head(dim), dim, folder)
    peer = Peer(expert, setting.forward, upstream, normalize=True)
    passes.count_in(upstream.expert.model)  # after the featurizer's own pass
    schedule = make_schedule(TASKS.get(setting.task), setting.spec())
    optimizer = torch.optim.Adam(peer.parameters(), lr=schedule.learning_rate)
    micro = min(MICRO_BATCH, setting.batch_size)
    generator = torch.Generator().manual_seed(0)
    batches = sample_batches(
        make_schedule(TASKS.get(setting.task), setting.spec(batch_size=micro)),
        data.examples["train"],
        generator,
    )
    cost = Cost()
    for update in range(1, setting.updates + 1):
        for indices in islice(batches, setting.batch_size // micro):
            began = time.process_time()
            _micro_step(peer, data, corpus, indices, setting.batch_size // micro)
            cost.add("micro-step", time.process_time() - began)
        began = time.process_time()
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), schedule.clip_norm)
        if not norm.isnan():
            optimizer.step()
        optimizer.zero_grad()
        cost.add("update", time.process_time() - began)
        if update % (setting.updates // setting.validations) == 0:
            began = time.process_time()
            for split in ("dev", "test"):
                _validation(peer, data, corpus, split)
            cost.add("validation", time.process_time() - began)
    return cost


def _micro_step(peer: Peer, data: TaskData, corpus: Corpus, indices: Any, accumulate: int) -> None:
    peer.expert.train()
    examples = data.examples["train"]
    batch = [examples[index] for index in torch.arange(len(examples))[indices].tolist()]
    waves = [torch.from_numpy(corpus.read(example.utterance)) for example in batch]
    loss = peer.loss("train", waves, batch, defaultdict(list)) / accumulate
    loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def _validation(peer: Peer, data: TaskData, corpus: Corpus, split: str) -> None:
    peer.expert.eval()
    records: dict[str, list[Any]] = defaultdict(list)
    for example in data.examples[split]:  # one by one, as in the configs of these two tasks
        peer.loss(split, [torch.from_numpy(corpus.read(example.utterance))], [example], records)
    peer.metrics(records, split)


def report(is_ok: bool, line: str) -> bool:
    """Prints a line with PASS or FAIL; returns ``is_ok``."""
    print(f"{'PASS' if is_ok else 'FAIL'}  {line}", flush=True)
    return is_ok
