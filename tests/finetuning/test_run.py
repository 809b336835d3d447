"""Whole runs: results, the best checkpoint, and that a killed run resumes to the same bits."""

from __future__ import annotations

import json
import random
import resource
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.curves import read_point
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import file_sha256
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning import loop
from speechft_ray.finetuning.run import FinetuneResult
from speechft_ray.finetuning.train_state import TrainState
from speechft_ray.finetuning.validation import average_metrics
from speechft_ray.speech import checkpointing
from tests.finetuning.toy_models import Killed, corpus, objective, run, spec, start_weights

pytestmark = pytest.mark.usefixtures("toy_family")


def _assert_equal_runs(left: FinetuneResult, right: FinetuneResult) -> None:
    for name, value in left.weights.state.items():
        assert torch.equal(value, right.weights.state[name]), name
    timeless: Callable[[FinetuneResult], dict[str, Any]] = lambda tuned: {  # noqa: E731
        key: value for key, value in tuned.facts.items() if "second" not in key
    }
    assert timeless(left) == timeless(right)


@pytest.mark.parametrize("heads", [("pooled",), ("frame",), ("ctc",), ("ctc", "pooled")])
def test_a_run_learns_and_says_what_it_did(heads: tuple[str, ...], tmp_path: Path) -> None:
    plan = spec(
        *[objective(head) for head in heads],
        updates=120,
        validate_every_updates=20,
        peak_learning_rate=0.03,
    )
    start = start_weights(0.1)
    before = {name: value.clone() for name, value in start.state.items()}
    reports: list[Mapping[str, float]] = []
    tuned = run(tmp_path, plan, start, reports.append)
    facts = json.loads(json.dumps(tuned.facts, allow_nan=False))
    names = [
        "finetune.token_error_rate" if head == "ctc" else "finetune.accuracy" for head in heads
    ]
    assert [item["metric"] for item in facts["objectives"]] == names
    assert [item["vocabulary"] for item in facts["objectives"]] == [
        4 if head == "ctc" else 3 for head in heads
    ]
    # Chance is 33 % accuracy; the empty answer has a token error rate of 100 %.
    assert all(
        item["best_dev"] < 60 if "error" in item["metric"] else item["best_dev"] > 60
        for item in facts["objectives"]
    )
    for item in facts["objectives"]:
        chance = 100 if "error" in item["metric"] else pytest.approx(100 / 3, abs=5)
        assert item["constant_dev"] == chance
    validated = {update: values["dev"] for update, values in facts["curve"] if "dev" in values}
    assert list(validated) == [20, 40, 60, 80, 100, 120]
    best = (min if facts["metric"].endswith("rate") else max)(validated.values())
    assert facts["best_dev"] == best == validated[facts["best_update"]]
    assert facts["best_update"] == min(
        update for update, value in validated.items() if value == best
    )
    assert all(
        {"loss", "learning_rate", "gradient_norm", "distance"} <= set(values)
        for _, values in facts["curve"]
    )
    assert [values["distance"] > 0 for update, values in facts["curve"]] == [
        update > 12 for update, _ in facts["curve"]
    ]
    assert facts["skipped_updates"] == 0 and facts["updates_per_second"] > 0
    done = [values["done"] for values in reports]
    assert (
        done == sorted(done)
        and done[-1] == 120
        and {values["total"] for values in reports} == {120}
    )
    # Every point of the curve is reported once, under its name in trackers.
    points = [point for point in map(read_point, reports) if point]
    dev = f"dev/{facts['metric']}"
    assert [[update, values[dev]] for update, values in points if dev in values] == [
        list(item) for item in validated.items()
    ]
    renamed = {"train/lr": "learning_rate", "train/grad_norm": "gradient_norm", dev: "dev"}
    for (update, values), (stored_at, stored) in zip(points, facts["curve"], strict=True):
        assert update == stored_at and len(values) == len(stored)
        for name in ("train/loss", "train/lr", "train/grad_norm", "train/distance", dev):
            if name in values:
                assert values[name] == stored[renamed.get(name, name.removeprefix("train/"))]
    if len(heads) > 1:
        _, values = points[0]
        losses = [value for name, value in values.items() if name.startswith("train/loss_")]
        assert len(losses) == len(heads) and sum(losses) == pytest.approx(values["train/loss"])
    changed = {
        name for name, value in tuned.weights.state.items() if not torch.equal(value, before[name])
    }
    assert changed == {f"layers.{layer}.{part}" for layer in "01" for part in ("weight", "bias")}
    assert all(torch.equal(start.state[name], before[name]) for name in before)
    assert (tuned.weights.family, tuned.weights.config) == (start.family, start.config)


