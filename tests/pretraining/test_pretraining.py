"""Targets, masks and crops against independent arithmetic, and the loop on tones."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.cli import main
from speechft_ray.core.errors import UserError
from speechft_ray.core.units import frame_count
from speechft_ray.pretraining import rounds, run
from speechft_ray.pretraining.crops import (
    compute_labels,
    draw_crops,
    iter_crops,
    open_source,
    sample_features,
)
from speechft_ray.pretraining.masking import compute_masked_loss, draw_span_mask, start_probability
from speechft_ray.pretraining.recipe import PretrainOptions, tiny_config
from speechft_ray.pretraining.rounds import learning_rate
from speechft_ray.pretraining.run import pretrain
from speechft_ray.pretraining.targets import differences, fit_centroids, mfcc, nearest
from speechft_ray.speech.checkpoints.load import load_checkpoint, weights_fingerprint
from speechft_ray.speech.encoders.hubert import build, init_weights
from speechft_ray.stages import sources
from tests.speech.toy_models import tone_corpus, toy_config, toy_hubert

SMALL: dict[str, Any] = {
    "updates": (30, 20),
    "clusters": (6, 8),
    "target_layer": 1,
    "batch_crops": 4,
    "crop_frames": 30,
    "bfloat16": False,
    "score_every": 10,
    "learning_rate": 3e-3,
}


@pytest.fixture
def toy_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the tiny HuBERT of the recipe by a smaller one."""

    def config(clusters: int) -> dict[str, Any]:
        return {
            **toy_config(dropout=0.0, attention_dropout=0.0),
            "dictionaries_symbols": [[str(n) for n in range(clusters)]],
        }

    monkeypatch.setattr(run, "tiny_config", config)


def test_mfcc_is_kaldis() -> None:
    from torchaudio.compliance import kaldi

    wave = torch.from_numpy(tone_corpus().read(tone_corpus().utterances[1]))
    expected = kaldi.mfcc(wave[None], window_type="hamming", dither=0.0)
    features = mfcc(wave)
    assert features.shape == (frame_count(len(wave)), 39)
    expected = (expected - expected.mean(dim=0)) / expected.std(dim=0, correction=0)
    torch.testing.assert_close(features[:, :13], expected[::2], atol=2e-3, rtol=1e-3)


