"""Opens a small copy of a corpus with options as in a spec."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from speechft_ray.speech.corpora.base import CORPORA, Corpus


def open_at(name: str, root: Path, **options: Any) -> Corpus:
    """Returns the corpus below ``root``; the facts of its files are cached beside it."""
    kind = CORPORA.get(name)
    corpus: Corpus = kind.open(kind.options.model_validate(options), root, root.parent / "cache")
    return corpus


def sizes(corpus: Corpus) -> dict[str, int]:
    """Returns the number of utterances by split."""
    return dict(Counter(utterance.split for utterance in corpus.utterances))
