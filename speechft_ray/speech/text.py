"""Splits label text into tokens, maps tokens to class ids and back, and compares sequences."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rapidfuzz.distance import Levenshtein

from speechft_ray.core.errors import UserError

BLANK = 0
"""Id of CTC's blank, also of padding (s3prl ``downstream/ctc/text.py``: ``<pad>`` is 0 and the
blank)."""

Unit = Literal["words", "characters"]


def tokenize(label: str, unit: Unit) -> list[str]:
    """Splits a label into blank-separated words, or into characters, where each run of blanks is
    one ``" "``."""
    words = label.split()
    return words if unit == "words" else list(" ".join(words))


def edit_distance(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Returns the least number of insertions, deletions and substitutions that turn one sequence
    into the other (Levenshtein 1966). A text is a sequence of characters."""
    return Levenshtein.distance(left, right)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Symbols and their ids. The first ``reserved`` ids have no symbol: 1 for CTC (``BLANK``), 0
    for plain classes."""

    symbols: tuple[str, ...]
    reserved: int = 1
    has_unknown: bool = False
    """Whether other tokens have the id ``size``, which no class of a head has and no prediction
    matches."""

    @classmethod
    def of(cls, tokens: Iterable[str], reserved: int = 1) -> Vocabulary:
        """Returns the vocabulary of these tokens, sorted, so that it does not depend on the order
        of a corpus."""
        return cls(symbols=tuple(sorted(set(tokens))), reserved=reserved)

    @property
    def size(self) -> int:
        """Number of ids, including reserved ones: the output width of a head."""
        return self.reserved + len(self.symbols)

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """Returns the ids. Raises ``UserError`` naming the first unknown token, unless
        ``has_unknown``."""
        for token in tokens:
            if token not in self._ids and not self.has_unknown:
                raise UserError(
                    f"the label `{token}` does not occur in the train split, which has "
                    f"{len(self.symbols)} labels ({_abbreviate(self.symbols)}): "
                    "correct it, or add training utterances that have it."
                )
        return [self._ids.get(token, self.size) for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Returns the symbols of ids, without reserved ids."""
        return [self.symbols[index - self.reserved] for index in ids if index >= self.reserved]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self.symbols, start=self.reserved)}


def make_unknown_labels_error(
    column: str, split: str, unknown: Sequence[str], vocabulary: Vocabulary
) -> UserError:
    """Returns the error for labels of a closed set that a split has and train lacks."""
    count = f"{len(unknown)} label{'s' if len(unknown) > 1 else ''}"
    return UserError(
        f"the column `{column}` has {count} in {split} that train does not have "
        f"({_abbreviate(_quote(unknown))}); train has {len(vocabulary.symbols)} "
        f"({_abbreviate(_quote(vocabulary.symbols))}): correct them, or add training utterances "
        "that have them."
    )


def _quote(symbols: Sequence[str]) -> list[str]:
    return [f"`{symbol}`" for symbol in symbols]


def _abbreviate(symbols: Sequence[str]) -> str:
    return ", ".join(symbols[:5]) + (", ..." if len(symbols) > 5 else "")
