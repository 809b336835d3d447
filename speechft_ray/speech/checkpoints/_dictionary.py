"""Reads and writes fairseq's ``Dictionary``, the label words of pre-training, without fairseq."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.checkpoints._standins import Dictionary

_SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
"""First words of fairseq's dictionaries, in this order (``fairseq/data/dictionary.py``)."""


class FairseqDictionary:
    """Attributes to pickle under the name ``fairseq.data.dictionary.Dictionary``."""

    def __init__(self, words: list[str]) -> None:
        indices = {word: index for index, word in enumerate(words)}
        self.symbols = words
        self.count = [1] * len(words)
        self.indices = indices
        for place, (kind, word) in enumerate(_SPECIAL.items()):
            setattr(self, f"{kind}_word", word)
            setattr(self, f"{kind}_index", indices.get(word, place))
        self.nspecial = sum(word in indices for word in _SPECIAL.values())


def make_dictionaries(symbols: list[list[str] | None]) -> list[FairseqDictionary | None]:
    """Returns the dictionaries to pickle for the ``dictionaries_symbols`` of a HuBERT."""
    return [None if words is None else FairseqDictionary(list(words)) for words in symbols]


def read_symbols(path: Path, task_state: Any) -> list[list[str] | None]:
    """Returns the words of each dictionary of a HuBERT's ``task_state``. Raises ``UserError`` when
    there are none."""
    dictionaries = task_state.get("dictionaries") if isinstance(task_state, Mapping) else None
    if not isinstance(dictionaries, list | tuple):
        raise UserError(
            f"{path} is a HuBERT without dictionaries in its `task_state`. Give the checkpoint as "
            "it was published."
        )
    return [None if each is None else _read_words(path, each) for each in dictionaries]


def _read_words(path: Path, dictionary: Any) -> list[str]:
    words = to_plain_data(
        dictionary.state.get("symbols") if isinstance(dictionary, Dictionary) else dictionary,
        f"dictionary in {path}",
    )
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} has a dictionary in its `task_state` that is no list of words.")
    return words
