"""The training loops that ``finetune.py`` compares on the same utterances: ours and s3prl's own.

s3prl's loop is that of its ``downstream/runner.py`` with ``--upstream_trainable -s
last_hidden_state``, the command of the paper's published code. That file cannot be imported with
current torchaudio. Its order of calls is repeated here, with s3prl's own upstream expert (front end
without gradient, ``feature_grad_mult`` 0), featurizer and downstream experts. It has no head-only
phase; ``frozen`` switches the encoder's gradients off, as the published code would in one. Both
sides keep the utterances in memory.
"""

from __future__ import annotations

import functools
import math
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.s3prl_cases import ctc_expert, ctc_forward, forward_pooled, mean_pooling_expert
from benchmarks.s3prl_peer import Encoding, Forward
from speechft_ray.core.specs import CorpusSpec, FinetuneSpec, Objective
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, AudioCache
from speechft_ray.finetuning.data import ObjectiveData, load_objective
from speechft_ray.finetuning.features import FeatureLoader, cache_conv_features
from speechft_ray.finetuning.train_state import build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.speech.checkpoints import s3prl
from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache

HUBERT = FAMILIES.get("hubert")
CPU = torch.device("cpu")
PHONES = tuple("abcdefghijklmnopqrstuvwxyz")
RATE_HZ, DISK_BYTES = 16_000, 4 << 30

Update = Callable[[int], object]
"""Performs update number k."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The task of a comparison."""

    objective: Objective
    seconds: Sequence[float]
    """Length of each training utterance."""
    why: str
    expert: Callable[[ObjectiveData], Any]
    forward: Forward

    @property
    def updates_per_epoch(self) -> int:
        return len(self.seconds) // self.objective.batch_size

    def corpus(self) -> Corpus:
        """Returns noise with random labels: content does not affect cost. Dev is never used."""
        train = [
            _utterance(f"train-{place}", "train", seconds)
            for place, seconds in enumerate(self.seconds)
        ]
        dev = replace(train[0], key="dev-0", split="dev")
        audio = {item.key: _noise(item) for item in [*train, dev]}
        return Corpus(
            name="noise",
            fingerprint=f"noise {self.seconds}",
            utterances=[*train, dev],
            read=lambda utterance: audio[utterance.key],
            columns=frozenset(dev.labels),
        )


def _utterance(key: str, split: str, seconds: float) -> Utterance:
    rng = random.Random(key)
    phones = " ".join(rng.choices(PHONES, k=max(1, int(12 * seconds))))
    labels = {"emotion": str(zlib.crc32(key.encode()) % 4), "phones": phones}
    return Utterance(key=key, split=split, samples=int(RATE_HZ * seconds), labels=labels)


def _noise(utterance: Utterance) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(utterance.key.encode()))
    return rng.standard_normal(utterance.samples, dtype=np.float32) * 0.1


def draw_iemocap_lengths(count: int) -> tuple[float, ...]:
    """Draws log-normal lengths of 1 to 15 s with a mean of 4.5 s (IEMOCAP: 5.56 h in 4,446
    utterances)."""
    rng, mean, spread = random.Random(0), 4.5, 0.6
    lengths: list[float] = []
    while len(lengths) < count:
        seconds = rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)
        lengths += [round(seconds, 2)] if 1.0 <= seconds <= 15.0 else []
    return tuple(lengths)


def _phone_expert(data: ObjectiveData) -> Any:
    return ctc_expert("word", data.vocabulary.symbols, ["per"], linear=True)


def _encode_phones(expert: Any, labels: Mapping[str, str]) -> Any:
    return expert.tokenizer.encode(labels["phones"])


SETTINGS = {
    "equal": Setting(
        objective=Objective(head="ctc", corpus=CorpusSpec(), column="phones", batch_size=8),
        seconds=(4.0,) * 8,
        why="PR, 8 utterances of 4 s, one update = 8 of them; s3prl's ctc expert, linear head",
        expert=_phone_expert,
        forward=ctc_forward(_encode_phones),
    ),
    "real": Setting(
        objective=Objective(head="pooled", corpus=CorpusSpec(), column="emotion", batch_size=4),
        seconds=draw_iemocap_lengths(32),
        why="ER, 32 utterances with lengths like IEMOCAP's, one update = 4 of them, the batch of "
        "s3prl's emotion config",
        expert=lambda data: mean_pooling_expert(
            "emotion.expert", fold="fold1", test_dataset=SimpleNamespace(idx2emotion=range(9))
        ),
        forward=forward_pooled,
    ),
}


