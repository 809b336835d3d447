"""Fisher information and Gram matrices, against independent hooks and autograd."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from speechft_ray.core.specs import AdapterSpec, FinetuneSpec
from speechft_ray.finetuning import loop, merge_statistics
from speechft_ray.finetuning.merge_statistics import GramRecorder
from speechft_ray.finetuning.run import FinetuneResult, finetune
from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.encoders.hubert import build
from tests.finetuning.toy_models import ToyEncoder, corpus, objective, spec, start_weights

TONES = corpus({"train": 14, "dev": 6})


def run_finetuning(
    work: Path, content: Corpus = TONES, report: Any = lambda values: None, **changes: Any
) -> FinetuneResult:
    work.mkdir(exist_ok=True)
    plan: FinetuneSpec = spec(**changes)
    return finetune(
        plan,
        start_weights(0.2),
        [content] * len(plan.objectives),
        work,
        torch.device("cpu"),
        report,
    )


@pytest.mark.parametrize("kind", [None, "lora", "dora"])
@pytest.mark.usefixtures("toy_family")
def test_statistics_are_those_of_the_best_weights_on_the_tuning_set(
    kind: Literal["lora", "dora"] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters, the statistics are those of the merged weights."""
    adapter = (
        None if kind is None else AdapterSpec(kind=kind, rank=2, layers=("layers.0", "layers.1"))
    )
    values, heads = iter([10.0, 50.0, 20.0, 30.0]), []

    def dev(state: Any, *_: Any) -> list[float]:
        heads.append({name: value.clone() for name, value in state.heads[0].state_dict().items()})
        head_modules.append(state.heads[0])
        return [next(values)]

    head_modules: list[Any] = []
    monkeypatch.setattr(loop, "compute_dev_metrics", dev)
    result = run_finetuning(
        tmp_path / "a",
        gather=("fisher", "gram"),
        adapter=adapter,
        objectives=(objective(weight=2.0),),
    )
    encoder, head = FAMILIES.get("toy").build(result.weights), head_modules[0]
    assert isinstance(encoder, ToyEncoder)
    head.load_state_dict(heads[1])  # the second validation was the best
    head.eval()
    squares = {name: torch.zeros_like(value) for name, value in encoder.layers.named_parameters()}
    inputs: dict[str, list[torch.Tensor]] = {"0": [], "1": []}
    for place, layer in enumerate(encoder.layers):
        layer.register_forward_pre_hook(
            lambda _, args, place=place: inputs[str(place)].append(args[0].detach().flatten(0, 1))
        )
    train = [item for item in TONES.utterances if item.split == "train"]
    for item in train:
        states, frames = encoder.hidden_states([torch.tensor(TONES.read(item))])
        logits = head(states[-1], frames)
        target = torch.tensor(
            [sorted({other.labels["tone"] for other in train}).index(item.labels["tone"])]
        )
        encoder.zero_grad()
        loss = 2.0 * torch.nn.functional.cross_entropy(logits, target)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, value in encoder.layers.named_parameters():
            assert value.grad is not None
            squares[name] += value.grad**2 / len(train)
    squares = {
        name: value for name, value in squares.items() if adapter is None or name.endswith("weight")
    }
    assert set(result.statistics) == {
        *(f"fisher:layers.{name}" for name in squares),
        "gram:layers.0.weight",
        "gram:layers.1.weight",
    }
    for name, square in squares.items():
        torch.testing.assert_close(
            result.statistics[f"fisher:layers.{name}"], square, rtol=1e-4, atol=1e-9
        )
    for name, rows in inputs.items():
        together = torch.cat(rows).double()
        expected = (together.T @ together / len(together)).float()
        torch.testing.assert_close(
            result.statistics[f"gram:layers.{name}.weight"], expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.usefixtures("toy_family")
def test_gathering_changes_nothing_else(tmp_path: Path) -> None:
    plain, with_gram = (
        run_finetuning(tmp_path / "a"),
        run_finetuning(tmp_path / "b", gather=("gram", "waves")),
    )
    assert plain.statistics == {}
    assert {name.split(":")[0] for name in with_gram.statistics} == {"gram", "waves"}
    for name, value in plain.weights.state.items():
        assert torch.equal(value, with_gram.weights.state[name])


@pytest.mark.usefixtures("toy_family")
def test_a_sample_of_the_tuning_set_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = [
        torch.tensor(TONES.read(item)) for item in TONES.utterances if item.split == "train"
    ]
    kept = run_finetuning(tmp_path / "a", gather=("waves",)).statistics
    assert list(kept) == [f"waves:{number:05d}" for number in range(14)]
    assert all(torch.equal(*pair) for pair in zip(kept.values(), recordings, strict=True))
    monkeypatch.setattr(merge_statistics, "KEPT_WAVES", 5)
    fewer = run_finetuning(tmp_path / "b", gather=("waves",), seed=1).statistics
    assert len(fewer) == 5
    places = [
        next(place for place, item in enumerate(recordings) if torch.equal(wave, item))
        for wave in fewer.values()
    ]
    # Drawn without replacement, in corpus order; not the first ones, which may be alike
    assert places == sorted(set(places)) != list(range(5))


@pytest.mark.usefixtures("toy_family")
def test_a_killed_run_gathers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_finetuning(tmp_path / "whole", gather=("fisher",))
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))

    def die(values: Any) -> None:
        if values["done"] == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_finetuning(tmp_path / "broken", gather=("fisher",), report=die)
    broken = run_finetuning(tmp_path / "broken", gather=("fisher",))
    assert all(
        torch.equal(value, broken.statistics[name]) for name, value in whole.statistics.items()
    )


