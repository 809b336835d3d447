"""Compares merges by mergekit's YAML files with mergekit's own tensors, and what recipes refuse.

tests/peers/make_recipe_references.py writes the data; the tests do not need mergekit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from speechft_ray.commands.recipes import merge_from_recipe, read_recipe, write_recipe
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.merging._mergekit_out import format_recipe
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.recipe_merge import merge_by_recipe, resolve
from speechft_ray.merging.recipes import parse_recipe
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from tests.merging.recipe_cases import BASE, DONORS, EXPORTS, FOLDER, KINDS, RECIPES
from tests.merging.test_peers import prefix_with
from tests.speech.toy_models import toy_hubert

TOLERANCE = 2e-6
"""Rounding of float32 values of size 1 to 4; both sides add and divide in another order."""
StateDict = dict[str, torch.Tensor]


def load(name: str) -> StateDict:
    state: StateDict = load_file(FOLDER / name)
    return state


def assert_near(actual: StateDict, expected: StateDict) -> None:
    assert list(actual) == list(expected) or set(actual) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(
            actual[key], tensor, rtol=0, atol=TOLERANCE, msg=prefix_with(key)
        )


def test_the_data_is_what_the_manifest_says() -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["versions"]["mergekit"] == "0.1.5"
    files = {**manifest["recipes"], **manifest["tensors"]}
    assert files == {
        name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in files
    }
    assert {*RECIPES, *EXPORTS} == {Path(name).stem for name in manifest["recipes"]}


def test_there_are_recipes_of_ten_kinds_and_more() -> None:
    assert list(KINDS) == list(RECIPES) and len(set(KINDS.values())) == len(KINDS) >= 10
    methods = {yaml.safe_load(text)["merge_method"] for text in RECIPES.values()}
    assert len(methods) >= 10


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_mergekits_tensors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)  # models of a recipe are paths
    out = tmp_path / "merged.safetensors"
    merge_from_recipe(Path(f"{name}.yaml"), 1.0, out)
    assert_near(load_file(out), load(f"merged_{name}.safetensors"))
    assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") == RECIPES[name]


@pytest.mark.parametrize("name", EXPORTS)
def test_a_merge_of_ours_is_mergekits_by_its_recipe(name: str) -> None:
    method, params, count, alpha = EXPORTS[name]
    config = format_recipe(method, params, BASE, DONORS[:count], alpha)
    assert yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")) == config
    expected = load(f"merged_{name}.safetensors")
    base, donors = load(BASE), [load(donor) for donor in DONORS[:count]]
    assert_near(merge(method, params, base, donors, alpha), expected)
    # And back: the recipe read here is the same merge.
    states = {BASE: base, **dict(zip(DONORS, donors, strict=False))}
    assert_near(merge_by_recipe(parse_recipe(config), states), expected)


def test_alpha_goes_back_to_the_base() -> None:
    config = format_recipe("task_arithmetic", {}, BASE, DONORS)
    states = {name: load(name) for name in (BASE, *DONORS)}
    half = merge_by_recipe(parse_recipe(config), states, 0.5)
    expected = merge("task_arithmetic", {}, states[BASE], [states[name] for name in DONORS], 0.5)
    assert_near(half, expected)


def test_a_gradient_is_interpolated_over_the_layers() -> None:
    raw = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": [{"filter": "fc1", "value": [0, "1e-1"]}, 7]}}
        ],
    }
    raw["models"][0]["parameters"]["weight"][1] = {"value": 7}  # type: ignore[index]
    names = [f"encoder.layers.{layer}.fc1.weight" for layer in range(5)]
    settings = resolve(parse_recipe(raw), [*names, "encoder.layer_norm.weight"])
    weights = [settings[name].params.get("weights", [0.0])[0] for name in names]
    assert weights == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    assert settings["encoder.layer_norm.weight"].params["weights"] == [7.0]


def test_a_slice_of_one_layer_takes_the_end_of_a_gradient() -> None:
    """mergekit's ``MergePlanner.plan_slice``: the depth of a lone layer is 1."""
    sources = [
        {"model": "a", "layer_range": layers, "parameters": {"weight": [2, 4]}}
        for layers in ([0, 1], [1, 5])
    ]
    raw = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [{"sources": [source]} for source in sources],
    }
    names = [f"encoder.layers.{layer}.fc1.weight" for layer in range(5)]
    settings = resolve(parse_recipe(raw), names)
    weights = [settings[name].params["weights"][0] for name in names]
    assert weights == pytest.approx([4, 2, 2 + 2 / 3, 2 + 4 / 3, 4])