def write_start(layers: int, path: Path) -> None:
    """Writes a HuBERT of Base's width with random weights, as s3prl loads it."""
    assert HUBERT.init_weights is not None and HUBERT.example_config is not None
    weights = HUBERT.init_weights(HUBERT.example_config(layers, 768, False), 0)
    s3prl.write(path, weights, {})


def _compile(forward: Any) -> Any:
    return torch.compile(forward, dynamic=True)


def _checkpoint(forward: Any) -> Any:
    return functools.partial(checkpoint, forward, use_reentrant=False)


CHANGES: Mapping[str, Callable[[Any], Any]] = {"compiled": _compile, "checkpointed": _checkpoint}
"""What ``--also`` does to the forward pass of each layer."""


def build_ours(
    setting: Setting, start: Path, folder: Path, *, cached: bool, change: str = "", **phase: Any
) -> Update:
    """Builds our run; with ``cached``, its front-end cache is filled first.

    ``change``: ``compiled`` or ``checkpointed`` layers. ``phase``: fields of the spec.
    """
    fields = {"name": "ours", "objectives": (setting.objective,), "updates": 1000}
    spec = FinetuneSpec(**{**fields, "head_only_fraction": 0.0, **phase})
    corpus, weights = setting.corpus(), load_encoder(str(start))
    objectives = [load_objective(setting.objective, corpus, weights)]
    audio_caches = [AudioCache(corpus, 1 << 30)]
    state = build_train_state(spec, weights, objectives, CPU)
    module: Any = state.encoder.module()
    for layer in module.encoder.layers if change else ():
        layer.forward = CHANGES[change](layer.forward)
    loader = FeatureLoader(
        encoder=state.encoder, device=CPU, freeze_front_end=True, audio_caches=audio_caches
    )
    if cached:
        cache_conv_features(
            loader, weights, objectives, FeatureCache(folder, DISK_BYTES), spec, lambda _: None
        )
        assert len(loader.cached_rows) == len(setting.seconds) + 1
    state.train(True)
    trainer = Trainer(spec, objectives, loader, MICRO_BATCH_SECONDS)
    return lambda update: trainer.train_step(state, update)


def build_s3prl(setting: Setting, start: Path, folder: Path, *, frozen: bool) -> Update:
    """Builds the upstream, featurizer and downstream expert that s3prl's runner trains."""
    from s3prl.upstream.interfaces import Featurizer

    corpus = setting.corpus()
    data = load_objective(
        setting.objective, corpus, EncoderWeights(family="hubert", config={}, state={})
    )
    upstream = Encoding(start).expert
    with redirect_stderr(StringIO()):
        featurizer = Featurizer(upstream, "last_hidden_state", upstream_device="cpu")
    dim = featurizer.output_dim
    # The widths of our head are those of s3prl's configs.
    head = data.kind.build(data.options, dim, data.vocabulary.size)
    expert = setting.expert(data)(None, head, dim, folder)
    parameters = [
        value for model in (upstream, featurizer, expert) for value in model.train().parameters()
    ]
    upstream.requires_grad_(not frozen)
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    batches = _epochs(data, setting.objective.batch_size)
    records: dict[str, list[Any]] = defaultdict(list)

    def update(number: int) -> None:
        examples = next(batches)
        waves = [torch.FloatTensor(corpus.read(example.utterance)) for example in examples]
        features = featurizer(waves, upstream(waves))
        loss = setting.forward(expert, "train", features, examples, records)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not math.isnan(norm):
            optimizer.step()
        optimizer.zero_grad()

    return update


def _epochs(data: ObjectiveData, size: int) -> Iterator[Sequence[Any]]:
    """Yields the batches of shuffled epochs, as torch's data loader draws them."""
    rng = random.Random(0)
    while True:
        order = rng.sample(data.train, len(data.train))
        yield from (order[place : place + size] for place in range(0, len(order), size))


VARIANTS: Mapping[str, Callable[..., Update]] = {
    "s3prl": functools.partial(build_s3prl, frozen=False),
    "s3prl, encoder frozen": functools.partial(build_s3prl, frozen=True),
    "ours, front end not cached": functools.partial(build_ours, cached=False),
    "ours, front end cached": functools.partial(build_ours, cached=True),
    "ours, head phase": functools.partial(build_ours, cached=True, head_only_fraction=1.0),
    "ours, head phase without dropout": functools.partial(
        build_ours, cached=True, head_only_fraction=1.0, head_phase_dropout=False
    ),
    "ours, front end cached, compiled": functools.partial(
        build_ours, cached=True, change="compiled"
    ),
    "ours, front end cached, checkpointed": functools.partial(
        build_ours, cached=True, change="checkpointed"
    ),
}
"""Each ``(setting, start, folder) -> update``."""
