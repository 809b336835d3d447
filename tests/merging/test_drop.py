"""DARE and DELLA: the distribution of their masks, and exact results given the masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import SpecError
from speechft_ray.merging import _drop
from speechft_ray.merging._drop import compute_gains, draw_mask, drop
from speechft_ray.merging.base import validate_params
from speechft_ray.merging.param_reader import BLOCK, ParamGroup, ParamReader, ParamSlice
from tests.merging import references
from tests.merging.references import Model
from tests.merging.task_vectors import UNEQUAL, combine_onto_zeros, draw_vectors


def read_masks(
    method: str, params: dict[str, Any], vectors: list[Model]
) -> list[dict[str, np.ndarray]]:
    """The kept positions of each donor, read from merges in which it alone has a weight."""
    masks = []
    for donor in range(len(vectors)):
        weights = [float(donor == other) for other in range(len(vectors))]
        alone = combine_onto_zeros(
            method, {**params, "rescale": "none", "weights": weights}, vectors
        )
        masks.append({name: value != 0 for name, value in alone.items()})
    return masks


def test_dare_keeps_its_share_and_the_expectation() -> None:
    (vector,) = [{"w": np.random.default_rng(0).standard_normal((400, 500))}]
    actual = combine_onto_zeros("dare_linear", {"density": 0.3}, [vector])["w"]
    mask = actual != 0
    assert abs(mask.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / mask.size)
    np.testing.assert_allclose(actual[mask], vector["w"][mask] / 0.3, rtol=1e-12)
    rows, columns = mask.mean(axis=1), mask.mean(axis=0)  # no streaks along either axis
    assert rows.std() < 1.2 * np.sqrt(0.3 * 0.7 / 500) and columns.std() < 1.2 * np.sqrt(
        0.3 * 0.7 / 400
    )
    assert abs(np.corrcoef(mask.ravel()[1:], mask.ravel()[:-1])[0, 1]) < 5 / np.sqrt(mask.size)


def test_dare_restores_the_norm_or_nothing_on_request() -> None:
    (vector,) = draw_vectors(1)
    plain = combine_onto_zeros("dare_linear", {"density": 0.5, "rescale": "none"}, [vector])
    norm = combine_onto_zeros("dare_linear", {"density": 0.5, "rescale": "l1"}, [vector])
    for name, value in vector.items():
        mask = plain[name] != 0
        np.testing.assert_allclose(plain[name][mask], value[mask], rtol=1e-12)
        if mask.any():
            assert np.abs(norm[name]).sum() == pytest.approx(np.abs(value).sum())
            np.testing.assert_allclose(
                norm[name],
                plain[name] * np.abs(value).sum() / np.abs(value[mask]).sum(),
                rtol=1e-12,
            )


def test_a_mask_depends_on_seed_donor_and_name_alone() -> None:
    first, second, third = draw_vectors(3)
    params = {"density": 0.5, "rescale": "none"}
    (mask,) = read_masks("dare_linear", params, [first])
    name = "encoder.layers.0.fc1.weight"
    (alone,) = read_masks("dare_linear", params, [{name: first[name]}])
    assert np.array_equal(alone[name], mask[name]), "other tensors have an influence"
    assert np.array_equal(
        read_masks("dare_linear", params, [first, second, third])[0][name], mask[name]
    ), "other donors have one"
    assert np.array_equal(read_masks("dare_linear", params, [second])[0][name], mask[name]), (
        "the values have one"
    )
    others = [
        read_masks("dare_linear", params, [third, first])[1][name],
        read_masks("dare_linear", {**params, "seed": 1}, [first])[0][name],
        read_masks("dare_linear", params, [{"other": first[name]}])[0]["other"],
    ]
    assert all(0.2 < np.mean(other == mask[name]) < 0.8 for other in others)


def test_masks_are_the_same_for_ever() -> None:
    """Pinned: the same recipe must always give the bits of a stored merge."""
    mask = draw_mask(0.5, 0, 0, "w", torch.zeros(16))
    assert "".join(str(int(value)) for value in mask) == "1000111000100001"


def test_a_mask_of_an_extreme_probability_keeps_and_drops_a_few() -> None:
    """Probabilities are steps of 1/65536, of which the first and the last are the extremes."""
    like = torch.zeros(1 << 20)
    for probability, share in ((1e-9, 1 / 65536), (1 - 1e-9, 1 - 1 / 65536)):
        kept = float(draw_mask(probability, 0, 0, "w", like).double().mean())
        # 16 positions of 2**20 are expected, with a deviation of 4
        assert 0 < kept < 1 and abs(kept - share) < 16 / (1 << 20)


def test_a_mask_drawn_in_halves_is_the_whole_mask() -> None:
    whole = draw_mask(0.4, 3, 1, "w", torch.zeros(1000))
    parts = [draw_mask(0.4, 3, 1, "w", torch.zeros(500), start) for start in (0, 500)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("normalize", [True, False])
def test_dare_linear_is_the_weighted_sum_of_what_is_kept(normalize: bool) -> None:
    vectors = draw_vectors(3)
    masks = read_masks("dare_linear", {"density": 0.7}, vectors)
    actual = combine_onto_zeros(
        "dare_linear", {"density": 0.7, "weights": UNEQUAL, "normalize": normalize}, vectors
    )
    for name, value in actual.items():
        parts = zip(UNEQUAL, masks, vectors, strict=True)
        expected = sum(weight * mask[name] * model[name] / 0.7 for weight, mask, model in parts)
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)  # the weights sum to 1


def test_dare_ties_is_ties_of_what_is_kept() -> None:
    vectors = draw_vectors(3)
    masks = read_masks("dare_linear", {"density": 0.7}, vectors)
    vectors_after = [
        {name: model[name] * mask[name] / 0.7 for name in model}
        for model, mask in zip(vectors, masks, strict=True)
    ]
    actual = combine_onto_zeros("dare_ties", {"density": 0.7, "trim": 0.4}, vectors)
    for name, value in references.ties(vectors_after, 0.4).items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-9, atol=1e-12)


def test_dare_ties_like_mergekit_neither_trims_nor_divides() -> None:
    vectors = draw_vectors(3)
    masks = read_masks("dare_linear", {"density": 0.7}, vectors)
    actual = combine_onto_zeros(
        "dare_ties", {"density": 0.7, "like": "mergekit", "weights": UNEQUAL}, vectors
    )
    merge = references.make_elected_mean(UNEQUAL, UNEQUAL, False, 1)
    for name, value in actual.items():
        vectors_after = []
        for model, mask in zip(vectors, masks, strict=True):
            after = np.abs(model[name] * mask[name]).sum()
            vectors_after.append(
                model[name] * mask[name] * (np.abs(model[name]).sum() / after if after else 1.0)
            )
        np.testing.assert_allclose(
            value, references.map_positions(vectors_after, merge), rtol=1e-9, atol=1e-12
        )


def test_della_keeps_large_changes_more_often() -> None:
    """Over 300 seeds, each position is kept as often as its rank implies, also in rows of one
    position."""
    source = np.random.default_rng(5)
    shapes = {"m": (3, 5), "c": (2, 1, 4), "g": (1, 1, 6), "v": (4,), "one": (3, 1)}
    vector = {name: source.standard_normal(shape) for name, shape in shapes.items()}
    params = {"density": 0.6, "epsilon": 0.3, "rescale": "none"}
    counts = {name: np.zeros(value.shape) for name, value in vector.items()}
    for seed in range(300):
        for name, value in combine_onto_zeros("della", {**params, "seed": seed}, [vector]).items():
            counts[name] += value != 0
    for name, count in counts.items():
        chances = references.della_probabilities(vector[name], 0.6, 0.3)
        assert np.all(
            np.abs(count / 300 - chances) < 4.5 * np.sqrt(chances * (1 - chances) / 300)
        ), name


@pytest.mark.parametrize("consensus", [True, False])
def test_della_divides_by_each_chance(consensus: bool) -> None:
    vectors = draw_vectors(3)
    params = {"density": 0.6, "epsilon": 0.2, "consensus": consensus}
    masks = read_masks("della", params, vectors)
    actual = combine_onto_zeros("della", {**params, "weights": UNEQUAL}, vectors)
    merge = references.make_elected_mean(UNEQUAL, UNEQUAL, True, 1)
    for name, value in actual.items():
        chances = [references.della_probabilities(model[name], 0.6, 0.2) for model in vectors]
        vectors_after = [
            model[name] * mask[name] / p
            for model, mask, p in zip(vectors, masks, chances, strict=True)
        ]
        expected = references.map_positions(vectors_after, merge)
        if not consensus:
            expected = sum(
                weight * part for weight, part in zip(UNEQUAL, vectors_after, strict=True)
            )
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "params", "sentence"),
    [
        ("dare_linear", {"density": 0}, "density: must be greater than 0"),
        ("dare_ties", {"density": 2}, "density: must be at most 1, but is 2 instead"),
        ("dare_ties", {"weights": [2, -1]}, "`weights` must not be negative"),
        (
            "della",
            {"density": 0.9},
            r"`density` 0.9 plus or minus `epsilon` 0.15 must lie between 0 and 1",
        ),
        ("della", {"rescale": "l2"}, "rescale: must be 'inverse', 'l1' or 'none'"),
        ("breadcrumbs", {"gamma": 1}, "gamma: must be less than 1"),
        ("lines", {"layer_pattern": "layers.("}, "`layers.\\(` is no regular expression"),
        ("lines", {"layer_pattern": "layers"}, "must have a group for the number of the layer"),
        ("layerwise", {"layers": [0.5, 2]}, r"layers\[1\]: must be at most 1, but is 2 instead"),
        ("slerp", {"t": 2}, "t: must be at most 1"),
        ("ties", {"kept": "exact"}, "needs `scope: tensor`"),
        ("fisher", {"weights": [0, 0]}, "not all 0"),
    ],
)
def test_mistakes_in_parameters(method: str, params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        validate_params(method, params)


def test_masks_are_drawn_once_and_again_when_they_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A merge draws once for norm and drop; passes in another order draw again, the same masks."""
    draws: list[tuple[str, int]] = []
    original = _drop._draw_masks

    def draw(part: ParamSlice, density: Any, seed: int) -> list[torch.Tensor]:
        draws.append((part.name, part.start))
        return original(part, density, seed)

    monkeypatch.setattr(_drop, "_draw_masks", draw)
    source = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(BLOCK + 8, generator=source) for name in "ab"}
    slices = {
        name: ParamSlice(name=name, base=torch.zeros_like(vector), vectors=(vector, -vector))
        for name, vector in vectors.items()
    }
    groups = tuple(ParamGroup(name=name, keys=(name,)) for name in "ab")
    reader = ParamReader(groups=groups, donors=2, read=lambda group: slices[group.name])
    gains = compute_gains(reader, 0.3, "l1", seed=1)
    first = [drop(block, 0.3, "l1", 1, gains) for block in reader.blocks()]
    assert sorted(draws) == [("a", 0), ("a", BLOCK), ("b", 0), ("b", BLOCK)]
    blocks = list(reader.blocks())
    for place in (3, 0, 2, 1):
        again = drop(blocks[place], 0.3, "l1", 1, gains)
        assert all(torch.equal(*pair) for pair in zip(again, first[place], strict=True))
    for name, vector in vectors.items():
        kept = torch.cat(
            [pair[0] for block, pair in zip(blocks, first, strict=True) if block.name == name]
        )
        assert float(kept.abs().sum()) == pytest.approx(float(vector.abs().sum()), rel=1e-5)
        assert 0.28 < float((kept != 0).float().mean()) < 0.32
