"""The losses of 20 updates equal those of a plain PyTorch loop over s3prl's own HuBERT.

Both start from the same weights. The loop uses the fine-tuning package only for the utterances and
masks of each update. Model and heads are s3prl's own classes; s3prl reads the checkpoint itself.
Phases, schedule, clipping and losses are implemented again below; the optimizer is torch's. In our
training padding reaches no frame, but in s3prl it does: the loop therefore encodes one utterance at
a time and adds up the losses. There is no dropout, so no random numbers differ. Both sides compute
in float32; the largest difference seen is 3e-7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.core.units import frame_count
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS, AudioCache, BatchSampler
from speechft_ray.finetuning.data import load_objective
from speechft_ray.finetuning.features import FeatureLoader, cache_conv_features
from speechft_ray.finetuning.pseudo_labels import with_pseudo_labels
from speechft_ray.finetuning.seeding import Stream, make_generator
from speechft_ray.finetuning.train_state import TrainState, build_train_state
from speechft_ray.finetuning.trainer import Trainer
from speechft_ray.speech.checkpoints import s3prl
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.encoders.hubert import init_weights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.heads.masked import MaskedOptions, draw_mask
from tests.finetuning.toy_models import corpus, objective, spec
from tests.speech.toy_models import add_noise, toy_config

pytest.importorskip("s3prl")

from s3prl.upstream.hubert import hubert_model

from benchmarks.s3prl_peer import Encoding, expert_module

UPDATES, HEAD_ONLY, PEAK, CLIP, BATCH, DIM = 20, 2, 1e-3, 0.5, 6, 16
RATES = [0.0, 0.5, *[1.0] * 9, *(share / 10 for share in range(9, 0, -1))]
"""Shares of the peak: 2 updates of rise, 8 flat, 10 of fall."""
TOLERANCE = 1e-5
MASKS = {"mask_length": 2, "mask_prob": 0.5}
"""Short spans for the short utterances of the toy corpus."""

Loss = tuple[torch.Tensor, int]
"""Sum and count of a loss: the loss of a batch is the sum of sums over the sum of counts."""


def start_weights() -> EncoderWeights:
    """Returns a post-norm HuBERT with GroupNorm, like Base, without dropout, with noise added."""
    model = toy_config(layer_norm_first=False, dropout=0.0, attention_dropout=0.0)
    return add_noise(init_weights({**model, "dictionaries_symbols": [[*"abcdefgh"]]}, 0))


def voices() -> Corpus:
    return corpus({"train": 20, "dev": 2})


def plan(head: str, **changes: Any) -> FinetuneSpec:
    defaults = {"updates": UPDATES, "peak_learning_rate": PEAK, "clip_norm": CLIP, "seed": 3}
    more = {"column": None, "options": MASKS} if head == "masked" else {}
    return spec(objective(head, batch_size=BATCH, **more), **{**defaults, **changes})


def build_trainer(
    chosen: FinetuneSpec, content: Corpus, start: EncoderWeights, folder: Path, cached: bool = True
) -> tuple[TrainState, Trainer]:
    objectives = [load_objective(chosen.objectives[0], content, start)]
    state = build_train_state(chosen, start, objectives, torch.device("cpu"))
    audio_caches = [AudioCache(content, 2**20)]
    loader = FeatureLoader(
        encoder=state.encoder, device=state.device, freeze_front_end=True, audio_caches=audio_caches
    )
    if cached:
        cache_conv_features(
            loader, start, objectives, FeatureCache(folder, 2**24), chosen, lambda _: None
        )
        assert len(loader.cached_rows) == len(content.utterances)
    objectives = with_pseudo_labels(objectives, loader, folder, "this", lambda _: None)
    state.train(True)
    return state, Trainer(chosen, objectives, loader, MICRO_BATCH_SECONDS)


def batch_of(chosen: FinetuneSpec, content: Corpus, update: int) -> list[Utterance]:
    train = content.split("train")
    places = BatchSampler([item.samples for item in train], BATCH, chosen.seed, 0).batch(update)
    return [train[place] for place in places]


def masks(chosen: FinetuneSpec, update: int, utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """Returns the masks that training draws for an update."""
    rng = make_generator(chosen.seed, Stream.MASK, 0, update)
    options = MaskedOptions.model_validate(MASKS)
    return [draw_mask(options, frame_count(item.samples), rng) for item in utterances]


# --- The plain loop -----------------------------------------------------------------------


class Pooled(nn.Module):
    """Projector and utterance head of ``downstream/voxceleb1/expert.py``."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.projector = nn.Linear(dim, 256)
        self.model = expert_module("model").UtteranceLevel(
            256, classes, post_net={"select": "FrameLevel"}
        )
        self.output = self.model.post_net.linear

    def loss(self, state: torch.Tensor, utterance: Utterance, hidden: np.ndarray) -> Loss:
        logits, _ = self.model(self.projector(state), torch.tensor([state.shape[1]]))
        return functional.cross_entropy(
            logits, torch.tensor([int(utterance.labels["tone"][1:])])
        ), 1


