"""Spoken queries of a synthetic corpus: which recordings of the training split contain them."""

from __future__ import annotations

from dataclasses import replace

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora.base import Corpus

VERSION = 1
"""Raised whenever the labels of the same corpus would change."""


def add_matches(corpus: Corpus) -> Corpus:
    """Returns the corpus with the column ``matches``, as ``quesst14`` has it: the keys of all
    documents (the split train) whose text has the text of a query (dev and test) among its words,
    separated by blanks. Documents have none."""
    words = {
        document.key: set(document.labels["text"].split()) for document in corpus.split("train")
    }

    def find_matches(text: str) -> str:
        return " ".join(key for key, inside in words.items() if text in inside)

    return replace(
        corpus,
        fingerprint=fingerprint([corpus.fingerprint, "matches", VERSION]),
        utterances=[
            replace(
                utterance,
                labels={
                    **utterance.labels,
                    "matches": ""
                    if utterance.split == "train"
                    else find_matches(utterance.labels["text"]),
                },
            )
            for utterance in corpus.utterances
        ],
        columns=corpus.columns | {"matches"},
    )