def test_the_checkpoint_is_the_first_with_the_best_dev_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[dict[str, torch.Tensor]] = []
    values = iter([10.0, 50.0, 50.0, 20.0])

    def compute_dev_metrics(state: TrainState, *_: Any) -> list[float]:
        validated.append(
            {name: value.clone() for name, value in state.encoder.module().state_dict().items()}
        )
        return [next(values)]

    monkeypatch.setattr(loop, "compute_dev_metrics", compute_dev_metrics)
    tuned = run(tmp_path, spec())
    assert (tuned.facts["best_update"], tuned.facts["best_dev"]) == (10, 50.0)
    for name, value in tuned.weights.state.items():
        assert torch.equal(value, validated[1][name])
    assert not torch.equal(validated[1]["layers.0.weight"], validated[2]["layers.0.weight"])


@pytest.mark.parametrize(
    ("fraction", "values", "best"),
    [
        (0.5, [90.0, 80.0, 10.0, 20.0], 20),  # the first ten updates train the head alone
        (0.5, [80.0, 90.0, 10.0, 20.0], 20),  # also the validation at its end
        (0.5, [10.0, 10.0, 10.0, 10.0], 15),
        (0.7, [90.0, 95.0, 10.0, 5.0], 15),
        (1.0, [10.0, 90.0, 20.0, 30.0], 10),  # nothing else is there
        (0.0, [90.0, 80.0, 10.0, 20.0], 5),
    ],
)
@pytest.mark.parametrize(
    "adapter", [None, {"kind": "lora", "rank": 2, "scale": 2, "layers": ["layers.1"]}]
)
def test_the_checkpoint_is_one_after_the_head_only_phase(
    fraction: float,
    values: list[float],
    best: int,
    adapter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    validations = iter(values)
    monkeypatch.setattr(loop, "compute_dev_metrics", lambda *_: [next(validations)])
    start = start_weights(0.0)
    tuned = run(tmp_path, spec(head_only_fraction=fraction, adapter=adapter), start)
    assert tuned.facts["best_update"] == best
    same = all(torch.equal(value, start.state[name]) for name, value in tuned.weights.state.items())
    assert same == (fraction == 1.0)


def test_a_saved_state_with_a_best_of_the_head_only_phase_goes_on_to_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 1e9)
    validations = iter([90.0, 80.0])

    def compute_dev_metrics(*_: Any) -> list[float]:
        try:
            return [next(validations)]
        except StopIteration:
            raise Killed from None

    monkeypatch.setattr(loop, "compute_dev_metrics", compute_dev_metrics)
    plan = spec(head_only_fraction=0.5)
    with pytest.raises(Killed):
        run(tmp_path, plan)
    assert list(tmp_path.glob("state-000000014-*"))
    rest = iter([10.0, 20.0])
    monkeypatch.setattr(loop, "compute_dev_metrics", lambda *_: [next(rest)])
    assert run(tmp_path, plan).facts["best_update"] == 20


def test_the_curve_has_the_rate_that_each_update_was_made_with(tmp_path: Path) -> None:
    """20 updates: 2 rise from 0, 8 stay, 10 fall; the curve counts updates from 1."""
    curve = run(tmp_path, spec(peak_learning_rate=1e-2)).facts["curve"]
    shares = [0, 0.5, *[1] * 8, *(part / 10 for part in range(10, 0, -1))]
    assert [update for update, _ in curve] == list(range(1, 21))
    rates = [values["learning_rate"] for _, values in curve]
    assert rates == pytest.approx([1e-2 * share for share in shares])


@pytest.mark.parametrize(
    ("fraction", "updates", "expected"),
    [(0.2, 100, 20), (0.29, 100, 29), (0.28, 10, 3), (0.01, 10, 1)],
)
def test_an_early_checkpoint_is_at_the_nearest_update(
    fraction: float, updates: int, expected: int
) -> None:
    assert loop.checkpoint_update(fraction, updates) == expected


def test_an_error_rate_is_best_when_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([90.0, 30.0, 40.0, 80.0])
    monkeypatch.setattr(loop, "compute_dev_metrics", lambda *_: [next(values)])
    assert run(tmp_path, spec(objective("ctc"))).facts["best_update"] == 10


