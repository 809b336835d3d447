"""Task ``asr``: the words of an utterance, CTC over characters (SUPERB on LibriSpeech; s3prl
``asr/config.yaml``).

The dictionary is s3prl's, fixed: ``<s>`` is id 0 and serves as CTC's blank, then ``<pad>``,
``</s>``, ``<unk>`` and the 28 symbols of ``char.dict`` in their order. ``|`` stands between words
and after the last one, then comes ``</s>``, which is learned like a token and dropped from what is
decoded. Text is upper-cased; a character outside the dictionary is ``<unk>`` and counts as an error
(s3prl would add it and fail). Greedy decoding without a language model; the word error rate of dev
selects.

Quirk: the config says batches of 32, but s3prl halves a bucket when its longest utterance has more
than 2000 *samples*, so every full bucket is two batches of 16. What remains below a full bucket is
one batch, or is left out if it is a single utterance. s3prl keeps no checkpoint while dev is at
100 % or worse; here the first validation always counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.text import Vocabulary
from speechft_ray.superb.measures.error_rate import token_error_rate, token_errors
from speechft_ray.superb.tasks._ctc import CLIP_NORM, UNKNOWN, RecurrentCtcOptions, make_ctc_builder
from speechft_ray.superb.tasks.base import TASKS, Published, Task, get_label

SPACE, END = "|", "</s>"
DICTIONARY = Vocabulary(symbols=("<pad>", END, UNKNOWN, *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ"))
"""s3prl ``asr/char.dict`` after fairseq's four special symbols; the first of them, ``<s>``, is the
blank."""

BATCH_SIZE = 16
"""Half of ``asr/config.yaml``'s ``batch_size``; see the quirk above."""


def spell_characters(utterance: Utterance, columns: Sequence[str]) -> list[str]:
    """Returns the characters of the column in upper case, ``|`` after every word, and the end."""
    words = get_label(utterance, columns[0]).upper().split()
    return [*(symbol for word in words for symbol in (*word, SPACE)), END]


def join_words(tokens: Sequence[str]) -> tuple[str, ...]:
    """Returns the words of a token sequence."""
    return tuple("".join(tokens).replace(SPACE, " ").split())


TASKS.register(
    "asr",
    Task(
        name="asr",
        columns=("text",),
        metrics=("asr.wer",),
        pooled=False,
        sampling="buckets",
        learning_rate=1e-4,
        batch_size=BATCH_SIZE,
        clip_norm=CLIP_NORM,
        options=RecurrentCtcOptions,
        build=make_ctc_builder(
            spell_characters,
            {"asr.wer": (token_error_rate, token_errors)},
            join_words,
            lambda _: DICTIONARY,
            END,
        ),
        published=Published("librispeech", 200_000, 2_000),
    ),
)
