"""What is wrong with the labels of a corpus, in sentences that corpora, tasks and heads share."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import SPLITS, Utterance

MAX_NAMES = 5
"""Names of a long list that a sentence has."""


class MissingLabelError(UserError):
    """An utterance has no label in a column that is learned or scored."""

    def __init__(self, utterance: Utterance, column: str) -> None:
        self.column = column
        super().__init__(
            f"the utterance `{utterance.key}` has no label in the column `{column}`: add one, or "
            "leave it out."
        )


def describe_missing_labels(utterances: Sequence[Utterance], column: str) -> str:
    """Returns how many utterances have no label in a column, by split, and the first of them; empty
    where all have one."""
    without = [item for item in utterances if not item.labels.get(column, "").strip()]
    if not without:
        return ""
    totals = Counter(item.split for item in utterances)
    counts = Counter(item.split for item in without)
    by_split = ", ".join(
        f"{counts[split]} of {totals[split]} in {split}" for split in SPLITS if counts[split]
    )
    others = len(without) - 1
    more = f", nor {'have' if others > 1 else 'has'} {others} other{'s' * (others > 1)}"
    return (
        f"the utterance `{without[0].key}` has no label in the column `{column}`"
        f"{more if others else ''} ({by_split})"
    )


def describe_alike_labels(utterances: Iterable[Utterance], column: str) -> str:
    """Returns the labels of a column that differ in case or Unicode form alone; empty for none."""
    spellings: dict[str, set[str]] = {}
    for utterance in utterances:
        label = utterance.labels[column]
        folded = unicodedata.normalize("NFC", label).casefold()
        spellings.setdefault(folded, set()).add(label)
    alike = [
        " and ".join(f"`{one}`" for one in sorted(each))
        for each in spellings.values()
        if len(each) > 1
    ]
    if not alike:
        return ""
    more = f" and {len(alike) - MAX_NAMES} more" if len(alike) > MAX_NAMES else ""
    return (
        f"labels in the column `{column}` differ in case or Unicode form alone, and count as "
        f"different: {', '.join(alike[:MAX_NAMES])}{more}"
    )


def has_classes(utterances: Sequence[Utterance], column: str) -> bool:
    """Whether the labels of a column recur, so that they are classes and not texts."""
    labels = {item.labels[column] for item in utterances}
    return 1 < len(labels) <= len(utterances) / 2
