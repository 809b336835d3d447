"""What storing frame features in another form does to metrics, states, size and speed.

    python -m benchmarks.feature_forms [pr sf chars sd] [--seeds 5] [--json FILE]
    python -m benchmarks.feature_forms --speed

The shipped encoder on embedded corpora. Every form trains the same probes, seed by seed on the same
batches. Reported are, for each task and form, the mean difference of the test metric to exact
features, the mean of its absolute value over seeds, and the spread of exact features over seeds
(standard deviation); the difference of the mean over seeds is good where it is at most a tenth of
the spread. Then the spectrum of the encoder, and the bytes of a frame. ``--speed`` measures one
update of a probe on states that are restored from coefficients beside one in their basis.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from speechft_ray.core.records import Place, read_scores
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.heads.featurizer import Basis, Featurizer
from speechft_ray.stages.sources import open_corpus
from speechft_ray.superb.evaluate import SharedCaches, evaluate
from speechft_ray.superb.extractor import Extractor
from speechft_ray.superb.feature_forms import CompactForm, Int8Form, fit_basis

ENCODER = "tiny_hubert"
LINEAR_CTC: dict[str, Any] = {
    "validate_every_updates": 100,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "options": {"projection": 128, "lstm_layers": 0, "dropout": 0, "specaug": False},
}
TASKS: dict[str, dict[str, Any]] = {
    "pr": {
        "corpus": {"part": "pr", "train": 300, "dev": 50, "test": 150},
        "updates": 120,
        "validate_every_updates": 40,
        "batch_size": 16,
        "learning_rate": 1e-2,
    },
    "sf": {
        "corpus": {"part": "sf", "train": 120, "dev": 30, "test": 100},
        "updates": 400,
        **LINEAR_CTC,
    },
    "chars": {
        "corpus": {"part": "pr", "train": 300, "dev": 50, "test": 150},
        "updates": 300,
        **LINEAR_CTC,
    },
    "sd": {
        "corpus": {"part": "sd", "train": 160, "dev": 40, "test": 100},
        "updates": 100,
        "validate_every_updates": 25,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "options": {"hidden": 64},
    },
}
"""Short trainings of linear probes, and a small LSTM for ``sd``: the full ones take hours of a CPU,
and an LSTM of 64 behind CTC learns nothing in so few updates."""
FORMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "int8": {"features": "int8"},
    "compact 99.9 %": {"features": "compact", "rank": 0.999},
    "compact 99.5 %": {"features": "compact", "rank": 0.995},
    "compact 99 %": {"features": "compact", "rank": 0.99},
}
SHARES = (0.9, 0.95, 0.99, 0.995, 0.999, 0.9999)
GOOD = 0.1
LIBRISPEECH_FRAMES = 111.4 * 3600 * 50
BASE_VALUES = 13 * 768


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.speed:
        compare_speed()
        return
    results: dict[str, Any] = {}
    with TemporaryDirectory() as folder, patch.object(Extractor, "_encode", share_states({})):
        for task in options.tasks:
            results[task] = compare_forms(task, options.seeds, Path(folder))
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
        print_spectrum(Path(folder))


def compare_forms(task: str, seeds: int, folder: Path) -> dict[str, Any]:
    """Evaluates every form on one task, and prints a row for each."""
    encoder_weights = load_encoder(ENCODER)
    fields = dict(TASKS[task])
    corpus_spec = {"name": "synthetic", "options": fields.pop("corpus")}
    corpus = open_task_corpus(corpus_spec, folder)
    values: dict[str, list[float]] = {}
    rows: dict[str, Any] = {}
    for name, form in FORMS.items():
        began = time.process_time()
        spec = EvalSpec.model_validate(
            {"task": task, "corpus": corpus_spec, "seeds": seeds, **fields, **form}
        )
        cache = SharedCaches(
            cache=FeatureCache(folder / "cache", 1 << 33), encoder=ENCODER, front_end=None
        )
        encoder = FAMILIES.get(encoder_weights.family).build(encoder_weights)
        facts: Any = evaluate(
            spec, encoder, corpus, torch.device("cpu"), lambda _: None, caches=cache
        )
        score = next(item for item in read_scores(facts) if item.split == "test")
        values[name] = list(score.values)
        rows[name] = describe_row(values[name], values["exact"], facts.get("features"))
        rows[name]["metric"] = score.metric
        print(
            f"{task:6}{name:16}",
            format_row(rows[name]),
            f"{time.process_time() - began:.0f} s",
            flush=True,
        )
    return {"values": values, "rows": rows}


def share_states(encoded: dict[str, torch.Tensor]) -> Any:
    """Returns an ``Extractor._encode`` that encodes each utterance once for all forms."""
    encode = Extractor._encode

    def read_or_encode(extractor: Extractor, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        names = [hashlib.sha256(wave.numpy().tobytes()).hexdigest() for wave in waves]
        if any(name not in encoded for name in names):
            encoded.update(zip(names, encode(extractor, waves), strict=True))
        return [encoded[name] for name in names]

    return read_or_encode


def open_task_corpus(corpus_spec: dict[str, Any], folder: Path) -> Corpus:
    """Opens an embedded corpus, which is synthesised once into ``folder``."""
    spec = EvalSpec.model_validate({"task": "pr", "corpus": corpus_spec, "updates": 1}).corpus
    return open_corpus(spec, Place(storage=str(folder), encoder=ENCODER))


def describe_row(values: Sequence[float], exact: Sequence[float], storage: Any) -> dict[str, Any]:
    """Returns the statistics of one form beside exact features."""
    moves = [one - other for one, other in zip(values, exact, strict=True)]
    spread = stdev(exact) if len(exact) > 1 else float("nan")
    return {
        "mean": fmean(values),
        "spread": spread,
        "difference": fmean(moves),
        "absolute": fmean(map(abs, moves)),
        "good": abs(fmean(moves)) <= GOOD * spread,
        "storage": storage,
    }


def format_row(row: dict[str, Any]) -> str:
    """Returns one line of the table."""
    storage = row["storage"] or {}
    return (
        f"{row['metric']:12} {row['mean']:7.2f} spread {row['spread']:5.2f} difference "
        f"{row['difference']:+6.3f} by seed {row['absolute']:5.3f} "
        f"{'at most a tenth' if row['good'] else 'MORE than a tenth'}; "
        f"rank {storage.get('rank')}, {storage.get('bytes_per_frame')} bytes a frame"
    )


def print_spectrum(folder: Path) -> None:
    """Prints the directions that hold each share of the variance, what that would take for
    LibriSpeech-100 with a Base encoder at the same proportion, and the error of restored states."""
    weights = load_encoder(ENCODER)
    encoder = FAMILIES.get(weights.family).build(weights)
    corpus = open_task_corpus({"name": "synthetic", "options": TASKS["pr"]["corpus"]}, folder)
    extract = Extractor(encoder, corpus, torch.device("cpu"), False)
    train, held_out = corpus.split("train"), extract(corpus.split("test")[:20])
    states = extract(train)
    values = encoder.state_count * encoder.dim
    basis = fit_basis(states, values)
    variances = basis.vectors.flatten(1).double().square().sum(1)
    shares = variances.cumsum(0) / variances.sum()
    print(f"{sum(item.shape[1] for item in states)} frames of {values} values, {ENCODER}")
    ranks = {share: int((shares < share).sum()) + 1 for share in SHARES}
    for share, rank in ranks.items():
        form = CompactForm(Basis(basis.vectors[:rank], basis.offset))
        error = _relative_error(held_out, form)
        base_gb = LIBRISPEECH_FRAMES * (BASE_VALUES * rank / values + 2) / 1e9
        print(
            f"  {100 * share:5.2f} % of the variance: {rank:4} directions ({rank / values:.1%}); "
            f"error of states of test {error:.2%}; Base at this proportion {base_gb:.0f} GB"
        )
    error = _relative_error(held_out, Int8Form(encoder.state_count, encoder.dim))
    print(f"  int8: error of states of test {error:.2%}")


def _relative_error(states: Sequence[torch.Tensor], form: CompactForm | Int8Form) -> float:
    """Returns the root mean square of the error of restored states, relative to that of states."""
    errors, sizes = 0.0, 0.0
    for item in states:
        rows = form.unpack(form.pack(item))
        restored = form.basis.restore(rows) if form.basis else rows
        errors += float((restored - item.float()).square().sum())
        sizes += float(item.float().square().sum())
    return math.sqrt(errors / sizes)


def compare_speed() -> None:
    """Prints the seconds of the weighted sum with its gradient, from each form."""
    for layers, dim, ranks in ((7, 192, (180, 250, 460)), (13, 768, (1300, 1800))):
        rows = 16 * (70 if dim < 768 else 600)
        states = torch.randn(layers, rows, dim).half()
        print(f"{layers} x {dim}, {rows} frames:")
        print(f"  exact, from float16: {_time_sum(lambda s=states: s.float(), None):.3f} s")
        int8 = Int8Form(layers, dim)
        packed = int8.pack(states)
        print(f"  int8: {_time_sum(lambda: int8.unpack(packed), None):.3f} s")  # noqa: B023
        for rank in ranks:
            vectors = torch.randn(rank, layers, dim)
            basis = Basis(vectors, torch.zeros(layers, dim))
            coefficients = torch.randn(rows, rank)
            restored = _time_sum(lambda: basis.restore(coefficients), None)  # noqa: B023
            inside = _time_sum(lambda: coefficients, basis)  # noqa: B023
            print(f"  compact, {rank}: restored {restored:.3f} s, in the basis {inside:.3f} s")


def _time_sum(read: Any, basis: Basis | None) -> float:
    featurizer = Featurizer(basis.vectors.shape[1] if basis else len(read()), normalize=False)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        states = read()
        if basis is None:
            result = featurizer(states.unsqueeze(1))
        else:
            result = featurizer.sum_in_basis(states, basis)
        result.square().mean().backward()
        seconds.append(time.process_time() - began)
    return median(seconds)


if __name__ == "__main__":
    main()
