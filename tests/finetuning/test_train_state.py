"""One update: which parameters change, by how much, and against a plain loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional

from speechft_ray.core.specs import AdapterSpec, FinetuneSpec
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, AudioCache
from speechft_ray.finetuning.data import load_objective
from speechft_ray.finetuning.features import FeatureLoader
from speechft_ray.finetuning.train_state import TrainState, build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import EncoderWeights
from tests.finetuning.toy_models import corpus, objective, spec, start_weights

pytestmark = pytest.mark.usefixtures("toy_family")
CPU = torch.device("cpu")


def _begin(
    plan: FinetuneSpec,
    corpora: Sequence[Corpus],
    weights: EncoderWeights | None = None,
    budget: int = 2**20,
    micro_batch_seconds: float = MICRO_BATCH_SECONDS,
) -> tuple[TrainState, Trainer]:
    objectives = [
        load_objective(item, content, weights or start_weights())
        for item, content in zip(plan.objectives, corpora, strict=True)
    ]
    state = build_train_state(plan, weights or start_weights(), objectives, CPU)
    state.train(True)
    audio_caches = [AudioCache(content, budget) for content in corpora]
    loader = FeatureLoader(
        encoder=state.encoder,
        device=CPU,
        freeze_front_end=plan.freeze_front_end,
        audio_caches=audio_caches,
    )
    return state, Trainer(plan, objectives, loader, micro_batch_seconds)


def _state(state: TrainState) -> dict[str, torch.Tensor]:
    encoder = {
        f"encoder.{name}": value for name, value in state.encoder.module().state_dict().items()
    }
    heads = {f"head.{name}": value for name, value in state.heads.state_dict().items()}
    return {name: value.clone() for name, value in (encoder | heads).items()}


def _find_changes(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}


HEAD = {"head.0.projector", "head.0.output"}
LAYERS = {"encoder.layers.0", "encoder.layers.1"}
FRONT = {"encoder.down"}
LORA = AdapterSpec(rank=2, layers=("layers.0", "layers.1"))
DORA = AdapterSpec(kind="dora", rank=2, layers=("layers.1",))
ADAPTERS = [
    f"encoder.layers.{layer}.parametrizations.weight.0" for layer in "01"
]  # the weight itself is `...weight.original`


@pytest.mark.parametrize(
    ("changes", "first", "then"),
    [
        ({}, HEAD, HEAD | LAYERS),
        ({"freeze_front_end": False}, HEAD, HEAD | LAYERS | FRONT),
        ({"head_only_fraction": 0.0}, HEAD | LAYERS, HEAD | LAYERS),
        (
            {"head_only_fraction": 0.0, "freeze_front_end": False},
            HEAD | LAYERS | FRONT,
            HEAD | LAYERS | FRONT,
        ),
        ({"anchor_penalty": 0.1}, HEAD, HEAD | LAYERS),
        ({"head_only_fraction": 1.0}, HEAD, HEAD),
        ({"adapter": LORA}, HEAD, HEAD | {*ADAPTERS}),
        (
            {"adapter": LORA, "head_only_fraction": 0.0, "anchor_penalty": 0.1},
            HEAD | {*ADAPTERS},
            HEAD | {*ADAPTERS},
        ),
        ({"adapter": DORA, "freeze_front_end": False}, HEAD, HEAD | {ADAPTERS[1]}),
    ],
)
def test_who_learns_at_every_update(
    changes: dict[str, Any], first: set[str], then: set[str]
) -> None:
    plan = spec(**{"updates": 20, "head_only_fraction": 0.25, **changes})
    state, trainer = _begin(plan, [corpus({"train": 8, "dev": 2})])
    for update in range(20):
        before = _state(state)
        trainer.train_step(state, update)
        expected = (
            set() if update == 0 else first if update < 5 else then
        )  # update 0 has learning rate 0
        assert _find_changes(before, _state(state)) == expected, update


def test_the_head_phase_ends_where_the_encoder_has_no_history() -> None:
    """Adam's moments of the encoder start at its own first update."""
    plan = spec(updates=20, head_only_fraction=0.25)
    state, trainer = _begin(plan, [corpus({"train": 8, "dev": 2})])
    weight = state.parameters["layers.0.weight"]
    for update in range(6):
        assert (weight in state.optimizer.state) is False
        trainer.train_step(state, update)
    assert state.optimizer.state[weight]["step"] == 1


