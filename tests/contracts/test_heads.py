"""Tests that every registered head has to pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from speechft_ray.commands.checks import check_names
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.metrics import METRICS
from speechft_ray.core.space import parse_space
from speechft_ray.core.units import frame_count
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.heads.base import HEADS, IGNORED, HeadKind, check_head_options
from speechft_ray.speech.text import Vocabulary

KINDS = [pytest.param(kind, id=name) for name, kind in HEADS.items()]
DIM = 32


def _utterances() -> list[Utterance]:
    return [
        Utterance(
            key=key,
            split="train",
            samples=samples,
            labels={"phones": f"{first} {second}"},
            alignment=aligned,
        )
        for key, samples, first, second, aligned in [
            ("long", 4000, "a", "b", ((0, "a"), (2000, "b"))),
            ("short", 2700, "b", "a", ((0, "b"), (1000, "a"))),
        ]
    ]


def _targets(kind: HeadKind) -> tuple[Vocabulary, list[torch.Tensor]]:
    options, items = kind.options(), _utterances()
    if kind.read_tokens is None or kind.make_targets is None:
        return Vocabulary.of("abc", kind.reserved), [_draw_labels(kind, item) for item in items]
    vocabulary = Vocabulary.of(
        (token for item in items for token in kind.read_tokens(options, item, "phones")),
        kind.reserved,
    )
    return vocabulary, [kind.make_targets(options, item, "phones", vocabulary) for item in items]


def _draw_labels(kind: HeadKind, utterance: Utterance) -> torch.Tensor:
    """Returns targets of a head with masking: labels at masked frames, ``IGNORED`` elsewhere."""
    assert kind.masking is not None
    frames = frame_count(utterance.samples)
    masked = kind.masking.draw_mask(kind.options(), frames, np.random.default_rng(0))
    assert masked.shape == (frames,) and masked.dtype == bool and masked.any()
    return torch.where(torch.from_numpy(masked), torch.arange(frames) % 3, IGNORED)


def _features() -> tuple[torch.Tensor, torch.Tensor]:
    frames = torch.tensor([frame_count(item.samples) for item in _utterances()])
    torch.manual_seed(1)
    return torch.randn(2, int(frames.max()), DIM), frames


def _head(kind: HeadKind, vocabulary: Vocabulary) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind.build(kind.options(), DIM, vocabulary.size)


@pytest.mark.parametrize("kind", KINDS)
def test_its_metric_is_in_the_table(kind: HeadKind) -> None:
    assert METRICS[kind.metric].task == "finetune" and METRICS[kind.metric].unit == "percent"


@pytest.mark.parametrize("kind", KINDS)
def test_its_options_are_frozen_have_defaults_and_refuse_unknown_fields(kind: HeadKind) -> None:
    assert kind.options() == kind.options()
    with pytest.raises(ValidationError):
        kind.options.model_validate({"nonsense": 1})


def test_wrong_options_and_names_raise() -> None:
    for name in HEADS.names():
        with pytest.raises(SpecError, match="nonsense"):
            check_head_options(name, {"nonsense": 1})
    with pytest.raises(UserError, match=r"unknown head `poled`\. Did you mean `pooled`"):
        check_head_options("poled", {})
    with pytest.raises(SpecError) as error:
        check_head_options("ctc", {"dropot": 0.1, "lstm_layers": -1})
    allowed = "dropout, lstm_hidden, lstm_layers, projection, specaug, unit"
    assert dict(error.value.mistakes) == {
        "dropot": f"unknown field `dropot`. Did you mean `dropout`? Allowed: {allowed}.",
        "lstm_layers": "must be at least 0, but is -1 instead.",
    }


def test_a_search_space_with_a_wrong_head_or_option_names_its_path() -> None:
    parts = {"part": "phones", "speakers": 2, "train": 40, "dev": 4, "test": 4}
    corpus = {"name": "synthetic", "options": parts}
    objectives = [
        {"head": "masked", "corpus": corpus, "options": {"mask_lenght": 5}},
        {"head": "cct", "corpus": corpus, "column": "phones", "options": {"dropout": 2}},
    ]
    space = {
        "name": "heads",
        "finetune": [{"name": "run", "objectives": objectives, "updates": 1}],
        "merge": [{"method": "linear"}],
        "evaluate": [{"task": "pr", "corpus": corpus, "updates": 1}],
    }
    with pytest.raises(SpecError) as error:
        check_names(parse_space(space, "the space"))
    mistakes = dict(error.value.mistakes)
    path = "finetune[0].objectives"
    assert sorted(mistakes) == [f"{path}[0].options.mask_lenght", f"{path}[1].head"]
    assert "Did you mean `mask_length`?" in mistakes[f"{path}[0].options.mask_lenght"]
    assert "Did you mean `ctc`?" in mistakes[f"{path}[1].head"]


@pytest.mark.parametrize("kind", KINDS)
def test_its_version_is_positive(kind: HeadKind) -> None:
    assert type(kind.version) is int and kind.version >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_ids_of_its_vocabulary(kind: HeadKind) -> None:
    vocabulary, targets = _targets(kind)
    for target in targets:
        assert target.dtype == torch.int64 and target.dim() == 1
        labelled = target[target >= 0]
        assert (
            len(labelled)
            and int(labelled.min()) >= kind.reserved
            and int(labelled.max()) < vocabulary.size
        )
        assert kind.loss_weight(target) >= 1 and kind.min_frames(target) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_affect_valid_frames(kind: HeadKind) -> None:
    """Loss and count of a batch are those of its utterances alone, each weighted by its units."""
    vocabulary, targets = _targets(kind)
    head, (features, frames) = _head(kind, vocabulary).eval(), _features()
    features[1, int(frames[1]) :] = 1e4
    logits = head(features, frames)
    losses, counted, total = 0.0, 0, 0
    for row, target in enumerate(targets):
        length = frames[row : row + 1]
        alone = head(features[row : row + 1, : int(length)], length)
        losses += kind.loss_weight(target) * kind.loss(alone, length, [target]).item()
        tally = kind.tally(alone, length, [target])
        counted, total = counted + tally.counted, total + tally.total
    units = sum(kind.loss_weight(target) for target in targets)
    assert kind.loss(logits, frames, targets).item() == pytest.approx(losses / units, rel=1e-5)
    assert kind.tally(logits, frames, targets) == (counted, total)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_its_targets(kind: HeadKind) -> None:
    """On separable noise, 150 updates reduce the loss and bring the metric to its best value."""
    vocabulary, targets = _targets(kind)
    head, (features, frames) = _head(kind, vocabulary), _features()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = kind.loss(head(features, frames), frames, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(value.grad is not None for value in head.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    tally = kind.tally(head.eval()(features, frames), frames, targets)
    assert tally.counted == (tally.total if METRICS[kind.metric].higher_is_better else 0)