def test_a_gradient_from_false_to_true_is_true_behind_its_start() -> None:
    """mergekit reads it as numbers from 0 to 1, of which any but 0 is true."""
    models = [
        {"model": model, "parameters": {"weight": weight, "density": 1}}
        for model, weight in (("a", 1), ("b", 3))
    ]
    recipe = parse_recipe(make(models=models, parameters={"normalize": [False, True]}))
    names = [f"encoder.layers.{layer}.fc1.weight" for layer in range(5)]
    values = [torch.zeros(1), torch.ones(1), 5 * torch.ones(1)]
    base, one, two = ({name: value.clone() for name in names} for value in values)
    merged = merge_by_recipe(recipe, {"base": base, "a": one, "b": two})
    # The sum 1 x 1 + 3 x 5, or the mean by weight
    assert [float(merged[name]) for name in names] == [16, 4, 4, 4, 4]


def make(**changes: Any) -> dict[str, Any]:
    """Returns a valid recipe with changes."""
    return {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": 1, "density": 0.5}}],
        **changes,
    }


MOVED = [
    {"sources": [{"model": "a", "layer_range": [0, 2]}]},
    {"sources": [{"model": "b", "layer_range": [1, 3]}]},
]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (["ties"], "a mapping with `merge_method`"),
        (make(tokenizer_source="union"), "`tokenizer_source`: an encoder has no tokenizer"),
        (make(chat_template="auto"), "an encoder has no chat template"),
        (make(merge_method="tees"), "unknown merge method of mergekit `tees`. Did you mean `ties`"),
        (make(parameters={"normalise": True}), "`normalise`. Did you mean `normalize`"),
        (
            make(models=[{"model": "a", "parameters": {"wieght": 1}}]),
            "a: unknown parameter of `ties` `wieght`. Did you mean `weight`",
        ),
        (make(merge_mehtod="x"), "unknown field `merge_mehtod`. Did you mean `merge_method`"),
        (make(base_model=None), "`ties` needs a `base_model`"),
        (make(models=[]), "either `models` or `slices`"),
        (make(models=None, slices=MOVED), "slice 2 moves layers"),
        (make(merge_method="slerp", models=[{"model": "a"}, {"model": "b"}]), "merges 2 models"),
        (make(dtype="int8"), "unknown dtype `int8`"),
        (make(models=[{"model": "a"}, {"model": "a"}]), "a is listed twice"),
        (
            make(models=[{"model": "a", "parameters": {"normalize": True}}]),
            "`normalize` is a parameter of the whole merge",
        ),
    ],
)
def test_what_a_recipe_may_not_hold_is_named(raw: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(raw)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"model": "a", "parameters": {"density": 1}}]}, "`weight` is missing"),
        (
            {"parameters": {"normalize": [{"filter": "mlp", "value": True}]}},
            "the filter `mlp` is part of no parameter's name",
        ),
        ({"models": [{"model": "a", "parameters": {"weight": "much"}}]}, "`much` is no number"),
        (
            {"models": [{"model": "a", "parameters": {"weight": 1, "density": 0}}]},
            "drops the whole",
        ),
    ],
)
def test_settings_that_do_not_resolve_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(parse_recipe(make(**changes)), ["encoder.layers.0.fc1.weight"])
    assert message in str(error.value)


