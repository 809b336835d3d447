"""Task ``chars``: the characters of a transcript, for the user's own recordings in any language.

Not a SUPERB task: the probe, SpecAugment and optimiser are those of SF (s3prl ``ctc/snips.yaml``);
Mandarin in SUPERB's out-of-domain ASR (``ctc/cv_config/cv_zh.yaml``) adds a tanh projection after
each LSTM layer, which is left out here. The transcript is taken as it is: normalise case and
punctuation in the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.text import tokenize
from speechft_ray.superb.measures.error_rate import token_error_rate, token_errors
from speechft_ray.superb.tasks._ctc import (
    BATCH_SIZE,
    CLIP_NORM,
    EOS,
    RecurrentCtcOptions,
    make_ctc_builder,
)
from speechft_ray.superb.tasks.base import TASKS, Task, get_label


def spell_characters(utterance: Utterance, columns: Sequence[str]) -> list[str]:
    """Returns the characters of the column, each run of blanks as one, and the end."""
    return [*tokenize(get_label(utterance, columns[0]), "characters"), EOS]


TASKS.register(
    "chars",
    Task(
        name="chars",
        columns=("text",),
        metrics=("chars.cer",),
        pooled=False,
        sampling="windows",
        learning_rate=1e-4,
        batch_size=BATCH_SIZE,
        clip_norm=CLIP_NORM,
        options=RecurrentCtcOptions,
        build=make_ctc_builder(spell_characters, {"chars.cer": (token_error_rate, token_errors)}),
    ),
)
