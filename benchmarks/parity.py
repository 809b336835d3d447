"""Parity with s3prl: its downstream code and ours on the same features, batches and initial
weights.

    make peers-s3prl && .venv/bin/python -m benchmarks.parity

For each task both are trained for 50 updates: the largest relative difference of their losses, and
whether all metrics of dev agree. Features are random with a hint of the labels, in 3 layers; widths
are options of both sides and smaller than SUPERB's, with the same code path; the rates are such
that something is learned in 50 updates. Dropout uses the same masks on both sides
(``SharedDropout``: the memory layouts differ, so that one seed would not suffice). SpecAug is off
in training, since the two draw random numbers in another order; it is compared separately, with the
same draws. Chunks of diarisation have one length, since s3prl's last frame of a shorter one depends
on its batch. QbE compares s3prl's ``match``, which is dtw-python, with ours; ``pooled`` trains
s3prl on frames and us on their means for 300 updates.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from benchmarks.parity_cases import (
    CASES,
    DIM,
    LAYERS,
    average_frames,
    make_corpus,
    make_features,
)
from benchmarks.s3prl_peer import PEERS, Frames, Peer, expert_module, no_cuda
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.heads.ctc import CtcHead
from speechft_ray.speech.heads.pooled import PooledHead
from speechft_ray.speech.heads.specaug import draw_warps, warp_time
from speechft_ray.superb.probe import Probe
from speechft_ray.superb.sampling import sample_batches
from speechft_ray.superb.selection import compute_dev_metrics, predict
from speechft_ray.superb.setup import build_task_data, make_schedule
from speechft_ray.superb.tasks._dtw import Distance, frame_distances, subsequence_costs
from speechft_ray.superb.tasks.base import TASKS, TaskData
from speechft_ray.superb.training import gather_batches, make_optimizer, train_step

UPDATES, POOLED_UPDATES = 50, 300
COUNTS = {"train": 96, "dev": 36, "test": 36}
BLANK_HANDICAP = 3.0
"""Subtracted from the blank's initial bias: else LSTM probes decode nothing after 50 updates, and
all metrics would agree."""
LOSS_TOLERANCE, METRIC_TOLERANCE, DTW_TOLERANCE, POOLED_TOLERANCE = 1e-4, 2e-5, 1e-6, 1e-5
"""Relative; percentage points, for s3prl averages in float32 (1.2e-5 at 100); absolute;
relative."""


class Line(NamedTuple):
    """One line of the table."""

    what: str
    difference: float
    tolerance: float
    details: str

    @property
    def is_ok(self) -> bool:
        return self.difference <= self.tolerance


class SharedDropout(nn.Module):
    """Dropout whose mask follows from torch's seed and the shape alone, whatever the layout in
    memory."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return values
        return values * (torch.rand(values.shape) >= self.probability) / (1.0 - self.probability)


