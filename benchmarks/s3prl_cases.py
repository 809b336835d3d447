"""The cases of ``parity.py``: for each task its labels, s3prl's expert, how to call the expert, and
how to copy weights into it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.s3prl_peer import Forward, build_without_init, expert_module
from speechft_ray.superb.tasks.asr import DICTIONARY
from speechft_ray.superb.tasks.base import TaskData

Labels = Callable[[random.Random, int], tuple[dict[str, str], int]]
"""``(rng, index) -> (labels, frames)`` of an utterance."""

RECURRENT: dict[str, Any] = {"projection": 24, "lstm_hidden": 16, "specaug": False}
PHONES, LETTERS, SLOTS = "abcdefgh", "ABC", ("x", "y")


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


# --- Token sequences ----------------------------------------------------------------------


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


def recurrent(width: int, proj: bool) -> dict[str, Any]:
    return {
        "total_rate": -1,
        "module": "LSTM",
        "bidirection": True,
        "dim": [width] * 2,
        "dropout": [0.2] * 2,
        "layer_norm": [False] * 2,
        "proj": [proj] * 2,
        "sample_rate": [1] * 2,
        "sample_style": "concat",
    }


def ctc_expert(
    text: str,
    words: Sequence[str],
    metrics: Sequence[str],
    *,
    proj: bool = False,
    linear: bool = False,
) -> Any:
    def build(data: TaskData, head: Any, dim: int, folder: Path) -> nn.Module:
        (folder / "vocabulary").write_text("\n".join(words), encoding="utf-8")
        (folder / "slots").write_text("\n".join(["O", *SLOTS]), encoding="utf-8")
        model = (
            {"FrameLevel": {}} if linear else {"RNNs": recurrent(RECURRENT["lstm_hidden"], proj)}
        )
        files = {"vocab_file": str(folder / "vocabulary"), "slots_file": str(folder / "slots")}
        config = {
            "corpus": {"name": "parity"},
            "text": {"mode": text, **files},
            "model": {
                "project_dim": head.projector.out_features,
                "zero_infinity": True,
                "select": next(iter(model)),
                **model,
            },
            "metric": list(metrics),
            "metric_higher_better": False,
        }
        expert: nn.Module = expert_module("ctc.expert").DownstreamExpert(
            dim, 320, config, str(folder)
        )
        return expert

    return build


def asr_expert(data: TaskData, head: Any, dim: int, folder: Path) -> nn.Module:
    (folder / "char.dict").write_text("".join(f"{symbol} 1\n" for symbol in DICTIONARY.symbols[3:]))
    model = {
        "project_dim": head.projector.out_features,
        "select": "RNNs",
        "RNNs": recurrent(RECURRENT["lstm_hidden"], False),
    }
    data_config = {
        "dict_path": str(folder / "char.dict"),
        "zero_infinity": True,
        "decoder_args": {"decoder_type": "None"},
    }
    module = expert_module("asr.expert")
    expert: nn.Module = module.DownstreamExpert(
        dim, 320, {"datarc": data_config, "modelrc": model}, str(folder)
    )
    return expert


def ctc_forward(label: Callable[[Any, Mapping[str, str]], Any]) -> Forward:
    def forward(
        expert: nn.Module, mode: str, features: Any, examples: Any, records: Any
    ) -> torch.Tensor:
        labels = [label(expert, example.utterance.labels) for example in examples]
        loss: torch.Tensor = expert(
            mode, features, labels, [example.utterance.key for example in examples], records
        )
        return loss

    return forward


def asr_tokens(expert: Any, labels: Mapping[str, str]) -> list[int]:
    symbols = " ".join(labels["text"].replace(" ", "|")) + " |"
    tokens: list[int] = expert.dictionary.encode_line(
        symbols, line_tokenizer=lambda line: line.split()
    ).tolist()
    return tokens


def slot_line(labels: Mapping[str, str]) -> str:
    return f"BOS {labels['text']} EOS\tO {labels['slots']} intent"


def copy_ctc(ours: Sequence[str]) -> Any:
    """Returns a function that copies a CTC head. ``ours``: our tokens by id; the expert has its own
    order."""

    @torch.no_grad()
    def copy(head: Any, expert: Any, data: TaskData) -> None:
        expert.projector.load_state_dict(head.projector.state_dict())
        for index, layer in enumerate(head.layers):
            expert.model.rnns[index].layer.load_state_dict(layer.state_dict())
            if head.squares:
                expert.model.rnns[index].pj.load_state_dict(head.squares[index].state_dict())
        if hasattr(expert, "dictionary"):
            theirs = list(expert.dictionary.symbols)
        else:
            theirs = [*expert.tokenizer._vocab_list, *getattr(expert.tokenizer, "slots", [])]
        indices = [theirs.index(token) for token in ours]
        assert sorted(indices) == list(range(len(theirs))) and head.output.out_features == len(
            theirs
        )
        expert.model.linear.weight[indices] = head.output.weight
        expert.model.linear.bias[indices] = head.output.bias

    return copy


def ctc_tokens(words: Sequence[str]) -> list[str]:
    return ["<pad>", "<eos>", "<unk>", *sorted(words)]


SLOT_TOKENS = [" ", *LETTERS, *(f"{side}-{slot}" for slot in SLOTS for side in "BE")]


# --- One label per utterance --------------------------------------------------------------


def class_labels(*columns: str, classes: int = 4) -> Labels:
    def labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
        kinds = [rng.randrange(classes) if index >= classes else index for _ in columns]
        by_column = {column: str(kind) for column, kind in zip(columns, kinds, strict=True)}
        return by_column, rng.randint(5, 30)

    return labels


def mean_pooling_expert(name: str, **more: Any) -> Any:
    def build(data: TaskData, head: Any, dim: int, folder: Path) -> nn.Module:
        from s3prl.downstream.model import UtteranceLevel

        width, classes = head.projector.out_features, head.output.out_features
        parts = {
            "projector": nn.Linear(dim, width),
            "model": UtteranceLevel(
                width, classes, "MeanPooling", "ReLU", None, {"select": "FrameLevel"}
            ),
            "objective": nn.CrossEntropyLoss(),
            "expdir": str(folder),
            "best_score": torch.zeros(1),
            **more,
        }
        return build_without_init(expert_module(name), parts)

    return build


def forward_pooled(
    expert: nn.Module, mode: str, features: Any, examples: Any, records: Any
) -> torch.Tensor:
    labels = [example.target.tolist() for example in examples]
    labels = labels if len(labels[0]) > 1 else [label for (label,) in labels]
    loss: torch.Tensor = expert(
        mode, features, labels, [example.utterance.key for example in examples], records
    )
    return loss


def copy_pooled(head: Any, expert: Any, data: TaskData) -> None:
    expert.projector.load_state_dict(head.projector.state_dict())
    expert.model.post_net.linear.load_state_dict(head.output.state_dict())


NAMES = {index: str(index) for index in range(12)}
INTENT = {
    "values_per_slot": [4, 4, 4],
    "Sy_intent": dict.fromkeys(("action", "object", "location"), NAMES),
}


# --- Speakers -----------------------------------------------------------------------------


def turn_labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
    edges = sorted(rng.sample(range(1, 40), 4))
    turns = [("a", 0, edges[1]), ("b", edges[0], edges[2]), ("a", edges[3], 40)]
    segments = " ".join(f"{name}:{320 * start}:{320 * end}" for name, start, end in turns)
    return {"segments": segments}, 39


def sd_expert(data: TaskData, head: Any, dim: int, folder: Path) -> nn.Module:
    config = {
        "datarc": {"num_speakers": 2},
        "loaderrc": {"train_batchsize": 8, "eval_batchsize": 1},
        "modelrc": {"rnn_layers": 1, "hidden_size": head.rnn.hidden_size},
        "scorerc": {"save_predictions": False},
    }
    expert: nn.Module = expert_module("diarization.expert").DownstreamExpert(
        dim, 320, config, str(folder)
    )
    return expert


def sd_forward(
    expert: nn.Module, mode: str, features: Any, examples: Any, records: Any
) -> torch.Tensor:
    labels = [example.reference.labels for example in examples]
    loss: torch.Tensor = expert(
        mode, features, labels, [len(label) for label in labels], None, records
    )
    return loss


def copy_sd(head: Any, expert: Any, data: TaskData) -> None:
    expert.model.rnn.load_state_dict(head.rnn.state_dict())
    expert.model.linear.load_state_dict(head.linear.state_dict())


def voice_labels(rng: random.Random, index: int) -> tuple[dict[str, str], int]:
    return {"speaker": f"s{index % 6}"}, rng.randint(18, 40)


def asv_expert(data: TaskData, head: Any, dim: int, folder: Path) -> nn.Module:
    module = expert_module("sv_voxceleb1.expert")
    width, pooled = head.width, head.embedding.in_features // 2
    config = {"agg_dim": pooled, "dropout_p": 0.0, "batch_norm": False}
    keys = [example.reference for example in data.examples["dev"]]
    same = {
        example.reference: example.utterance.labels["speaker"] for example in data.examples["dev"]
    }
    pairs = [
        (int(same[one] == same[other]), one, other) for one in keys for other in keys if one < other
    ]
    parts = {
        "modelrc": {"module": "XVector"},
        "connector": nn.Linear(dim, width),
        "model": module.Model(width, pooled, "SP", "XVector", "UtteranceExtractor", config),
        "objective": module.AMSoftmaxLoss(width, head.speakers.shape[1], s=30.0, m=0.4),
        "score_fn": nn.CosineSimilarity(dim=-1),
        "eval_metric": module.EER,
        "test_dataset": SimpleNamespace(pair_table=pairs),
        "expdir": str(folder),
        "best_score": torch.ones(1) * 100,
    }
    return build_without_init(module, parts)


def asv_forward(
    expert: nn.Module, mode: str, features: Any, examples: Any, records: Any
) -> torch.Tensor:
    labels = [example.target.item() for example in examples] if mode == "train" else None
    loss: torch.Tensor = expert(
        mode, features, [example.reference for example in examples], labels, records
    )
    return loss


@torch.no_grad()
def copy_asv(head: Any, expert: Any, data: TaskData) -> None:
    expert.connector.load_state_dict(head.connector.state_dict())
    for ours, theirs in zip(
        head.layers, expert.model.framelevel_feature_extractor.module, strict=True
    ):
        # (out, in, context) -> (out, context * in)
        theirs.kernel.weight.copy_(ours.weight.transpose(1, 2).flatten(1))
        theirs.kernel.bias.copy_(ours.bias)
    expert.model.utterancelevel_feature_extractor.linear1.load_state_dict(
        head.embedding.state_dict()
    )
    expert.model.utterancelevel_feature_extractor.linear2.load_state_dict(head.second.state_dict())
    expert.objective.W.copy_(head.speakers)


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
