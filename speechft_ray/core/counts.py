"""The counts behind a metric by utterance, stored beside the scores of an evaluation.

Confidence intervals are computed from them.
"""

from __future__ import annotations

from pydantic import model_validator

from speechft_ray.core.records import Record

COUNTS_FILE = "utterances.json"
"""File of an evaluation in the store: a list of ``UtteranceCounts``, one per test set or fold; of
dev in an evaluation on dev alone."""


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
    speakers: tuple[str, ...] = ()
    """Identities of the speakers, which are the same in other test sets of the corpus. Empty where
    no utterance has a speaker, and in files of earlier versions."""
    speaker_of: tuple[int, ...] = ()
    """By utterance: the place of its speaker in ``speakers``, or -1 for none. Empty without
    ``speakers``."""

    @model_validator(mode="after")
    def _is_parallel(self) -> UtteranceCounts:
        for name, seeds in self.amounts.items():
            if any(len(amounts) != len(self.of.get(name, ())) for amounts in seeds):
                raise ValueError(f"`{name}` has not one amount per utterance")
        for name, of in self.of.items():
            if self.speaker_of and len(self.speaker_of) != len(of):
                raise ValueError(f"`{name}` has not one speaker per utterance")
        if any(not -1 <= place < len(self.speakers) for place in self.speaker_of):
            raise ValueError("`speaker_of` has a place that `speakers` lacks")
        return self
