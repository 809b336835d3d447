"""20 updates of our training beside a plain PyTorch loop over s3prl's own HuBERT, from the same weights: the losses agree.

The loop takes from the fine-tuning room only which utterances an update hears. Model and heads are s3prl's own classes, s3prl
reads the checkpoint itself; phases, schedule, clipping and losses are written anew below, the optimiser is torch's. Ours lets
padding reach no frame, in s3prl it would: the loop therefore hears one utterance after the other and adds up what the loss
defines. No dropout, so that no draw differs. Both sides compute in float32, whose noise does not grow here: the largest
difference seen is 2e-7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.batches import PART_SECONDS, BatchOrder, Recordings
from speechft_ray.finetuning.learner import Learner, Teacher, build_learner
from speechft_ray.finetuning.lessons import prepare
from speechft_ray.finetuning.listening import Listener, keep_fronts
from speechft_ray.speech.checkpoints import s3prl
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from tests.finetuning.toys import corpus, objective, spec
from tests.speech.toys import lively, toy_hubert

pytest.importorskip("s3prl")

from benchmarks.s3prl_peer import Encoding, expert_module

UPDATES, HEAD_ONLY, PEAK, CLIP, BATCH = 20, 2, 1e-3, 0.5, 6
RATES = [0.0, 0.5, *[1.0] * 9, *(share / 10 for share in range(9, 0, -1))]
"""Shares of the peak: 2 updates of rise, 8 flat, 10 of fall."""
TOLERANCE = 1e-5

Loss = Callable[[nn.Module, torch.Tensor, Utterance], torch.Tensor]
"""Loss of one utterance from the last hidden state, ``(1, frames, dim)``."""


def start_weights() -> EncoderWeights:
    """A post-norm HuBERT with a GroupNorm over time, like Base, without dropout, every parameter moved off its start."""
    return lively(toy_hubert(layer_norm_first=False, dropout=0.0, attention_dropout=0.0))


def voices() -> Corpus:
    return corpus({"train": 20, "dev": 2})


def plan(head: str, **changes: Any) -> FinetuneSpec:
    given = {"updates": UPDATES, "peak_learning_rate": PEAK, "clip_norm": CLIP, "seed": 3}
    return spec(objective(head, batch_size=BATCH), **{**given, **changes})


def ours(
    chosen: FinetuneSpec, content: Corpus, start: EncoderWeights, folder: Path, cached: bool = True
) -> tuple[Learner, Teacher]:
    lessons = [prepare(chosen.objectives[0], content)]
    learner = build_learner(chosen, start, lessons, torch.device("cpu"))
    learner.train(True)
    recordings = [Recordings(content, 2**20)]
    listener = Listener(encoder=learner.encoder, device=learner.device, frozen=True, recordings=recordings)
    if cached:
        keep_fronts(listener, start, lessons, FeatureCache(folder, 2**24), chosen, lambda _: None)
        assert len(listener.fronts) == len(content.utterances)
    return learner, Teacher(chosen, lessons, listener, PART_SECONDS)


def order(chosen: FinetuneSpec, content: Corpus, update: int) -> list[Utterance]:
    train = content.split("train")
    places = BatchOrder([item.samples for item in train], BATCH, chosen.seed, 0).batch(update)
    return [train[place] for place in places]


# The plain loop --------------------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Projector and utterance head as ``downstream/voxceleb1/expert.py`` puts them together."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.projector = nn.Linear(dim, 256)
        self.model = expert_module("model").UtteranceLevel(256, classes, post_net={"select": "FrameLevel"})
        self.output = self.model.post_net.linear

    def loss(self, state: torch.Tensor, utterance: Utterance) -> torch.Tensor:
        logits, _ = self.model(self.projector(state), torch.tensor([state.shape[1]]))
        return functional.cross_entropy(logits, torch.tensor([int(utterance.labels["tone"][1:])]))


class Phones(nn.Module):
    """Projector and linear map as ``downstream/ctc/expert.py`` puts them together for LibriSpeech's phones."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.projector = nn.Linear(dim, 256)
        self.model = expert_module("model").FrameLevel(256, classes)
        self.output = self.model.linear

    def loss(self, state: torch.Tensor, utterance: Utterance) -> torch.Tensor:
        logits, _ = self.model(self.projector(state))
        phones = torch.tensor([1 + int(phone[1:]) for phone in utterance.labels["phones"].split()])
        log_probs, frames = logits.log_softmax(-1)[0], [logits.shape[1]]
        return functional.ctc_loss(log_probs, phones, frames, [len(phones)], reduction="sum") / len(phones)


HEADS = {"pooled": Pooled, "ctc": Phones}


