"""The probe against independent training loops, and the way it draws, selects and stays
reproducible."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.heads.pooled import PooledHead
from speechft_ray.superb.evaluate import build_task_data, make_schedule
from speechft_ray.superb.features import Batch, InMemoryFeatures
from speechft_ray.superb.probe import (
    Probe,
    Schedule,
    class_balanced_batches,
    compute_dev_metrics,
    gather_batches,
    length_buckets,
    local_rng,
    predict,
    random_epochs,
    sliding_windows,
    train_probe,
    train_step,
)
from speechft_ray.superb.tasks.base import TASKS, TaskData
from tests.superb.toy_models import toy_corpus

LAYERS, DIM = 3, 6


def schedule(**changed: object) -> Schedule:
    plain = Schedule(
        updates=20,
        validate_every_updates=5,
        learning_rate=1e-2,
        batch_size=4,
        clip_norm=1.0,
        sampling="shuffled",
        metric="sid.accuracy",
    )
    return replace(plain, **changed)


def build_data(task: str = "sid", train: int = 24, dev: int = 12) -> TaskData:
    counts = {"train": train, "dev": dev, "test": 8}
    return build_task_data(
        TASKS.get(task), EvalSpec(task=task, corpus=CorpusSpec(), updates=1), toy_corpus(counts)
    )


def noise(data: TaskData, split: str, hint: float = 0.0) -> InMemoryFeatures:
    """Random frames, with a weak hint of the label in one layer, so that learning is neither
    instant nor impossible."""
    generator = torch.Generator().manual_seed(len(split))
    examples = data.examples[split]
    frames = torch.randint(2, 9, (len(examples),), generator=generator)
    states = torch.randn(LAYERS, int(frames.sum()), DIM, generator=generator)
    labels = torch.repeat_interleave(
        torch.stack([example.target[0] for example in examples]), frames
    )
    states[1, torch.arange(len(labels)), labels] += hint
    return InMemoryFeatures(states, frames)


def means(kept: InMemoryFeatures) -> InMemoryFeatures:
    rows = torch.split(kept.states, kept.frames.tolist(), dim=1)
    return InMemoryFeatures(
        torch.stack([piece.mean(dim=1) for piece in rows], dim=1), torch.ones_like(kept.frames)
    )


def ignore(count: int) -> None:
    pass


def test_a_head_on_kept_means_learns_what_a_plain_loop_over_frames_learns() -> None:
    """SUPERB's order of operations, written out: sum over layers, projection by frame, output, mean
    over frames, clipping."""
    data, updates = build_data(), 300
    data = replace(data, head=lambda dim: PooledHead(dim, 4, projection=5))
    frames = noise(data, "train", hint=0.5)
    plan = schedule(updates=updates, validate_every_updates=updates, clip_norm=0.5)
    found = train_probe(data, means(frames), means(noise(data, "dev")), plan, 0, ignore).probe

    with local_rng(0, torch.device("cpu")):
        projector, output = nn.Linear(DIM, 5), nn.Linear(5, 4)
    logits_of_layers = nn.Parameter(torch.zeros(LAYERS))
    parameters = [logits_of_layers, *projector.parameters(), *output.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=plan.learning_rate)
    batches = random_epochs(24, plan.batch_size, torch.Generator().manual_seed(0))
    pieces = torch.split(frames.states, frames.frames.tolist(), dim=1)
    for chosen in itertools.islice(batches, updates):
        shares = logits_of_layers.exp() / logits_of_layers.exp().sum()
        rows = [
            output(projector((shares[:, None, None] * pieces[place]).sum(0)).mean(0))
            for place in chosen.tolist()
        ]
        wanted = torch.cat([data.examples["train"][place].target for place in chosen.tolist()])
        losses = [-row.log_softmax(0)[label] for row, label in zip(rows, wanted, strict=True)]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        norm = torch.sqrt(sum(parameter.grad.square().sum() for parameter in parameters))
        for parameter in parameters:
            parameter.grad *= min(1.0, 0.5 / (float(norm) + 1e-6))
        optimizer.step()

    learned = [
        found.featurizer.weights,
        *found.head.projector.parameters(),
        *found.head.output.parameters(),
    ]
    assert logits_of_layers.detach().abs().max() > 0.05
    for mine, theirs in zip(learned, parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_frames_and_their_means_train_the_same_pooled_probe() -> None:
    data = build_data()
    train, dev = noise(data, "train", hint=0.5), noise(data, "dev", hint=0.5)
    plan = schedule(updates=300, validate_every_updates=300)
    by_frames = train_probe(data, train, dev, plan, 3, ignore)
    by_means = train_probe(data, means(train), means(dev), plan, 3, ignore)
    for mine, theirs in zip(by_frames.probe.parameters(), by_means.probe.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
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
    for place, (start, count) in enumerate([(0, 3), (3, 1), (4, 5)]):
        torch.testing.assert_close(features[place, :count], rows[start : start + count])
        assert not features[place, count:].any()


def test_the_best_validation_is_kept() -> None:
    """Shorter runs are the beginnings of a longer one, so each validation can be seen from
    outside."""
    data = build_data(train=40, dev=40)
    train, dev = noise(data, "train", hint=0.3), noise(data, "dev", hint=0.3)
    seen: dict[int, float] = {}
    for updates in range(5, 61, 5):
        plan = schedule(updates=updates, validate_every_updates=updates)
        seen[updates] = train_probe(data, train, dev, plan, 1, ignore).dev["sid.accuracy"]
    best = max(seen.values())
    kept = train_probe(data, train, dev, schedule(updates=60), 1, ignore)
    assert kept.dev["sid.accuracy"] == best > seen[60]
    assert kept.best_update == next(update for update, value in seen.items() if value == best)
    assert predict(data, [kept.probe], dev) == [kept.dev_predictions]
    assert compute_dev_metrics(data, kept.dev_predictions) == kept.dev


def test_a_lower_error_rate_is_the_better_one() -> None:
    data = build_data("pr")
    rates = iter([50.0, 40.0, 70.0])
    data = replace(data, measure=lambda predictions, references: {"pr.per": next(rates)})
    train, dev = noise(data, "train"), noise(data, "dev")
    kept = train_probe(
        data, train, dev, schedule(updates=15, sampling="windows", metric="pr.per"), 0, ignore
    )
    assert (kept.best_update, kept.dev) == (10, {"pr.per": 40.0})


def test_an_update_that_is_not_finite_is_skipped() -> None:
    data, calls = build_data(), itertools.count()
    broken = replace(
        data,
        loss=lambda *given: data.loss(*given) * (float("nan") if next(calls) % 2 else 1.0),
        measure=lambda *_: {"sid.accuracy": 0.0},
    )
    train, dev = noise(data, "train"), noise(data, "dev")
    found = train_probe(
        broken, train, dev, schedule(updates=20, validate_every_updates=20), 0, ignore
    )
    assert all(parameter.isfinite().all() for parameter in found.probe.parameters())


@pytest.mark.parametrize(
    ("task", "sampling"), [("sid", "shuffled"), ("ks", "balanced"), ("sf", "windows")]
)
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_probe(
    task: str, sampling: str
) -> None:
    options = {"lstm_hidden": 3, "projection": 4} if task == "sf" else {}
    spec = EvalSpec(task=task, corpus=CorpusSpec(), updates=1, options=options)
    data = build_task_data(TASKS.get(task), spec, toy_corpus({"train": 12, "dev": 4, "test": 4}))
    generator = torch.Generator().manual_seed(0)
    kept = InMemoryFeatures(
        torch.randn(LAYERS, 12 * 30, DIM, generator=generator), torch.full((12,), 30)
    )
    dev = InMemoryFeatures(
        torch.randn(LAYERS, 4 * 30, DIM, generator=generator), torch.full((4,), 30)
    )
    plan = schedule(updates=8, sampling=sampling, metric=TASKS.get(task).metrics[0])

    def trained(seed: int, chatter: int) -> torch.Tensor:
        torch.manual_seed(chatter)  # what others drew before must not matter
        before = torch.get_rng_state()
        found = train_probe(data, kept, dev, replace(plan, validate_every_updates=8), seed, ignore)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([parameter.detach().flatten() for parameter in found.probe.parameters()])

    assert torch.equal(trained(0, 1), trained(0, 2))
    assert not torch.equal(trained(0, 1), trained(1, 1))


def test_validating_more_often_does_not_change_what_is_learned() -> None:
    data = build_data()
    train, dev = noise(data, "train"), noise(data, "dev")
    constant = replace(data, measure=lambda *_: {"sid.accuracy": float(next(rising))})
    learned = []
    for every in (1, 20):
        rising = itertools.count()
        found = train_probe(constant, train, dev, schedule(validate_every_updates=every), 0, ignore)
        assert found.best_update == 20
        learned.append(found.probe.head.output.weight)
    assert torch.equal(*learned)


def test_shuffled_batches_are_epochs() -> None:
    batches = random_epochs(10, 4, torch.Generator().manual_seed(0))
    first, second = ([batch.tolist() for batch in itertools.islice(batches, 3)] for _ in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(10))
    assert first != second


def test_balanced_batches_draw_every_class_equally_often() -> None:
    classes = torch.tensor([0] * 90 + [1] * 9 + [2])
    batches = itertools.islice(
        class_balanced_batches(classes, 25, torch.Generator().manual_seed(0)), 400
    )
    counts = Counter(classes[place].item() for batch in batches for place in batch.tolist())
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
    order = sorted(range(9), key=lambda place: -samples[place])
    batches = length_buckets(samples, 2, torch.Generator().manual_seed(0))
    first, second = ([next(batches).tolist() for _ in range(4)] for _ in range(2))
    assert (
        sorted(first) == sorted(second) == sorted([order[:2], order[2:4], order[4:6], order[6:8]])
    )  # the shortest is left
    assert first != second
    rest = length_buckets(samples[:7], 2, torch.Generator().manual_seed(0))
    assert sorted(len(next(rest)) for _ in range(3)) == [
        2,
        2,
        3,
    ]  # the rest below a bucket is one batch
    assert next(length_buckets([7], 2, torch.Generator())).tolist() == [0]


def test_accumulated_batches_are_one_update_of_their_mean_loss() -> None:
    data = build_data()
    train = noise(data, "train", hint=0.5)
    targets = [example.target for example in data.examples["train"]]
    whole, halves = torch.arange(8), [torch.arange(4), torch.arange(4, 8)]
    learned, losses = [], []
    for parts in ([whole], halves):
        torch.manual_seed(0)
        probe = Probe(LAYERS, data.head(DIM))
        optimizer = torch.optim.SGD(probe.parameters(), lr=0.1)
        losses.append(
            float(
                train_step(
                    probe,
                    optimizer,
                    data,
                    gather_batches(train, targets, parts),
                    schedule(),
                    torch.Generator(),
                )
            )
        )
        learned.append(torch.cat([weights.detach().flatten() for weights in probe.parameters()]))
    torch.testing.assert_close(*learned)
    assert losses[0] == pytest.approx(losses[1])


def test_a_task_draws_its_own_batch_in_parts_and_a_given_one_whole() -> None:
    task = TASKS.get("pr")
    own = make_schedule(task, EvalSpec(task="pr", corpus=CorpusSpec(), updates=1))
    given = make_schedule(task, EvalSpec(task="pr", corpus=CorpusSpec(), updates=1, batch_size=12))
    assert (own.batch_size, own.accumulate) == (16, 2)
    assert (given.batch_size, given.accumulate) == (12, 1)


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    data = build_data()
    silent = replace(data, loss=lambda logits, frames, targets: 0.0 * logits.sum())
    train, dev = noise(data, "train"), noise(data, "dev")
    norms = []
    for decay in (0.0, 0.5):
        plan = schedule(updates=4, validate_every_updates=4, weight_decay=decay)
        norms.append(
            float(
                train_probe(silent, train, dev, plan, 0, ignore)
                .probe.head.output.weight.detach()
                .norm()
            )
        )
    assert norms[1] == pytest.approx(norms[0] * (1 - 1e-2 * 0.5) ** 4, rel=1e-5)


def test_a_problem_may_choose_by_its_own_number() -> None:
    data, qualities = build_data(), iter([0.2, 0.9, 0.9, 0.1])
    seen: list[int] = []
    chosen = replace(
        data,
        select=lambda predictions, references: next(qualities),
        measure=lambda predictions, references: {
            "sid.accuracy": float(seen.append(1) or len(predictions))
        },
    )
    train, dev = noise(data, "train"), noise(data, "dev")
    found = train_probe(chosen, train, dev, schedule(), 0, ignore)
    assert (found.best_update, found.dev, len(seen)) == (
        10,
        {"sid.accuracy": 12.0},
        1,
    )  # measured once, at the end


def test_places_of_dev_may_count_more_than_once() -> None:
    data = replace(build_data(), dev_indices=[0, 0, 0, 1])
    right, wrong = data.examples["dev"][0].reference, (99,)
    given = [right, *[wrong] * 11]
    assert compute_dev_metrics(data, given) == {"sid.accuracy": 75.0}


def test_scoring_in_pieces_keeps_the_order() -> None:
    data = build_data(train=40, dev=40)
    dev = noise(data, "dev", hint=50.0)
    probe = Probe(LAYERS, PooledHead(DIM, 4))
    with torch.no_grad():  # reads the hint: class i is component i
        for linear in (probe.head.projector, probe.head.output):
            linear.weight.zero_()
            linear.bias.zero_()
        for index in range(4):
            probe.head.projector.weight[index, index] = probe.head.output.weight[index, index] = 1.0
    done: list[int] = []
    found = predict(data, [probe, probe], dev, done.append)
    assert [compute_dev_metrics(data, each) for each in found] == [{"sid.accuracy": 100.0}] * 2
    assert sum(done) == 40
