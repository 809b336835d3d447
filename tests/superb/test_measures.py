"""The SUPERB measures against hand-worked cases and against s3prl's own functions."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import jiwer
import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.speech.text import edit_distance
from speechft_ray.superb.measures.accuracy import accuracy
from speechft_ray.superb.measures.error_rate import (
    token_error_rate,
)
from speechft_ray.superb.measures.slots import parse_slots, slot_type_f1, slot_value_cer
from tests.superb.textbook import textbook_edits


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    return token_error_rate(
        [text.split() for text in hypotheses], [text.split() for text in references]
    )


@pytest.fixture
def s3prl_metric(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """s3prl's ``ctc/metric.py``, loaded by path; only its edit distance is replaced, by the
    textbook's."""
    package = importlib.util.find_spec("s3prl")
    if package is None or not package.submodule_search_locations:
        pytest.skip("s3prl is not installed")
    distance = ModuleType("editdistance")
    distance.eval = textbook_edits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "editdistance", distance)
    path = Path(package.submodule_search_locations[0]) / "downstream" / "ctc" / "metric.py"
    spec = importlib.util.spec_from_file_location("s3prl_ctc_metric", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_decoder_texts(seed: int, count: int) -> list[str]:
    """Random decoder output over few letters and slots: unpaired, nested, repeated and empty slots
    all occur."""
    source = random.Random(seed)
    pieces = ["A", "B", "AB", " ", " ", "B-x ", " E-x", "B-y ", " E-y", "B-xy ", " E-xy"]
    return ["".join(source.choices(pieces, k=source.randint(0, 16))) for _ in range(count)]


def slot_references(seed: int, count: int) -> list[str]:
    """Random well-formed references, at least one of them with a slot."""
    source = random.Random(seed)
    words = ["A", "BA", "B-x AB E-x", "B-y B A E-y", "B-xy BB E-xy", "B-x A E-x"]
    return ["B-x A E-x"] + [
        " ".join(source.choices(words, k=source.randint(1, 4))) for _ in range(count - 1)
    ]


def test_edits_are_those_of_the_textbook() -> None:
    source = random.Random(0)
    for _ in range(200):
        one, other = (source.choices(["aa", "b", "c"], k=source.randint(0, 8)) for _ in range(2))
        assert edit_distance(one, other) == textbook_edits(one, other)


def test_error_rate_divides_the_edits_of_the_corpus_by_its_tokens() -> None:
    # 1 substitution of 2 tokens, then 1 insertion and no error in 6: 2 edits / 8 tokens. A mean of
    # rates would be 33.3.
    assert word_error_rate(["a x", "a b c d e f g"], ["a b", "a b c d e f"]) == 25.0


@pytest.mark.parametrize("seed", range(5))
def test_error_rates_are_those_of_jiwer(seed: int) -> None:
    source = random.Random(seed)
    texts = [
        [
            " ".join(source.choices(["AB", "BA", "C", "ABC"], k=source.randint(1, 7)))
            for _ in range(20)
        ]
        for _ in range(2)
    ]
    hypotheses, references = texts
    assert word_error_rate(hypotheses, references) == pytest.approx(
        100 * jiwer.wer(references, hypotheses)
    )
    assert token_error_rate(hypotheses, references) == pytest.approx(
        100 * jiwer.cer(references, hypotheses)
    )


def test_an_empty_hypothesis_loses_every_token() -> None:
    assert word_error_rate(["", "d"], ["a b c", "d"]) == 75.0


def test_insertions_may_exceed_one_hundred_percent() -> None:
    assert token_error_rate([["a", "b", "c"]], [["z"]]) == 300.0


def test_tokens_are_compared_whole_and_characters_one_by_one() -> None:
    assert word_error_rate(["AH0 T"], ["AH1 T"]) == 50.0
    assert token_error_rate(["AH0 T"], ["AH1 T"]) == 20.0


def test_error_rates_refuse_references_without_tokens() -> None:
    with pytest.raises(UserError, match="at least one token"):
        word_error_rate(["a"], [""])


@pytest.mark.parametrize("measure", [token_error_rate, accuracy, slot_type_f1, slot_value_cer])
def test_lists_must_have_the_same_length(measure: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="zip"):
        measure(["B-x A E-x"], ["B-x A E-x", "B-x A E-x"])


def test_accuracy_counts_whole_labels() -> None:
    assert accuracy(["up", "down", "up"], ["up", "up", "down"]) == pytest.approx(100 / 3)
    assert (
        accuracy(
            [("on", "light", "hall"), ("on", "light", "hall")],
            [("on", "light", "hall"), ("on", "light", "none")],
        )
        == 50.0
    )


@pytest.mark.parametrize("measure", [accuracy, slot_type_f1])
def test_means_refuse_no_utterance(measure) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="at least one"):
        measure([], [])


