"""A small QUESST 2014: English and Albanian documents at 8 kHz, queries and ground truth."""

from __future__ import annotations

from pathlib import Path

from scipy.signal import resample_poly

from tests.speech.layouts.voices import VOICES, synthesise_lines, write_audio, write_text

DOCUMENTS = (
    "the birds sang in the garden",
    "he gave her a book",
    "nothing was said",
    "she read a book to the birds",
)
QUERIES = {"dev": ("the birds", "the garden"), "eval": ("a book", "the weather")}
MATCHES = {"dev": ((1, 4), (1,)), "eval": ((2, 4), ())}


def lay_out(root: Path) -> Path:
    """Writes the content of ``quesst14Database`` below ``root`` and returns it.

    The last document is in another language.
    """
    texts = (*DOCUMENTS, *QUERIES["dev"], *QUERIES["eval"])
    waves = iter(
        synthesise_lines(tuple((line, VOICES[index % 3]) for index, line in enumerate(texts)))
    )
    keys = []
    for number in range(1, len(DOCUMENTS) + 1):
        write_audio(
            root / f"Audio/quesst14_{number:05d}.wav", resample_poly(next(waves), 1, 2), 8_000
        )
        language = "nnenglish" if number < 4 else "albanian"
        keys.append(f"quesst14Database/Audio/quesst14_{number:05d}.wav {language}")
    write_text(root / "scoring/language_key_utterances.lst", keys)
    for part, queries in QUERIES.items():
        truth, keys = ["SPKR-INFO x 1 <NA> <NA> <NA> unknown X <NA>"], []
        for number in range(1, len(queries) + 1):
            query = f"quesst14_{part}_{number:04d}"
            write_audio(
                root / f"{part}_queries/{query}.wav", resample_poly(next(waves), 1, 2), 8_000
            )
            keys.append(f"quesst14Database/{part}_queries/{query}.wav nnenglish")
            for document in MATCHES[part][number - 1]:
                truth.append(f"LEXEME quesst14_{document:05d} 1 0.00 3.21 {query} lex {query} 0.5")
        write_text(root / f"scoring/language_key_{part}.lst", keys)
        write_text(root / f"scoring/groundtruth_quesst14_{part}/quesst14_{part}.rttm", truth)
    return root
