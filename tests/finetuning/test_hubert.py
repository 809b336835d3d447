"""A run on the real HuBERT code at a tiny size: who learns, and that a resumed run ends with the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from speechft_ray.finetuning import loop
from speechft_ray.finetuning.run import finetune
from speechft_ray.speech.encoders._s3prl import build_expert
from speechft_ray.speech.encoders.base import EncoderWeights
from tests.finetuning.toys import corpus, objective, spec

CONFIG = {
    "model_cfg": {
        "conv_feature_layers": "[(8,10,5)] + [(8,3,2)]*4 + [(8,2,2)]*2",
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 24,
        "encoder_attention_heads": 2,
        "conv_pos": 8,
        "conv_pos_groups": 2,
        "final_dim": 8,
        "extractor_mode": "layer_norm",
        "layer_norm_first": True,
    },
    "task_cfg": {},
    "dictionaries_symbols": [["0", "1", "2"]],
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start() -> EncoderWeights:
    draw = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in build_expert(CONFIG).model.state_dict().items()}
    state = {name: 0.2 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    state |= {name: torch.ones(shape) for name, shape in shapes.items() if "norm" in name and name.endswith("weight")}
    return EncoderWeights(family="hubert", config=CONFIG, state=state)


@pytest.mark.parametrize("freeze", [True, False])
def test_everything_that_makes_features_learns_and_nothing_else(freeze: bool, start: EncoderWeights, tmp_path: Path) -> None:
    content = corpus({"train": 8, "dev": 4})
    plan = spec(objective("ctc"), updates=6, validate_every_updates=6, freeze_front_end=freeze, head_only_fraction=0.2)
    tuned = finetune(plan, start, [content], tmp_path, CPU, lambda values: None)
    same = {name for name, value in tuned.weights.state.items() if torch.equal(value, start.state[name])}
    fixed = ("final_proj.", "label_embs_concat", "mask_emb") + (("feature_extractor.",) if freeze else ())
    assert same == {name for name in start.state if name.startswith(fixed)}
    assert list(tuned.weights.state) == list(start.state)


def test_a_killed_run_goes_on_to_the_same_bits(start: EncoderWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = corpus({"train": 8, "dev": 4})
    plan = spec(objective("frame"), updates=8, validate_every_updates=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    expected = finetune(plan, start, [content], whole, CPU, lambda values: None)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))

    def die(values: Mapping[str, float]) -> None:
        if values["done"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(plan, start, [content], broken, CPU, die)
    resumed: list[float] = []
    found = finetune(plan, start, [content], broken, CPU, lambda values: resumed.append(values["done"]))
    assert resumed[0] == 6
    assert all(torch.equal(value, found.weights.state[name]) for name, value in expected.weights.state.items())
