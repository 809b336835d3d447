"""The forms in which frame states are stored: float16, int8, and coefficients in a basis.

A form packs the states of an utterance into rows, one per frame, and restores a batch from rows.
Whatever is read went through ``pack``, wherever it was stored, so that no number depends on the
place. ``benchmarks/feature_forms.py`` measures what each form does to metrics (docs/superb.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.heads.featurizer import Basis
from speechft_ray.superb.storage_plan import check_rank

LARGEST = 127
"""Largest number of a symmetric int8."""

_SCALE_BYTES = torch.float16.itemsize
_LEAST_SCALE = 2.0**-24
"""The smallest float16 above 0: the scale of a frame of zeros."""
_LEAST_DEVIATION = 1e-6
_CHUNK_FRAMES = 2048
"""Frames that are centred in float64 at once: 160 MB of a Base encoder."""


class Form(Protocol):
    """A form of stored states."""

    @property
    def dtype(self) -> torch.dtype:
        """Number type of rows."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def basis(self) -> Basis | None:
        """The basis that ``unpack`` returns coefficients in."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What rows depend on beside the states."""
        ...

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Returns rows ``(frames, width)`` of states ``(layers, frames, dim)``."""
        ...

    def unpack(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns float32 states ``(layers, frames, dim)`` of rows; with a basis, float32
        coefficients ``(frames, rank)``."""
        ...


class ExactForm:
    """States as they come: float16 frames or float32 means."""

    basis: Basis | None = None
    identity: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, layers: int, dim: int, dtype: torch.dtype) -> None:
        self.layers, self.dim, self.dtype, self.width = layers, dim, dtype, layers * dim

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the frames of all layers side by side."""
        return states.transpose(0, 1).flatten(1)

    def unpack(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns float32 states."""
        by_layer = torch.unflatten(rows, 1, (self.layers, -1)).transpose(0, 1)
        return by_layer.to(torch.float32, memory_format=torch.contiguous_format)


class Int8Form:
    """Eight bits per value, with one scale per frame and layer: the largest value is 127."""

    dtype = torch.int8
    basis: Basis | None = None
    identity: Mapping[str, Any] = MappingProxyType({"form": "int8"})

    def __init__(self, layers: int, dim: int) -> None:
        self.layers, self.values = layers, layers * dim
        self.width = self.values + layers * _SCALE_BYTES

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the values of all layers, then their scales in float16."""
        return _quantise(states.transpose(0, 1))  # (frames, layers, dim)

    def unpack(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns float32 states."""
        values, scales = _split_scales(rows, self.layers)
        states = torch.empty(self.layers, len(rows), self.values // self.layers, device=rows.device)
        return torch.mul(
            torch.unflatten(values, 1, (self.layers, -1)).transpose(0, 1),
            scales.T.unsqueeze(2),
            out=states,
        )


class CompactForm:
    """Coefficients in an orthogonal basis of the states of all layers, in eight bits.

    They are divided by their standard deviations, so that eight bits serve small directions as well
    as large ones; the largest of a frame is 127.
    """

    dtype = torch.int8

    def __init__(self, basis: Basis) -> None:
        self.basis: Basis | None = basis
        rank, layers, dim = basis.vectors.shape
        self.width = rank + _SCALE_BYTES
        self._flat = basis.vectors.view(rank, layers * dim)
        # The vectors are orthogonal, each as long as a deviation: divide by the squared length.
        self._inverse = (self._flat / self._flat.square().sum(1, keepdim=True)).T.contiguous()
        self.identity: Mapping[str, Any] = {"form": "compact", "basis": fingerprint_basis(basis)}

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the coefficients, then their scale in float16."""
        assert self.basis is not None
        centred = states.float().transpose(0, 1).flatten(1) - self.basis.offset.flatten()
        return _quantise((centred @ self._inverse).unsqueeze(1))

    def unpack(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns float32 coefficients ``(frames, rank)``."""
        coefficients, scales = _split_scales(rows, 1)
        return coefficients * scales


def fit_basis(states: Sequence[torch.Tensor], rank: float) -> Basis:
    """Returns the principal directions of frames, as one vector over all layers each.

    ``states``: ``(layers, frames, dim)`` of each utterance. ``rank``: a number of directions, of
    which there are at most half as many as frames (the variance of the last ones of a sample comes
    out too small, and what another frame has there would fill its eight bits), or the fraction of
    the variance that they hold. Each
    direction has the length of its standard deviation, and its largest component is positive. The
    covariance is accumulated and decomposed in float64: 3 GB and minutes of a CPU core for a
    12 x 768 encoder. Raises ``UserError`` for more directions than values in a frame.
    """
    layers, _, dim = states[0].shape
    check_rank(rank, layers, dim, "the basis of `compact`")
    frames = torch.cat([item.transpose(0, 1).flatten(1) for item in states])  # (frames, values)
    chunks = torch.split(frames, _CHUNK_FRAMES)
    mean = torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0) / len(frames)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=frames.device)
    for chunk in chunks:
        centred = chunk.double() - mean
        covariance.addmm_(centred.T, centred, alpha=1 / len(frames))
    variances, directions = torch.linalg.eigh(covariance)
    del covariance  # as large as the directions
    variances = variances.flip(0).clamp_min(0.0)
    count = max(1, min(select_rank(variances, rank), len(frames) // 2))
    vectors = directions[:, -count:].flip(1).T
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    lengths = variances[:count].sqrt().clamp_min(_LEAST_DEVIATION).unsqueeze(1)
    return Basis(
        vectors=(vectors * signs * lengths).float().view(count, layers, dim).contiguous(),
        offset=mean.float().view(layers, dim),
    )


def select_rank(variances: torch.Tensor, rank: float) -> int:
    """Returns the number of directions: ``rank`` itself, or the least that hold this fraction of
    ``variances``, which descend."""
    if rank >= 1:
        return int(rank)
    shares = variances.cumsum(0) / variances.sum()
    return min(len(variances), int((shares < rank).sum()) + 1)


def fingerprint_basis(basis: Basis) -> str:
    """Returns the identity of a basis, by its bytes: of the same directions with other signs, rows
    would be read wrongly."""
    return fingerprint(
        [
            hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
            for tensor in basis
        ]
    )


def _quantise(values: torch.Tensor) -> torch.Tensor:
    """Returns int8 rows of ``(rows, groups, values)``: all values, then a float16 scale per
    group."""
    values = values.float()
    scales = (values.abs().amax(2) / LARGEST).clamp_min(_LEAST_SCALE).half()  # (rows, groups)
    quantised = (values / scales.float().unsqueeze(2)).round_().clamp_(-LARGEST, LARGEST)
    return torch.cat([quantised.flatten(1).to(torch.int8), scales.view(torch.int8)], dim=1)


def _split_scales(rows: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the int8 values of rows, and their float32 scales ``(rows, groups)``."""
    end = rows.shape[1] - groups * _SCALE_BYTES
    return rows[:, :end], rows[:, end:].contiguous().view(torch.float16).float()
