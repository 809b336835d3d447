"""The contract of every registered checkpoint format, for every family that it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._parameters import compute_shapes
from speechft_ray.speech.checkpoints.base import FORMATS, list_formats
from speechft_ray.speech.checkpoints.convert import convert
from speechft_ray.speech.checkpoints.load import load_checkpoint, weights_fingerprint
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.speech.toy_models import add_noise, toy_encoder

PROVENANCE = {"by": "a test", "parents": ["base", "donor"], "seed": 3}
PAIRS = [(family, name) for family in FAMILIES.names() for name in list_formats(family)]
WITH_WEIGHTS = [name for name, family in FAMILIES.items() if family.init_weights is not None]
SIZES = [False, True]


def make_path(folder: Path, name: str) -> Path:
    suffix = ".safetensors" if name == "safetensors" else ".pt"
    return folder / ("encoder" if FORMATS.get(name).is_folder else f"encoder{suffix}")


def are_equal(one: EncoderWeights, weights: EncoderWeights) -> bool:
    """Compares bits: as numbers, NaN is unequal to itself and -0.0 equal to 0.0."""
    return (
        (one.family, dict(one.config)) == (weights.family, dict(weights.config))
        and set(one.state) == set(weights.state)
        and all(
            torch.equal(one.state[name].view(torch.int32), tensor.view(torch.int32))
            for name, tensor in weights.state.items()
        )
    )


def test_every_family_has_a_format_and_every_format_a_family() -> None:
    assert all(list_formats(family) for family in FAMILIES.names())
    assert all(form.families for _, form in FORMATS.items())
    assert {name for _, form in FORMATS.items() for name in form.families} == set(FAMILIES.names())


@pytest.mark.parametrize("large", SIZES)
@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_what_is_written_comes_back(family: str, name: str, large: bool, tmp_path: Path) -> None:
    weights = add_noise(toy_encoder(family, large=large))
    path = make_path(tmp_path, name)
    FORMATS.get(name).write(path, weights, PROVENANCE)
    checkpoint = load_checkpoint(path)
    assert checkpoint.format == name
    assert checkpoint.provenance == PROVENANCE
    assert are_equal(checkpoint.weights, weights)
    assert weights_fingerprint(checkpoint.weights) == weights_fingerprint(weights)
    assert {tensor.dtype for tensor in checkpoint.weights.state.values()} <= {torch.float32}
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing is left beside it"
    assert path.is_dir() == FORMATS.get(name).is_folder


@pytest.mark.parametrize(
    ("family", "first", "second"), [(f, a, b) for f, a in PAIRS for b in list_formats(f) if a != b]
)
def test_every_format_converts_to_every_other(
    family: str, first: str, second: str, tmp_path: Path
) -> None:
    weights = add_noise(toy_encoder(family, large=family == "wavlm"))
    FORMATS.get(first).write(tmp_path / "first", weights, PROVENANCE)
    convert(tmp_path / "first", second, tmp_path / "second")
    checkpoint = load_checkpoint(tmp_path / "second")
    assert are_equal(checkpoint.weights, weights)
    assert {key: checkpoint.provenance[key] for key in PROVENANCE} == PROVENANCE
    assert checkpoint.provenance["converted"] == [
        {"from": first, "file": "first", "notes": list(load_checkpoint(tmp_path / "first").notes)}
    ]
    json.dumps(dict(checkpoint.provenance), allow_nan=False)


@pytest.mark.parametrize("name", FORMATS.names())
def test_existing_files_are_not_overwritten(name: str, tmp_path: Path) -> None:
    weights = toy_encoder(FORMATS.get(name).families[-1] if name != "safetensors" else "hubert")
    path = make_path(tmp_path, name)
    path.write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        FORMATS.get(name).write(path, weights, {})
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, name in PAIRS if family in WITH_WEIGHTS]
)
@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen", "not finite"])
def test_broken_encoders_are_not_written(
    family: str, name: str, fault: str, tmp_path: Path
) -> None:
    weights = toy_encoder(family)
    state = dict(weights.state)
    victim = "encoder.layers.1.fc1.weight"
    if fault == "missing":
        del state[victim]
    elif fault == "unexpected":
        state["stray.weight"] = torch.zeros(2)
    elif fault == "misshapen":
        state[victim] = state[victim].T.contiguous()
    else:
        state[victim] = state[victim].clone().fill_(float("nan"))
    with pytest.raises(
        UserError, match=r"stray\.weight" if fault == "unexpected" else r"layers\.1\.fc1\.weight"
    ):
        broken = EncoderWeights(family=family, config=weights.config, state=state)
        FORMATS.get(name).write(make_path(tmp_path, name), broken, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_full_disk_leaves_nothing(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions that write fail; partial files are removed."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", fail)
    for module in ("hf", "safetensors_dir"):
        monkeypatch.setattr(f"speechft_ray.speech.checkpoints.{module}.save_file", fail)
    with pytest.raises(UserError, match="No space left"):
        FORMATS.get(name).write(make_path(tmp_path, name), toy_encoder(family), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(2, 32, False), (3, 64, True)])
@pytest.mark.parametrize("family", WITH_WEIGHTS)
def test_the_sizes_of_a_configuration_are_those_of_the_model(
    family: str, size: tuple[int, int, bool]
) -> None:
    """``_parameters`` computes the shapes without building a model; they are those of the model."""
    part = FAMILIES.get(family)
    assert part.example_config is not None
    assert part.init_weights is not None
    config = part.example_config(*size)
    built = part.init_weights(config, 0).state
    assert compute_shapes(family, config) == {
        name: tuple(tensor.shape) for name, tensor in built.items()
    }


def test_a_full_size_hubert_goes_through_every_format(tmp_path: Path) -> None:
    """HuBERT Base, 94.7 million parameters: zip offsets, alignment and memory maps at full size."""
    family = FAMILIES.get("hubert")
    assert family.example_config is not None
    config = family.example_config(12, 768, False)
    draw = torch.Generator().manual_seed(0)
    sizes = compute_shapes("hubert", config)
    assert sizes is not None
    state = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    weights = EncoderWeights(family="hubert", config=config, state=state)
    assert sum(tensor.numel() for tensor in state.values()) > 94_000_000
    for name in list_formats("hubert"):
        path = make_path(tmp_path, name)
        FORMATS.get(name).write(path, weights, {})
        assert are_equal(load_checkpoint(path).weights, weights)
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
        else:
            path.unlink()