class Pair:
    """Our probe and s3prl's expert with equal weights, for one task on random features."""

    def __init__(
        self, task: str, folder: Path, counts: dict[str, int], pooled: bool = False
    ) -> None:
        case = CASES[task]
        self.case, self.task = case, TASKS.get(task)
        spec = EvalSpec(
            task=task,
            corpus=CorpusSpec(),
            updates=UPDATES,
            learning_rate=case.learning_rate,
            options=dict(case.options),
        )
        data = build_task_data(self.task, spec, make_corpus(case, counts))
        assert isinstance(data, TaskData)
        self.data, self.schedule = data, make_schedule(self.task, spec)
        self.frames = {split: make_features(data, split) for split in ("train", "dev")}
        self.ours = {
            split: average_frames(frames) if pooled else frames
            for split, frames in self.frames.items()
        }
        torch.manual_seed(0)
        self.probe = Probe(LAYERS, data.head(DIM))
        if isinstance(self.probe.head, CtcHead):
            self.probe.head.output.bias.data[0] -= BLANK_HANDICAP
        expert = case.expert(data, self.probe.head, DIM, folder)
        case.copy(self.probe.head, expert, data)
        self.peer = Peer(expert, case.forward, Frames(LAYERS, DIM))
        self.peer.dev_name = case.dev_name
        share_dropout(self.probe)
        share_dropout(expert)

    def losses(self, updates: int) -> Iterator[tuple[float, float]]:
        """Trains both; yields their losses, update by update."""
        ours = make_optimizer(self.probe, self.schedule)
        optimizer_class: Any = type(ours)
        theirs = optimizer_class(self.peer.parameters(), lr=self.schedule.learning_rate)
        examples = self.data.examples["train"]
        targets = [example.target for example in examples]
        generator = torch.Generator().manual_seed(0)
        batches = sample_batches(self.schedule, examples, generator)
        for update in range(updates):
            indices = list(islice(batches, self.schedule.accumulate))
            torch.manual_seed(update)
            loss, _ = train_step(
                self.probe,
                ours,
                self.data,
                next(gather_batches(self.ours["train"], targets, indices, len(indices))),
                self.schedule,
                generator,
            )
            torch.manual_seed(update)
            yield float(loss), self.train_peer(theirs, indices)

    def train_peer(self, optimizer: torch.optim.Optimizer, batches: Sequence[Any]) -> float:
        """Makes one update as in s3prl's ``downstream/runner.py``; returns the loss."""
        examples, total = self.data.examples["train"], 0.0
        self.peer.expert.train()
        for selected in batches:
            indices = torch.arange(len(examples))[selected].tolist()
            batch = self.frames["train"].batch(torch.tensor(indices))
            records: dict[str, list[Any]] = defaultdict(list)
            loss = self.peer.loss(
                "train", batch, [examples[index] for index in indices], records
            ) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.peer.parameters(), self.schedule.clip_norm)
        if not norm.isnan():
            optimizer.step()
        optimizer.zero_grad()
        return total

    def dev(self) -> dict[str, tuple[float, float]]:
        """Returns our value and s3prl's of every metric on dev."""
        ours = compute_dev_metrics(self.data, predict(self.data, [self.probe], self.ours["dev"])[0])
        order = list(self.data.dev_indices or range(len(self.data.examples["dev"])))
        records: dict[str, list[Any]] = defaultdict(list)
        self.peer.expert.eval()
        with torch.no_grad():
            for start in range(0, len(order), self.case.eval_batch):
                indices = order[start : start + self.case.eval_batch]
                examples = [self.data.examples["dev"][index] for index in indices]
                self.peer.loss(
                    self.case.dev_name,
                    self.frames["dev"].batch(torch.tensor(indices)),
                    examples,
                    records,
                )
        theirs = self.peer.metrics(records)
        return {
            name: (ours[name], factor * theirs[other])
            for name, (other, factor) in self.case.metrics.items()
        }


def share_dropout(module: nn.Module) -> None:
    for child in list(module.modules()):
        for name, part in list(child.named_children()):
            if isinstance(part, nn.Dropout):
                setattr(child, name, SharedDropout(part.p))


def compare_task(
    task: str, folder: Path, updates: int = UPDATES, counts: dict[str, int] = COUNTS
) -> list[Line]:
    """Trains a pair and compares losses and metrics."""
    pair = Pair(task, folder, counts)
    with no_cuda():
        losses = list(pair.losses(updates))
        metrics = pair.dev()
    largest = max(abs(ours - theirs) / abs(theirs) for ours, theirs in losses)
    details = f"loss {losses[0][1]:.4g} -> {losses[-1][1]:.4g}"
    lines = [Line(f"{task} losses of {updates} updates", largest, LOSS_TOLERANCE, details)]
    for name, (ours, theirs) in metrics.items():
        lines.append(
            Line(
                f"{task} dev {name}",
                abs(ours - theirs),
                METRIC_TOLERANCE,
                f"ours {ours:.4f}, s3prl {theirs:.4f}",
            )
        )
    return lines


def compare_pooled(folder: Path, updates: int = POOLED_UPDATES) -> Line:
    """Trains s3prl's head on frames and ours on means; compares all weights."""
    pair = Pair("er", folder, COUNTS, pooled=True)
    for _ in pair.losses(updates):
        pass
    head, expert = pair.probe.head, pair.peer.expert
    assert isinstance(head, PooledHead)
    ours = [pair.probe.featurizer.weights, *head.projector.parameters(), *head.output.parameters()]
    linear = expert.model.post_net.linear
    theirs = [pair.peer.featurizer.weights, *expert.projector.parameters(), *linear.parameters()]
    one, other = (
        torch.cat([weights.detach().flatten() for weights in side]) for side in (ours, theirs)
    )
    difference = float((one - other).norm() / other.norm())
    return Line(
        f"pooled against frames, {updates} updates",
        difference,
        POOLED_TOLERANCE,
        "relative distance of all weights",
    )


