"""Whole runs with adapters: plain weights result, and a killed run resumes to the same bits."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import AdapterSpec, FinetuneSpec
from speechft_ray.finetuning import loop
from speechft_ray.speech import checkpointing
from tests.finetuning.toy_models import Killed, objective, run, spec, start_weights
from tests.speech.toy_models import add_noise, toy_encoder

KINDS = ("lora", "dora")


def _plan(kind: str, **changes: object) -> FinetuneSpec:
    adapter = AdapterSpec.model_validate(
        {"kind": kind, "rank": 2, "layers": ("layers.0", "layers.1")}
    )
    return spec(**{"adapter": adapter, "keep_at": (0.5,), **changes})


@pytest.mark.usefixtures("toy_family")
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_is_plain_weights(kind: str, tmp_path: Path) -> None:
    start = start_weights(0.2)
    tuned = run(
        tmp_path,
        _plan(kind, updates=120, validate_every_updates=20, peak_learning_rate=0.05),
        start,
    )
    assert tuned.facts["best_dev"] > 60  # chance is 33 %
    for weights in (tuned.weights, tuned.early_checkpoints[0.5]):
        assert list(weights.state) == list(start.state)
        changed = {name: value - start.state[name] for name, value in weights.state.items()}
        assert {name for name, value in changed.items() if value.any()} == {
            "layers.0.weight",
            "layers.1.weight",
        }
        ranks = [
            int(torch.linalg.matrix_rank(changed[f"layers.{layer}.weight"], rtol=1e-4))
            for layer in "01"
        ]
        assert ranks == [2, 2] if kind == "lora" else min(ranks) > 2
    points = dict(tuned.facts["curve"])
    changes = [
        tuned.weights.state[f"layers.{layer}.weight"] - start.state[f"layers.{layer}.weight"]
        for layer in "01"
    ]
    for layer, change in enumerate(changes):
        assert points[tuned.facts["best_update"]][f"distance_layer_{layer:02d}"] == pytest.approx(
            float(change.norm()), rel=1e-4
        )
    total = math.sqrt(sum(float(change.square().sum()) for change in changes))
    assert points[tuned.facts["best_update"]]["distance"] == pytest.approx(total, rel=1e-4)
    assert points[1]["distance"] == 0, "the head-only phase holds for adapters too"


@pytest.mark.usefixtures("toy_family")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(kind, updates=30, gather=("fisher", "gram"))
    whole = run(tmp_path / "whole", plan)
    chance = random.Random(1)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))
    save = checkpointing.save
    monkeypatch.setattr(
        checkpointing, "save", lambda *args: save(*args) if chance.random() < 0.5 else None
    )

    restarts: list[float] = []

    def die(values: Mapping[str, float]) -> None:
        reports.append(values["done"])
        if chance.random() < 0.2:
            raise Killed

    for _ in range(100):
        reports: list[float] = []
        try:
            broken = run(tmp_path / "broken", plan, report=die)
            break
        except Killed:
            restarts.append(reports[0])
    assert len(restarts) >= 2 and max(restarts) > 3, "nothing was resumed after the head-only phase"
    for left, right in (
        (whole.weights, broken.weights),
        (whole.early_checkpoints[0.5], broken.early_checkpoints[0.5]),
    ):
        assert all(torch.equal(value, right.state[name]) for name, value in left.state.items())
    assert all(
        torch.equal(value, broken.statistics[name]) for name, value in whole.statistics.items()
    )
    assert whole.facts["diagnostics"] == broken.facts["diagnostics"]


@pytest.mark.parametrize("name", ["hubert", "wavlm"])
def test_real_encoders_end_with_plain_weights(name: str, tmp_path: Path) -> None:
    start = add_noise(toy_encoder(name))
    adapter = AdapterSpec(kind="dora", rank=2)
    tuned = run(
        tmp_path,
        spec(objective("ctc"), updates=4, validate_every_updates=4, adapter=adapter),
        start,
    )
    assert list(tuned.weights.state) == list(start.state)
    changed = {
        key
        for key, value in tuned.weights.state.items()
        if not torch.equal(value, start.state[key])
    }
    assert changed == {
        key
        for key in start.state
        if key.endswith(tuple(f".{layer}.weight" for layer in adapter.layers))
    }


@pytest.mark.usefixtures("toy_family")
def test_a_state_of_another_adapter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)

    def die(values: Mapping[str, float]) -> None:
        if values["done"] == 9:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, _plan("lora"), report=die)
    with pytest.raises(UserError):
        run(tmp_path, _plan("dora"))


@pytest.mark.usefixtures("toy_family")
def test_layers_that_an_encoder_does_not_have_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is called `q_proj`; there are `layers.0`, `layers.1`"):
        run(tmp_path, _plan("lora", adapter=AdapterSpec()))
