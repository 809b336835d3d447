"""Forms of stored states: what they keep, against numpy; and probes that train on them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechft_ray.core.errors import UserError
from speechft_ray.cost.memory import BASIS_MATRICES
from speechft_ray.speech.heads.featurizer import Basis, Featurizer
from speechft_ray.superb.extractor import Batch
from speechft_ray.superb.feature_forms import CompactForm, ExactForm, Int8Form, fit_basis
from speechft_ray.superb.probe import Probe

LAYERS, DIM, FRAMES = 3, 8, 50


def make_states(seed: int, directions: int = LAYERS * DIM) -> torch.Tensor:
    """Float16 states ``(layers, frames, dim)`` within so many directions around an offset."""
    generator = torch.Generator().manual_seed(seed)
    space = torch.randn(directions, LAYERS * DIM, generator=torch.Generator().manual_seed(99))
    sizes = 2.0 ** -torch.arange(float(directions))
    frames = torch.randn(FRAMES, directions, generator=generator) * sizes @ space + 0.5
    return frames.view(FRAMES, LAYERS, DIM).transpose(0, 1).half()


def as_matrix(states: torch.Tensor) -> np.ndarray:
    matrix: np.ndarray = states.double().transpose(0, 1).flatten(1).numpy()
    return matrix


def test_exact_rows_are_the_states() -> None:
    states = make_states(0)
    form = ExactForm(LAYERS, DIM, torch.float16)
    rows = form.pack(states)
    assert rows.shape == (FRAMES, form.width)
    assert torch.equal(form.unpack(rows), states.float())


def test_int8_is_off_by_half_a_step_of_each_frame_and_layer() -> None:
    states = make_states(1)
    states[1, 7] = 0.0
    form = Int8Form(LAYERS, DIM)
    rows = form.pack(states)
    assert rows.dtype is torch.int8
    assert rows.shape == (FRAMES, form.width) == (FRAMES, LAYERS * (DIM + 2))
    steps = states.float().abs().amax(2, keepdim=True) / 127
    errors = (form.unpack(rows) - states.float()).abs()
    assert bool((errors <= 0.5001 * steps * (1 + 2**-10) + 127 * steps * 2**-11).all())
    assert torch.equal(form.unpack(rows)[1, 7], torch.zeros(DIM))


def test_the_basis_is_that_of_principal_component_analysis() -> None:
    items = [make_states(seed) for seed in range(4)]
    frames = np.concatenate([as_matrix(item) for item in items])
    _, values, directions = np.linalg.svd(frames - frames.mean(axis=0), full_matrices=False)
    variances = values**2 / len(frames)
    basis = fit_basis(items, 5)
    np.testing.assert_allclose(basis.offset.flatten(), frames.mean(axis=0), atol=1e-6)
    vectors = basis.vectors.flatten(1).numpy()
    np.testing.assert_allclose((vectors**2).sum(axis=1), variances[:5], rtol=1e-4)
    overlaps = np.abs((vectors * directions[:5]).sum(axis=1)) / np.sqrt(variances[:5])
    np.testing.assert_allclose(overlaps, 1, atol=1e-4)
    shares = np.cumsum(variances) / variances.sum()
    for fraction in (0.5, 0.9, 0.99):
        rank = len(fit_basis(items, fraction).vectors)
        assert shares[rank - 1] >= fraction > (shares[rank - 2] if rank > 1 else 0)


def test_compact_restores_states_within_their_directions() -> None:
    items = [make_states(seed, directions=6) for seed in range(4)]
    form = CompactForm(fit_basis(items, 6))
    assert form.basis is not None
    rows = form.pack(items[0])
    assert rows.shape == (FRAMES, form.width) == (FRAMES, 6 + 2)
    restored = form.basis.restore(form.unpack(rows))
    # Half a step of each direction: 1/127 of the largest coefficient, in deviations, of the frame.
    centred = as_matrix(items[0]) - as_matrix(form.basis.offset[:, None])
    vectors = form.basis.vectors.flatten(1).double().numpy()
    largest = np.abs(centred @ (vectors / (vectors**2).sum(1, keepdims=True)).T).max(1)
    bounds = largest[:, None] / 127 * np.abs(vectors).sum(axis=0)
    assert (np.abs(as_matrix(restored) - as_matrix(items[0])) <= 0.51 * bounds + 4e-3).all()


def test_a_basis_with_other_signs_is_another_form() -> None:
    basis = fit_basis([make_states(0)], 3)
    other = Basis(-basis.vectors, basis.offset)
    assert CompactForm(basis).identity != CompactForm(other).identity
    assert bool((basis.vectors.flatten(1).amax(1) > -basis.vectors.flatten(1).amin(1)).all())


@pytest.mark.parametrize("count", [8, 12, 20])
def test_directions_of_a_small_sample_do_not_fill_the_eight_bits(count: int) -> None:
    """More directions are asked for than frames have variance in: other frames are restored almost
    as well as numpy projects them on the directions that are kept."""
    sample, others = make_states(0)[:, :count], make_states(1)
    form = CompactForm(fit_basis([sample], LAYERS * DIM))
    assert form.basis is not None and len(form.basis.vectors) == count // 2
    vectors = form.basis.vectors.flatten(1).double().numpy()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean, other = as_matrix(sample).mean(axis=0), as_matrix(others)
    projected = (other - mean) @ units.T @ units + mean
    restored = form.unpack(form.pack(others)).numpy() @ vectors + mean
    lost, least = (np.linalg.norm(one - other) for one in (restored, projected))
    assert lost - least < 0.01 * np.linalg.norm(other - mean)


def test_more_directions_than_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"`rank: 25` is above the 24 values of a frame"):
        fit_basis([make_states(0)], 25)
    assert len(fit_basis([make_states(0)[:, :4]], 24).vectors) == 2  # of half the frames


def test_a_probe_gets_the_same_in_the_basis_and_on_restored_states() -> None:
    """Features and gradients of the layer weights."""
    basis = fit_basis([make_states(0)], 10)
    form = CompactForm(basis)
    coefficients = form.unpack(form.pack(make_states(0)))
    frames = torch.tensor([20, 30])
    inside = Batch(coefficients, frames, basis)
    restored = Batch(inside.restore(), frames)
    gradients = []
    outputs = []
    for batch in (inside, restored):
        probe = Probe(LAYERS, torch.nn.Identity())
        with torch.no_grad():
            probe.featurizer.weights.copy_(torch.tensor([0.3, -1.0, 0.5]))
        outputs.append(probe.features(batch))
        outputs[-1].square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(probe.featurizer.weights.grad)
    assert outputs[0].shape == (2, 30, DIM)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-4)


def test_the_featurizer_sums_in_a_basis() -> None:
    basis = Basis(torch.randn(4, LAYERS, DIM), torch.randn(LAYERS, DIM))
    featurizer = Featurizer(LAYERS, normalize=False)
    coefficients = torch.randn(5, 4)
    torch.testing.assert_close(
        featurizer.sum_in_basis(coefficients, basis), basis.restore(coefficients).mean(0)
    )


def test_fitting_a_basis_takes_no_more_memory_than_is_estimated() -> None:
    """Of what torch allocates; the workspace of the decomposition comes on top (two matrices)."""
    layers, dim = 13, 24
    states = [torch.randn(layers, 40, dim).half() for _ in range(6)]
    fit_basis(states, 0.5)  # allocates what torch keeps
    with PeakMemory() as memory:
        fit_basis(states, 0.5)
    assert memory.peak <= (BASIS_MATRICES - 2) * (layers * dim) ** 2 * 8


class PeakMemory(TorchDispatchMode):
    """Most bytes of tensors at once that are made while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def remove() -> None:
            self._alive.discard(key)
            self.now -= size

        weakref.finalize(storage, remove)