@pytest.mark.usefixtures("toy_family")
def test_a_spoiled_recording_is_passed_over(tmp_path: Path) -> None:
    content = corpus({"train": 14, "dev": 6}, spoiled=["train-3"])
    result = run_finetuning(
        tmp_path / "a",
        content,
        gather=("fisher", "gram"),
        objectives=(objective(batch_size=1),),
        updates=28,
    )
    assert all(bool(torch.isfinite(value).all()) for value in result.statistics.values())


@pytest.mark.parametrize("spoiled", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_adds_nothing(spoiled: float) -> None:
    """Not even to the parameters whose own gradient is finite."""
    parameters = {name: torch.ones(2, requires_grad=True) for name in ("one", "two")}
    fisher = {name: torch.zeros(2) for name in parameters}
    state: Any = SimpleNamespace(parameters=parameters)
    for factor, used in ((3.0, True), (spoiled, False), (4.0, True)):
        for value in parameters.values():
            value.grad = None
        loss = 2 * parameters["one"].sum() + factor * parameters["two"].sum()
        assert merge_statistics._add_squares(fisher, state, loss) == used
    assert fisher["one"].tolist() == [8, 8]  # 4 + 4
    assert fisher["two"].tolist() == [25, 25]  # 9 + 16


def test_the_inputs_of_attention_are_seen_although_its_projections_are_never_called() -> None:
    """s3prl multiplies with the weights of its projections without calling their modules."""
    weights = load_encoder("tiny_hubert")
    encoder = build(weights)
    parameters = {
        name: value for name, value in encoder.module().named_parameters() if value.dim() == 2
    }
    recorder = GramRecorder(parameters)
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), recorder:
        encoder.hidden_states([wave])
    means = recorder.means()
    seen = {name.split(".", 3)[3] for name in means if name.startswith("encoder.layers.5.")}
    assert seen == {f"self_attn.{part}_proj.weight" for part in ("q", "k", "v", "out")} | {
        "fc1.weight",
        "fc2.weight",
    }
    inputs: list[torch.Tensor] = []
    module: Any = encoder.module()
    layer = module.encoder.layers[5]
    layer.fc1.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1)))
    layer.self_attn_layer_norm.register_forward_hook(
        lambda _, args, output: inputs.append(output.flatten(0, 1))
    )
    with torch.no_grad():
        encoder.hidden_states([wave])
    for name, rows in zip(("self_attn.q_proj", "fc1"), inputs, strict=True):
        expected = rows.double().T @ rows.double() / len(rows)
        torch.testing.assert_close(
            means[f"encoder.layers.5.{name}.weight"], expected.float(), rtol=1e-3, atol=1e-5
        )
