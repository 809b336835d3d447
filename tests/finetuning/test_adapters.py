"""LoRA and DoRA against peft, on every encoder; no other parameter changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import AdapterSpec
from speechft_ray.finetuning.adapters import add_adapters, compute_adapted_weights, merge_adapters

# peft's imports end at a torchaudio that must load.
from speechft_ray.speech.encoders import _torchaudio  # noqa: F401
from speechft_ray.speech.encoders.base import FAMILIES, Encoder
from tests.finetuning.toy_models import ToyEncoder
from tests.speech.toy_models import add_noise, make_wave, toy_encoder

import peft  # isort: skip

Kind = Literal["lora", "dora"]
KINDS: tuple[Kind, ...] = ("lora", "dora")
TRAINABLE_FAMILIES = [name for name, family in FAMILIES.items() if family.init_weights is not None]
WAVES = [make_wave(4000), make_wave(2500, seed=1)]


class Network(nn.Module):
    """A small network with the names of a transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(12, 20), nn.Linear(20, 7), nn.Linear(7, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.out(torch.tanh(self.fc2(torch.relu(self.fc1(values)))))
        return hidden


def _add_adapters(module: nn.Module, **options: object) -> dict[str, nn.Parameter]:
    """Freezes a module and adds adapters with random values instead of the start values."""
    module.requires_grad_(False)
    parameters = add_adapters(
        module, AdapterSpec.model_validate(options), {name for name, _ in module.named_parameters()}
    )
    _perturb(parameters)
    return parameters


def _perturb(parameters: dict[str, nn.Parameter]) -> None:
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(0.3 * torch.randn(value.shape, generator=rng))


def _encoder(name: str) -> Encoder:
    """Builds a frozen encoder: torch rounds products differently for weights with a gradient."""
    encoder = FAMILIES.get(name).build(add_noise(toy_encoder(name)))
    encoder.module().requires_grad_(False)
    return encoder


@torch.no_grad()
def _current_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return compute_adapted_weights(module)


@torch.no_grad()
def _states(encoder: Encoder) -> Sequence[torch.Tensor]:
    return encoder.hidden_states(WAVES).states


def _same(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_gradients_and_merged_weights_are_those_of_peft(kind: Kind) -> None:
    torch.manual_seed(0)
    network, values = Network(), torch.randn(5, 12)
    peft_network = Network()
    peft_network.load_state_dict(network.state_dict())
    added = _add_adapters(network, kind=kind, rank=4, scale=6.0, layers=("fc1", "fc2"))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["fc1", "fc2"], use_dora=kind == "dora"
    )
    reference: Any = peft.get_peft_model(peft_network, config)
    names = {
        "a": "lora_A.default.weight",
        "b": "lora_B.default.weight",
        "magnitude": "lora_magnitude_vector.default.weight",
    }
    counterparts = {
        name: reference.get_parameter(
            f"base_model.model.{name.split('.')[0]}.{names[name.rsplit('.', 1)[1]]}"
        )
        for name in added
    }
    assert set(map(id, counterparts.values())) == {
        id(value) for value in reference.parameters() if value.requires_grad
    }
    with torch.no_grad():
        for name, value in added.items():
            counterparts[name].copy_(value)
    left, right = network(values), reference(values)
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
    left.square().sum().backward()
    right.square().sum().backward()
    for name, value in added.items():
        assert value.grad is not None and float(value.grad.norm()) > 1e-3
        torch.testing.assert_close(value.grad, counterparts[name].grad, rtol=1e-5, atol=1e-6)
    merge_adapters(network)
    merged = reference.merge_and_unload().state_dict()
    assert set(merged) == set(network.state_dict())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-6, atol=1e-6)


def test_adapters_begin_as_those_of_peft() -> None:
    """A has the same uniform distribution, B is zero, the magnitudes are the norms of the rows."""
    linear = nn.Linear(400, 300)
    layer, start = nn.Sequential(linear), linear.weight.detach().clone()
    added = add_adapters(layer, AdapterSpec(kind="dora", rank=64, layers=("0",)), {"0.weight"})
    a, b, magnitude = added.values()
    reference = peft.get_peft_model(
        nn.Sequential(nn.Linear(400, 300)),
        peft.LoraConfig(r=64, target_modules=["0"], use_dora=True),
    ).get_parameter("base_model.model.0.lora_A.default.weight")
    assert float(a.detach().abs().max()) == pytest.approx(
        float(reference.detach().abs().max()), rel=1e-3
    )
    assert float(a.detach().std()) == pytest.approx(float(reference.detach().std()), rel=0.02)
    assert not b.any()
    torch.testing.assert_close(magnitude.detach(), start.square().sum(dim=1).sqrt())