def test_the_mean_of_mixed_metrics_counts_errors_from_100() -> None:
    accuracy, errors = "finetune.accuracy", "finetune.token_error_rate"
    assert average_metrics([accuracy, accuracy], [40, 60]) == (accuracy, 50)
    assert average_metrics([errors, errors], [40, 60]) == (errors, 50)
    assert average_metrics([accuracy, errors], [40, 30]) == (accuracy, 55)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = spec(
        objective("ctc", options={"lstm_layers": 1, "lstm_hidden": 4}),
        objective(),
        updates=30,
        seed=seed,
    )
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 3600.0)  # longer than any run, also under load
    whole = run(tmp_path / "whole", plan)
    assert not list((tmp_path / "whole").iterdir()), (
        "a run shorter than the save interval saves nothing"
    )
    chance = random.Random(seed)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))
    save = checkpointing.save
    monkeypatch.setattr(
        checkpointing, "save", lambda *args: save(*args) if chance.random() < 0.5 else None
    )

    restarts: list[float] = []
    for _ in range(100):
        reports: list[float] = []
        try:
            broken = run(
                tmp_path / "broken",
                plan,
                report=lambda values: _die(values, chance, reports),  # noqa: B023
            )
            break
        except Killed:
            restarts.append(reports[0])
    assert len(restarts) >= 2 and max(restarts) > 1, "this seed does not kill, or resumes nothing"
    _assert_equal_runs(whole, broken)


def test_a_state_is_taken_up_where_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))
    plan = spec()
    done = _until_killed(tmp_path, plan, at=9)
    assert done == list(range(1, 10))
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()) == [7, 8]
    seen: list[float] = []
    run(tmp_path, plan, report=lambda values: seen.append(values["done"]))
    assert seen == list(range(9, 21))


def test_saved_states_keep_the_names_of_earlier_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that an earlier release saved must be resumed: its keys are not those of
    ``Progress``."""
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    _until_killed(tmp_path, spec(), at=9)
    state = torch.load(sorted(tmp_path.iterdir())[-1], weights_only=True)
    assert set(state) == {"identity", "progress", "encoder", "heads", "optimizer"}
    assert set(state["progress"]) == {
        *("update", "curve", "steps", "kept", "part_seconds", "seconds"),
        *("best", "best_heads", "best_update", "best_dev", "best_values"),
        *("skipped", "skipped_in_row"),
    }


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_state_is_passed_over_for_the_one_before(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = spec()
    whole = run(tmp_path / "whole", plan)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))
    work = tmp_path / "broken"
    _until_killed(work, plan, at=9)
    newest = sorted(work.iterdir())[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    damaged = {"cut": content[: len(content) // 2], "flip": content, "empty": bytearray()}
    newest.write_bytes(damaged[damage])
    seen: list[float] = []
    _assert_equal_runs(whole, run(work, plan, report=lambda values: seen.append(values["done"])))
    assert seen[0] == 8


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"peak_learning_rate": 0.02}, {"anchor_penalty": 0.5}, {"updates": 21}],
    ids=lambda change: next(iter(change)),
)
def test_a_state_of_another_run_is_refused(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    _until_killed(tmp_path, spec(), at=9)
    before = sorted(tmp_path.iterdir())
    assert before
    with pytest.raises(
        UserError, match=r"is the saved state of another run .*: choose another folder to work in"
    ):
        run(tmp_path, spec(**other))
    assert sorted(tmp_path.iterdir()) == before


def test_a_state_of_other_weights_or_recordings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    _until_killed(tmp_path, spec(), at=9)
    for changed in (
        {"start": start_weights(0.2, seed=5)},
        {"content": corpus({"train": 14, "dev": 6}, fingerprint="other")},
    ):
        with pytest.raises(UserError, match="is the saved state of another run"):
            run(tmp_path, spec(), **changed)


def test_a_state_with_code_in_it_is_not_executed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("executed",)

    file = tmp_path / "new"
    torch.save({"identity": "x", "code": Code()}, file)
    file.rename(tmp_path / f"state-000000001-{file_sha256(file)}.pt")
    assert checkpointing.load(tmp_path, "x") is None
    assert "executed" not in capfd.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be saved in `.*file`"):
        checkpointing.save(tmp_path / "file", 1, {"identity": "x"})


def test_a_full_disk_is_told_and_keeps_the_state_before(tmp_path: Path) -> None:
    checkpointing.save(tmp_path, 1, {"identity": "x"})
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="the disk may be full"):
            checkpointing.save(tmp_path, 2, {"identity": "x", "large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert checkpointing.load(tmp_path, "x") == {"identity": "x"}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    run(tmp_path, spec(updates=3))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_make_different_runs_and_equal_seeds_equal_ones(tmp_path: Path) -> None:
    first, same, other = (run(tmp_path, spec(seed=seed)) for seed in (0, 0, 1))
    _assert_equal_runs(first, same)
    assert not torch.equal(
        first.weights.state["layers.0.weight"], other.weights.state["layers.0.weight"]
    )


def test_reports_come_at_least_every_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 updates have a point of the curve every 10; at 0.5 s per update, reports come between
    them."""
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 0.25)
    done: list[float] = []

    def stop(values: Mapping[str, float]) -> None:
        done.append(values["done"])
        if len(done) > 10:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, spec(updates=1000, validate_every_updates=1000), report=stop)
    assert max(later - earlier for earlier, later in pairwise(done)) <= 4
    assert 10 in done


