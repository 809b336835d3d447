"""Trains linear probes on the tiny HuBERT, other encoders and normalised FBank, on the same data.

    python benchmarks/tiny_hubert.py tiny_hubert another.s3prl.pt fbank --cache runs/corpora

The probes are SUPERB's in their simplest form: the encoder is frozen, its hidden states are
layer-normalised and summed with learnt softmax weights, and one linear map predicts the phone of
every frame, or, after the mean over time, the class of the utterance. The column ``masked`` is the
accuracy at masked frames: half of the frames are replaced by the mask embedding, and one linear map
on the encoder's output predicts their MFCC cluster. Clusters, masks, reverberation and noise are
the same for every encoder, so that encoders with other pre-training labels can be compared.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES
from speechft_ray.pretraining.masking import draw_span_mask
from speechft_ray.pretraining.reverberation import add_reverberation
from speechft_ray.pretraining.targets import fit_centroids, mfcc, nearest
from speechft_ray.speech.checkpoints.load import load_encoder, weights_fingerprint
from speechft_ray.speech.corpora.base import CORPORA, Corpus, Utterance
from speechft_ray.speech.encoders.base import FAMILIES, Encoder

TASKS = {"phones": None, "sid": "speaker", "er": "emotion", "ks": "keyword"}
"""Part of the synthetic corpus and the label of an utterance; ``None``: the phone of each frame."""

UPDATES, BATCH, LEARNING_RATE, TRAIN_FRAME_STEP = 1500, 256, 3e-3, 4


def frame_phones(utterance: Utterance, frames: int) -> list[str]:
    """Returns the phone at the centre of each frame."""
    starts = [start for start, _ in utterance.alignment]
    centres = np.arange(frames) * FRAME_STRIDE_SAMPLES + FRAME_FIELD_SAMPLES // 2
    indices = np.searchsorted(starts, centres, side="right") - 1
    return [utterance.alignment[max(0, index)][1] for index in indices]


def compute_examples(
    encoder: Encoder, corpus: Corpus, split: str, column: str | None
) -> tuple[torch.Tensor, list[str]]:
    """Returns layer-normalised states ``(examples, states, dim)`` float16 and the label of each."""
    rows, labels = [], []
    step = TRAIN_FRAME_STEP if split == "train" else 1
    for utterance in corpus.split(split):
        with torch.inference_mode():
            states = encoder.hidden_states([torch.from_numpy(corpus.read(utterance))]).states
        # (frames, states, dim)
        stacked = torch.stack([F.layer_norm(state[0], state.shape[-1:]) for state in states], dim=1)
        if column is None:
            rows.append(stacked[::step].half())
            labels += frame_phones(utterance, len(stacked))[::step]
        else:
            rows.append(stacked.mean(dim=0, keepdim=True).half())
            labels.append(utterance.labels[column])
    return torch.cat(rows), labels


def train_and_test(
    train: tuple[torch.Tensor, list[str]], test: tuple[torch.Tensor, list[str]], seed: int
) -> float:
    """Trains softmax weights and one linear map with Adam on ``train`` and returns the accuracy on
    ``test``."""
    names = {name: index for index, name in enumerate(sorted(set(train[1])))}
    states, targets = train[0], torch.tensor([names[label] for label in train[1]])
    torch.manual_seed(seed)
    mix = torch.zeros(states.shape[1], requires_grad=True)
    linear = torch.nn.Linear(states.shape[2], len(names))

    def logits(batch: torch.Tensor) -> torch.Tensor:
        weighted: torch.Tensor = linear(torch.einsum("s,nsd->nd", mix.softmax(0), batch.float()))
        return weighted

    optimizer = torch.optim.Adam([mix, *linear.parameters()], lr=LEARNING_RATE)
    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - update / UPDATES)
        chosen = torch.randint(len(targets), (BATCH,))
        loss = F.cross_entropy(logits(states[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        blocks = torch.split(test[0], 4096)
        predicted = torch.cat([logits(block).argmax(dim=1) for block in blocks]).tolist()
    correct = [
        names.get(label, -1) == index for label, index in zip(test[1], predicted, strict=True)
    ]
    return float(np.mean(correct))


def encode_masked_frames(
    encoder: Encoder, corpus: Corpus, split: str, centroids: np.ndarray
) -> tuple[torch.Tensor, list[str]]:
    """Returns the encoder's output at masked frames, ``(examples, 1, dim)``, and their clusters in
    the clean speech."""
    model: Any = encoder.module()
    rng = np.random.default_rng(len(split))
    rows, labels = [], []
    for utterance in corpus.split(split):
        wave = torch.from_numpy(corpus.read(utterance))
        clusters = nearest(mfcc(wave).numpy(), centroids)
        mask = torch.from_numpy(draw_span_mask(1, len(clusters), fraction=0.5, length=5, rng=rng))
        with torch.inference_mode():
            features = model.layer_norm(
                model.feature_extractor(add_reverberation(wave[None], rng)).transpose(1, 2)
            )
            features = torch.where(
                mask[:, :, None], model.mask_emb, model.post_extract_proj(features)
            )
            output, _ = model.encoder(features)
        rows.append(output[mask][:, None])
        labels += [str(cluster) for cluster in clusters[mask[0].numpy()]]
    return torch.cat(rows), labels


def format_masked_cell(encoder: Encoder, corpus: Corpus, seeds: int) -> str:
    """Returns mean and standard deviation over probe seeds of the accuracy at masked frames."""
    sample = np.concatenate(
        [mfcc(torch.from_numpy(corpus.read(item))).numpy() for item in corpus.split("train")]
    )
    centroids = fit_centroids(sample, 100, 0)
    train, test = (
        encode_masked_frames(encoder, corpus, split, centroids) for split in ("train", "test")
    )
    scores = [100 * train_and_test(train, test, seed) for seed in range(seeds)]
    return f"{np.mean(scores):.1f} ± {np.std(scores):.1f}"


def main() -> None:
    """Prints one row per encoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", nargs="*", default=["tiny_hubert", "fbank"])
    parser.add_argument("--cache", type=Path, default=Path("runs/corpora"))
    parser.add_argument("--train", type=int, default=800, help="training utterances per task")
    parser.add_argument(
        "--test", type=int, default=1000, help="test utterances per task (a fifth of it for phones)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="probe seeds averaged")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kind = CORPORA.get("synthetic")
    corpora = {}
    for part in TASKS:
        sizes = {
            "train": options.train,
            "test": options.test // 5 if part == "phones" else options.test,
        }
        corpora[part] = kind.open(
            kind.options.model_validate({"part": part, **sizes}), None, options.cache, None
        )
    sizes = {
        "part": "pretrain",
        "seed": 1,
        "train": options.train // 2,
        "dev": 0,
        "test": options.test // 5,
    }
    speech = kind.open(kind.options.model_validate(sizes), None, options.cache, None)
    print("| encoder | fingerprint | masked |", " | ".join(TASKS), "| seconds |")
    print("|---|---|---|" + "---|" * (len(TASKS) + 1))
    for name in options.encoders:
        weights = load_encoder(name)
        encoder = FAMILIES.get(weights.family).build(weights)
        started = time.process_time()
        cells = [
            format_masked_cell(encoder, speech, options.seeds)
            if weights.family == "hubert"
            else "-"
        ]
        for part, column in TASKS.items():
            train, test = (
                compute_examples(encoder, corpora[part], split, column)
                for split in ("train", "test")
            )
            scores = [100 * train_and_test(train, test, seed) for seed in range(options.seeds)]
            cells.append(f"{np.mean(scores):.1f} ± {np.std(scores):.1f}")
        spent = f"{time.process_time() - started:.0f}"
        print(
            f"| {Path(name).name} | {weights_fingerprint(weights)} |",
            " | ".join(cells),
            f"| {spent} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
