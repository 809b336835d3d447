"""LoRA adapters as donors: against peft itself, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from speechft_ray.commands.adapters import CONFIG, WEIGHTS, read_adapter
from speechft_ray.commands.merge import merge_models
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.merging import adapters
from speechft_ray.merging.adapters import COMBINATIONS, apply_adapter, combine_adapters

peft = pytest.importorskip("peft")
WEIGHTS_OF_ADAPTERS = [0.7, -0.4]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(6, 8), nn.Linear(6, 8)


class Model(nn.Module):
    """Two linear layers under the names of an encoder's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([Attention()])})


def make_peft(**options: Any) -> Any:
    """Returns a peft model with the adapters one and two, of seeded factors."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], **options,
    }  # fmt: skip
    model = peft.PeftModel(Model(), peft.LoraConfig(**config), adapter_name="one")
    model.add_adapter("two", peft.LoraConfig(**{**config, "lora_alpha": 2}))
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data.normal_()
        elif "magnitude" in name:
            parameter.data.mul_(1.5)
    return model


def read_base(model: Any) -> dict[str, torch.Tensor]:
    """Returns the state of the base in a peft model, under the base's own names."""
    return {
        key.replace(".base_layer", ""): tensor.detach().clone()
        for key, tensor in model.get_base_model().state_dict().items()
        if "lora_" not in key
    }


