"""Token error rates: edits of the whole corpus over reference tokens of the whole corpus, in
percent (PER, WER, CER).

Edits are the least number of substitutions, insertions and deletions. A rate may exceed 100.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from speechft_ray.core.errors import UserError
from speechft_ray.speech.text import edit_distance

Tokens = Sequence[Hashable]


def token_error_rate(hypotheses: Sequence[Tokens], references: Sequence[Tokens]) -> float:
    """Returns the error rate in percent over parallel utterances.

    An empty hypothesis costs one deletion per reference token. s3prl (``ctc/metric.py``) splits an
    empty text into one empty token, which costs the same, except against an empty reference: s3prl
    counts that as one token, this as none.

    Raises ``ValueError`` for lists of different length and ``UserError`` when the references have
    no token at all.
    """
    pairs = token_errors(hypotheses, references)
    wrong, total = sum(wrong for wrong, _ in pairs), sum(total for _, total in pairs)
    if not total:
        raise UserError(
            "an error rate needs references with at least one token: check the label column of the "
            "test split."
        )
    return 100.0 * wrong / total


def token_errors(
    hypotheses: Sequence[Tokens], references: Sequence[Tokens]
) -> list[tuple[int, int]]:
    """Returns the edits and the reference tokens of each utterance."""
    pairs = zip(hypotheses, references, strict=True)
    return [
        (edit_distance(hypothesis, reference), len(reference)) for hypothesis, reference in pairs
    ]
