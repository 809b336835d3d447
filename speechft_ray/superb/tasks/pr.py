"""Task ``pr``: the phones of an utterance, CTC over two linear maps per frame (s3prl
``ctc/libriphone.yaml``).

Adam at 1e-2 as shipped; Speech-FT's evaluation config says 1e-4 and others published 5e-4. Phones
come from the column, with or without stress, as the corpus writes them; SUPERB keeps stress and
looks words up in two lexicons. No SpecAugment, no dropout.

An update accumulates two windows of 16 neighbours by length, sampled independently (16 x 2); a
``batch_size`` in the spec makes it one window of that size.
"""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.superb.measures.error_rate import token_error_rate, token_errors
from speechft_ray.superb.tasks._ctc import (
    BATCH_SIZE,
    CLIP_NORM,
    EOS,
    LinearCtcOptions,
    make_ctc_builder,
)
from speechft_ray.superb.tasks.base import TASKS, Published, Task, get_label


def split_phones(utterance: Utterance, columns: Sequence[str]) -> list[str]:
    """Returns the tokens of the column, which blanks separate, and the end."""
    return [*get_label(utterance, columns[0]).split(), EOS]


TASKS.register(
    "pr",
    Task(
        name="pr",
        columns=("phones",),
        metrics=("pr.per",),
        pooled=False,
        sampling="windows",
        learning_rate=1e-2,
        batch_size=BATCH_SIZE,
        clip_norm=CLIP_NORM,
        options=LinearCtcOptions,
        build=make_ctc_builder(split_phones, {"pr.per": (token_error_rate, token_errors)}),
        accumulate=2,
        published=Published("librispeech", 100_000, 1_000),
    ),
)
