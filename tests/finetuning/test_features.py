"""The front-end cache, the head-phase cache, the reading thread, micro-batches and early
checkpoints."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning import features as features_module
from speechft_ray.finetuning import loop
from speechft_ray.finetuning import trainer as trainer_module
from speechft_ray.finetuning.batches import AudioCache
from speechft_ray.finetuning.features import AudioClip, FeatureLoader
from speechft_ray.finetuning.loop import Report
from speechft_ray.finetuning.run import FinetuneResult, finetune
from speechft_ray.finetuning.train_state import TrainState
from speechft_ray.speech.batching import PADDED
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.features.cache import FeatureCache
from tests.finetuning.toy_models import corpus, objective, spec
from tests.speech.toy_models import add_noise, toy_encoder

CPU = torch.device("cpu")
COUNTS = {"train": 8, "dev": 4}
PROBES = COUNTS["dev"]
"""Utterances that the diagnostics at the end of a run encode: all of this small dev set."""


def _finetune(
    work: Path,
    plan: FinetuneSpec,
    content: Corpus,
    cache: FeatureCache | None = None,
    family: str = "hubert",
    report: Report | None = None,
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


def _recording_corpus() -> tuple[Corpus, list[str]]:
    """Returns a corpus, and the list to which it adds the key of every utterance read."""
    base = corpus(COUNTS)
    read: list[str] = []

    def read_audio(utterance: Utterance) -> np.ndarray:
        read.append(utterance.key)
        return base.read(utterance)

    return corpus(COUNTS, read=read_audio), read


@contextmanager
def _count_conv_features(family: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Records the length of every waveform that goes through a front end."""
    seen: list[int] = []
    kind = type(FAMILIES.get(family).build(toy_encoder(family)))
    original = kind.conv_features

    def conv_features(self: Any, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        seen.extend(len(wave) for wave in waves)
        return original(self, waves)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "conv_features", conv_features)
        yield seen


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_the_front_end_hears_each_utterance_once(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs on one corpus share the cache, and training with it equals training without it."""
    plan = spec(objective("ctc"), updates=8, validate_every_updates=4)
    cache = FeatureCache(tmp_path / "cache", budget_bytes=1 << 24)
    runs = {}
    for name, run_cache in (("without", None), ("first", cache), ("second", cache)):
        content, read = _recording_corpus()
        with _count_conv_features(family, monkeypatch) as seen:
            runs[name] = (
                _finetune(tmp_path / name, plan, content, run_cache, family),
                len(seen),
                len(read),
            )
    (without, uncached, _), (first, once, _), (second, never, files) = runs.values()
    assert (uncached, once, never, files) == (8 * 4 + 2 * 4 + PROBES, 12, 0, 0)
    for name, value in first.weights.state.items():
        assert torch.equal(value, second.weights.state[name])
        torch.testing.assert_close(value, without.weights.state[name], atol=2e-4, rtol=1e-3)
    losses = [[values["loss"] for _, values in tuned.facts["curve"]] for tuned in (without, first)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(("updates", "heard"), [(1, 4 + 4 + PROBES), (2, 12)])
def test_the_front_end_is_cached_from_a_whole_epoch_on(
    updates: int, heard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 4 of 8 utterances, one validation on 4 others."""
    plan = spec(objective("ctc"), updates=updates, validate_every_updates=4)
    cache = FeatureCache(tmp_path / "cache", budget_bytes=1 << 24)
    with _count_conv_features("hubert", monkeypatch) as seen:
        _finetune(tmp_path / "run", plan, corpus(COUNTS), cache, "hubert")
    assert len(seen) == heard


@pytest.mark.parametrize("family", FAMILIES.names())
def test_padded_batches_of_the_front_end_change_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, beside one by one as on a CPU; one clip comes from the cache."""
    content, encoder = corpus(COUNTS), FAMILIES.get(family).build(toy_encoder(family))
    loader = FeatureLoader(
        encoder=encoder,
        device=torch.device("cpu"),
        freeze_front_end=True,
        audio_caches=[AudioCache(content, 1 << 24)],
    )
    clips = [loader.read(0, item, None) for item in content.split("train")]
    clips[2] = loader.with_conv_features(clips[2])
    assert len({clip.samples for clip in clips}) > 1
    alone = loader.encode(clips)
    monkeypatch.setattr(features_module, "choose_rule", lambda device_type: PADDED)
    with _count_conv_features(family, monkeypatch) as seen:
        padded = loader.encode(clips)
    assert sorted(seen) == sorted(clip.samples for clip in clips if clip.conv_features is None)
    assert torch.equal(padded.frames, alone.frames)
    for index, frames in enumerate(alone.frames.tolist()):
        for state, expected in zip(padded.states, alone.states, strict=True):
            torch.testing.assert_close(
                state[index, :frames], expected[index, :frames], atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("case", ["learns", "short", "full", "none"])
def test_the_front_end_is_not_kept_where_that_is_wrong_or_does_not_pay(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: dict[str, dict[str, Any]] = {
        "learns": {"freeze_front_end": False},
        "short": {"updates": 1},
    }
    changes = cases.get(case, {})
    family = "decoar2" if case == "none" else "hubert"
    plan = spec(objective("pooled"), **{"updates": 2, "validate_every_updates": 2, **changes})
    cache = FeatureCache(tmp_path / "cache", budget_bytes=100 if case == "full" else 1 << 24)
    with _count_conv_features(family, monkeypatch) as seen:
        _finetune(tmp_path / "work", plan, corpus(COUNTS), cache, family)
    probes = PROBES * (2 if case == "learns" else 1)  # a trained front end differs at the end
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
    with _count_conv_features("hubert", monkeypatch) as seen:
        _finetune(tmp_path / "work", plan, content, cache)
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
    with _count_conv_features("hubert", monkeypatch) as seen:
        cached = _finetune(tmp_path / "cached", plan, corpus(COUNTS))
    assert len(seen) == 8 + 2 * 4 + 4 + PROBES  # the head-only phase, two updates, one validation
    monkeypatch.setattr(trainer_module, "HEAD_PHASE_BYTES", 0)
    with _count_conv_features("hubert", monkeypatch) as seen:
        anew = _finetune(tmp_path / "anew", plan, corpus(COUNTS))
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
    modes: list[tuple[int, bool, bool]] = []
    plan = spec(
        objective("pooled"),
        updates=6,
        head_only_fraction=0.5,
        validate_every_updates=2,
        head_phase_dropout=False,
    )
    original = trainer_module.Trainer._compute_gradients

    def compute_gradients(
        self: Any, state: TrainState, update: int, batches: Any, cache_head_phase: bool
    ) -> list[float]:
        modes.append((update, state.encoder.module().training, state.heads.training))
        return original(self, state, update, batches, cache_head_phase)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_compute_gradients", compute_gradients)
        _finetune(tmp_path, plan, corpus(COUNTS))
    assert modes == [(update, update >= 3, True) for update in range(6)]


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("most", [3, 1, 0])
def test_a_gpu_without_memory_gets_parts_of_batches(
    error: RuntimeError, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has memory for at most so many clips."""
    plan = spec(objective("ctc"), updates=3, validate_every_updates=3)
    content = corpus(COUNTS)
    whole = _finetune(tmp_path / "whole", plan, content)
    original, sizes = trainer_module._encode_last, list[int]()

    def encode_last(loader: FeatureLoader, clips: Sequence[AudioClip], masks: Any) -> Any:
        sizes.append(len(clips))
        if len(clips) > most:
            raise error
        return original(loader, clips, masks)

    monkeypatch.setattr(trainer_module, "_encode_last", encode_last)
    if not most:
        sentence = r"too small for one recording of 0\.\d+ s: lower `crop_seconds`"
        with pytest.raises(UserError, match=sentence):
            _finetune(tmp_path / "small", plan, content)
        assert sizes[-1] == 1
        return
    tuned = _finetune(tmp_path / "small", plan, content)
    assert sum(size > most for size in sizes) <= 3 and whole.facts["part_seconds"] == 160
    assert tuned.facts["part_seconds"] < 1
    first, reference = tuned.facts["curve"][0][1]["loss"], whole.facts["curve"][0][1]["loss"]
    assert first == pytest.approx(reference, rel=0.1)  # dropout draws by part


def test_other_errors_are_no_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_last(*arguments: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainer_module, "_encode_last", encode_last)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        _finetune(tmp_path, spec(objective("ctc"), updates=3), corpus(COUNTS))


def test_activations_are_gone_before_the_cache_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache frees only what nothing uses."""
    original, states = trainer_module._encode_last, list[weakref.ref[torch.Tensor]]()
    alive: list[bool] = []

    def encode_last(*arguments: Any) -> Any:
        encoded = original(*arguments)
        states.append(weakref.ref(encoded[0]))
        return encoded

    def compute_gradients(loss: torch.Tensor) -> None:
        if len(states) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        torch.autograd.backward(loss)

    monkeypatch.setattr(trainer_module, "_encode_last", encode_last)
    monkeypatch.setattr(torch.Tensor, "backward", compute_gradients)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: alive.extend(state() is not None for state in states)
    )
    _finetune(tmp_path, spec(objective("ctc"), updates=3), corpus(COUNTS))
    assert alive == [False]


def test_bfloat16_products_leave_the_weights_in_float32(tmp_path: Path) -> None:
    """The front end is cached in bfloat16 too, apart from that of float32."""
    plan = spec(objective("ctc"), updates=8, validate_every_updates=4)
    cache = FeatureCache(tmp_path / "cache", budget_bytes=1 << 24)
    exact, rounded = (
        _finetune(
            tmp_path / precision,
            plan.model_copy(update={"precision": precision}),
            corpus(COUNTS),
            cache,
        )
        for precision in ("float32", "bfloat16")
    )
    files = [path.read_bytes() for path in (tmp_path / "cache").rglob("rows.bin")]
    assert len(files) == 4 == len(set(files))  # train and dev of both
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
    whole = _finetune(tmp_path / "whole", plan, corpus(COUNTS))
    assert list(whole.early_checkpoints) == [0.3, 0.65]
    plain = _finetune(tmp_path / "plain", plan.model_copy(update={"keep_at": ()}), corpus(COUNTS))
    assert all(
        torch.equal(value, plain.weights.state[name]) for name, value in whole.weights.state.items()
    )
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))

    def die(values: Mapping[str, float]) -> None:
        if values["done"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _finetune(tmp_path / "broken", plan, corpus(COUNTS), report=die)
    again = _finetune(tmp_path / "broken", plan, corpus(COUNTS))
    distances = []
    for fraction, weights in whole.early_checkpoints.items():
        assert all(
            torch.equal(value, again.early_checkpoints[fraction].state[name])
            for name, value in weights.state.items()
        )
        start = add_noise(toy_encoder("hubert")).state
        distances.append(
            sum(
                float((value - start[name]).square().sum()) for name, value in weights.state.items()
            )
        )
    assert 0 < distances[0] < distances[1]


def test_an_error_while_reading_ahead_reaches_the_caller(tmp_path: Path) -> None:
    base = corpus(COUNTS)

    def read(utterance: Utterance) -> np.ndarray:
        if utterance.key == "train-5":
            raise UserError("the file of train-5 is gone: restore it.")
        return base.read(utterance)

    with pytest.raises(UserError, match="train-5 is gone"):
        _finetune(tmp_path, spec(objective("pooled"), updates=4), corpus(COUNTS, read=read))
