"""A corpus of tones with every label column, and an encoder of their spectra."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import HiddenStates

TONES_HZ = {"A": 400.0, "B": 900.0, "C": 1600.0}
"""Tone of each letter of the text."""
CARRIERS_HZ = (2500.0, 3700.0, 5000.0, 6500.0)
"""Tone over the whole utterance, which determines its utterance labels."""
LETTER_SAMPLES = 1900
STATE_COUNT, DIM = 3, 24
COUNTS = {"train": 48, "dev": 16, "test": 24}


def audio(utterance: Utterance) -> np.ndarray:
    """One tone per letter with a fade and a pause, over the carrier, with a little noise that
    depends on the key."""
    rng = np.random.default_rng(int(utterance.key.split("-")[1]))
    carrier = CARRIERS_HZ[int(utterance.labels["carrier"])]
    wave = 0.3 * np.sin(
        2 * np.pi * carrier * np.arange(utterance.samples) / 16_000 + rng.uniform(0, 6)
    )
    fade = np.sin(np.pi * np.arange(LETTER_SAMPLES) / LETTER_SAMPLES)
    for index, letter in enumerate(utterance.labels["text"].split()):
        tone = np.sin(2 * np.pi * TONES_HZ[letter] * np.arange(LETTER_SAMPLES) / 16_000)
        wave[index * LETTER_SAMPLES : (index + 1) * LETTER_SAMPLES] += 0.5 * fade * tone
    return np.asarray(wave + 0.01 * rng.standard_normal(utterance.samples), dtype=np.float32)


def make_segments(letters: Sequence[str]) -> str:
    """Two speakers, in whole frames: one says A and C, the other B and C; a speaker without letters
    says the last one."""
    edges = [round(index * LETTER_SAMPLES / 320) * 320 for index in range(len(letters) + 1)]
    letters_of = {"x": "AC", "y": "BC"}
    turns = [
        (name, [index for index, letter in enumerate(letters) if letter in own])
        for name, own in letters_of.items()
    ]
    return " ".join(
        f"{name}:{edges[index]}:{edges[index + 1]}"
        for name, indices in turns
        for index in indices or [len(letters) - 1]
    )


def toy_corpus(counts: dict[str, int] | None = None, seed: int = 0, **functions: Any) -> Corpus:
    """Returns a corpus whose labels follow from its audio. ``functions`` maps a column to a
    function of the labels."""
    rng = random.Random(seed)
    utterances: list[Utterance] = []
    documents: dict[int, list[str]] = {}
    for split, count in (counts or COUNTS).items():
        for index in range(count):
            kind = index % len(CARRIERS_HZ)
            letters = (
                [rng.choice("ABC") for _ in range(rng.randint(3, 5))] if index else ["A", "B", "C"]
            )
            labels = {
                "carrier": str(kind),
                "speaker": f"s{kind}",
                "emotion": f"e{kind}",
                "keyword": f"k{kind}",
                "action": f"a{kind // 2}",
                "object": f"o{kind % 2}",
                "location": "none",
                "text": " ".join(letters),
                "phones": " ".join(letters).lower(),
                "slots": " ".join("low" if letter == "A" else "O" for letter in letters),
                "segments": make_segments(letters),
                "matches": " ".join(documents.get(kind, ())),
            }
            labels.update({column: function(labels, rng) for column, function in functions.items()})
            samples = LETTER_SAMPLES * len(letters) + rng.randint(400, 1500)
            utterances.append(
                Utterance(
                    key=f"{split}-{len(utterances)}", split=split, samples=samples, labels=labels
                )
            )
            if split == "train":
                documents.setdefault(kind, []).append(utterances[-1].key)
    return Corpus(
        name="toy",
        fingerprint=f"toy{seed}",
        utterances=utterances,
        read=audio,
        columns=frozenset(utterances[0].labels),
    )


class ToyEncoder(nn.Module):
    """Log spectra of 400 samples every 320, through two fixed random layers: three hidden
    states."""

    dim = DIM
    state_count = STATE_COUNT

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.bands = nn.Parameter(torch.randn(201, DIM, generator=generator) / 14)
        self.layers = nn.ParameterList(
            torch.randn(DIM, DIM, generator=generator) / 3 for _ in range(STATE_COUNT - 1)
        )
        self.calls: list[int] = []
        """Waveforms of each call."""

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        self.calls.append(len(waves))
        longest = max(map(len, waves))
        padded = torch.stack([functional.pad(wave, (0, longest - len(wave))) for wave in waves])
        windows = padded.unfold(1, 400, 320) * torch.hann_window(400, device=padded.device)
        states = [torch.log(torch.fft.rfft(windows).abs() + 0.1) @ self.bands]
        for weights in self.layers:
            states.append(states[-1] + torch.tanh(states[-1] @ weights))
        return HiddenStates(
            tuple(states), torch.tensor([(len(wave) - 400) // 320 + 1 for wave in waves])
        )

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise NotImplementedError("evaluation encodes waveforms")

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        raise NotImplementedError("evaluation encodes waveforms")

    def module(self) -> nn.Module:
        return self
