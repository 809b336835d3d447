"""Task ``asr_zh``: the characters of Mandarin speech (SUPERB's out-of-domain ASR on Common Voice
7.0 zh-CN; s3prl ``ctc/cv_config/cv_zh.yaml``).

The head of ``asr`` with a square linear map and tanh after each LSTM layer. s3prl lists 4317
characters, which with padding, ``<eos>`` and ``<unk>`` makes 4320 tokens; here the vocabulary is
that of the train split. The text is taken as it is: normalisation (NFKC, upper case, no
punctuation, no blanks) belongs to the corpus. A batch is 16 consecutive utterances in the order of
length; the character error rate on dev selects the best validation. The paper names no FBank or
best value for it, so its score needs ``zero: measured``.
"""

from __future__ import annotations

from speechft_ray.superb.measures.error_rate import token_error_rate, token_errors
from speechft_ray.superb.tasks._ctc import CLIP_NORM, RecurrentCtcOptions, make_ctc_builder
from speechft_ray.superb.tasks.base import TASKS, Published, Task
from speechft_ray.superb.tasks.chars import spell_characters

BATCH_SIZE = 16
"""``ctc/cv_config/cv_zh.yaml``: 16 x 1."""


class AsrZhOptions(RecurrentCtcOptions):
    """Options of Mandarin ASR; the defaults are s3prl's ``ctc/cv_config/cv_zh.yaml``."""

    tanh: bool = True
    """Whether each LSTM layer is followed by a square linear map and tanh (s3prl ``asr/model.py``:
    ``proj``)."""


TASKS.register(
    "asr_zh",
    Task(
        name="asr_zh",
        columns=("text",),
        metrics=("asr_zh.cer",),
        pooled=False,
        sampling="windows",
        learning_rate=1e-4,
        batch_size=BATCH_SIZE,
        clip_norm=CLIP_NORM,
        options=AsrZhOptions,
        build=make_ctc_builder(spell_characters, {"asr_zh.cer": (token_error_rate, token_errors)}),
        published=Published("common_voice", 500_000, 5_000),
    ),
)