class Phones(nn.Module):
    """Projector and linear map of ``downstream/ctc/expert.py`` for LibriSpeech's phones."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.projector = nn.Linear(dim, 256)
        self.model = expert_module("model").FrameLevel(256, classes)
        self.output = self.model.linear

    def loss(self, state: torch.Tensor, utterance: Utterance, hidden: np.ndarray) -> Loss:
        logits, _ = self.model(self.projector(state))
        phones = torch.tensor([1 + int(phone[1:]) for phone in utterance.labels["phones"].split()])
        log_probs, frames = logits.log_softmax(-1)[0], torch.tensor([logits.shape[1]])
        return functional.ctc_loss(
            log_probs, phones, frames, torch.tensor([len(phones)]), reduction="sum"
        ) / len(phones), 1


class CodePredictor(nn.Module):
    """A linear map that predicts the most similar row of the code book at masked frames."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(dim, classes)
        self.labels: Mapping[str, torch.Tensor] = {}

    @torch.no_grad()
    def compute_labels(self, expert: Any, content: Corpus) -> None:
        """Computes the start encoder's label of every frame, from whole unmasked utterances."""
        model = expert.eval().model
        for utterance in content.split("train"):
            projected = model.final_proj(
                expert([torch.from_numpy(content.read(utterance))])["last_hidden_state"][0]
            )
            alike = torch.cosine_similarity(
                projected[:, None], model.label_embs_concat[None], dim=-1
            )
            self.labels = {**self.labels, utterance.key: alike.argmax(dim=-1)}

    def loss(self, state: torch.Tensor, utterance: Utterance, hidden: np.ndarray) -> Loss:
        logits, labels = self.output(state[0, hidden]), self.labels[utterance.key][hidden]
        return functional.cross_entropy(logits, labels, reduction="sum"), int(hidden.sum())


HEADS = {"pooled": Pooled, "ctc": Phones, "masked": CodePredictor}
FROZEN_PREFIXES = ("feature_extractor.", "final_proj.", "label_embs_concat")
"""Front end, projection and code book. The mask embedding gets a gradient in masked prediction
alone."""


class PlainLoop:
    """Trains s3prl's expert and heads update by update; ``penalty``: lambda of L2-SP."""

    def __init__(
        self,
        start: EncoderWeights,
        head: Any,
        folder: Path,
        head_only: int = HEAD_ONLY,
        penalty: float = 0.0,
    ) -> None:
        s3prl.write(folder / "start.pt", start, {})
        self.expert = Encoding(folder / "start.pt").expert.train()
        self.head, self.head_only, self.penalty = head, head_only, penalty
        named = self.expert.model.named_parameters()
        self.encoder = {
            name: value for name, value in named if not name.startswith(FROZEN_PREFIXES)
        }
        self.expert.model.requires_grad_(False)
        self.start = {name: value.detach().clone() for name, value in self.encoder.items()}
        self.optimizer = torch.optim.Adam([*self.encoder.values(), *head.parameters()], lr=PEAK)

    def last_state(self, wave: torch.Tensor, hidden: np.ndarray) -> torch.Tensor:
        """Returns the last hidden state of s3prl, with this mask in masked prediction."""
        state: torch.Tensor
        if not isinstance(self.head, CodePredictor):
            state = self.expert([wave])["last_hidden_state"]
            return state
        padding = torch.zeros(1, len(wave), dtype=torch.bool)
        with patch.object(hubert_model, "compute_mask_indices", lambda *_, **__: hidden[None]):
            state, _ = self.expert.model.extract_features(
                wave[None], padding_mask=padding, mask=True
            )
            return state

    def gradients(
        self,
        update: int,
        waves: Sequence[torch.Tensor],
        utterances: Sequence[Utterance],
        hidden: Sequence[np.ndarray],
    ) -> float:
        """Computes the gradients of the batch, unclipped, and returns the loss."""
        self.optimizer.zero_grad()
        for value in self.encoder.values():
            value.requires_grad_(update >= self.head_only)
        states = [self.last_state(*pair) for pair in zip(waves, hidden, strict=True)]
        sums, counts = zip(
            *(self.head.loss(*triple) for triple in zip(states, utterances, hidden, strict=True)),
            strict=True,
        )
        loss = torch.stack(sums).sum() / sum(counts)
        if update >= self.head_only and self.penalty:
            loss = loss + self.penalty * sum(
                ((value - self.start[name]) ** 2).sum() for name, value in self.encoder.items()
            )
        loss.backward()
        return float(loss.detach())

    def step(self, update: int) -> None:
        """Clips the gradients and applies the update."""
        gradients = [
            value.grad
            for group in self.optimizer.param_groups
            for value in group["params"]
            if value.grad is not None
        ]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        for gradient in gradients:
            gradient.mul_(min(1.0, CLIP / norm))
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK * RATES[update]
        self.optimizer.step()


