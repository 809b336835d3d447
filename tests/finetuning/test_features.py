"""The front end once, the head-only phase once, the next batch ahead, and a GPU that is too
small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.finetuning import loop
from speechft_ray.finetuning import trainer as trainer_module
from speechft_ray.finetuning.run import FinetuneResult, finetune
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.features.cache import FeatureCache
from tests.finetuning.toy_models import corpus, objective, spec
from tests.speech.toy_models import add_noise, toy_encoder

CPU = torch.device("cpu")
COUNTS = {"train": 8, "dev": 4}
PROBES = COUNTS["dev"]
"""What the diagnostics at the end of a run hear once more: all of this small dev set."""


def _tuned(
    work: Path,
    plan,
    content: Corpus,
    cache: FeatureCache | None = None,
    family: str = "hubert",
    report=None,
) -> FinetuneResult:
    work.mkdir(exist_ok=True)
    return finetune(
        plan,
        add_noise(toy_encoder(family)),
        [content],
        work,
        CPU,
        report or (lambda values: None),
        cache,
    )


def _reading(counts=COUNTS) -> tuple[Corpus, list[str]]:
    """A corpus that remembers who was read."""
    base, read = corpus(counts), []

    def remembering(utterance: Utterance):
        read.append(utterance.key)
        return base.read(utterance)

    return corpus(counts, read=remembering), read


@contextmanager
def _fronts_counted(family: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the waveforms that go through a front end, in every encoder that is built
    meanwhile."""
    seen: list[int] = []
    kind = type(FAMILIES.get(family).build(toy_encoder(family)))
    own = kind.conv_features

    def conv_features(self, waves):
        seen.extend(len(wave) for wave in waves)
        return own(self, waves)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "conv_features", conv_features)
        yield seen


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_the_front_end_hears_each_utterance_once(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... in all runs on one corpus together, and learning from what it said then is what it was
    without."""
    plan = spec(objective("ctc"), updates=8, validate_every_updates=4)
    cache = FeatureCache(tmp_path / "cache", budget_bytes=1 << 24)
    found = {}
    for name, kept in (("without", None), ("first", cache), ("second", cache)):
        content, read = _reading()
        with _fronts_counted(family, monkeypatch) as seen:
            found[name] = _tuned(tmp_path / name, plan, content, kept, family), len(seen), len(read)
    (without, heard, _), (first, once, _), (second, never, files) = found.values()
    assert (heard, once, never, files) == (8 * 4 + 2 * 4 + PROBES, 12, 0, 0)
    for name, value in first.weights.state.items():
        assert torch.equal(value, second.weights.state[name])
        torch.testing.assert_close(value, without.weights.state[name], atol=2e-4, rtol=1e-3)
    losses = [[values["loss"] for _, values in tuned.facts["curve"]] for tuned in (without, first)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("case", ["learns", "short", "full", "none"])
def test_the_front_end_is_not_kept_where_that_is_wrong_or_does_not_pay(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"learns": {"freeze_front_end": False}, "short": {"updates": 1}}.get(case, {})
    family = "decoar2" if case == "none" else "hubert"
    plan = spec(objective("pooled"), **{"updates": 2, "validate_every_updates": 2, **changes})
    cache = FeatureCache(tmp_path / "cache", budget_bytes=100 if case == "full" else 1 << 24)
    with _fronts_counted(family, monkeypatch) as seen:
        _tuned(tmp_path / "work", plan, corpus(COUNTS), cache, family)
    probes = PROBES * (
        2 if case == "learns" else 1
    )  # a front end that learns is another one at the end
    assert len(seen) == 4 * plan.updates + 4 + probes
    assert not list((tmp_path / "cache").rglob("rows.bin"))


def test_cut_utterances_are_heard_anew_and_short_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = corpus(COUNTS)
    longest = 0.2 * 16_000
    short = sum(item.samples <= longest for item in content.split("train"))
    assert 0 < short < 8, "this corpus shows nothing"
    plan = spec(objective("pooled"), updates=4, validate_every_updates=4, crop_seconds=0.2)
    cache = FeatureCache(tmp_path / "cache", budget_bytes=1 << 24)
    with _fronts_counted("hubert", monkeypatch) as seen:
        _tuned(tmp_path / "work", plan, content, cache)
    assert len(seen) == short + 4 + 2 * (8 - short)
    assert sum(count == longest for count in seen) >= 2 * (8 - short)


def test_a_frozen_encoder_without_dropout_hears_each_utterance_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = spec(
        objective("pooled"),
        updates=10,
        head_only_fraction=0.8,
        validate_every_updates=10,
        head_phase_dropout=False,
    )
    with _fronts_counted("hubert", monkeypatch) as seen:
        cached = _tuned(tmp_path / "cached", plan, corpus(COUNTS))
    assert len(seen) == 8 + 2 * 4 + 4 + PROBES  # the head-only phase, two updates, one validation
    monkeypatch.setattr(trainer_module, "HEAD_PHASE_BYTES", 0)
    with _fronts_counted("hubert", monkeypatch) as seen:
        anew = _tuned(tmp_path / "anew", plan, corpus(COUNTS))
    assert len(seen) == 8 * 4 + 2 * 4 + 4 + PROBES
    assert all(
        torch.equal(value, anew.weights.state[name]) for name, value in cached.weights.state.items()
    )


def test_the_head_only_phase_without_dropout_is_quiet_and_what_follows_is_not(
    tmp_path: Path,
) -> None:
    start = add_noise(toy_encoder("hubert"))
    module = FAMILIES.get("hubert").build(start).module()
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in module.modules()), (
        "this encoder drops nothing"
    )
    modes: list[tuple[float, bool]] = []
    plan = spec(
        objective("pooled"),
        updates=6,
        head_only_fraction=0.5,
        validate_every_updates=2,
        head_phase_dropout=False,
    )
    own = trainer_module.Trainer._compute_gradients

    def looking(self, state, update, batches, cache_head_phase):
        modes.append((update, state.encoder.module().training, state.heads.training))
        return own(self, state, update, batches, cache_head_phase)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_compute_gradients", looking)
        _tuned(tmp_path, plan, corpus(COUNTS))
    assert modes == [(update, update >= 3, True) for update in range(6)]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_gpu_without_memory_gets_half_as_much_once(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = spec(objective("ctc"), updates=6, validate_every_updates=6)
    whole = _tuned(tmp_path / "whole", plan, corpus(COUNTS))
    own, left = trainer_module._encode_last, [failures]

    def full(loader, clips, masked):
        if left[0] and len(clips) == 4:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(loader, clips, masked)

    monkeypatch.setattr(trainer_module, "_encode_last", full)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    if failures == 2:
        with pytest.raises(
            UserError,
            match="too small for a batch even in parts of 80 s of audio: lower `batch_size`",
        ):
            _tuned(tmp_path / "small", plan, corpus(COUNTS))
        return
    tuned = _tuned(tmp_path / "small", plan, corpus(COUNTS))
    assert tuned.facts["part_seconds"] == 80 and whole.facts["part_seconds"] == 160
    assert all(
        torch.equal(value, tuned.weights.state[name]) for name, value in whole.weights.state.items()
    )


def test_bfloat16_products_leave_the_weights_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, on the CPU."""
    plan = spec(objective("ctc"), updates=6, validate_every_updates=3)
    exact = _tuned(tmp_path / "exact", plan, corpus(COUNTS))
    for name in ("trainer", "validation"):
        monkeypatch.setattr(
            f"speechft_ray.finetuning.{name}.precision",
            lambda device: torch.autocast("cpu", dtype=torch.bfloat16),
        )
    rounded = _tuned(tmp_path / "rounded", plan, corpus(COUNTS))
    assert {value.dtype for value in rounded.weights.state.values()} == {torch.float32}
    pairs = [
        (left[1]["loss"], right[1]["loss"])
        for left, right in zip(exact.facts["curve"], rounded.facts["curve"], strict=True)
    ]
    assert all(left != right and left == pytest.approx(right, rel=0.05) for left, right in pairs)


def test_weights_are_kept_at_the_fractions_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = spec(objective("ctc"), updates=10, validate_every_updates=5, keep_at=(0.3, 0.65))
    whole = _tuned(tmp_path / "whole", plan, corpus(COUNTS))
    assert list(whole.early_checkpoints) == [0.3, 0.65]
    plain = _tuned(tmp_path / "plain", plan.model_copy(update={"keep_at": ()}), corpus(COUNTS))
    assert all(
        torch.equal(value, plain.weights.state[name]) for name, value in whole.weights.state.items()
    )
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))

    def die(values) -> None:
        if values["done"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _tuned(tmp_path / "broken", plan, corpus(COUNTS), report=die)
    again = _tuned(tmp_path / "broken", plan, corpus(COUNTS))
    moved = []
    for fraction, weights in whole.early_checkpoints.items():
        assert all(
            torch.equal(value, again.early_checkpoints[fraction].state[name])
            for name, value in weights.state.items()
        )
        start = add_noise(toy_encoder("hubert")).state
        moved.append(
            sum(
                float((value - start[name]).square().sum()) for name, value in weights.state.items()
            )
        )
    assert 0 < moved[0] < moved[1]


def test_an_error_while_reading_ahead_reaches_the_caller(tmp_path: Path) -> None:
    base = corpus(COUNTS)

    def read(utterance):
        if utterance.key == "train-5":
            raise UserError("the file of train-5 is gone: restore it.")
        return base.read(utterance)

    with pytest.raises(UserError, match="train-5 is gone"):
        _tuned(tmp_path, spec(objective("pooled"), updates=4), corpus(COUNTS, read=read))
