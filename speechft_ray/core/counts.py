"""The counts behind a metric by utterance, stored beside the scores of an evaluation.

Confidence intervals are computed from them.
"""

from __future__ import annotations

from pydantic import model_validator

from speechft_ray.core.records import Record

COUNTS_FILE = "utterances.json"
"""File of an evaluation in the store: a list of ``UtteranceCounts``, one per test set or fold."""


class UtteranceCounts(Record):
    """One test set of one evaluation. Every metric in it is ``100 * sum(amounts) / sum(of)``.

    For accuracies an amount is 1 where the utterance is right, of 1; for error rates its edits, of
    the reference tokens; for an F1 its own F1, of 1; for diarisation the time in error, of the time
    of speech.
    """

    utterances: str
    """Identity of the utterances and their order: two encoders with the same are compared utterance
    by utterance."""
    amounts: dict[str, tuple[tuple[int | float, ...], ...]]
    """By metric: one list of utterances for each probe seed."""
    of: dict[str, tuple[int | float, ...]]
    """By metric: the same for every seed and encoder."""

    @model_validator(mode="after")
    def _is_parallel(self) -> UtteranceCounts:
        for name, seeds in self.amounts.items():
            if any(len(amounts) != len(self.of.get(name, ())) for amounts in seeds):
                raise ValueError(f"`{name}` has not one amount per utterance")
        return self