def test_differences_are_slopes() -> None:
    """The slope of a line, and of the least-squares line through five frames (numpy.polyfit)."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((12, 3))
    slopes = differences(torch.from_numpy(values)).numpy()
    for frame in range(2, 10):
        np.testing.assert_allclose(
            slopes[frame], np.polyfit(np.arange(5), values[frame - 2 : frame + 3], 1)[0], atol=1e-12
        )
    line = torch.arange(8.0)[:, None] * 3
    assert torch.allclose(differences(line)[2:-2], torch.tensor(3.0))


def test_clusters_are_found_and_repeatable() -> None:
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((5, 4)).astype(np.float32) * 10
    truth = draw.integers(0, 5, 2_000)
    features = centres[truth] + draw.standard_normal((2_000, 4)).astype(np.float32) * 0.1
    centroids = fit_centroids(features, 5, seed=0)
    assert np.array_equal(centroids, fit_centroids(features, 5, seed=0))
    labels = nearest(features, centroids)
    assert len({(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}) == 5
    brute = np.linalg.norm(features[:, None] - centroids[None], axis=2).argmin(axis=1)
    assert np.array_equal(labels, brute)


@pytest.mark.parametrize(("fraction", "length"), [(0.5, 5), (0.5, 1), (0.2, 10), (0.65, 3)])
def test_masks_hide_the_promised_fraction_everywhere(fraction: float, length: int) -> None:
    hidden = draw_span_mask(
        4_000, 50, fraction=fraction, length=length, rng=np.random.default_rng(0)
    )
    assert hidden.shape == (4_000, 50)
    np.testing.assert_allclose(hidden.mean(axis=0), fraction, atol=0.04)
    assert (1 - start_probability(fraction, length)) ** length == pytest.approx(1 - fraction)


def test_spans_away_from_the_edges_are_no_shorter_than_promised() -> None:
    hidden = draw_span_mask(500, 60, fraction=0.3, length=4, rng=np.random.default_rng(1))
    for row in hidden:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(int)))
        for start, end in edges.reshape(-1, 2):
            assert end - start >= 4 or start == 0 or end == 60


def test_loss_is_the_cross_entropy_of_cosines() -> None:
    """Recomputes the loss from s3prl's own masked forward pass and plain numpy."""
    model: Any = build(toy_hubert()).module()
    waves = 0.1 * torch.randn(2, 8_000, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(48).reshape(2, 24) % 3
    hidden = torch.zeros(2, 24, dtype=torch.bool)
    hidden[0, 3:8] = hidden[1, 10:20] = True
    loss = compute_masked_loss(model, waves, targets, hidden, 0.5)
    model.apply_mask = lambda x, padding, target: (
        torch.where(hidden[:, :, None], model.mask_emb, x),
        hidden,
    )
    with torch.no_grad():
        states = model(waves, mask=True, features_only=True)["x"]
        projected, names = (
            model.final_proj(states).double().numpy(),
            model.label_embs_concat.double().numpy(),
        )
    cosine = np.einsum("btd,kd->btk", projected, names)
    cosine /= np.linalg.norm(projected, axis=-1)[..., None] * np.linalg.norm(names, axis=-1)
    logits = cosine / 0.1
    costs = (
        np.log(np.exp(logits).sum(axis=-1))
        - np.take_along_axis(logits, targets.numpy()[..., None], -1)[..., 0]
    )
    mask = hidden.numpy()
    assert loss.loss.item() == pytest.approx(
        costs[mask].mean() + 0.5 * costs[~mask].mean(), rel=1e-4
    )
    assert loss.masked == 15
    assert loss.correct == int((logits.argmax(-1) == targets.numpy())[mask].sum())


def test_hidden_frames_see_nothing_of_their_own_sound() -> None:
    """Audio at masked frames does not affect the loss: the features there are replaced."""
    model = build(toy_hubert(extractor_mode="layer_norm", layer_norm_first=True)).module()
    waves = 0.1 * torch.randn(1, 320 * 23 + 400, generator=torch.Generator().manual_seed(0))
    changed = waves.clone()
    changed[:, 320 * 10 + 400 : 320 * 14] = 0.0  # samples of frames 9 to 14 only
    hidden = torch.zeros(1, 24, dtype=torch.bool)
    hidden[0, 8:16] = True
    targets = torch.zeros(1, 24, dtype=torch.int64)
    losses = [
        compute_masked_loss(model, wave, targets, hidden, 0.5).loss.item()
        for wave in (waves, changed)
    ]
    assert losses[0] == losses[1]
    seen = torch.zeros_like(hidden)
    seen[0, :3] = True
    others = [
        compute_masked_loss(model, wave, targets, seen, 0.5).loss.item()
        for wave in (waves, changed)
    ]
    assert others[0] != others[1]


def test_crops_carry_the_labels_of_their_own_frames() -> None:
    """The label of every frame depends on its own samples, so any shift between audio and labels is
    detected."""
    corpus = tone_corpus()
    source = open_source(corpus, "train", crop_frames=30)
    assert {utterance.samples for utterance in source.utterances} == {16_000, 24_000, 32_000}

    def loudness(wave: torch.Tensor) -> torch.Tensor:
        return wave.unfold(0, 400, 320).square().mean(dim=1, keepdim=True)

    centroids = np.linspace(0.0, 0.1, 300, dtype=np.float32)[:, None]
    labels = compute_labels(source, loudness, centroids)
    assert (
        len(labels)
        == source.frames()
        == sum(frame_count(utterance.samples) for utterance in source.utterances)
    )
    assert sample_features(source, loudness, 10**9, seed=0).shape == (source.frames(), 1)
    assert sample_features(source, loudness, 100, seed=0).shape == (100, 1)
    sizes = {"crops": 5, "crop_frames": 30, "crop_samples": 320 * 29 + 400}
    batches = [
        draw_crops(source, labels, rng=np.random.default_rng(seed), **sizes) for seed in range(20)
    ]
    batches += list(iter_crops(source, labels, **sizes))
    for waves, targets in batches:
        assert waves.shape[1] == 9_680
        for wave, target in zip(waves, targets, strict=True):
            assert np.array_equal(nearest(loudness(wave).numpy(), centroids), target.numpy())


def test_crops_in_a_row_cover_every_whole_crop_once() -> None:
    source = open_source(tone_corpus(), "train", crop_frames=30)
    labels = np.arange(source.frames(), dtype=np.int64)
    rows = [
        row
        for _, targets in iter_crops(source, labels, crops=7, crop_frames=30, crop_samples=9_680)
        for row in targets.tolist()
    ]
    seen = [frame for row in rows for frame in row]
    assert len(seen) == len(set(seen))
    assert len(rows) == sum(frame_count(utterance.samples) // 30 for utterance in source.utterances)


def test_drawn_crops_reach_first_and_last_frames() -> None:
    source = open_source(tone_corpus(), "train", crop_frames=30)
    labels = np.arange(source.frames(), dtype=np.int64)
    silent = dataclasses.replace(
        source,
        corpus=dataclasses.replace(
            source.corpus, read=lambda some: np.zeros(some.samples, np.float32)
        ),
    )
    _, targets = draw_crops(
        silent, labels, crops=20_000, crop_frames=30, crop_samples=400, rng=np.random.default_rng(0)
    )
    starts = np.bincount(targets[:, 0].numpy(), minlength=source.frames())
    possible = np.concatenate(
        [np.arange(begin, end - 29) for begin, end in itertools.pairwise(source.offsets)]
    )
    assert set(np.flatnonzero(starts)) <= set(possible)
    assert (starts[possible] > 0).all()
    assert (targets[:, -1] - targets[:, 0] == 29).all()


def test_the_rate_rises_then_falls_to_nothing() -> None:
    options = PretrainOptions(warmup_fraction=0.1, learning_rate=2.0)
    rates = [learning_rate(options, update, 1_000) for update in range(1_000)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0, rel=0.01)
    assert int(np.argmax(rates)) in (98, 99, 100)
    assert 0 < rates[-1] < 0.005
    assert all(earlier >= later for earlier, later in itertools.pairwise(rates[100:]))


@pytest.mark.usefixtures("toy_recipe")
def test_pretraining_learns_and_leaves_an_encoder(tmp_path: Path) -> None:
    options = PretrainOptions(**{**SMALL, "updates": (150, 40)})
    seen: list[tuple[int, int]] = []
    weights = pretrain(
        options, tone_corpus(), tmp_path, lambda done, total: seen.append((done, total))
    )
    provenance = load_checkpoint(tmp_path).provenance
    accuracy = provenance["held_out_masked_accuracy"]
    with (tmp_path / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["update"]) for row in rows] == [*range(10, 160, 10), *range(10, 50, 10)]
    assert (
        float(rows[14]["held_out_masked_accuracy"])
        == accuracy["round 1"]
        > float(rows[0]["held_out_masked_accuracy"]) + 0.1
    )
    assert float(rows[14]["loss"]) < float(rows[0]["loss"])
    assert seen == [(done, 190) for done in range(1, 191)]
    assert provenance["options"] == json.loads(options.model_dump_json())
    assert provenance["corpus"]["fingerprint"] == "tones"
    assert weights.config["dictionaries_symbols"] == [[str(label) for label in range(8)]]
    assert build(weights).hidden_states([torch.zeros(4_000)]).states[-1].shape == (1, 12, 16)


@pytest.mark.usefixtures("toy_recipe")
def test_a_stopped_run_ends_in_the_same_weights_and_labels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PretrainOptions(**SMALL)
    counted: list[tuple[int, int]] = []
    whole = pretrain(
        options,
        tone_corpus(),
        tmp_path / "whole",
        label_progress=lambda done, total: counted.append((done, total)),
    )
    sizes = [  # without utterances that are shorter than a crop
        len(open_source(tone_corpus(), split, options.crop_frames).utterances)
        for split in ("train", "dev")
    ]
    assert counted == [(done + 1, size) for size in 2 * sizes for done in range(size)]
    labelled: list[object] = []

    def label(*arguments: Any) -> np.ndarray:
        labelled.append(arguments)
        return compute_labels(*arguments)

    monkeypatch.setattr(run, "compute_labels", label)

    class Stop(Exception):
        pass

    for last in (7, 23, 44):  # before the first state, between two, in round 2

        def stop(done: int, total: int) -> None:
            if done >= last:  # noqa: B023
                raise Stop

        with pytest.raises(Stop):
            pretrain(options, tone_corpus(), tmp_path / "out", stop, work=tmp_path / "elsewhere")
    again = pretrain(options, tone_corpus(), tmp_path / "out", work=tmp_path / "elsewhere")
    assert weights_fingerprint(again) == weights_fingerprint(whole)
    assert not (tmp_path / "out" / "work").exists()
    assert len(labelled) == 2 * 2  # both splits in both rounds
    columns = ("round", "update", "loss", "held_out_masked_accuracy")
    curves = []
    for folder in ("whole", "out"):
        with (tmp_path / folder / "learning_curve.csv").open() as file:
            curves.append([[row[column] for column in columns] for row in csv.DictReader(file)])
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("toy_recipe")
def test_a_round_goes_on_from_the_encoder_of_the_one_before(tmp_path: Path) -> None:
    before = toy_hubert(seed=5)
    config = {**toy_config(), "dictionaries_symbols": [["a"] * 9]}
    start = run._start_weights(config, 0, before)
    assert start.state["label_embs_concat"].shape == (9, 8)
    same = {
        name
        for name in start.state
        if torch.equal(start.state[name], before.state.get(name, torch.empty(0)))
    }
    assert set(start.state) - same == {"label_embs_concat", "final_proj.weight", "final_proj.bias"}


@pytest.mark.usefixtures("toy_recipe")
def test_work_of_other_options_is_not_taken_over(tmp_path: Path) -> None:
    pretrain(PretrainOptions(**{**SMALL, "updates": (1, 1)}), tone_corpus(), tmp_path)
    with pytest.raises(UserError, match="other options"):
        pretrain(PretrainOptions(**{**SMALL, "updates": (2, 1)}), tone_corpus(), tmp_path)


@pytest.mark.usefixtures("toy_recipe")
def test_a_start_goes_on_in_one_round(tmp_path: Path) -> None:
    options = PretrainOptions(**{**SMALL, "updates": (20,), "clusters": (9,)})
    config = {**toy_config(dropout=0.0, attention_dropout=0.0)}
    start = init_weights({**config, "dictionaries_symbols": [["a"] * 4]}, seed=5)
    weights = pretrain(options, tone_corpus(), tmp_path / "new", start=start)
    assert load_checkpoint(tmp_path / "new").provenance["start"] == weights_fingerprint(start)
    assert weights.state["label_embs_concat"].shape[0] == 9
    name = "feature_extractor.conv_layers.0.0.weight"
    moved = (weights.state[name] - start.state[name]).norm() / start.state[name].norm()
    assert 0 < moved < 0.3  # new weights would be some 1.4 away
    with pytest.raises(UserError, match="another start"):
        pretrain(options, tone_corpus(), tmp_path / "other", work=tmp_path / "new" / "work")
    other = dataclasses.replace(start, config={"model_cfg": {"encoder_layers": 3}})
    with pytest.raises(UserError, match="the start has another `"):
        pretrain(options, tone_corpus(), tmp_path / "third", start=other)


@pytest.mark.parametrize("is_fast", [True, False])
def test_the_command_takes_the_number_type_of_the_processor(
    is_fast: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[tuple[Any, ...]] = []

    def train(*arguments: Any) -> None:
        calls.append(arguments)
        for total in (3, 1):  # train, then dev
            for done in range(1, total + 1):
                arguments[6](done, total)
        for done in range(5, 9):
            arguments[3](done, 8)

    features = {"avx512_bf16": is_fast, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setattr(run, "pretrain", train)
    options = ["--corpus", "synthetic", "--option", "part=sid", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sources, "open_corpus", lambda *_: tone_corpus())
    assert main(["pretrain", "--out", str(tmp_path), *options]) == 0
    assert calls[0][0] == PretrainOptions(bfloat16=is_fast) and calls[0][5] is None
    printed = capsys.readouterr().out
    assert "8 of 8 updates, about 0 s left" in printed
    assert "3 of 3 utterances labelled, about 0 s left" in printed
    assert main(["pretrain", "--out", str(tmp_path), "--start", "tiny_hubert", *options]) == 0
    assert calls[1][0].updates == (4500,) and calls[1][0].clusters == (200,)
    assert calls[1][0].bfloat16 is is_fast and calls[1][5].family == "hubert"
    assert main(["pretrain", "--out", str(tmp_path), "--updates", "9", *options]) == 2
    assert "--updates is for pre-training from a --start" in capsys.readouterr().err


def test_a_corpus_of_short_utterances_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="30 frames"):
        pretrain(PretrainOptions(**SMALL), tone_corpus(seconds=(0.5,)), tmp_path)


@pytest.mark.usefixtures("toy_recipe")
def test_a_loss_that_explodes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_train_step", lambda *_: float("nan"))
    with pytest.raises(UserError, match="smaller `learning_rate`"):
        pretrain(PretrainOptions(**SMALL), tone_corpus(), tmp_path)


@pytest.mark.usefixtures("toy_recipe")
def test_a_layer_beyond_the_last_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"within \[0, 2\]"):
        pretrain(
            PretrainOptions(**{**SMALL, "updates": (1, 1), "target_layer": 3}),
            tone_corpus(),
            tmp_path,
        )


def test_rounds_need_both_sizes() -> None:
    with pytest.raises(ValueError, match="2 rounds"):
        PretrainOptions(updates=(1, 2), clusters=(3,))


def test_the_tiny_model_has_the_size_of_the_design() -> None:
    assert (
        sum(tensor.numel() for tensor in init_weights(tiny_config(100), 0).state.values())
        == 2_360_736
    )
