"""Lengths of utterances like those of real corpora, and the cost model that follows from them.

The numbers of utterances and hours are the published ones. Spreads and limits describe the usual
shape: most utterances of train-clean-100 last 12 to 17 s with a tail to the short side, those of
the other sets have a tail to the long side. A list of any number has the stated mean exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from speechft_ray.core.units import SAMPLE_RATE_HZ

DRAWS = 100_000
"""Values of which a list takes evenly spaced quantiles."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """One split: utterances, mean and standard deviation in seconds, and limits.

    The distance to the shortest length is gamma distributed; with ``long_peak`` the distance to the
    longest one.
    """

    count: int
    mean: float
    spread: float
    shortest: float
    longest: float
    long_peak: bool = False

    @property
    def hours(self) -> float:
        """Audio of the whole split."""
        return self.count * self.mean / 3600


CORPORA: Mapping[str, Mapping[str, Lengths]] = {
    # Panayotov et al. 2015 and OpenSLR 12: 100.6, 5.4 and 5.4 h.
    "librispeech": {
        "train": Lengths(
            count=28_539, mean=12.69, spread=3.6, shortest=1.4, longest=17.5, long_peak=True
        ),
        "dev": Lengths(count=2_703, mean=7.19, spread=4.7, shortest=1.4, longest=32.6),
        "test": Lengths(count=2_620, mean=7.42, spread=5.2, shortest=1.3, longest=35.0),
    },
    # 88.5 h in 104,672, 2,800 and 2,800 utterances of synthetic voices.
    "snips": {
        "train": Lengths(count=104_672, mean=2.89, spread=0.9, shortest=0.8, longest=9.0),
        "dev": Lengths(count=2_800, mean=2.85, spread=0.9, shortest=0.8, longest=8.0),
        "test": Lengths(count=2_800, mean=2.85, spread=0.9, shortest=0.8, longest=8.0),
    },
    # Nagrani et al. 2017: 351 h, none shorter than 4 s.
    "voxceleb1": {
        "train": Lengths(count=138_361, mean=8.23, spread=4.8, shortest=4.0, longest=145.0),
        "dev": Lengths(count=6_904, mean=8.23, spread=4.8, shortest=4.0, longest=100.0),
        "test": Lengths(count=8_251, mean=8.23, spread=4.8, shortest=4.0, longest=100.0),
    },
    # Busso et al. 2008, four emotions: 7.0 h in 5,531 utterances; one of five sessions is test,
    # a fifth of the others dev (s3prl ``emotion/IEMOCAP_preprocess.py``).
    "iemocap": {
        "train": Lengths(count=3_540, mean=4.55, spread=3.2, shortest=0.6, longest=34.0),
        "dev": Lengths(count=885, mean=4.55, spread=3.2, shortest=0.6, longest=34.0),
        "test": Lengths(count=1_106, mean=4.55, spread=3.2, shortest=0.6, longest=34.0),
    },
}


def simulate_samples(lengths: Lengths, count: int, seed: int = 0) -> list[int]:
    """Returns ``count`` lengths in samples at 16 kHz, in random order."""
    rng = np.random.default_rng(seed)
    distance = lengths.longest - lengths.mean if lengths.long_peak else lengths.mean
    distance -= 0 if lengths.long_peak else lengths.shortest
    scale = lengths.spread**2 / distance
    draws = np.sort(rng.gamma(distance / scale, scale, DRAWS))
    away = draws[((np.arange(count) + 0.5) / count * DRAWS).astype(int)]
    seconds = lengths.longest - away if lengths.long_peak else lengths.shortest + away
    # Clipping and few quantiles move the mean: put it back.
    seconds = np.clip(seconds, lengths.shortest, lengths.longest)
    seconds = np.maximum(seconds * lengths.mean / seconds.mean(), lengths.shortest / 2)
    samples: list[int] = (rng.permutation(seconds) * SAMPLE_RATE_HZ).astype(int).tolist()
    return samples