def test_a_layer_around_a_projection_does_nothing_in_attention() -> None:
    """The reason not to use peft. If this fails, s3prl's attention calls its projections."""
    encoder = _encoder("hubert")
    before = _states(encoder)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False), encoder.module()
    )
    assert any(
        "lora_B" in name and value.any() for name, value in encoder.module().named_parameters()
    )
    assert _same(before, _states(encoder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINABLE_FAMILIES)
def test_every_family_begins_at_its_start_and_ends_with_plain_weights(
    name: str, kind: Kind
) -> None:
    encoder = _encoder(name)
    module, before = encoder.module(), _states(encoder)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    spec = AdapterSpec(kind=kind, rank=4)
    added = add_adapters(module, spec, set(start))
    assert len(added) == 2 * 6 * (3 if kind == "dora" else 2)  # 2 layers of 6
    assert all(torch.equal(value, start[key]) for key, value in _current_weights(module).items())
    assert _same(before, _states(encoder))
    assert set(start) - set(module.state_dict()) == set(_current_weights(module)), (
        "only adapted weights have another name"
    )
    assert all(
        torch.equal(value, start[key]) for key, value in module.state_dict().items() if key in start
    )

    _perturb(added)
    after, merged = _states(encoder), _current_weights(module)
    assert not _same(before, after)
    merge_adapters(module)
    assert set(module.state_dict()) == set(start)
    changed = {
        key for key, value in module.state_dict().items() if not torch.equal(value, start[key])
    }
    assert (
        changed
        == set(merged)
        == {
            key for key in start if key.endswith(tuple(f".{layer}.weight" for layer in spec.layers))
        }
    )
    assert all(
        torch.equal(value, merged[key])
        for key, value in module.state_dict().items()
        if key in merged
    )
    assert _same(after, _states(encoder))


@pytest.mark.parametrize("name", TRAINABLE_FAMILIES)
@pytest.mark.parametrize("layer", AdapterSpec().layers)
def test_an_adapter_of_any_layer_has_an_effect(name: str, layer: str) -> None:
    """In attention too, where no projection is called."""
    encoder = _encoder(name)
    before = _states(encoder)
    _add_adapters(encoder.module(), rank=2, layers=(layer,))
    moved = [
        float((one - other).abs().max())
        for one, other in zip(before, _states(encoder), strict=True)
    ]
    assert moved[0] == 0 and all(value > 1e-4 for value in moved[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_updates_move_adapters_and_nothing_else(kind: Kind) -> None:
    encoder = _encoder("wavlm")
    module = encoder.module()
    start = {key: value.clone() for key, value in module.state_dict().items()}
    added = add_adapters(
        module, AdapterSpec(kind=kind, rank=4, layers=("q_proj", "fc2")), set(start)
    )
    assert {key for key, value in module.named_parameters() if value.requires_grad} == set(added)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for update in range(3):
        before = {key: value.clone() for key, value in module.state_dict().items()}
        optimizer.zero_grad()
        loss = encoder.hidden_states(WAVES).states[-1].square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        moved = {
            key for key, value in module.state_dict().items() if not torch.equal(value, before[key])
        }
        # As long as B is zero, A has no gradient.
        assert moved == {key for key in added if update or not key.endswith(".a")}
    merge_adapters(module)
    moved = {
        key for key, value in module.state_dict().items() if not torch.equal(value, start[key])
    }
    assert moved == {key for key in start if key.endswith(("q_proj.weight", "fc2.weight"))}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_module_is_saved_and_loaded(kind: Kind) -> None:
    first, second = ToyEncoder(0.0), ToyEncoder(0.0)
    _add_adapters(first, kind=kind, rank=2, layers=("layers.0", "layers.1"))
    add_adapters(
        second,
        AdapterSpec(kind=kind, rank=2, layers=("layers.0", "layers.1")),
        {"layers.0.weight", "layers.1.weight"},
    )
    second.load_state_dict(first.state_dict())
    assert _same([*_current_weights(first).values()], [*_current_weights(second).values()])
    assert _same(_states(first), _states(second))


def test_weights_reach_the_adapters_with_their_gradient() -> None:
    encoder = ToyEncoder(0.0)
    added = _add_adapters(encoder, kind="dora", rank=2, layers=("layers.1",))
    weights = compute_adapted_weights(encoder)
    weights["layers.1.weight"].square().sum().backward()  # type: ignore[no-untyped-call]
    assert set(weights) == {"layers.1.weight"} and all(
        value.grad is not None for value in added.values()
    )


def test_weights_are_the_same_where_layers_compute_in_bf16() -> None:
    encoder = ToyEncoder(0.0)
    _add_adapters(encoder, kind="dora", rank=2, layers=("layers.0",))
    expected = _current_weights(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.layers[0](torch.ones(1, 8)).dtype == torch.bfloat16
        assert torch.equal(
            _current_weights(encoder)["layers.0.weight"], expected["layers.0.weight"]
        )


def test_a_row_of_zeros_does_not_spoil_the_rest() -> None:
    linear = nn.Linear(4, 3)
    layer = nn.Sequential(linear)
    with torch.no_grad():
        linear.weight[1] = 0
    added = add_adapters(layer, AdapterSpec(kind="dora", rank=2, layers=("0",)), {"0.weight"})
    assert not linear.weight[1].any()
    layer(torch.ones(1, 4)).sum().backward()
    assert all(
        bool(torch.isfinite(value.grad).all()) for value in added.values() if value.grad is not None
    )


@pytest.mark.parametrize(
    ("layers", "rank", "message"),
    [
        (
            ("fc1", "fc3"),
            2,
            (
                r"no linear layer that may learn is called `fc3`; "
                r"there are `fc1`, `fc2`.*`q_proj`, `v_proj`"
            ),
        ),
        (("final_proj",), 2, "is called `final_proj`"),
        (("c1",), 2, "is called `c1`"),
        (
            ("q_proj",),
            17,
            (
                r"is 17, but the layer `encoder.layers.0.self_attn.q_proj` has only 16 inputs and "
                r"16 outputs"
            ),
        ),
    ],
)
def test_what_cannot_be_adapted_is_told(layers: tuple[str, ...], rank: int, message: str) -> None:
    module = _encoder("hubert").module()
    trainable_names = {
        name for name, _ in module.named_parameters() if not name.startswith("final_proj")
    }
    before = list(module.state_dict())
    with pytest.raises(UserError, match=message):
        add_adapters(module, AdapterSpec(rank=rank, layers=layers), trainable_names)
    assert list(module.state_dict()) == before
