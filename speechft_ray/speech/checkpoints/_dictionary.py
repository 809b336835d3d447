"""Reads and writes fairseq's ``Dictionary``, the label words of pre-training, without fairseq."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

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


def read_symbols(
    path: Path, task_state: Any, model: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> tuple[list[list[str] | None], tuple[str, ...]]:
    """Returns the words of each dictionary of a HuBERT, and notes.

    ``model`` is its configuration, ``state`` its parameters. fairseq stores the dictionaries in
    ``task_state`` since 2021. Where they are missing, or are those of the text that a recogniser
    writes, numbers stand for the words: only their count matters, which the label embeddings
    state. Raises ``UserError`` for dictionaries that are no lists of words, and for label
    embeddings of several dictionaries that are missing.
    """
    stored = task_state.get("dictionaries") if isinstance(task_state, Mapping) else None
    symbols = (
        [None if each is None else _read_words(path, each) for each in stored]
        if isinstance(stored, list | tuple)
        else None
    )
    codes = state.get("label_embs_concat")
    if symbols is not None and ("final_proj.weight" in state or _count(symbols) == _rows(codes)):
        return symbols, ()
    heads = _count_heads(model, state)
    if codes is None:
        return [None] * (heads or 1), ()  # words that are not at hand
    if heads not in (None, 1):
        raise UserError(
            f"{path} is a HuBERT with labels of {heads} dictionaries and without the dictionaries "
            "in its `task_state`, so which label is whose is not known. Give the checkpoint as "
            "fairseq saved it."
        )
    note = (
        f"there are no words for the {len(codes)} labels of pre-training in `task_state`: numbers "
        "stand for them, and features do not depend on them."
    )
    return [[str(index) for index in range(len(codes))]], (note,)


def _count(symbols: list[list[str] | None]) -> int | None:
    """Returns the number of words, None where a dictionary is not at hand."""
    return None if None in symbols else sum(len(words or ()) for words in symbols)


def _rows(codes: torch.Tensor | None) -> int | None:
    return None if codes is None else len(codes)


def _count_heads(model: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> int | None:
    """Returns the number of dictionaries that the projection is for, None where nothing says."""
    projection, codes = state.get("final_proj.weight"), state.get("label_embs_concat")
    if model.get("untie_final_proj") is not True:
        return None
    width = model.get("final_dim") if codes is None else codes.shape[-1]
    if projection is None or not isinstance(width, int) or width < 1:
        return None
    return len(projection) // width


def _read_words(path: Path, dictionary: Any) -> list[str]:
    words = to_plain_data(
        dictionary.state.get("symbols") if isinstance(dictionary, Dictionary) else dictionary,
        f"dictionary in {path}",
    )
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} has a dictionary in its `task_state` that is no list of words.")
    return words
