"""Targets, references and heads that each task builds from labels."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from pydantic import JsonValue
from torch import nn
from torch.nn import functional

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.heads.ctc import CtcHead
from speechft_ray.speech.heads.pooled import PooledHead
from speechft_ray.speech.heads.specaug import spec_augment
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks import sf
from speechft_ray.superb.tasks.base import TASKS, TaskData, list_allowed_tasks
from tests.superb.toy_models import toy_corpus


def build_data(
    task: str,
    corpus: Corpus,
    column: str | None = None,
    options: Mapping[str, JsonValue] | None = None,
) -> TaskData:
    spec = EvalSpec(
        task=task, corpus=CorpusSpec(), updates=1, column=column, options=dict(options or {})
    )
    data = build_task_data(TASKS.get(task), spec, corpus)
    assert isinstance(data, TaskData)
    return data


def never_read(utterance: Utterance) -> np.ndarray:
    raise AssertionError("only labels are needed")


def corpus_of(column_labels: Mapping[str, Mapping[str, list[str]]]) -> Corpus:
    """A corpus from ``{split: {column: labels}}``; no audio is read from it."""
    utterances = []
    for split, columns in column_labels.items():
        for index, values in enumerate(zip(*columns.values(), strict=True)):
            labels = dict(zip(columns, values, strict=True))
            utterances.append(
                Utterance(key=f"{split}-{index}", split=split, samples=16_000, labels=labels)
            )
    return Corpus(
        name="written",
        fingerprint="0",
        utterances=utterances,
        read=never_read,
        columns=frozenset(next(iter(column_labels.values()))),
    )


def everywhere(**columns: list[str]) -> Corpus:
    return corpus_of(dict.fromkeys(("train", "dev", "test"), columns))


SLOT_LINES = [
    ("PLAY BLUE MOON", "O track track", "PLAY B-track BLUE MOON E-track"),
    # Adjacent words of one slot merge, whatever they mean; another slot starts a new stretch.
    (
        "PLAY QUEEN LET IT BE NOW",
        "O artist track track track O",
        "PLAY B-artist QUEEN E-artist B-track LET IT BE E-track NOW",
    ),
    ("SIMON & GARFUNKEL", "artist artist artist", "B-artist SIMON AND GARFUNKEL E-artist"),
    # Words made of punctuation are skipped inside a slot, at its end, and alone.
    ("IN NEW - YORK , PLEASE ?!", "O city city city city O O", "IN B-city NEW YORK E-city PLEASE"),
    (", HELLO", "O O", "HELLO"),
    # Not a part of the list of skipped marks, so it is spelled: s3prl tests for substrings.
    ("A ?, B", "O O O", "A ?, B"),
    ("GO !? HOME", "O O O", "GO !? HOME"),
]


@pytest.mark.parametrize(("text", "slots", "expected"), SLOT_LINES)
def test_slots_become_tags_around_their_words(text: str, slots: str, expected: str) -> None:
    utterance = Utterance(key="u", split="train", samples=1, labels={"text": text, "slots": slots})
    tokens = sf.spell_cleanly(utterance, ("text", "slots"))
    assert (sf.join_tokens(tokens[:-1]), tokens[-1]) == (expected, "<eos>")


PUNCTUATED = [
    ("PLAY BLUE MOON", "O x x"),
    ("A , B & C", "x x O y y"),
    (", A B", "x x O"),  # the slot begins with a skipped word: no opening tag
    ("A B ,", "O x x"),  # and ends with one: no closing tag and no end
    ("A B ?", "O x O"),  # no end, a blank instead
    ("A - B", "x O x"),
    ("?! A", "x y"),
]


@pytest.mark.parametrize(("text", "slots"), PUNCTUATED)
def test_slots_are_spelled_as_s3prl_spells_them(text: str, slots: str) -> None:
    if importlib.util.find_spec("s3prl") is None:
        pytest.skip("s3prl is not installed")
    from s3prl.downstream.ctc.text import CharacterTextSlotEncoder

    names = [f"{side}-{slot}" for slot in "xy" for side in "BE"]
    encoder = CharacterTextSlotEncoder([" ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"], names)
    theirs = [
        [*encoder._vocab_list, *names][index]
        for index in encoder.encode(f"BOS {text} EOS\tO {slots} intent")
    ]
    utterance = Utterance(key="u", split="train", samples=1, labels={"text": text, "slots": slots})
    assert sf.spell(utterance, ("text", "slots")) == theirs
    if not set(text) & set("?!.,;-"):
        assert sf.spell_cleanly(utterance, ("text", "slots")) == theirs


def test_slot_targets_are_characters_tags_and_an_end() -> None:
    data = build_data("sf", everywhere(text=["AB CA", "B"], slots=["x x", "y"]))
    tokens = ["<blank>", "<eos>", "<unk>", " ", "A", "B", "B-x", "B-y", "C", "E-x", "E-y"]
    by_text = {
        example.reference: [tokens[index] for index in example.target]
        for example in data.examples["train"]
    }
    assert by_text == {
        "B-x AB CA E-x": ["B-x", "A", "B", " ", "C", "A", "E-x", "<eos>"],
        "B-y B E-y": ["B-y", "B", "E-y", "<eos>"],
    }


def test_perfect_logits_predict_the_reference_without_its_end() -> None:
    corpus = toy_corpus({"train": 6, "dev": 3, "test": 3})
    for task in ("pr", "asr", "asr_zh", "chars", "sf"):
        data = build_data(task, corpus)
        classes = 1 + max(int(example.target.max()) for example in data.examples["train"])
        predictions = []
        for example in data.examples["dev"]:
            path = [
                index for token in example.target.tolist() for index in (token, token, 0)
            ]  # repeats and blanks
            logits = functional.one_hot(torch.tensor([path]), classes).float()
            predictions += data.predict(logits, torch.tensor([len(path)]))
        references = [example.reference for example in data.examples["dev"]]
        assert predictions == references, task
        for metric, value in data.measure(predictions, references).items():
            assert value == (100.0 if metric == "sf.slot_type_f1" else 0.0)


def test_phones_are_tokens_and_transcripts_characters() -> None:
    labels = {"phones": ["HH AY"], "text": ["HI  YOU "]}
    corpus = everywhere(**labels)
    assert build_data("pr", corpus).examples["train"][0].reference == ("HH", "AY")
    assert build_data("chars", corpus).examples["train"][0].reference == tuple("HI YOU")


def test_the_words_of_asr_are_spelled_in_s3prls_dictionary() -> None:
    example = build_data("asr", everywhere(text=["Hi you", "A"])).examples["train"][0]
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ"]
    assert [symbols[index] for index in example.target] == [*"HI|YOU|", "</s>"]
    assert example.reference == ("HI", "YOU")
    data = build_data("asr", everywhere(text=["É B"]))
    assert data.examples["dev"][0].target.tolist() == [3, 4, symbols.index("B"), 4, 2]
    head = data.head(4)
    assert isinstance(head, CtcHead) and head.output.out_features == 32
    path = torch.tensor([symbols.index(symbol) for symbol in "HI||YO"])
    logits = functional.one_hot(path, 32)[None].float()
    assert data.predict(logits, torch.tensor([6])) == [("HI", "YO")]
    assert data.measure([("HI", "YO")], [("HI", "YOU")]) == {"asr.wer": 50.0}


def test_mandarin_has_its_own_characters_and_a_square_map_after_each_layer() -> None:
    data = build_data(
        "asr_zh", everywhere(text=["你好", "好"]), options={"lstm_hidden": 3, "projection": 5}
    )
    assert [example.target.tolist() for example in data.examples["train"]] == [[3, 4, 1], [4, 1]]
    head = data.head(4)
    assert isinstance(head, CtcHead)
    weights = [square.weight for square in head.squares if isinstance(square, nn.Linear)]
    assert [weight.shape for weight in weights] == [(6, 6), (6, 6)]
    english = build_data(
        "asr", everywhere(text=["A"]), options={"lstm_hidden": 3, "projection": 5}
    ).head(4)
    assert isinstance(english, CtcHead) and not english.squares


def test_the_published_protocol_resamples_the_dev_of_keywords() -> None:
    labels = ["rare"] * 3 + ["often"] * 297
    data = build_data("ks", everywhere(keyword=labels))
    indices = list(data.dev_indices or [])
    rare = sum(data.examples["dev"][index].reference == (1,) for index in indices)
    assert len(indices) == 300 and abs(rare - 150) < 4 * 300**0.5 / 2  # four standard deviations
    assert indices == list(build_data("ks", everywhere(keyword=labels)).dev_indices or [])
    assert (
        build_data("ks", everywhere(keyword=labels), options={"protocol": "clean"}).dev_indices
        is None
    )


def test_an_unseen_token_is_unknown_but_stays_in_the_reference() -> None:
    corpus = corpus_of(
        {"train": {"phones": ["a b"]}, "dev": {"phones": ["a z"]}, "test": {"phones": ["b"]}}
    )
    example = build_data("pr", corpus).examples["dev"][0]
    assert example.target.tolist() == [3, 2, 1]  # a, <unk>, <eos>
    assert example.reference == ("a", "z")


def test_window_tasks_put_the_longest_targets_first() -> None:
    corpus = everywhere(phones=["a", "a b c", "a b", "c b a"])
    assert [example.utterance.key for example in build_data("pr", corpus).examples["dev"]] == [
        "dev-1",
        "dev-3",
        "dev-2",
        "dev-0",
    ]


def test_the_intent_loss_is_the_sum_over_three_slices_and_all_three_must_be_right() -> None:
    corpus = everywhere(
        action=["on", "off", "up"],
        object=["lamp", "heat", "heat"],
        location=["hall", "hall", "attic"],
    )
    data = build_data("ic", corpus)
    head = data.head(4)
    assert head(torch.zeros(1, 2, 4), torch.tensor([2])).shape == (1, 3 + 2 + 2)
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    targets = [example.target for example in data.examples["train"]]
    expected = 0.0
    for row, target in zip(logits.double(), targets, strict=True):
        for start, size, label in zip((0, 3, 5), (3, 2, 2), target.tolist(), strict=True):
            expected -= (
                math.log(row[start + label].exp() / row[start : start + size].exp().sum()) / 3
            )
    assert data.loss(logits, torch.ones(3), targets).item() == pytest.approx(expected, rel=1e-6)
    right = torch.zeros(3, 7)
    for row, target in zip(right, targets, strict=True):
        row[target + torch.tensor([0, 3, 5])] = 1.0
    references = [example.reference for example in data.examples["train"]]
    assert data.measure(data.predict(right, torch.ones(3)), references) == {"ic.accuracy": 100.0}
    right[0, 5:] = right[0, 5:].flip(0)  # one location wrong
    metrics = data.measure(data.predict(right, torch.ones(3)), references)
    assert metrics["ic.accuracy"] == pytest.approx(200 / 3)


def test_a_missing_column_names_the_columns_and_tasks_there_are() -> None:
    corpus = everywhere(emotion=["sad", "calm"], text=["A", "B"])
    with pytest.raises(UserError) as raised:
        build_data("sid", corpus)
    assert str(raised.value) == (
        "the task `sid` needs the column `speaker`, which the corpus `written` does not have; its "
        "columns `emotion`, `text` allow the tasks `asr`, `asr_zh`, `chars`, `er`, `label`."
    )


def test_tasks_follow_from_columns() -> None:
    assert list_allowed_tasks([]) == []
    assert list_allowed_tasks(["text"]) == ["asr", "asr_zh", "chars", "label"]
    assert list_allowed_tasks(["action", "object", "text"]) == ["asr", "asr_zh", "chars", "label"]
    assert list_allowed_tasks(["action", "object", "location", "slots"]) == ["ic", "label"]
    assert list_allowed_tasks(["speaker"]) == ["asv", "label", "sid"]
    assert list_allowed_tasks(["segments", "matches"]) == ["label", "qbe", "sd"]


def test_any_column_can_be_a_label() -> None:
    corpus = everywhere(room=["hall", "attic"])
    assert [
        example.reference for example in build_data("label", corpus, column="room").examples["dev"]
    ] == [(1,), (0,)]
    assert len(build_data("sid", corpus, column="room").examples["dev"]) == 2
    with pytest.raises(UserError, match="needs `column`, one of `room`"):
        build_data("label", corpus)
    with pytest.raises(
        UserError,
        match="the task `ic` reads the columns action, object, location: leave `column` out",
    ):
        build_data("ic", corpus, column="room")


def test_an_empty_split_is_an_error() -> None:
    corpus = corpus_of({"train": {"speaker": ["a", "b"]}, "test": {"speaker": ["a"]}})
    with pytest.raises(UserError, match="no utterances in the split `dev`"):
        build_data("sid", corpus)


def test_labels_that_train_does_not_have_are_listed() -> None:
    unknown = [f"s{index}" for index in range(7)]
    corpus = corpus_of(
        {
            "train": {"speaker": ["a", "b"]},
            "dev": {"speaker": ["a"]},
            "test": {"speaker": [*unknown, "b"]},
        }
    )
    with pytest.raises(
        UserError, match=r"has 7 labels in test .* \(`s0`, `s1`, `s2`, `s3`, `s4`, \.\.\.\)"
    ):
        build_data("sid", corpus)
    one = {"text": ["GO NOW"], "slots": ["O when"]}
    corpus = corpus_of(
        {"train": one, "dev": one, "test": {"text": ["GO HOME"], "slots": ["O place"]}}
    )
    with pytest.raises(
        UserError, match="has 1 slots in test that train does not have \\(`place`\\)"
    ):
        build_data("sf", corpus)


def test_labels_that_cannot_be_learned_are_errors() -> None:
    with pytest.raises(
        UserError, match="the whole train split has one label, `a`, in the column `speaker`"
    ):
        build_data("sid", everywhere(speaker=["a", "a"]))
    with pytest.raises(UserError, match="`train-1` has no label in the column `phones`"):
        build_data("pr", everywhere(phones=["a", " "]))
    with pytest.raises(UserError, match="`train-0` has 2 words in `text` but 3 slots in `slots`"):
        build_data("sf", everywhere(text=["GO NOW"], slots=["O O O"]))


def test_unknown_and_wrong_options_are_all_reported() -> None:
    with pytest.raises(SpecError) as raised:
        build_data("sf", toy_corpus(), options={"lstm_hidden": 0, "hidden": 3})
    assert {path for path, _ in raised.value.mistakes} == {"lstm_hidden", "hidden"}
    assert (
        "unknown field `hidden`. Did you mean `lstm_hidden`? "
        "Allowed: dropout, lstm_hidden, lstm_layers, projection, protocol, specaug."
    ) in str(raised.value)


def test_options_shape_the_head_and_switch_specaug() -> None:
    corpus = toy_corpus()
    data = build_data(
        "sf",
        corpus,
        options={"projection": 5, "lstm_layers": 1, "lstm_hidden": 3, "specaug": False},
    )
    shapes = {name: tuple(value.shape) for name, value in data.head(4).state_dict().items()}
    assert shapes["projector.weight"] == (5, 4)
    assert shapes["output.weight"][1] == 6
    assert data.augment is None
    assert build_data("sf", corpus).augment is spec_augment
    assert build_data("pr", corpus).augment is None
    pooled = build_data("sid", corpus, options={"projection": 9}).head(4)
    assert isinstance(pooled, PooledHead) and pooled.projector.weight.shape == (9, 4)