class PlainLoop:
    """s3prl's expert and heads, trained update by update; ``penalty``: lambda of the sum of squares."""

    def __init__(
        self, start: EncoderWeights, head: Any, folder: Path, head_only: int = HEAD_ONLY, penalty: float = 0.0
    ) -> None:
        s3prl.write(folder / "start.pt", start, {})
        self.expert = Encoding(folder / "start.pt").expert.train()
        self.head, self.head_only, self.penalty = head, head_only, penalty
        named = self.expert.model.named_parameters()
        self.encoder = {name: value for name, value in named if not name.startswith("feature_extractor")}
        self.start = {name: value.detach().clone() for name, value in self.encoder.items()}
        self.optimizer = torch.optim.Adam([*self.encoder.values(), *head.parameters()], lr=PEAK)

    def gradients(self, update: int, waves: Sequence[torch.Tensor], utterances: Sequence[Utterance]) -> float:
        """Leaves the gradients of the batch where the optimiser looks for them, unclipped; returns the loss."""
        self.optimizer.zero_grad()
        for value in self.encoder.values():
            value.requires_grad_(update >= self.head_only)
        states = [self.expert([wave])["last_hidden_state"] for wave in waves]
        losses = [self.head.loss(state, utterance) for state, utterance in zip(states, utterances, strict=True)]
        loss = torch.stack(losses).mean()
        if update >= self.head_only and self.penalty:
            loss = loss + self.penalty * sum(((value - self.start[name]) ** 2).sum() for name, value in self.encoder.items())
        loss.backward()
        return float(loss.detach())

    def step(self, update: int) -> None:
        """Clips and follows the gradients."""
        gradients = [value.grad for group in self.optimizer.param_groups for value in group["params"] if value.grad is not None]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        for gradient in gradients:
            gradient.mul_(min(1.0, CLIP / norm))
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK * RATES[update]
        self.optimizer.step()


def same_head(kind: str, learner: Learner) -> nn.Module:
    """s3prl's head with the weights that ours begins with."""
    (mine,) = learner.heads
    theirs = HEADS[kind](mine.projector.in_features, mine.output.out_features)
    theirs.projector.load_state_dict(mine.projector.state_dict())
    theirs.output.load_state_dict(mine.output.state_dict())
    return theirs


def losses(kind: str, folder: Path, cached: bool = True, **changes: Any) -> list[tuple[float, float]]:
    """Returns the losses of all updates, ours and those of the plain loop."""
    chosen, content, start = plan(kind), voices(), start_weights()
    learner, teacher = ours(chosen, content, start, folder, cached)
    loop = PlainLoop(start, same_head(kind, learner), folder, **changes)
    found = []
    for update in range(UPDATES):
        utterances = order(chosen, content, update)
        waves = [torch.from_numpy(content.read(item)) for item in utterances]
        theirs = loop.gradients(update, waves, utterances)
        loop.step(update)
        found.append((teacher.update(learner, update).loss, theirs))
    teacher.close()
    return found


@torch.no_grad()
def set_to(loop: PlainLoop, learner: Learner) -> None:
    """Gives the plain loop the weights that ours has now."""
    for name, value in loop.encoder.items():
        value.copy_(learner.parameters.get(name, loop.start[name]))
        value.requires_grad_(False)
    loop.head.load_state_dict(same_head("pooled", learner).state_dict())


def difference(pair: tuple[float, float]) -> float:
    return abs(pair[0] - pair[1]) / pair[1]


@pytest.mark.parametrize(("kind", "cached"), [("pooled", True), ("ctc", False)])
def test_20_updates_have_the_losses_of_a_plain_loop_over_s3prl(kind: str, cached: bool, tmp_path: Path) -> None:
    found = losses(kind, tmp_path, cached)
    assert max(map(difference, found)) < TOLERANCE
    assert abs(found[-1][0] - found[0][0]) > 0.1 * found[0][0]  # it learnt something


def test_another_head_phase_would_be_seen(tmp_path: Path) -> None:
    found = losses("pooled", tmp_path, head_only=HEAD_ONLY - 1)
    assert max(map(difference, found[:HEAD_ONLY])) < TOLERANCE < max(map(difference, found[HEAD_ONLY:]))


def test_an_update_follows_the_gradient_of_loss_and_penalty(tmp_path: Path) -> None:
    """Where ours stands before each update, autograd of the plain loss plus lambda * sum (theta - theta0)^2 says the same."""
    strength = 3.0
    chosen, content, start = plan("pooled", anchor_penalty=strength, clip_norm=1e9), voices(), start_weights()
    learner, teacher = ours(chosen, content, start, tmp_path)
    loop = PlainLoop(start, same_head("pooled", learner), tmp_path, penalty=strength)
    for update in range(HEAD_ONLY + 3):
        set_to(loop, learner)
        pull = max(float((2 * strength * (value - loop.start[name])).abs().max()) for name, value in loop.encoder.items())
        utterances = order(chosen, content, update)
        loop.gradients(update, [torch.from_numpy(content.read(item)) for item in utterances], utterances)
        teacher.update(learner, update)
        learning = {name: value for name, value in learner.parameters.items() if value.grad is not None}
        assert bool(learning) == (update >= HEAD_ONLY) and (pull > 1e-3) == (update > HEAD_ONLY)
        for name, value in learning.items():
            torch.testing.assert_close(value.grad, loop.encoder[name].grad, rtol=1e-4, atol=1e-6)
    teacher.close()
