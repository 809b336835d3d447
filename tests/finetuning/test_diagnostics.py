"""Weight distances and CKA, against independent formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.finetuning import diagnostics as diagnostics_module
from speechft_ray.finetuning import loop
from speechft_ray.finetuning.batches import AudioCache
from speechft_ray.finetuning.data import ObjectiveData, load_objective
from speechft_ray.finetuning.diagnostics import (
    LinearCka,
    compute_diagnostics,
    compute_weight_distances,
    load_probe_set,
)
from speechft_ray.finetuning.features import FeatureLoader
from speechft_ray.finetuning.run import finetune
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import EncoderWeights
from tests.finetuning.toy_models import ToyEncoder, build, corpus, objective, spec, start_weights
from tests.speech.toy_models import add_noise, toy_encoder

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
FRAMES = RNG.standard_normal((200, 6)) @ RNG.standard_normal((6, 6)) + 5.0


def _cka(left: np.ndarray, right: np.ndarray, parts: int = 7) -> float | None:
    total = LinearCka()
    for one, other in zip(np.array_split(left, parts), np.array_split(right, parts), strict=True):
        total.add(torch.tensor(one, dtype=torch.float32), torch.tensor(other, dtype=torch.float32))
    return total.compute()


def _by_examples(left: np.ndarray, right: np.ndarray) -> float:
    """Computes CKA from centred Gram matrices of frames, its other form."""
    centre = np.eye(len(left)) - 1 / len(left)
    one, other = (centre @ (values @ values.T) @ centre for values in (left, right))
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_similarity_is_that_of_centred_gram_matrices() -> None:
    for noise in (0.3, 1.0, 5.0):
        other = (
            np.tanh(FRAMES - 5) @ RNG.standard_normal((6, 9))
            + noise * RNG.standard_normal((200, 9))
            - 40.0
        )
        cka = _cka(FRAMES, other)
        assert cka == pytest.approx(_by_examples(FRAMES, other), rel=1e-5)
        assert cka is not None and 0 < cka < 0.99


def test_similarity_does_not_see_rotation_scale_and_shift() -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((6, 6)))
    assert _cka(FRAMES, FRAMES) == pytest.approx(1, abs=1e-9)
    assert _cka(FRAMES, -3 * FRAMES @ rotation + 7) == pytest.approx(1, abs=1e-6)
    stretched = _cka(FRAMES, FRAMES * np.array([1, 1, 1, 1, 1, 30]))
    assert stretched is not None and stretched < 0.9, "it does see a change of one direction alone"


def test_similarity_to_noise_is_low() -> None:
    cka = _cka(RNG.standard_normal((4000, 6)), RNG.standard_normal((4000, 6)))
    assert cka is not None and cka < 0.01


@pytest.mark.parametrize(
    "other",
    [
        np.ones((200, 6)),
        np.tile(FRAMES[0], (200, 1)),
        np.full((200, 6), np.nan),
        np.full((200, 6), np.inf),
    ],
)
def test_features_that_say_nothing_have_no_similarity(other: np.ndarray) -> None:
    assert _cka(FRAMES, other) is None
    assert LinearCka().compute() is None


def test_distances_are_relative_and_by_part() -> None:
    def weights(state: dict[str, list[float]]) -> EncoderWeights:
        return EncoderWeights(
            family="toy",
            config={},
            state={name: torch.tensor(value) for name, value in state.items()},
        )

    start = {
        "down.w": [3.0, 4.0],
        "proj.w": [1.0, 0.0],
        "layers.0.w": [2.0],
        "layers.0.b": [0.0],
        "layers.11.w": [0.0],
        "head.w": [1.0],
    }
    tuned = {
        **start,
        "proj.w": [1.0, 0.5],
        "layers.0.w": [2.6],
        "layers.0.b": [0.8],
        "head.w": [9.0],
    }
    distances = compute_weight_distances(weights(start), weights(tuned), ("down.",), ("head.",))
    assert distances == pytest.approx({"front_end": 0.0, "input": 0.5, "layer_00": 0.5})


def _objectives(*corpora: Corpus) -> tuple[list[ObjectiveData], FeatureLoader]:
    objectives = [load_objective(objective(), content, start_weights()) for content in corpora]
    encoder = build(start_weights())
    audio_caches = [AudioCache(content, 2**20) for content in corpora]
    return objectives, FeatureLoader(
        encoder=encoder, device=CPU, freeze_front_end=True, audio_caches=audio_caches
    )


def test_probes_are_the_first_dev_utterances_of_every_objective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (
        corpus({"train": 4, "dev": 5}, spoiled=["dev-1"]),
        corpus({"train": 4, "dev": 30}, seed=1),
    )
    objectives, loader = _objectives(few, many)
    monkeypatch.setattr(diagnostics_module, "PROBE_UTTERANCES", 20)
    chosen = [clip.key for clip in load_probe_set(objectives, loader)]
    assert chosen == [
        "dev-0",
        "dev-2",
        "dev-3",
        "dev-4",
        *sorted(f"dev-{index}" for index in range(30))[:10],
    ]
    monkeypatch.setattr(diagnostics_module, "PROBE_SECONDS", 0.6)
    clips = load_probe_set(objectives, loader)
    assert sum(clip.samples for clip in clips) == 9600
    cut = [clip for clip in clips if not clip.whole]
    assert len(cut) == 2 and all(
        len(clip.wave) == clip.samples for clip in cut if clip.wave is not None
    )


@pytest.mark.usefixtures("toy_family")
def test_checkpoints_are_compared_with_dropout_off_state_by_state() -> None:
    tones = corpus({"train": 4, "dev": 8})
    start, other = start_weights(0.5), start_weights(0.5, seed=3)
    changed = {**start.state, "layers.1.weight": other.state["layers.1.weight"]}
    objectives, loader = _objectives(tones)
    tuned = EncoderWeights(family="toy", config=start.config, state=changed)
    diagnostics = compute_diagnostics(
        start, {"same": start, "tuned": tuned}, objectives, loader, lambda: None
    )
    assert diagnostics["same"]["cka"] == pytest.approx([1.0] * 3)
    assert set(diagnostics["same"]["weight_distance"].values()) == {0.0}
    assert diagnostics["tuned"]["cka"][:2] == pytest.approx([1.0] * 2)
    last = [_last_states(weights, tones) for weights in (start, tuned)]
    assert diagnostics["tuned"]["cka"][2] == pytest.approx(_by_examples(*last), rel=1e-4)
    assert diagnostics["tuned"]["cka"][2] < 0.999


@pytest.mark.usefixtures("toy_family")
def test_a_run_can_be_stopped_while_it_looks_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_SECONDS", 0.0)
    ended: list[float] = []

    def stop(values: Mapping[str, float]) -> None:
        ended.extend([values["done"]] * (values["done"] == values["total"]))
        if len(ended) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(spec(), start_weights(), [corpus({"train": 8, "dev": 4})], tmp_path, CPU, stop)


def _last_states(weights: EncoderWeights, content: Corpus) -> np.ndarray:
    encoder = build(weights)
    assert isinstance(encoder, ToyEncoder) and not encoder.training
    with torch.no_grad():
        states = [
            encoder.hidden_states([torch.tensor(content.read(item))]).states[-1][0]
            for item in content.split("dev")
        ]
    return torch.cat(states).double().numpy()


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_says_how_far_its_checkpoints_went(freeze: bool, tmp_path: Path) -> None:
    start = add_noise(toy_encoder("hubert"))
    plan = spec(
        objective("ctc"),
        updates=12,
        validate_every_updates=6,
        keep_at=(0.5,),
        freeze_front_end=freeze,
        head_only_fraction=0.1,
    )
    tuned = finetune(
        plan, start, [corpus({"train": 8, "dev": 4})], tmp_path, CPU, lambda values: None
    )
    diagnostics: dict[str, Any] = json.loads(
        json.dumps(tuned.facts["diagnostics"], allow_nan=False)
    )
    assert set(diagnostics) == {"best", "0.5"}
    for name, weights in (("best", tuned.weights), ("0.5", tuned.early_checkpoints[0.5])):
        parts, cka = diagnostics[name]["weight_distance"], diagnostics[name]["cka"]
        assert set(parts) == {"front_end", "input", "layer_00", "layer_01"}
        assert (parts["front_end"] == 0) == freeze and all(
            parts[part] > 0 for part in parts if part != "front_end"
        )
        ours = {
            key: value for key, value in start.state.items() if key.startswith("encoder.layers.1.")
        }
        difference = math.sqrt(
            sum(float((weights.state[key] - value).square().sum()) for key, value in ours.items())
        )
        size = math.sqrt(sum(float(value.square().sum()) for value in ours.values()))
        assert parts["layer_01"] == pytest.approx(difference / size, rel=1e-4)
        assert len(cka) == 3 and all(0 < value < 1 for value in cka)
