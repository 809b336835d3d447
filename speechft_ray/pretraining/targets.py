"""Targets of masked prediction: MFCC, k-means and cluster labels of every 20 ms frame."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from speechft_ray.speech.encoders.fbank import log_mel

CEPSTRA = 13
"""MFCC of 13 coefficients with first and second differences, 39 in all (HuBERT paper, section
IV-B)."""

_BANDS = 23  # Kaldi's default for MFCC (compute-mfcc-feats --num-mel-bins)
_LIFTER = 22.0  # Kaldi's --cepstral-lifter
_REACH_FRAMES = 2
"""Differences by regression over two 10 ms frames on each side, as Kaldi's add-deltas."""
_BATCH_FRAMES = 10_000
"""Batch of k-means, as in HuBERT's clustering script (fairseq examples/hubert/simple_kmeans)."""


def mfcc(wave: torch.Tensor) -> torch.Tensor:
    """Returns 39-dimensional MFCC of a waveform ``(samples,)`` as ``(frames at 20 ms, 39)``.

    Frame i covers samples 320 i to 320 i + 400. Kaldi's definition (compute-mfcc-feats with a
    Hamming window, no dither), then each of the 13 normalised to zero mean and unit variance over
    the utterance: the group norm of the front end removes loudness and the long-term spectrum, so
    labels that depend on them could not be predicted.
    """
    cepstra = log_mel(wave, _BANDS) @ _cosines()
    cepstra = (cepstra - cepstra.mean(dim=0)) / cepstra.std(dim=0, correction=0).clamp_min(1e-5)
    first = differences(cepstra)
    return torch.cat([cepstra, first, differences(first)], dim=1)[::2]


def differences(features: torch.Tensor) -> torch.Tensor:
    """Returns the slope over time of ``(frames, dim)``, by linear regression over two frames on
    each side, edges repeated."""
    padded = torch.cat(
        [features[:1]] * _REACH_FRAMES + [features] + [features[-1:]] * _REACH_FRAMES
    )
    frames = len(features)
    total = torch.zeros_like(features)
    for reach in range(1, _REACH_FRAMES + 1):
        after, before = _REACH_FRAMES + reach, _REACH_FRAMES - reach
        total += reach * (padded[after : after + frames] - padded[before : before + frames])
    return total / (2 * sum(reach * reach for reach in range(1, _REACH_FRAMES + 1)))


def fit_centroids(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Fits k-means to features ``(frames, dim)`` and returns centroids ``(clusters, dim)``."""
    means = MiniBatchKMeans(
        clusters,
        random_state=seed,
        batch_size=_BATCH_FRAMES,
        n_init=3,
        max_iter=30,
        reassignment_ratio=0.0,
        compute_labels=False,
    )
    return np.asarray(means.fit(features).cluster_centers_, dtype=np.float32)


def nearest(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest centroid of each frame, ``(frames,)`` int16."""
    scores = features @ centroids.T - 0.5 * np.square(centroids).sum(axis=1)
    return np.asarray(scores.argmax(axis=1), dtype=np.int16)


@functools.cache
def _cosines() -> torch.Tensor:
    """Returns the orthonormal cosine transform ``(bands, cepstra)`` with Kaldi's lifter, which
    gives the cepstra similar spreads."""
    band = torch.arange(_BANDS, dtype=torch.float64)[:, None] + 0.5
    order = torch.arange(CEPSTRA, dtype=torch.float64)
    basis = torch.cos(math.pi / _BANDS * band * order) * math.sqrt(2 / _BANDS)
    basis[:, 0] /= math.sqrt(2)
    return (basis * (1 + _LIFTER / 2 * torch.sin(math.pi / _LIFTER * order))).to(torch.float32)
