"""s3prl's experts for each task: how they are built and called, and how weights are copied into
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.s3prl_peer import Forward, build_without_init, expert_module
from speechft_ray.superb.tasks.asr import DICTIONARY
from speechft_ray.superb.tasks.base import TaskData

RECURRENT: dict[str, Any] = {"projection": 24, "lstm_hidden": 16, "specaug": False}
PHONES, LETTERS, SLOTS = "abcdefgh", "ABC", ("x", "y")


# --- Token sequences ----------------------------------------------------------------------


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
