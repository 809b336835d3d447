"""The probe against independent training loops: batches, selection, reproducibility."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from speechft_ray.speech.heads.pooled import PooledHead
from speechft_ray.superb.extractor import Batch
from speechft_ray.superb.features import InMemoryFeatures
from speechft_ray.superb.probe import Probe
from speechft_ray.superb.sampling import (
    class_balanced_batches,
    length_buckets,
    random_epochs,
    sliding_windows,
)
from speechft_ray.superb.selection import compute_dev_metrics, predict
from speechft_ray.superb.setup import make_schedule
from speechft_ray.superb.tasks.base import TASKS
from speechft_ray.superb.training import gather_batches, local_rng, train_step
from tests.superb.probe_helpers import (
    DIM,
    LAYERS,
    average_frames,
    get_pooled_head,
    noise_features,
    toy_data,
    toy_schedule,
    toy_spec,
    train_probe,
)


def test_a_head_on_kept_means_learns_what_a_plain_loop_over_frames_learns() -> None:
    """SUPERB's order of operations, written out: sum over layers, projection by frame, output, mean
    over frames, clipping."""
    data, updates = toy_data(), 300
    data = replace(data, head=lambda dim: PooledHead(dim, 4, projection=5))
    frames = noise_features(data, "train", hint=0.5)
    plan = toy_schedule(updates=updates, validate_every_updates=updates, clip_norm=0.5)
    dev = average_frames(noise_features(data, "dev"))
    probe = train_probe(data, average_frames(frames), dev, plan, 0).probe

    with local_rng(0, torch.device("cpu")):
        projector, output = nn.Linear(DIM, 5), nn.Linear(5, 4)
    logits_of_layers = nn.Parameter(torch.zeros(LAYERS))
    parameters = [logits_of_layers, *projector.parameters(), *output.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=plan.learning_rate)
    batches = random_epochs(24, plan.batch_size, torch.Generator().manual_seed(0))
    states = torch.split(frames.states, frames.frames.tolist(), dim=1)
    for batch in itertools.islice(batches, updates):
        shares = logits_of_layers.exp() / logits_of_layers.exp().sum()
        rows = [
            output(projector((shares[:, None, None] * states[index]).sum(0)).mean(0))
            for index in batch.tolist()
        ]
        labels = torch.cat([data.examples["train"][index].target for index in batch.tolist()])
        losses = [-row.log_softmax(0)[label] for row, label in zip(rows, labels, strict=True)]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for gradient in gradients:
            gradient *= min(1.0, 0.5 / (float(norm) + 1e-6))
        optimizer.step()

    head = get_pooled_head(probe)
    learned = [
        probe.featurizer.weights,
        *head.projector.parameters(),
        *head.output.parameters(),
    ]
    assert logits_of_layers.detach().abs().max() > 0.05
    for weights, expected in zip(learned, parameters, strict=True):
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-5)


def test_frames_and_their_means_train_the_same_pooled_probe() -> None:
    data = toy_data()
    train, dev = noise_features(data, "train", hint=0.5), noise_features(data, "dev", hint=0.5)
    plan = toy_schedule(updates=100, validate_every_updates=100)
    by_frames = train_probe(data, train, dev, plan, 3)
    by_means = train_probe(data, average_frames(train), average_frames(dev), plan, 3)
    pairs = zip(by_frames.probe.parameters(), by_means.probe.parameters(), strict=True)
    for weights, expected in pairs:
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-5)
    assert by_frames.dev == by_means.dev


def test_features_are_summed_over_layers_and_padded_by_utterance() -> None:
    generator = torch.Generator().manual_seed(0)
    probe = Probe(LAYERS, nn.Identity())
    with torch.no_grad():
        probe.featurizer.weights.copy_(torch.tensor([0.3, -1.0, 2.0]))
    frames = torch.tensor([3, 1, 5])
    states = torch.randn(LAYERS, 9, DIM, generator=generator)
    shares = torch.tensor([0.3, -1.0, 2.0]).softmax(0)
    rows = (shares[:, None, None] * states).sum(0)
    features = probe.features(Batch(states, frames))
    assert features.shape == (3, 5, DIM)
    for index, (start, count) in enumerate([(0, 3), (3, 1), (4, 5)]):
        torch.testing.assert_close(features[index, :count], rows[start : start + count])
        assert not features[index, count:].any()


def test_the_best_validation_is_selected() -> None:
    """Shorter runs are the beginnings of a longer one, so each validation can be seen from
    outside."""
    data = toy_data(train=40, dev=40)
    train, dev = noise_features(data, "train", hint=0.3), noise_features(data, "dev", hint=0.3)
    accuracies: dict[int, float] = {}
    for updates in range(5, 61, 5):
        plan = toy_schedule(updates=updates, validate_every_updates=updates)
        accuracies[updates] = train_probe(data, train, dev, plan, 1).dev["sid.accuracy"]
    best = max(accuracies.values())
    trained = train_probe(data, train, dev, toy_schedule(updates=60), 1)
    assert trained.dev["sid.accuracy"] == best > accuracies[60]
    assert trained.best_update == next(
        update for update, value in accuracies.items() if value == best
    )
    assert predict(data, [trained.probe], dev) == [trained.dev_predictions]
    assert compute_dev_metrics(data, trained.dev_predictions) == trained.dev


def test_a_lower_error_rate_is_the_better_one() -> None:
    data = toy_data("pr")
    rates = iter([50.0, 40.0, 70.0])
    data = replace(data, measure=lambda predictions, references: {"pr.per": next(rates)})
    train, dev = noise_features(data, "train"), noise_features(data, "dev")
    trained = train_probe(
        data, train, dev, toy_schedule(updates=15, sampling="windows", metric="pr.per"), 0
    )
    assert (trained.best_update, trained.dev) == (10, {"pr.per": 40.0})


def test_an_update_that_is_not_finite_is_skipped() -> None:
    data, calls = toy_data(), itertools.count()
    broken = replace(
        data,
        loss=lambda *batch: data.loss(*batch) * (float("nan") if next(calls) % 2 else 1.0),
        measure=lambda *_: {"sid.accuracy": 0.0},
    )
    train, dev = noise_features(data, "train"), noise_features(data, "dev")
    trained = train_probe(
        broken, train, dev, toy_schedule(updates=20, validate_every_updates=20), 0
    )
    assert all(parameter.isfinite().all() for parameter in trained.probe.parameters())


@pytest.mark.parametrize(
    ("task", "sampling"), [("sid", "shuffled"), ("ks", "balanced"), ("sf", "windows")]
)
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_probe(
    task: str, sampling: str
) -> None:
    options = {"lstm_hidden": 3, "projection": 4} if task == "sf" else {}
    data = toy_data(task, train=12, dev=4, **options)
    generator = torch.Generator().manual_seed(0)
    train = InMemoryFeatures(
        torch.randn(LAYERS, 12 * 30, DIM, generator=generator), torch.full((12,), 30)
    )
    dev = InMemoryFeatures(
        torch.randn(LAYERS, 4 * 30, DIM, generator=generator), torch.full((4,), 30)
    )
    plan = toy_schedule(updates=8, sampling=sampling, metric=TASKS.get(task).metrics[0])

    def train_weights(seed: int, other_seed: int) -> torch.Tensor:
        torch.manual_seed(other_seed)  # earlier use of the global generator must not matter
        before = torch.get_rng_state()
        probe = train_probe(data, train, dev, replace(plan, validate_every_updates=8), seed).probe
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([parameter.detach().flatten() for parameter in probe.parameters()])

    assert torch.equal(train_weights(0, 1), train_weights(0, 2))
    assert not torch.equal(train_weights(0, 1), train_weights(1, 1))


def test_validating_more_often_does_not_change_what_is_learned() -> None:
    data = toy_data()
    train, dev = noise_features(data, "train"), noise_features(data, "dev")
    constant = replace(data, measure=lambda *_: {"sid.accuracy": float(next(rising))})
    learned = []
    for every in (1, 20):
        rising = itertools.count()
        trained = train_probe(constant, train, dev, toy_schedule(validate_every_updates=every), 0)
        assert trained.best_update == 20
        learned.append(get_pooled_head(trained.probe).output.weight)
    assert torch.equal(learned[0], learned[1])


def test_shuffled_batches_are_epochs() -> None:
    batches = random_epochs(10, 4, torch.Generator().manual_seed(0))
    first, second = ([batch.tolist() for batch in itertools.islice(batches, 3)] for _ in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(10))
    assert first != second


def test_balanced_batches_sample_every_class_equally_often() -> None:
    classes = torch.tensor([0] * 90 + [1] * 9 + [2])
    batches = itertools.islice(
        class_balanced_batches(classes, 25, torch.Generator().manual_seed(0)), 400
    )
    counts = Counter(classes[index].item() for batch in batches for index in batch.tolist())
    assert sum(counts.values()) == 10_000
    assert all(
        abs(count - 10_000 / 3) < 4 * (10_000 * 2 / 9) ** 0.5 for count in counts.values()
    )  # four standard deviations


def test_windows_are_neighbours_and_long_audio_halves_them() -> None:
    samples = [400_000, 300_001, 300_000, 5, 5, 5, 5]
    epoch = list(itertools.islice(sliding_windows(samples, 4, torch.Generator().manual_seed(0)), 7))
    assert Counter((window.start, window.stop) for window in epoch) == {
        (0, 2): 1,
        (1, 3): 1,
        (2, 6): 1,
        (3, 7): 4,
    }


def test_buckets_are_fixed_halves_and_a_single_rest_is_left_out() -> None:
    samples = [50, 90, 10, 80, 30, 70, 20, 60, 40]
    order = sorted(range(9), key=lambda index: -samples[index])
    batches = length_buckets(samples, 2, torch.Generator().manual_seed(0))
    first, second = ([next(batches).tolist() for _ in range(4)] for _ in range(2))
    # The shortest utterance is left out.
    halves = [order[:2], order[2:4], order[4:6], order[6:8]]
    assert sorted(first) == sorted(second) == sorted(halves)
    assert first != second
    rest = length_buckets(samples[:7], 2, torch.Generator().manual_seed(0))
    # What remains below a full bucket is one batch.
    assert sorted(len(next(rest)) for _ in range(3)) == [2, 2, 3]
    assert next(length_buckets([7], 2, torch.Generator())).tolist() == [0]


def test_accumulated_batches_are_one_update_of_their_mean_loss() -> None:
    data = toy_data()
    train = noise_features(data, "train", hint=0.5)
    targets = [example.target for example in data.examples["train"]]
    whole, halves = torch.arange(8), [torch.arange(4), torch.arange(4, 8)]
    learned, losses = [], []
    for batches in ([whole], halves):
        torch.manual_seed(0)
        probe = Probe(LAYERS, data.head(DIM))
        optimizer = torch.optim.SGD(probe.parameters(), lr=0.1)
        loss, is_finite = train_step(
            probe,
            optimizer,
            data,
            next(gather_batches(train, targets, batches, len(batches))),
            toy_schedule(),
            torch.Generator(),
        )
        assert is_finite
        losses.append(float(loss))
        learned.append(torch.cat([weights.detach().flatten() for weights in probe.parameters()]))
    torch.testing.assert_close(learned[0], learned[1])
    assert losses[0] == pytest.approx(losses[1])


def test_a_tasks_own_batch_is_accumulated_and_one_of_the_spec_is_not() -> None:
    task = TASKS.get("pr")
    own = make_schedule(task, toy_spec("pr"))
    of_spec = make_schedule(task, toy_spec("pr", batch_size=12))
    assert (own.batch_size, own.accumulate) == (16, 2)
    assert (of_spec.batch_size, of_spec.accumulate) == (12, 1)


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    data = toy_data()
    silent = replace(data, loss=lambda logits, frames, targets: 0.0 * logits.sum())
    train, dev = noise_features(data, "train"), noise_features(data, "dev")
    norms = []
    for decay in (0.0, 0.5):
        plan = toy_schedule(updates=4, validate_every_updates=4, weight_decay=decay)
        head = get_pooled_head(train_probe(silent, train, dev, plan, 0).probe)
        norms.append(float(head.output.weight.detach().norm()))
    assert norms[1] == pytest.approx(norms[0] * (1 - 1e-2 * 0.5) ** 4, rel=1e-5)


def test_a_task_may_select_by_its_own_criterion() -> None:
    data, qualities = toy_data(), iter([0.2, 0.9, 0.9, 0.1])
    measured: list[int] = []

    def measure(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        measured.append(len(predictions))
        return {"sid.accuracy": float(len(predictions))}

    selecting = replace(
        data, select=lambda predictions, references: next(qualities), measure=measure
    )
    train, dev = noise_features(data, "train"), noise_features(data, "dev")
    trained = train_probe(selecting, train, dev, toy_schedule(), 0)
    assert (trained.best_update, trained.dev) == (10, {"sid.accuracy": 12.0})
    assert len(measured) == 1  # at the end


def test_examples_of_dev_may_count_more_than_once() -> None:
    data = replace(toy_data(), dev_indices=[0, 0, 0, 1])
    right, wrong = data.examples["dev"][0].reference, (99,)
    predictions = [right, *[wrong] * 11]
    assert compute_dev_metrics(data, predictions) == {"sid.accuracy": 75.0}


def test_scoring_in_batches_keeps_the_order() -> None:
    data = toy_data(train=40, dev=40)
    dev = noise_features(data, "dev", hint=50.0)
    head = PooledHead(DIM, 4)
    probe = Probe(LAYERS, head)
    with torch.no_grad():  # reads the hint: class i is component i
        for linear in (head.projector, head.output):
            linear.weight.zero_()
            linear.bias.zero_()
        for index in range(4):
            head.projector.weight[index, index] = head.output.weight[index, index] = 1.0
    done: list[int] = []
    predictions = predict(data, [probe, probe], dev, done.append)
    assert [compute_dev_metrics(data, each) for each in predictions] == [
        {"sid.accuracy": 100.0}
    ] * 2
    assert sum(done) == 40