def test_a_spoiled_recording_costs_its_updates_only(tmp_path: Path) -> None:
    content = corpus({"train": 14, "dev": 6}, spoiled=["train-3"])
    tuned = run(tmp_path, spec(objective(batch_size=1), updates=28), content=content)
    assert tuned.facts["skipped_updates"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in tuned.weights.state.values())
    json.dumps(tuned.facts, allow_nan=False)


def test_losses_that_stay_infinite_end_the_run(tmp_path: Path) -> None:
    content = corpus({"train": 14, "dev": 6}, spoiled=[f"train-{index}" for index in range(14)])
    with pytest.raises(
        UserError,
        match="11 updates one after the other, up to update 11: lower `peak_learning_rate`",
    ):
        run(tmp_path, spec(), content=content)


@pytest.mark.parametrize(
    ("head", "changes", "content", "message"),
    [
        (
            "pooled",
            {"column": "tones"},
            {},
            r"unknown label column `tones`. Did you mean `tone`\? Allowed: phones, tone",
        ),
        ("pooled", {}, {"counts": {"train": 0, "dev": 2}}, "no utterance in the split `train`"),
        ("pooled", {}, {"counts": {"train": 3, "dev": 0}}, "no utterance in the split `dev`"),
        (
            "pooled",
            {},
            {"counts": {"train": 3, "dev": 3}},
            "has 3 training utterances, fewer than one batch of 4: low",
        ),
        (
            "pooled",
            {"column": None},
            {},
            "the head `pooled` learns from labels: name a `column`",
        ),
        (
            "pooled",
            {},
            {"counts": {"train": 1, "dev": 1}},
            "all training utterances have the same label `t0` in the column `tone`",
        ),
        (
            "pooled",
            {},
            {"counts": {"train": 2, "dev": 3}, "batch": 2},
            "the column `tone` has 1 label in dev that train does not have",
        ),
        (
            "frame",
            {"column": "tone"},
            {},
            "does not belong to the column `tone`: `t0` is not in it",
        ),
        (
            "ctc",
            {"options": {"unit": "letters"}},
            {},
            "the options of the head `ctc` has 1 mistake",
        ),
        ("ctcc", {}, {}, "unknown head `ctcc`. Did you mean `ctc`"),
    ],
)
def test_what_cannot_be_learned_from_is_told_before_the_first_update(
    head: str, changes: dict[str, Any], content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tones = corpus(content.get("counts", {"train": 6, "dev": 3}))
    with pytest.raises(UserError, match=message):
        run(
            tmp_path,
            spec(objective(head, batch_size=content.get("batch", 4), **changes)),
            content=tones,
        )


def test_labels_longer_than_their_recording_are_counted(tmp_path: Path) -> None:
    tones = corpus({"train": 6, "dev": 3})
    long = [
        type(item)(**{**vars(item), "labels": {"phones": " ".join(["p0"] * 40)}})
        if item.key in ("train-2", "train-4")
        else item
        for item in tones.utterances
    ]
    content = corpus({"train": 6, "dev": 3}, utterances=long)
    with pytest.raises(
        UserError,
        match=r"2 utterance\(s\) of the split `train` are too short .* `train-2` with .* "
        r"79 are needed",
    ):
        run(tmp_path, spec(objective("ctc")), content=content)


def test_a_crop_below_one_frame_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at least 0.025, one frame of the encoder, but is 0.01"):
        run(tmp_path, spec(crop_seconds=0.01))


def test_wrong_options_name_every_mistake(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        run(tmp_path, spec(objective("ctc", options={"dropout": 2, "lstm": 1})))
    assert {path for path, _ in caught.value.mistakes} == {"dropout", "lstm"}


def _die(values: Mapping[str, float], chance: random.Random, reports: list[float]) -> None:
    reports.append(values["done"])
    if chance.random() < 0.25:
        raise Killed


def _until_killed(work: Path, plan: FinetuneSpec, at: int) -> list[float]:
    done: list[float] = []

    def die(values: Mapping[str, float]) -> None:
        done.append(values["done"])
        if values["done"] == at:
            raise Killed

    with pytest.raises(Killed):
        run(work, plan, report=die)
    return done
