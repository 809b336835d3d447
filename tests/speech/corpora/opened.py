"""Opens a laid-out corpus with options given as a spec gives them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from speechft_ray.speech.corpora.base import CORPORA, Corpus


def opened(name: str, root: Path, **options: Any) -> Corpus:
    """Returns the corpus below ``root``; what was measured is kept beside it."""
    kind = CORPORA.get(name)
    corpus: Corpus = kind.open(kind.options.model_validate(options), root, root.parent / "cache")
    return corpus


def sizes(corpus: Corpus) -> dict[str, int]:
    """Utterances by split."""
    return dict(Counter(utterance.split for utterance in corpus.utterances))
