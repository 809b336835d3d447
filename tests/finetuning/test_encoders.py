"""Runs on the real encoders at a tiny size: trainable parameters, and resuming to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from speechft_ray.finetuning import loop
from speechft_ray.finetuning.run import finetune
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.finetuning.toy_models import corpus, objective, spec
from tests.speech.toy_models import add_noise, toy_encoder

CPU = torch.device("cpu")
TRAINABLE_FAMILIES = [name for name, family in FAMILIES.items() if family.init_weights is not None]


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("name", TRAINABLE_FAMILIES)
def test_everything_that_makes_features_learns_and_nothing_else(
    name: str, freeze: bool, tmp_path: Path
) -> None:
    """The front end of DeCoAR 2.0 has no parameters."""
    start, family = add_noise(toy_encoder(name)), FAMILIES.get(name)
    content = corpus({"train": 8, "dev": 4})
    plan = spec(
        objective("ctc"),
        updates=6,
        validate_every_updates=6,
        freeze_front_end=freeze,
        head_only_fraction=0.2,
    )
    tuned = finetune(plan, start, [content], tmp_path, CPU, lambda values: None)
    same = {
        name for name, value in tuned.weights.state.items() if torch.equal(value, start.state[name])
    }
    fixed = family.pretraining_only_prefixes + (family.front_end_prefixes if freeze else ())
    assert same == {name for name in start.state if name.startswith(fixed)}
    assert list(tuned.weights.state) == list(start.state)


def test_weights_without_pretraining_parameters_are_tuned_as_they_are(tmp_path: Path) -> None:
    whole = add_noise(toy_encoder("wav2vec2"))
    unused = FAMILIES.get("wav2vec2").pretraining_only_prefixes
    state = {name: tensor for name, tensor in whole.state.items() if not name.startswith(unused)}
    start = EncoderWeights(family="wav2vec2", config=whole.config, state=state)
    plan = spec(objective("pooled"), updates=3, validate_every_updates=3)
    tuned = finetune(
        plan, start, [corpus({"train": 8, "dev": 4})], tmp_path, CPU, lambda values: None
    )
    assert list(tuned.weights.state) == list(state)
    FAMILIES.get("wav2vec2").build(tuned.weights)


@pytest.mark.parametrize("name", ["hubert", "wavlm"])
def test_a_killed_run_goes_on_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = add_noise(toy_encoder(name))
    content = corpus({"train": 8, "dev": 4})
    plan = spec(objective("frame"), updates=8, validate_every_updates=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = finetune(plan, start, [content], whole, CPU, lambda values: None)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))

    def die(values: Mapping[str, float]) -> None:
        if values["done"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(plan, start, [content], broken, CPU, die)
    resumed: list[float] = []
    result = finetune(
        plan, start, [content], broken, CPU, lambda values: resumed.append(values["done"])
    )
    assert resumed[0] == 6
    assert all(
        torch.equal(value, result.weights.state[name])
        for name, value in expected.weights.state.items()
    )