def test_ten_updates_are_those_of_a_plain_loop() -> None:
    """The reference below imports nothing from the fine-tuning package: it has its own loss,
    schedule, phases, clipping and Adam formula."""
    plan = spec(
        objective(batch_size=6),
        updates=10,
        head_only_fraction=0.2,
        clip_norm=0.05,
        peak_learning_rate=0.03,
    )
    tones = corpus({"train": 6, "dev": 2})
    state, trainer = _begin(plan, [tones])
    values = {
        name: value.clone().double().requires_grad_() for name, value in _state(state).items()
    }
    moments = {
        name: (torch.zeros_like(value), torch.zeros_like(value), 0)
        for name, value in values.items()
    }
    shares = [0, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    for update in range(10):
        means = []
        for utterance in tones.split("train"):
            wave = torch.tensor(tones.read(utterance), dtype=torch.float64)
            hidden = functional.conv1d(
                wave[None], values["encoder.down.weight"], values["encoder.down.bias"], stride=320
            ).T
            for layer in "01":
                hidden = torch.tanh(
                    hidden @ values[f"encoder.layers.{layer}.weight"].T
                    + values[f"encoder.layers.{layer}.bias"]
                )
            projected = (
                hidden @ values["head.0.projector.weight"].T + values["head.0.projector.bias"]
            )
            means.append(projected.mean(dim=0))
        logits = (
            torch.stack(means) @ values["head.0.output.weight"].T + values["head.0.output.bias"]
        )
        classes = torch.tensor([index % 3 for index in range(6)])
        loss = -(logits - logits.logsumexp(dim=1, keepdim=True))[range(6), classes].mean()
        trainable_names = [
            name
            for name in values
            if name.startswith(("head", "encoder.layers") if update >= 2 else "head")
        ]
        gradients = dict(
            zip(
                trainable_names,
                torch.autograd.grad(loss, [values[name] for name in trainable_names]),
                strict=True,
            )
        )
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        step = trainer.train_step(state, update)
        assert step.loss == pytest.approx(float(loss.detach()), abs=1e-5)
        assert step.gradient_norm == pytest.approx(norm, rel=1e-4)
        for name, gradient in gradients.items():
            gradient = gradient * min(1.0, 0.05 / (norm + 1e-6))
            first, second, count = moments[name]
            first, second, count = (
                0.9 * first + 0.1 * gradient,
                0.999 * second + 0.001 * gradient**2,
                count + 1,
            )
            moments[name] = (first, second, count)
            move = (
                0.03
                * shares[update]
                * (first / (1 - 0.9**count))
                / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
            )
            values[name] = (values[name].detach() - move).requires_grad_()
    for name, value in _state(state).items():
        torch.testing.assert_close(value.double(), values[name].detach(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("head", ["frame", "pooled", "ctc"])
def test_a_batch_learned_in_parts_has_the_gradient_of_the_whole(head: str) -> None:
    plan, content = (
        spec(objective(head, batch_size=6), head_only_fraction=0.0),
        [corpus({"train": 12, "dev": 2})],
    )
    steps = []
    for seconds in (160.0, 0.3):
        state, trainer = _begin(plan, content, micro_batch_seconds=seconds)
        step = trainer.train_step(state, 0)
        gradients = {
            name: value.grad.clone()
            for name, value in state.parameters.items()
            if value.grad is not None
        }
        assert set(gradients) == set(state.parameters)
        steps.append((step, gradients))
    (whole, gradients), (split, same) = steps
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)
    for name in gradients:
        torch.testing.assert_close(same[name], gradients[name], rtol=1e-4, atol=1e-6)


def test_several_objectives_add_up_by_their_weights() -> None:
    tones = corpus({"train": 4, "dev": 2})
    alone = [objective("pooled"), objective("ctc"), objective("frame")]
    together = tuple(
        item.model_copy(update={"weight": weight})
        for item, weight in zip(alone, (1.0, 0.25, 3.0), strict=True)
    )
    state, trainer = _begin(spec(*together), [tones] * 3)
    losses = []
    for index, item in enumerate(alone):
        single, single_trainer = _begin(spec(item), [tones])
        single.heads[0].load_state_dict(state.heads[index].state_dict())
        losses.append(single_trainer.train_step(single, 0).loss)
    expected = losses[0] + 0.25 * losses[1] + 3 * losses[2]
    step = trainer.train_step(state, 0)
    assert step.loss == pytest.approx(expected, rel=1e-5)
    assert step.loss_parts == pytest.approx(
        {"loss_0": losses[0], "loss_1": 0.25 * losses[1], "loss_2": 3 * losses[2]}, rel=1e-5
    )


def test_the_penalty_holds_weights_near_their_start_and_counts_in_the_loss() -> None:
    distances = []
    for strength in (0.0, 0.1, 1.0):
        state, trainer = _begin(
            spec(updates=40, anchor_penalty=strength), [corpus({"train": 8, "dev": 2})]
        )
        for update in range(40):
            trainer.train_step(state, update)
        differences = [
            (value.detach() - state.anchors[name]).flatten()
            for name, value in state.parameters.items()
        ]
        distances.append(float(torch.cat(differences).norm()))
    assert distances[0] > distances[1] > distances[2] > 0


@pytest.mark.parametrize("adapter", [LORA, DORA])
def test_with_adapters_the_penalty_is_that_of_the_merged_weights(adapter: AdapterSpec) -> None:
    start = start_weights().state
    state, trainer = _begin(
        spec(adapter=adapter, anchor_penalty=0.5, head_only_fraction=0.0, peak_learning_rate=0.1),
        [corpus({"train": 8, "dev": 2})],
    )
    for update in range(6):
        weights = {name: value.detach().double() for name, value in state.weights().items()}
        assert set(weights) == {f"{layer}.weight" for layer in adapter.layers}
        expected = 0.5 * sum(
            float((value - start[name]).square().sum()) for name, value in weights.items()
        )
        assert trainer.train_step(state, update).loss_parts["penalty"] == pytest.approx(
            expected, rel=1e-4, abs=1e-12
        )
    assert expected > 1e-3


def test_dropout_is_on_in_the_head_phase_and_drawn_per_update() -> None:
    plan = spec(head_only_fraction=1.0, peak_learning_rate=1e-12)
    content = [corpus({"train": 4, "dev": 2})]
    losses = {}
    for dropout in (0.0, 0.5):
        state, trainer = _begin(plan, content, start_weights(dropout))
        losses[dropout] = [trainer.train_step(state, update).loss for update in (0, 1, 0)]
    assert losses[0.0][0] == pytest.approx(losses[0.0][1])
    assert abs(losses[0.5][0] - losses[0.5][1]) > 1e-4
    assert losses[0.5][0] == pytest.approx(losses[0.5][2], rel=1e-6)


def test_an_update_without_a_finite_loss_changes_nothing() -> None:
    state, trainer = _begin(
        spec(head_only_fraction=0.0), [corpus({"train": 4, "dev": 2}, spoiled=["train-1"])]
    )
    before = _state(state)
    step = trainer.train_step(state, 3)
    assert not step.applied and _find_changes(before, _state(state)) == set()


def test_crops_are_of_the_asked_length_and_differ_between_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = spec(crop_seconds=0.1)
    state, trainer = _begin(plan, [corpus({"train": 4, "dev": 2})])
    waves: list[torch.Tensor] = []
    compute = state.encoder.conv_features

    def conv_features(batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        waves.extend(batch)
        return compute(batch)

    monkeypatch.setattr(state.encoder, "conv_features", conv_features)
    for update in range(2):
        trainer.train_step(state, update)
    assert [len(wave) for wave in waves] == [1600] * 8
    assert not any(torch.equal(left, right) for left in waves[:4] for right in waves[4:])