def merge_with_peft(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """Returns the state of the base with an adapter, merged by peft."""
    model.set_adapter(adapter)
    model.merge_adapter([adapter])
    state = read_base(model)
    model.unmerge_adapter()
    return state


def save(model: Any, folder: Path) -> list[str]:
    """Saves both adapters as peft does; returns their folders."""
    model.save_pretrained(folder)
    return [str(folder / name) for name in ("one", "two")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {
            "rank_pattern": {r"layers\.[0-3]\..*q_proj": 2},
            "alpha_pattern": {"^encoder.layers.0.q_proj": 32, "v_.*": 7},
        },
    ],
)
def test_an_adapter_is_the_donor_that_peft_makes_of_it(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = make_peft(**options)
    base, expected = read_base(model), merge_with_peft(model, "one")
    folder, _ = save(model, tmp_path)
    donor = apply_adapter(read_adapter(folder, base), base)
    assert set(donor) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(donor[key], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_combinations_are_pefts(
    combination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are random and not peft's, so both sides get the same fixed ones."""

    def mask(like: torch.Tensor) -> torch.Tensor:
        return (torch.arange(like.numel()) * 7 % 4 < 2).reshape(like.shape).to(like.dtype)

    monkeypatch.setattr(torch, "bernoulli", mask)
    monkeypatch.setattr(adapters, "draw_mask", lambda *arguments: mask(arguments[-1]))
    model = make_peft()
    base = read_base(model)
    folders = save(model, tmp_path)
    density = 0.5
    more = {} if combination in ("linear", "cat", "svd") else {"density": density}
    model.add_weighted_adapter(
        ["one", "two"], WEIGHTS_OF_ADAPTERS, "both", combination_type=combination, **more
    )
    expected = merge_with_peft(model, "both")
    combined = combine_adapters(
        combination, [read_adapter(each, base) for each in folders], WEIGHTS_OF_ADAPTERS,
        density=density,
    )  # fmt: skip
    actual = apply_adapter(combined, base)
    for key, tensor in expected.items():
        torch.testing.assert_close(actual[key], tensor, rtol=1e-5, atol=2e-5)
    assert any(not torch.equal(actual[key], base[key]) for key in base)


def test_masks_follow_from_the_seed(tmp_path: Path) -> None:
    model = make_peft()
    base = read_base(model)
    both = [read_adapter(each, base) for each in save(model, tmp_path)]
    first, again, other = (
        combine_adapters("dare_linear", both, [1.0, 1.0], density=0.5, seed=seed)
        for seed in (0, 0, 1)
    )
    key = "encoder.layers.0.q_proj.weight"
    assert torch.equal(first.layers[key].a, again.layers[key].a)
    assert not torch.equal(first.layers[key].a, other.layers[key].a)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, list[str]]:
    """A plain base and the folders of two adapters of it."""
    model = make_peft()
    save_file(read_base(model), tmp_path / "base.safetensors")
    return str(tmp_path / "base.safetensors"), save(model, tmp_path)


def test_adapters_merge_like_the_whole_models(
    folders: tuple[str, list[str]], tmp_path: Path
) -> None:
    base, (one, two) = folders
    start = load_file(base)
    whole = []
    for number, folder in enumerate((one, two)):
        whole.append(str(tmp_path / f"whole{number}.safetensors"))
        save_file(apply_adapter(read_adapter(folder, start), start), whole[-1])
    results: list[dict[str, torch.Tensor]] = []
    for donors in ([one, two], whole, [f"{base}+{one}", whole[1]]):
        out = tmp_path / f"out{len(results)}.safetensors"
        merge_models("ties", {"density": 0.5}, base, donors, 0.5, out)
        results.append(load_file(out))
    for result in results[1:]:
        for key, tensor in results[0].items():
            assert torch.equal(result[key], tensor), key
    out = tmp_path / "svd.safetensors"
    params = {"combination_type": "svd", "weights": [0.5, 0.5]}
    merge_models("add_weighted_adapter", params, base, [one, two], 1.0, out)
    assert not torch.equal(
        load_file(out)["encoder.layers.0.q_proj.weight"], start["encoder.layers.0.q_proj.weight"]
    )


def test_bad_adapters_are_refused_and_nothing_is_written(
    folders: tuple[str, list[str]], tmp_path: Path
) -> None:
    base, (one, two) = folders
    out = tmp_path / "out.safetensors"

    def refuse(message: str, donor: str = one, method: str = "linear", **params: Any) -> None:
        with pytest.raises((UserError, SpecError)) as error:
            merge_models(method, params, base, [donor], 1.0, out)
        assert message in str(error.value), error.value
        assert not out.exists()

    config = json.loads((Path(one) / CONFIG).read_text())
    tensors = load_file(Path(one) / WEIGHTS)

    def rewrite(changes: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        (Path(one) / CONFIG).write_text(json.dumps({**config, **changes}))
        save_file(state, Path(one) / WEIGHTS)

    refuse("unknown combination of adapters `tie`", method="add_weighted_adapter",
           combination_type="tie")  # fmt: skip
    refuse("`weights` must have one value per adapter", method="add_weighted_adapter",
           weights=[1.0, 2.0])  # fmt: skip
    refuse("combines adapters, but", donor=base, method="add_weighted_adapter")
    rewrite({}, {key.replace("q_proj", "w_proj"): tensor for key, tensor in tensors.items()})
    refuse("a LoRA of another base: 1 of its 2 layers are not in this one")
    rewrite({}, {key: torch.zeros(3, 3) for key in tensors})
    refuse("a LoRA of another base: 2 of its 2 layers")
    rewrite({}, {**tensors, "base_model.model.encoder.layers.0.q_proj.bias": torch.zeros(8)})
    refuse("holds 1 tensors that are no LoRA factors")
    rewrite({"peft_type": "IA3"}, tensors)
    refuse("an adapter of the type IA3")
    for kind in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"):
        rewrite({"init_lora_weights": kind}, tensors)
        refuse(f"was initialized with `{kind}`, which changes the base")
    rewrite({"alpha_pattern": {"q_proj(": 2}}, tensors)
    refuse("has the pattern `q_proj(`, which is no regular expression")
    rewrite({"r": 2}, tensors)
    refuse("has matrices of rank 3 for encoder.layers.0.")
    (Path(one) / CONFIG).write_text("{")
    refuse("is not a whole adapter")
    (Path(two) / WEIGHTS).unlink()
    refuse("has no adapter_model.safetensors", donor=two)


def test_an_adapter_with_the_names_of_transformers_fits_an_encoder(tmp_path: Path) -> None:
    """transformers calls the projection ``attention.q_proj``, fairseq ``self_attn.q_proj``."""
    base = {"encoder.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4)}
    factors = {"lora_A": torch.ones(1, 4), "lora_B": torch.ones(4, 1)}
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}))
    module = "base_model.model.hubert.encoder.layers.0.attention.q_proj"
    save_file({f"{module}.{key}.weight": t for key, t in factors.items()}, tmp_path / WEIGHTS)
    donor = apply_adapter(read_adapter(str(tmp_path), base), base)
    assert donor[next(iter(base))].tolist() == [[2.0] * 4] * 4
