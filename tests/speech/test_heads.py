"""Heads, losses, counts, the weighted sum and vocabularies, against references that share no code
with them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.heads import ctc, frame, pooled
from speechft_ray.speech.heads.base import HeadOptions
from speechft_ray.speech.heads.ctc import (
    CtcHead,
    CtcOptions,
    ctc_loss,
    greedy_decode,
    min_frames,
    run_bidirectional,
)
from speechft_ray.speech.heads.featurizer import Featurizer, layer_normalize
from speechft_ray.speech.heads.frame import FrameHead, frame_labels
from speechft_ray.speech.heads.pooled import PooledHead, mean_over_frames
from speechft_ray.speech.text import Unit, Vocabulary, edit_distance, tokenize
from tests.superb.textbook import textbook_edits


def _double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def test_the_featurizer_is_a_softmax_weighted_sum_of_normalised_states() -> None:
    states = _double(3, 2, 5, 4)
    featurizer = Featurizer(3).double()
    with torch.no_grad():
        featurizer.weights.copy_(torch.tensor([0.0, 1.0, -2.0]))
    values = states.numpy()
    centred = values - values.mean(axis=-1, keepdims=True)
    layers = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    shares = np.exp([0.0, 1.0, -2.0]) / np.exp([0.0, 1.0, -2.0]).sum()
    expected = sum(share * layer for share, layer in zip(shares, layers, strict=True))
    np.testing.assert_allclose(
        featurizer(states).detach().numpy(), expected, rtol=1e-12, atol=1e-12
    )


def test_the_featurizer_starts_as_the_plain_average_and_learns_its_weights() -> None:
    featurizer = Featurizer(4, normalize=False).double()
    states = _double(4, 2, 3, 5)
    np.testing.assert_allclose(
        featurizer(states).detach().numpy(), states.numpy().mean(axis=0), rtol=1e-12
    )
    featurizer(states).square().sum().backward()
    gradient = featurizer.weights.grad
    assert [name for name, _ in featurizer.named_parameters()] == ["weights"]
    assert gradient is not None and bool((gradient != 0).all())


@pytest.mark.parametrize("normalize", [True, False])
def test_means_of_normalised_states_give_the_means_of_the_frames(normalize: bool) -> None:
    featurizer = Featurizer(3, normalize).double()
    torch.nn.init.normal_(featurizer.weights)
    states, frames = _double(3, 2, 6, 4), torch.tensor([6, 4])
    ready = layer_normalize(states) if normalize else states
    # (batch, layers, dim)
    means = torch.stack([mean_over_frames(layer, frames) for layer in ready], dim=1)
    torch.testing.assert_close(featurizer(means), mean_over_frames(featurizer(states), frames))


def test_pooled_is_linear_mean_linear_over_valid_frames() -> None:
    head = PooledHead(4, 3, projection=5).double()
    features, frames = _double(2, 6, 4), torch.tensor([6, 2])
    logits = head(features, frames)
    first, second = head.projector, head.output
    for row, length in enumerate([6, 2]):
        projected = (
            features[row, :length].numpy() @ first.weight.detach().numpy().T
            + first.bias.detach().numpy()
        )
        expected = (
            projected.mean(axis=0) @ second.weight.detach().numpy().T + second.bias.detach().numpy()
        )
        np.testing.assert_allclose(logits[row].detach().numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(head(mean_over_frames(features, frames)), logits)


def test_pooled_ignores_padding_even_when_it_is_not_a_number() -> None:
    features = _double(1, 4, 3)
    features[0, 2:] = math.nan
    assert bool(torch.isfinite(mean_over_frames(features, torch.tensor([2]))).all())


def test_sizes_are_those_of_s3prl() -> None:
    """libriphone: 768 -> 256 -> 74. asr: 768 -> 1024, two bidirectional LSTM of 1024, 2048 -> 32.
    emotion: 768 -> 256 -> 4."""

    def shapes(head: nn.Module) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(value.shape) for name, value in head.named_parameters() if "weight" in name
        }

    with torch.device("meta"):
        assert shapes(CtcHead(768, 74)) == {
            "projector.weight": (256, 768),
            "output.weight": (74, 256),
        }
        assert shapes(PooledHead(768, 4)) == {
            "projector.weight": (256, 768),
            "output.weight": (4, 256),
        }
        assert shapes(FrameHead(768, 39)) == {"output.weight": (39, 768)}
        asr = shapes(CtcHead(768, 32, projection=1024, lstm_layers=2))
    assert asr["projector.weight"] == (1024, 768) and asr["output.weight"] == (32, 2048)
    assert [asr[f"layers.{layer}.weight_ih_l0_reverse"] for layer in (0, 1)] == [
        (4096, 1024),
        (4096, 2048),
    ]
    assert shapes(CtcHead(8, 3, projection=None)) == {"output.weight": (3, 8)}


def test_lstm_dropout_follows_the_last_layer_too() -> None:
    head = CtcHead(4, 3, projection=None, lstm_layers=1, lstm_hidden=6, dropout=0.5)
    features, frames = _double(1, 5, 4).float(), torch.tensor([5])
    torch.manual_seed(0)
    assert not torch.equal(head(features, frames), head(features, frames))
    head.eval()
    assert torch.equal(head(features, frames), head(features, frames))


def test_a_bidirectional_layer_is_torchs_own_on_each_utterance_alone() -> None:
    layer = nn.LSTM(4, 6, batch_first=True, bidirectional=True).double()
    features, frames = _double(3, 7, 4), torch.tensor([5, 7, 1])
    output = run_bidirectional(layer, features, frames)
    for row, length in enumerate(frames.tolist()):
        torch.testing.assert_close(
            output[row, :length], layer(features[row : row + 1, :length])[0][0]
        )
    output[0, :5].square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = [value.grad for value in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    layer(features[:1, :5])[0].square().sum().backward()
    for gradient, value in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, value.grad)


def _ctc_by_enumeration(probabilities: np.ndarray, target: list[int]) -> float:
    """Minus log of the sum over every path that reads as the target."""
    total = 0.0
    for path in itertools.product(range(probabilities.shape[1]), repeat=len(probabilities)):
        if [symbol for symbol, _ in itertools.groupby(path) if symbol] == target:
            total += math.prod(probabilities[time, symbol] for time, symbol in enumerate(path))
    return -math.log(total)


def test_ctc_loss_divides_each_utterance_by_its_target_then_averages() -> None:
    logits, frames, targets = (
        _double(2, 5, 3),
        torch.tensor([5, 4]),
        [torch.tensor([1, 2, 2]), torch.tensor([2])],
    )
    losses = []
    for row, length, target in zip(logits, [5, 4], targets, strict=True):
        probabilities = torch.softmax(row[:length], dim=-1).numpy()
        losses.append(_ctc_by_enumeration(probabilities, target.tolist()) / len(target))
    assert ctc_loss(logits, frames, targets).item() == pytest.approx(sum(losses) / 2, rel=1e-9)


def test_ctc_loss_of_an_impossible_target_is_zero() -> None:
    logits = _double(1, 3, 3).requires_grad_()
    loss = ctc_loss(logits, torch.tensor([3]), [torch.tensor([1, 1, 1])])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize(
    ("target", "needed"), [([], 0), ([1], 1), ([1, 2, 1], 3), ([1, 1], 3), ([2, 2, 2, 1], 6)]
)
def test_frames_needed_is_the_shortest_path(target: list[int], needed: int) -> None:
    assert min_frames(torch.tensor(target, dtype=torch.long)) == needed
    paths = (
        list(path)
        for length in range(needed + 1)
        for path in itertools.product(range(3), repeat=length)
    )
    shortest = next(
        path
        for path in paths
        if [symbol for symbol, _ in itertools.groupby(path) if symbol] == target
    )
    assert len(shortest) == needed


def test_greedy_decoding_merges_repeats_and_drops_blanks_and_padding() -> None:
    paths = torch.tensor([[1, 1, 0, 1, 2, 2, 0], [0, 0, 2, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
    logits = nn.functional.one_hot(paths, 3).float()
    assert greedy_decode(logits, torch.tensor([7, 4, 7])) == [[1, 1, 2], [2, 1], []]
    assert greedy_decode(logits, torch.tensor([7, 4, 7]), blank=1) == [[0, 2, 0], [0, 2], [0]]


def test_edit_distance_agrees_with_jiwer() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        left, right = (draw.integers(0, 4, draw.integers(1, 9)).tolist() for _ in range(2))
        counts = jiwer.process_words(" ".join(map(str, left)), " ".join(map(str, right)))
        assert (
            edit_distance(left, right)
            == counts.substitutions + counts.insertions + counts.deletions
        )
    assert edit_distance([], [1, 2]) == edit_distance([1, 2], []) == 2


@pytest.mark.parametrize("symbols", [1, 2, 5, 1000])
def test_edit_distance_is_that_of_the_dynamic_programme(symbols: int) -> None:
    """Also of sequences beyond 64 tokens, the width of a machine word."""
    generator = np.random.default_rng(symbols)
    for longest in [*range(8), *[20] * 20, *[150] * 3]:
        left, right = (
            generator.integers(0, symbols, generator.integers(0, longest + 1)).tolist()
            for _ in range(2)
        )
        assert edit_distance(left, right) == textbook_edits(left, right)


def test_token_errors_count_against_all_target_tokens() -> None:
    logits = nn.functional.one_hot(torch.tensor([[1, 2, 0, 0], [1, 0, 1, 2]]), 3).float()
    tally = ctc.count_token_errors(
        logits, torch.tensor([4, 3]), [torch.tensor([1, 2, 2]), torch.tensor([2])]
    )
    assert tally == (1 + 2, 4)


def test_frame_labels_are_those_at_frame_centres() -> None:
    """Frame i is centred on sample 320 i + 200: the centres of 1360 samples are 200, 520, 840 and
    1160."""
    assert frame_labels([(0, "a"), (520, "b"), (841, "c")], 1360) == ["a", "b", "b", "c"]
    assert frame_labels([(300, "a")], 1360) == [None, "a", "a", "a"]
    assert frame_labels([(0, "a")], 399) == []
    assert frame_labels([(0, "a"), (520, ""), (841, "c")], 1360) == ["a", None, None, "c"]


def test_frame_targets_without_a_label_are_ignored() -> None:
    utterance = Utterance(
        key="u",
        split="train",
        samples=1360,
        labels={"phones": "a b"},
        alignment=((300, "a"), (900, "b")),
    )
    vocabulary = Vocabulary.of(["a", "b"], reserved=0)
    assert frame.make_targets(frame.FrameOptions(), utterance, "phones", vocabulary).tolist() == [
        -100,
        0,
        0,
        1,
    ]
    unlabelled = replace(utterance, alignment=((0, "a"), (500, ""), (900, "b")))
    assert frame.read_tokens(frame.FrameOptions(), unlabelled, "phones") == ["a", "b"]
    assert frame.make_targets(frame.FrameOptions(), unlabelled, "phones", vocabulary).tolist() == [
        0,
        -100,
        -100,
        1,
    ]


def test_frame_loss_is_the_mean_over_labelled_frames() -> None:
    logits, frames = _double(2, 4, 3), torch.tensor([4, 2])
    targets = [
        torch.tensor([0, -100, 2, 1, 1]),
        torch.tensor([1]),
    ]  # one longer than the frames, one shorter
    by_hand = []
    for row, time, label in [(0, 0, 0), (0, 2, 2), (0, 3, 1), (1, 0, 1)]:
        by_hand.append(-math.log(torch.softmax(logits[row, time], dim=0)[label]))
    assert frame.cross_entropy(logits, frames, targets).item() == pytest.approx(
        sum(by_hand) / 4, rel=1e-12
    )
    assert frame.count_correct(logits, frames, targets).total == 4


def test_frame_loss_without_any_label_is_zero_with_a_gradient() -> None:
    logits = _double(1, 2, 3).requires_grad_()
    loss = frame.cross_entropy(logits, torch.tensor([2]), [torch.tensor([-100, -100])])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_correct_predictions_of_the_pooled_head_are_counted_by_utterance() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert pooled.count_correct(
        logits, torch.ones(3), [torch.tensor([label]) for label in (1, 1, 1)]
    ) == (2, 3)


def test_vocabularies_are_sorted_and_go_both_ways() -> None:
    vocabulary = Vocabulary.of(["b", "a", "c", "a"])
    assert vocabulary.symbols == ("a", "b", "c") and vocabulary.size == 4
    assert vocabulary.encode(["c", "a"]) == [3, 1]
    assert vocabulary.decode([0, 3, 0, 1]) == ["c", "a"]
    assert Vocabulary.of(["x", "y"], reserved=0).encode(["x", "y"]) == [0, 1]


def test_an_unknown_label_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"the label `z` .* has 6 labels \(a, b, c, d, e, \.\.\.\)"):
        Vocabulary.of("abcdef").encode(["a", "z"])


@pytest.mark.parametrize(
    ("label", "unit", "tokens"),
    [
        ("  AH  T ", "words", ["AH", "T"]),
        (" A  BC", "characters", ["A", " ", "B", "C"]),
        ("你 好", "characters", ["你", " ", "好"]),
    ],
)
def test_labels_are_split_into_tokens(label: str, unit: Unit, tokens: list[str]) -> None:
    assert tokenize(label, unit) == tokens
    assert tokenize((" " if unit == "words" else "").join(tokens), unit) == tokens


@pytest.mark.parametrize(
    ("part", "options"), [(ctc, CtcOptions()), (pooled, pooled.PooledOptions())]
)
def test_an_empty_label_names_its_utterance(part: Any, options: HeadOptions) -> None:
    utterance = Utterance(key="u-7", split="train", samples=1360, labels={"text": " "})
    with pytest.raises(
        UserError, match=r"`u-7` has no label in the column `text`: add one, or leave"
    ):
        part.read_tokens(options, utterance, "text")


def test_a_frame_head_needs_an_alignment() -> None:
    utterance = Utterance(key="u-7", split="train", samples=1360, labels={"text": "a"})
    with pytest.raises(UserError, match="`u-7` has no alignment"):
        frame.read_tokens(frame.FrameOptions(), utterance, "text")