def compare_specaug(rounds: int = 20) -> Line:
    """Compares our time warp with s3prl's ``TimeWarp``, which gets our random draws."""
    module, generator, largest = expert_module("specaug"), torch.Generator().manual_seed(0), 0.0
    frames = torch.tensor([60, 31, 11, 10])
    for _ in range(rounds):
        features = torch.randn(4, 60, 8, generator=generator)
        lengths, centres, moved = draw_warps(frames, generator)
        draws = iter(
            [value for pair in zip(centres, moved - 1, strict=True) if pair[0] for value in pair]
        )
        patched: Any = torch
        original = torch.randint
        patched.randint = lambda *_, draws=draws, **__: next(draws).reshape(1)
        try:
            theirs, _ = module.TimeWarp(window=5)(features.clone(), frames)
        finally:
            patched.randint = original
        ours = warp_time(features, lengths, centres, moved)
        largest = max(
            largest,
            *(
                float((ours[i, :n] - theirs[i, :n]).abs().max())
                for i, n in enumerate(frames.tolist())
            ),
        )
    return Line("SpecAug time warp, same draws", largest, 1e-5, f"{rounds} batches of 4")


def compare_dtw(queries: int = 6, documents: int = 8) -> list[Line]:
    """Compares our scores with those of s3prl's ``match``, which calls dtw-python."""
    module = expert_module("quesst14_dtw.expert")
    generator = torch.Generator().manual_seed(0)
    query_frames = [
        torch.randn(5 + 7 * index, DIM, generator=generator) for index in range(queries)
    ]
    document_frames = [
        torch.randn(20 + 31 * index, DIM, generator=generator) for index in range(documents)
    ]
    settings = {
        "step_pattern": "asymmetric",
        "keep_internals": False,
        "distance_only": False,
        "open_begin": True,
        "open_end": True,
    }
    frames = torch.tensor([len(document) for document in document_frames])
    units = functional.normalize(
        nn.utils.rnn.pad_sequence([each.double() for each in document_frames], batch_first=True),
        dim=2,
    )
    lines = []
    distances: tuple[tuple[Distance, Any], ...] = (
        ("cosine_exp", module.cosine_exp),
        ("cosine", lambda one, two: module.distance.cdist(one, two, "cosine")),
    )
    for name, distance in distances:
        largest = 0.0
        for query in query_frames:
            costs = subsequence_costs(
                frame_distances(functional.normalize(query.double(), dim=1), units, frames, name)
            )
            for document, cost in zip(document_frames, costs.tolist(), strict=True):
                *_, score = module.match(
                    query.double().numpy(),
                    document.double().numpy(),
                    "",
                    "",
                    distance,
                    True,
                    settings,
                )
                largest = max(largest, abs(-score - cost))
        lines.append(
            Line(
                f"qbe {name}", largest, DTW_TOLERANCE, f"{queries} queries x {documents} documents"
            )
        )
    return lines


def main() -> None:
    """Prints the table; exits with 1 if a line fails."""
    torch.set_num_threads(1)
    if not PEERS.is_dir():
        sys.exit(
            "s3prl's downstream code needs editdistance, h5py, lxml and dtw-python: run "
            "`make peers-s3prl` first."
        )
    lines = []
    for task in CASES:
        with tempfile.TemporaryDirectory() as folder:
            lines += compare_task(task, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        lines += [compare_pooled(Path(folder)), compare_specaug(), *compare_dtw()]
    for line in lines:
        print(
            f"{'PASS' if line.is_ok else 'FAIL'}  {line.what:40} {line.difference:9.2e} <= "
            f"{line.tolerance:.0e}  {line.details}"
        )
    sys.exit(not all(line.is_ok for line in lines))


if __name__ == "__main__":
    main()
