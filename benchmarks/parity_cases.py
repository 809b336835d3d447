"""The cases of ``parity.py``: for each task its labels, the corpus and features made of them, and
s3prl's expert."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.s3prl_cases import (
    INTENT,
    LETTERS,
    NAMES,
    PHONES,
    RECURRENT,
    SLOT_TOKENS,
    SLOTS,
    asr_expert,
    asr_tokens,
    asv_expert,
    asv_forward,
    copy_asv,
    copy_ctc,
    copy_pooled,
    copy_sd,
    ctc_expert,
    ctc_forward,
    ctc_tokens,
    forward_pooled,
    mean_pooling_expert,
    sd_expert,
    sd_forward,
    slot_line,
)
from benchmarks.s3prl_peer import Forward
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.superb.features import InMemoryFeatures
from speechft_ray.superb.tasks.asr import DICTIONARY
from speechft_ray.superb.tasks.base import TaskData

LAYERS, DIM = 3, 16

Labels = Callable[[random.Random, int], tuple[dict[str, str], int]]
"""``(rng, index) -> (labels, frames)`` of an utterance."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One task. ``metrics`` maps our name of each dev metric to s3prl's name and the factor from
    its unit to ours."""

    labels: Labels
    expert: Callable[[TaskData, Any, int, Path], nn.Module]
    forward: Forward
    copy: Callable[[Any, Any, TaskData], None]
    metrics: Mapping[str, tuple[str, float]]
    learning_rate: float
    options: Mapping[str, Any] = field(default_factory=dict)
    dev_name: str = "dev"
    eval_batch: int = 1


def phone_labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
    tokens = rng.choices(PHONES, k=rng.randint(3, 7))
    return {"phones": " ".join(tokens)}, 4 * len(tokens) + rng.randint(2, 9)


def text_labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
    words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 2))) for _ in range(rng.randint(1, 3))]
    slots = [rng.choice(["O", *SLOTS]) for _ in words]
    text = " ".join(words)
    return {"text": text, "slots": " ".join(slots)}, 5 * len(text) + rng.randint(12, 20)


def zh_labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
    tokens = rng.choices("一二三四五六", k=rng.randint(3, 6))
    return {"text": "".join(tokens)}, 4 * len(tokens) + rng.randint(4, 9)


def class_labels(*columns: str, classes: int = 4) -> Labels:
    def labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
        kinds = [rng.randrange(classes) if index >= classes else index for _ in columns]
        by_column = {column: str(kind) for column, kind in zip(columns, kinds, strict=True)}
        return by_column, rng.randint(5, 30)

    return labels


def turn_labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
    edges = sorted(rng.sample(range(1, 40), 4))
    turns = [("a", 0, edges[1]), ("b", edges[0], edges[2]), ("a", edges[3], 40)]
    segments = " ".join(f"{name}:{320 * start}:{320 * end}" for name, start, end in turns)
    return {"segments": segments}, 39


def voice_labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
    return {"speaker": f"s{index % 6}"}, rng.randint(18, 40)


CASES = {
    "pr": Case(
        labels=phone_labels,
        expert=ctc_expert("word", PHONES, ["per"], linear=True),
        forward=ctc_forward(lambda expert, labels: expert.tokenizer.encode(labels["phones"])),
        copy=copy_ctc(ctc_tokens(PHONES)),
        metrics={"pr.per": ("per", 100.0)},
        learning_rate=1e-2,
        options={"projection": 32},
    ),
    "sid": Case(
        labels=class_labels("speaker"),
        expert=mean_pooling_expert("voxceleb1.expert"),
        forward=forward_pooled,
        copy=copy_pooled,
        metrics={"sid.accuracy": ("acc", 100.0)},
        learning_rate=1e-3,
    ),
    "er": Case(
        labels=class_labels("emotion"),
        expert=mean_pooling_expert(
            "emotion.expert", fold="fold1", test_dataset=SimpleNamespace(idx2emotion=NAMES)
        ),
        forward=forward_pooled,
        copy=copy_pooled,
        metrics={"er.accuracy": ("acc", 100.0)},
        learning_rate=1e-3,
        eval_batch=4,
    ),
    "ks": Case(
        labels=class_labels("keyword"),
        expert=mean_pooling_expert("speech_commands.expert"),
        forward=forward_pooled,
        copy=copy_pooled,
        metrics={"ks.accuracy": ("acc", 100.0)},
        learning_rate=1e-3,
        eval_batch=32,
    ),
    "ic": Case(
        labels=class_labels("action", "object", "location"),
        expert=mean_pooling_expert("fluent_commands.expert", **INTENT),
        forward=forward_pooled,
        copy=copy_pooled,
        metrics={"ic.accuracy": ("acc", 100.0)},
        learning_rate=3e-3,
        eval_batch=32,
    ),
    "sf": Case(
        labels=text_labels,
        expert=ctc_expert("character-slot", [" ", *LETTERS], ["slot_type_f1", "slot_value_cer"]),
        forward=ctc_forward(lambda expert, labels: expert.tokenizer.encode(slot_line(labels))),
        copy=copy_ctc(ctc_tokens(SLOT_TOKENS)),
        metrics={
            "sf.slot_type_f1": ("slot_type_f1", 100.0),
            "sf.slot_value_cer": ("slot_value_cer", 100.0),
        },
        learning_rate=3e-3,
        options=RECURRENT,
    ),
    "asr": Case(
        labels=text_labels,
        expert=asr_expert,
        forward=ctc_forward(asr_tokens),
        copy=copy_ctc(["<s>", *DICTIONARY.symbols]),
        metrics={"asr.wer": ("wer", 1.0)},
        learning_rate=5e-3,
        options=RECURRENT,
        dev_name="dev-clean",
    ),
    "asr_zh": Case(
        labels=zh_labels,
        expert=ctc_expert("character", "一二三四五六", ["cer"], proj=True),
        forward=ctc_forward(lambda expert, labels: expert.tokenizer.encode(labels["text"])),
        copy=copy_ctc(ctc_tokens("一二三四五六")),
        metrics={"asr_zh.cer": ("cer", 100.0)},
        learning_rate=5e-3,
        options=RECURRENT,
    ),
    "sd": Case(
        labels=turn_labels,
        expert=sd_expert,
        forward=sd_forward,
        copy=copy_sd,
        metrics={"frame_accuracy": ("acc", 100.0)},
        learning_rate=1e-2,
        options={"hidden": 24},
    ),
    "asv": Case(
        labels=voice_labels,
        expert=asv_expert,
        forward=asv_forward,
        copy=copy_asv,
        metrics={"asv.eer": ("EER", 100.0)},
        learning_rate=1e-3,
        options={"width": 32, "pooled_width": 48},
    ),
}


def make_corpus(case: Case, counts: dict[str, int]) -> Corpus:
    """Returns utterances with labels and without audio."""
    rng = random.Random(0)
    utterances: list[Utterance] = []
    for split, count in counts.items():
        for index in range(count):
            labels, frames = case.labels(rng, index)
            samples = (frames + 1) * 320  # one more stride than frames
            utterances.append(
                Utterance(key=f"{split}-{index:03}", split=split, samples=samples, labels=labels)
            )
    columns = frozenset(utterances[0].labels)
    tested = [utterance for utterance in utterances if utterance.split == "test"]
    trials = [
        (one.labels.get("speaker") == other.labels.get("speaker"), one.key, other.key)
        for one in tested
        for other in tested
        if one.key < other.key
    ]
    return Corpus(
        name="made",
        fingerprint="0",
        utterances=utterances,
        read=lambda _: torch.zeros(0).numpy(),
        columns=columns,
        trials=trials,
    )


def make_features(data: TaskData, split: str) -> InMemoryFeatures:
    """Random frames with the vectors of their labels added in the second layer."""
    generator = torch.Generator().manual_seed(len(split))
    vectors = 6.0 * torch.randn(64, DIM, generator=torch.Generator().manual_seed(9))
    states_of = []
    for example in data.examples[split]:
        frames = example.utterance.samples // 320 - 1
        states = torch.randn(LAYERS, frames, DIM, generator=generator)
        if hasattr(example.reference, "labels"):  # diarisation: the sum of the speakers
            states[1] += 0.2 * torch.from_numpy(example.reference.labels)[:frames] @ vectors[:2]
        elif "speaker" in example.utterance.labels:
            states[1] += 0.07 * vectors[int(example.utterance.labels["speaker"].lstrip("s"))]
        else:
            spread = torch.arange(frames) * len(example.target) // frames
            states[1] += vectors[example.target[spread]] * (
                1.0 if len(example.target) > 3 else 0.06
            )
        states_of.append(states)
    return InMemoryFeatures(
        torch.cat(states_of, dim=1), torch.tensor([states.shape[1] for states in states_of])
    )


def average_frames(features: InMemoryFeatures) -> InMemoryFeatures:
    rows = torch.split(features.states, features.frames.tolist(), dim=1)
    return InMemoryFeatures(
        torch.stack([states.mean(dim=1) for states in rows], dim=1),
        torch.ones_like(features.frames),
    )