def copy_head(kind: str, state: TrainState) -> nn.Module:
    """Returns s3prl's head with the weights of ours."""
    (head,) = state.heads
    ours: Any = head
    theirs = HEADS[kind](DIM, ours.output.out_features)
    for name in ("projector", "output"):
        if hasattr(ours, name):
            getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
    return theirs


def losses(
    kind: str, folder: Path, cached: bool = True, **changes: Any
) -> list[tuple[float, float]]:
    """Returns the losses of all updates, of our trainer and of the plain loop."""
    chosen, content, start = plan(kind), voices(), start_weights()
    state, trainer = build_trainer(chosen, content, start, folder, cached)
    loop = PlainLoop(start, copy_head(kind, state), folder, **changes)
    if isinstance(loop.head, CodePredictor):
        loop.head.compute_labels(loop.expert, content)
        loop.expert.train()
        assert len(set(torch.cat(list(loop.head.labels.values())).tolist())) > 2
    pairs = []
    for update in range(UPDATES):
        utterances = batch_of(chosen, content, update)
        waves = [torch.from_numpy(content.read(item)) for item in utterances]
        theirs = loop.gradients(update, waves, utterances, masks(chosen, update, utterances))
        loop.step(update)
        pairs.append((trainer.train_step(state, update).loss, theirs))
    trainer.close()
    return pairs


@torch.no_grad()
def copy_weights(loop: PlainLoop, state: TrainState) -> None:
    """Copies the current weights of our trainer to the plain loop."""
    for name, value in loop.encoder.items():
        value.copy_(state.parameters.get(name, loop.start[name]))
        value.requires_grad_(False)
    loop.head.load_state_dict(copy_head("pooled", state).state_dict())


def difference(pair: tuple[float, float]) -> float:
    return abs(pair[0] - pair[1]) / pair[1]


@pytest.mark.parametrize(("kind", "cached"), [("pooled", True), ("ctc", False), ("masked", True)])
def test_20_updates_have_the_losses_of_a_plain_loop_over_s3prl(
    kind: str, cached: bool, tmp_path: Path
) -> None:
    pairs = losses(kind, tmp_path, cached)
    assert max(map(difference, pairs)) < TOLERANCE
    assert abs(pairs[-1][0] - pairs[0][0]) > 0.1 * pairs[0][0]  # the loss changes


def test_another_head_phase_would_be_seen(tmp_path: Path) -> None:
    pairs = losses("pooled", tmp_path, head_only=HEAD_ONLY - 1)
    assert (
        max(map(difference, pairs[:HEAD_ONLY]))
        < TOLERANCE
        < max(map(difference, pairs[HEAD_ONLY:]))
    )


def test_an_update_follows_the_gradient_of_loss_and_penalty(tmp_path: Path) -> None:
    """At the weights before each update, autograd of the plain loss plus lambda * sum (theta -
    theta0)^2 gives the same gradient."""
    strength = 3.0
    chosen, content, start = (
        plan("pooled", anchor_penalty=strength, clip_norm=1e9),
        voices(),
        start_weights(),
    )
    state, trainer = build_trainer(chosen, content, start, tmp_path)
    loop = PlainLoop(start, copy_head("pooled", state), tmp_path, penalty=strength)
    for update in range(HEAD_ONLY + 3):
        copy_weights(loop, state)
        pull = max(
            float((2 * strength * (value - loop.start[name])).abs().max())
            for name, value in loop.encoder.items()
        )
        utterances = batch_of(chosen, content, update)
        waves = [torch.from_numpy(content.read(item)) for item in utterances]
        loop.gradients(update, waves, utterances, masks(chosen, update, utterances))
        trainer.train_step(state, update)
        trainable_names = {
            name: value for name, value in state.parameters.items() if value.grad is not None
        }
        assert bool(trainable_names) == (update >= HEAD_ONLY) and (pull > 1e-3) == (
            update > HEAD_ONLY
        )
        for name, value in trainable_names.items():
            torch.testing.assert_close(value.grad, loop.encoder[name].grad, rtol=1e-4, atol=1e-6)
    trainer.close()
