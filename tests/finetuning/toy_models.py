"""A tiny encoder family and tiny corpora, so that whole runs take a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from speechft_ray.core.specs import CorpusSpec, FinetuneSpec, Objective
from speechft_ray.finetuning.run import FinetuneResult, finetune
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import (
    FAMILIES,
    EncoderFamily,
    EncoderWeights,
    HiddenStates,
    Shape,
    no_mask_embedding_error,
)

DIM = 8


class ToyEncoder(nn.Module):
    """A strided convolution and two linear layers; padding has no influence."""

    dim = DIM
    state_count = 3

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.down = nn.Conv1d(1, DIM, kernel_size=400, stride=320)
        self.layers = nn.ModuleList([nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)])
        self.dropout = nn.Dropout(dropout)
        self.pretraining_head = nn.Linear(DIM, 5)

    def module(self) -> nn.Module:
        return self

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        return self.hidden_states_from([self._front(wave) for wave in waves])

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert len({len(wave) for wave in waves}) == 1, "nothing may be padded"
        return [self._front(wave) for wave in waves]

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        if masks is not None:
            raise no_mask_embedding_error("Toy")
        states = [nn.utils.rnn.pad_sequence(list(features), batch_first=True)]
        for layer in self.layers:
            states.append(self.dropout(torch.tanh(layer(states[-1]))))
        return HiddenStates(
            states=tuple(states), frames=torch.tensor([len(item) for item in features])
        )

    def _front(self, wave: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.down(wave[None])  # (dim, frames)
        return features.T


def build(weights: EncoderWeights) -> ToyEncoder:
    encoder = ToyEncoder(weights.config["dropout"])
    encoder.load_state_dict(dict(weights.state))
    return encoder.eval()


TOY = EncoderFamily(
    name="toy",
    title="Toy",
    front_end_prefixes=("down.",),
    pretraining_only_prefixes=("pretraining_head.",),
    matches=lambda config: False,
    describe=lambda config: Shape(layers=1, dim=DIM, state_count=1),
    build=build,
    init_weights=None,
    example_config=None,
)


@pytest.fixture
def toy_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers the family for one test, without importing the real ones."""
    monkeypatch.setattr(FAMILIES, "_discovered", True)
    monkeypatch.setitem(FAMILIES._parts, "toy", TOY)
    yield


def start_weights(dropout: float = 0.0, seed: int = 0) -> EncoderWeights:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = {name: value.clone() for name, value in ToyEncoder(dropout).state_dict().items()}
    return EncoderWeights(family="toy", config={"dropout": dropout}, state=state)


def corpus(
    counts: Mapping[str, int], *, seed: int = 0, spoiled: Sequence[str] = (), **changes: Any
) -> Corpus:
    """Returns tones whose pitch is the class.

    Columns: ``tone`` (one label) and ``phones`` (two labels with an alignment).
    """
    rng = np.random.default_rng(seed)
    utterances, audio = [], {}
    for split, count in counts.items():
        for index in range(count):
            key, samples = f"{split}-{index}", int(rng.integers(2000, 5000))
            first, second = (index % 3, (index + 1) % 3)
            middle = samples // 2
            wave = [np.sin(np.arange(samples) * 0.05 * (1 + tone)) for tone in (first, second)]
            clip = np.where(
                np.arange(samples) < middle, wave[0], wave[1]
            ) + 0.1 * rng.standard_normal(samples)
            audio[key] = clip.astype(np.float32) * (np.nan if key in spoiled else 1)
            labels = {"tone": f"t{first}", "phones": f"p{first} p{second}"}
            aligned = ((0, f"p{first}"), (middle, f"p{second}"))
            utterances.append(
                Utterance(key=key, split=split, samples=samples, labels=labels, alignment=aligned)
            )
    parts = {
        "name": "tones",
        "fingerprint": f"tones-{seed}",
        "utterances": utterances,
        "read": lambda utterance: audio[utterance.key],
        "columns": frozenset({"tone", "phones"}),
    }
    return Corpus(**{**parts, **changes})


def objective(head: str = "pooled", **changes: Any) -> Objective:
    column = "tone" if head == "pooled" else "phones"
    return Objective(
        **{"head": head, "corpus": CorpusSpec(), "column": column, "batch_size": 4, **changes}
    )


def spec(*objectives: Objective, **changes: Any) -> FinetuneSpec:
    parts = {"name": "toy", "updates": 20, "peak_learning_rate": 1e-2, "validate_every_updates": 5}
    return FinetuneSpec(**{**parts, "objectives": objectives or (objective(),), **changes})


class Killed(Exception):
    """Raised in a test where a process would die."""


def silent(values: Mapping[str, float]) -> None:
    """Ignores a report."""


TONES = corpus({"train": 14, "dev": 6})


def run(
    work: Path,
    plan: FinetuneSpec,
    start: EncoderWeights | None = None,
    report: Callable[[Mapping[str, float]], None] = silent,
    content: Corpus = TONES,
) -> FinetuneResult:
    """Runs a whole fine-tuning of the toy encoder in a folder, on the CPU."""
    work.mkdir(exist_ok=True)
    return finetune(
        plan,
        start or start_weights(0.2),
        [content] * len(plan.objectives),
        work,
        torch.device("cpu"),
        report,
    )