def test_slices_must_reach_the_last_layer() -> None:
    slices = [{"sources": [{"model": "a", "layer_range": [0, 2]}]}]
    recipe = parse_recipe({"merge_method": "passthrough", "slices": slices})
    names = [f"encoder.layers.{layer}.fc1.weight" for layer in range(3)]
    with pytest.raises(UserError, match="the slices end at layer 2, but the base has 3 layers"):
        resolve(recipe, names)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("iso_c", {}, "mergekit has no `iso_c`"),
        ("ties", {"density": 0.2}, "can only do `zero_sign: positive`"),
        ("dare_linear", {}, "can only do `rescale: l1`"),
        ("karcher", {}, "can only do `on: weights`"),
        ("model_stock", {"scale": 0.5}, "alpha times `scale` must be 1, but is 0.5"),
        ("linear", {"pos_conv": "kernel"}, "can only do `pos_conv: factors`"),
    ],
)
def test_what_mergekit_cannot_do_is_named(
    method: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        format_recipe(method, params, BASE, DONORS)
    assert message in str(error.value)


def test_nothing_is_written_for_a_bad_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out.safetensors"
    for text in (
        "merge_method: [",
        yaml.safe_dump(make(chat_template="auto")),
        yaml.safe_dump(make(base_model="absent.safetensors")),
        yaml.safe_dump(
            make(
                base_model=BASE,
                models=[{"model": DONORS[0], "parameters": {"weight": -1, "density": 0.5}}],
            )
        ),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises((UserError, SpecError)):
            merge_from_recipe(file, 1.0, out)
        assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "more": torch.zeros(2)}, "it has 1 that the base lacks: more"),
        (lambda state: dict(list(state.items())[1:]), "it lacks 1 of"),
        (
            lambda state: {name: tensor[:1] for name, tensor in state.items()},
            "differ in shape or kind",
        ),
    ],
)
def test_a_donor_of_other_names_or_shapes_is_refused_by_its_name(
    change: Callable[[StateDict], StateDict],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(FOLDER)
    other = tmp_path / "other.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load(DONORS[1])).items()}, other)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out.safetensors"
    for method in ("ties", "linear"):
        models = [{"model": name, "parameters": {"weight": 1}} for name in (DONORS[0], str(other))]
        base = {"base_model": BASE} if method == "ties" else {}
        text = yaml.safe_dump({"merge_method": method, "models": models, **base})
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            merge_from_recipe(file, 1.0, out)
        assert str(other) in str(error.value) and message in str(error.value)
        assert not out.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.nn.utils.weight_norm
def test_an_encoder_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    """Names and shapes of the donor agree, its norms come after instead of before the layers."""
    networks = {"base": toy_hubert(), "same": toy_hubert(seed=1), "other": toy_hubert()}
    section = networks["other"].config["model_cfg"]
    config = {**networks["other"].config, "model_cfg": {**section, "layer_norm_first": False}}
    networks["other"] = replace(networks["other"], config=config)
    paths = {name: tmp_path / f"{name}.safetensors" for name in networks}
    for name, weights in networks.items():
        write_encoder(paths[name], weights, {})
    file = tmp_path / "recipe.yaml"

    def merge_with(donor: str) -> Path:
        raw = {
            "merge_method": "task_arithmetic",
            "base_model": str(paths["base"]),
            "models": [{"model": str(paths[donor]), "parameters": {"weight": 0.5}}],
        }
        file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        out = tmp_path / f"merged_{donor}.safetensors"
        merge_from_recipe(file, 1.0, out)
        return out

    with pytest.raises(UserError, match="layer_norm_first"):
        merge_with("other")
    assert not (tmp_path / "merged_other.safetensors").exists()
    assert read_encoder(merge_with("same")).config == networks["base"].config


def test_a_recipe_is_written_once(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    write_recipe("linear", {}, BASE, DONORS, 0.25, file)
    assert read_recipe(file).settings["lambda"] == 0.25
    with pytest.raises(UserError, match="exists"):
        write_recipe("linear", {}, BASE, DONORS, 0.25, file)