def test_slots_are_read_from_their_tags() -> None:
    assert parse_slots(
        "PLAY B-artist ELTON JOHN E-artist IN B-city ROME E-city AND B-artist  ABBA E-artist"
    ) == {
        "artist": ["ELTON JOHN", "ABBA"],
        "city": ["ROME"],
    }


@pytest.mark.parametrize("text", ["", "PLAY", "B-x A", "A E-x", "B-x A E-y", "B-x E-x"])
def test_a_tag_without_partner_or_value_is_no_slot(text: str) -> None:
    assert parse_slots(text) == {}


def test_tags_inside_a_value_are_dropped() -> None:
    assert parse_slots("B-x A B-y C E-y D E-x") == {"x": ["A C D"]}


@pytest.mark.parametrize(
    ("hypothesis", "reference", "f1"),
    [
        ("B-x A E-x B-y A E-y", "B-x Z E-x B-y Z E-y", 100.0),  # types only, values do not matter
        ("B-x A E-x B-x B E-x", "B-x A E-x", 100.0),  # a set: twice is once
        ("B-x A E-x", "B-x A E-x B-y A E-y B-z A E-z", 50.0),  # P 1, R 1/3
        ("B-y A E-y", "B-x A E-x", 0.0),
        ("NOTHING", "B-x A E-x", 0.0),
        ("B-x A E-x", "NOTHING", 0.0),
        ("NOTHING", "ELSE", 100.0),
    ],
)
def test_slot_type_f1_of_one_utterance(hypothesis: str, reference: str, f1: float) -> None:
    assert slot_type_f1([hypothesis], [reference]) == pytest.approx(f1)
    assert slot_type_f1([hypothesis, ""], [reference, ""]) == pytest.approx(
        (f1 + 100) / 2
    )  # a mean over utterances


@pytest.mark.parametrize(
    ("hypothesis", "reference", "cer"),
    [
        ("B-x ROME E-x", "B-x ROME E-x", 0.0),
        ("B-x HOME E-x", "B-x ROME E-x", 25.0),
        ("B-y ROME E-y", "B-x ROME E-x", 100.0),  # the type is absent: an empty value
        ("B-x ZZZZ E-x B-x ROMA E-x", "B-x ROME E-x", 25.0),  # the nearest of two
        ("B-x ROME E-x B-y PARIS E-y", "B-x ROME E-x", 0.0),  # too much costs nothing
        (
            "B-x ROME E-x",
            "B-x ROME E-x B-x PARMA E-x",
            100 * 4 / 9,
        ),  # one value may serve twice: ROME to PARMA is 4 edits
        ("B-x ROME E-x", "B-x ROME E-x B-y PARIS E-y", 100 * 5 / 9),
        (
            "B-x " + "Z" * 100 + " E-x",
            "B-x A E-x",
            100.0,
        ),  # 100 times beyond a missing one counts as missing
        ("B-x " + "Z" * 99 + " E-x", "B-x A E-x", 9900.0),
    ],
)
def test_slot_value_cer_of_one_utterance(hypothesis: str, reference: str, cer: float) -> None:
    assert slot_value_cer([hypothesis], [reference]) == pytest.approx(cer)


def test_slot_value_cer_sums_edits_and_characters_over_the_corpus() -> None:
    assert slot_value_cer(
        ["B-x A E-x", "B-x HOME E-x"], ["B-x B E-x", "B-x ROME E-x"]
    ) == pytest.approx(100 * 2 / 5)


def test_tags_in_reference_values_are_dropped_where_s3prl_keeps_them(
    s3prl_metric: ModuleType,
) -> None:
    """A difference that docs/superb.md names."""
    text = ["ADD B-x FOO B-y BAR E-y TO B-x X E-x"]
    assert slot_value_cer(text, text) == 0.0
    assert s3prl_metric.slot_value_cer(text, text) == 0.5


def test_slot_value_cer_refuses_references_without_slots() -> None:
    with pytest.raises(UserError, match="at least one slot"):
        slot_value_cer(["B-x A E-x"], ["A"])


@pytest.mark.parametrize("seed", range(20))
def test_measures_are_those_of_s3prl(s3prl_metric: ModuleType, seed: int) -> None:
    hypotheses, references = make_decoder_texts(seed, 30), slot_references(seed, 30)
    hypotheses[:5] = references[1:6]
    assert slot_type_f1(hypotheses, references) == pytest.approx(
        100 * s3prl_metric.slot_type_f1(hypotheses, references)
    )
    assert slot_value_cer(hypotheses, references) == pytest.approx(
        100 * s3prl_metric.slot_value_cer(hypotheses, references)
    )
    assert token_error_rate(hypotheses, references) == pytest.approx(
        100 * s3prl_metric.cer(hypotheses, references)
    )
    single_blanks = [
        " ".join(text.split()) for text in hypotheses
    ]  # as decoded phones and words have them
    assert word_error_rate(single_blanks, references) == pytest.approx(
        100 * s3prl_metric.wer(single_blanks, references)
    )
