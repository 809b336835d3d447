"""Pre-trains an encoder in rounds of masked prediction and writes it to disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.pretraining.crops import (
    CropSource,
    FeatureFunction,
    compute_labels,
    open_source,
    sample_features,
)
from speechft_ray.pretraining.recipe import PretrainOptions, tiny_config
from speechft_ray.pretraining.rounds import LabelledSource, train_round, write_curve
from speechft_ray.pretraining.targets import fit_centroids, mfcc
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from speechft_ray.speech.corpora.base import Corpus, Progress
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.encoders.hubert import build, init_weights

FIT_FRAMES = 150_000
"""Frames to fit k-means on, 50 minutes: more frames move the centroids by less than another seed
does."""


def pretrain(
    options: PretrainOptions,
    corpus: Corpus,
    out: Path,
    progress: Progress | None = None,
    work: Path | None = None,
    start: EncoderWeights | None = None,
    label_progress: Progress | None = None,
) -> EncoderWeights:
    """Pre-trains the tiny HuBERT on the audio of the ``train`` split and scores it on ``dev``.

    ``start``: a tiny HuBERT to go on from, as from a round before; every round then predicts
    clusters of a hidden state.

    ``out`` becomes an encoder folder: weights in float16, manifest, ``learning_curve.csv``.
    ``work`` (default: ``out / "work"``) holds the states that an interrupted call resumes from.
    ``progress`` counts updates of all rounds, ``label_progress`` the utterances whose frames
    a round has labelled, anew in each round and split. Raises ``UserError`` when ``work`` belongs
    to other options or another corpus, when no utterance is as long as a crop, and for a ``start``
    that is no tiny HuBERT.
    """
    if start is not None:
        _check_start(start)
    out.mkdir(parents=True, exist_ok=True)
    work = work or out / "work"
    _check_work_folder(work, options, corpus, start)
    train, held_out = (
        open_source(corpus, split, options.crop_frames) for split in ("train", "dev")
    )
    curve: list[dict[str, float]] = []
    weights = start
    for number in range(len(options.updates)):
        folder = work / f"round{number + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        curve += _run_round(
            options, number, weights, train, held_out, folder, progress, label_progress
        )
        weights = read_encoder(folder / "encoder.safetensors")
    assert weights is not None  # options have at least one round
    write_curve(out / "learning_curve.csv", curve)
    write_encoder(out, weights, _manifest(options, corpus, curve, start), dtype="float16")
    return read_encoder(out)


def _run_round(
    options: PretrainOptions,
    number: int,
    before: EncoderWeights | None,
    train: CropSource,
    held_out: CropSource,
    folder: Path,
    progress: Progress | None,
    label_progress: Progress | None,
) -> list[dict[str, float]]:
    """Runs one round, or reads its curve when it was finished before.

    Writes ``encoder.safetensors`` to ``folder``. Returns the learning curve.
    """
    encoder_file = folder / "encoder.safetensors"
    if encoder_file.exists():
        return [
            json.loads(line)
            for line in (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    sources = _label_splits(options, number, before, train, held_out, folder, label_progress)
    config = tiny_config(options.clusters[number])
    model = build(_start_weights(config, options.seed + number, before)).module()
    finished = sum(options.updates[:number])

    def advance(update: int) -> None:
        if progress is not None:
            progress(finished + update, sum(options.updates))

    curve = train_round(model, options, number, *sources, folder, advance)
    weights = EncoderWeights(family="hubert", config=config, state=model.state_dict())
    write_encoder(
        encoder_file,
        weights,
        {"round": number + 1, "held_out_masked_accuracy": curve[-1]["held_out_masked_accuracy"]},
    )
    return curve


def _start_weights(
    config: Mapping[str, Any], seed: int, before: EncoderWeights | None
) -> EncoderWeights:
    """Returns the weights that a round starts from.

    A later round continues from the encoder of the round before, with a new projection and new
    label embeddings. HuBERT trains every round from new weights, which pays off over weeks of
    updates; here a good part of the round would be spent on leaving the plateau again.
    """
    fresh = init_weights(config, seed)
    if before is None:
        return fresh
    new = ("final_proj.", "label_embs_concat")
    state = {name: tensor for name, tensor in before.state.items() if not name.startswith(new)}
    return EncoderWeights(family="hubert", config=config, state={**fresh.state, **state})


def _label_splits(
    options: PretrainOptions,
    number: int,
    before: EncoderWeights | None,
    train: CropSource,
    held_out: CropSource,
    folder: Path,
    progress: Progress | None,
) -> tuple[LabelledSource, LabelledSource]:
    """Returns both splits with labels: the nearest of the centroids that are fitted on the training
    split. ``folder`` keeps centroids and labels, which take minutes, for a call that resumes."""
    path = folder / "centroids.npy"
    compute = mfcc if before is None else _hidden_state_features(before, options.target_layer)
    if not path.exists():
        sample = sample_features(train, compute, FIT_FRAMES, options.seed + number)
        centroids = fit_centroids(sample, options.clusters[number], options.seed + number)
        _save_array(path, centroids)
    centroids = np.load(path, allow_pickle=False)

    def label(source: CropSource, split: str) -> LabelledSource:
        path = folder / f"labels_{split}.npy"
        if not path.exists():
            _save_array(path, compute_labels(source, compute, centroids, progress))
        return source, np.load(path, allow_pickle=False)

    return label(train, "train"), label(held_out, "dev")


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def _hidden_state_features(weights: EncoderWeights, layer: int) -> FeatureFunction:
    """Returns a function that computes a hidden state of one utterance, each frame normalised over
    its dimensions so that loudness does not determine clusters."""
    encoder = build(weights)
    if layer >= encoder.state_count:
        raise UserError(
            f"`target_layer` must be within [0, {encoder.state_count - 1}], but is {layer} instead."
        )

    def compute(wave: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            state = encoder.hidden_states([wave]).states[layer][0]
            return F.layer_norm(state, state.shape[-1:])

    return compute


def _check_start(start: EncoderWeights) -> None:
    model = tiny_config(1)["model_cfg"]
    config = start.config.get("model_cfg", {}) if start.family == "hubert" else {}
    if other := [name for name, value in model.items() if config.get(name) != value]:
        raise UserError(
            "pre-training goes on from a tiny HuBERT alone, such as `tiny_hubert`; the start has "
            f"another `{other[0]}`. Continue other encoders with the head `masked` of `finetune`."
        )


def _check_work_folder(
    work: Path, options: PretrainOptions, corpus: Corpus, start: EncoderWeights | None
) -> None:
    identity_file = work / "identity.txt"
    parts: dict[str, Any] = {"options": options, "corpus": corpus.fingerprint}
    if start is not None:
        parts["start"] = weights_fingerprint(start)
    identity = fingerprint(parts)
    work.mkdir(parents=True, exist_ok=True)
    if not identity_file.exists():
        identity_file.write_text(identity, encoding="ascii")
    elif identity_file.read_text(encoding="ascii") != identity:
        raise UserError(
            f"{work} holds the pre-training of other options, another start or another corpus, or "
            "one begun on a processor with another number type. Choose another folder or delete it."
        )


def _manifest(
    options: PretrainOptions,
    corpus: Corpus,
    curve: list[dict[str, float]],
    start: EncoderWeights | None,
) -> dict[str, Any]:
    last = {int(row["round"]): row for row in curve}
    return {
        "recipe": "HuBERT masked prediction on synthetic speech"
        if corpus.name.startswith("synthetic")
        else "HuBERT masked prediction",
        "options": options.model_dump(mode="json"),
        **({} if start is None else {"start": weights_fingerprint(start)}),
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "utterances": len(corpus.split("train")),
        },
        "held_out_masked_accuracy": {
            f"round {number}": row["held_out_masked_accuracy"] for number, row in last.items()
        },
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in last.values()), 1),
    }
