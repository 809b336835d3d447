"""What every part does on a GPU, as far as a stand-in shows it: the numbers of a CPU within
rounding, and no operand on another device. Tasks, encoder families, fine-tuning of each head, the
forms of features, and unfinished work that goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from speechft_ray.core.specs import AdapterSpec
from speechft_ray.finetuning import loop
from speechft_ray.finetuning.run import FinetuneResult, finetune
from speechft_ray.speech import checkpointing
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights
from speechft_ray.speech.encoders.hubert import init_weights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.heads.base import HEADS
from speechft_ray.speech.heads.specaug import spec_augment
from speechft_ray.superb import saved_work
from speechft_ray.superb.evaluate import SharedCaches, WeightedEncoder, evaluate
from speechft_ray.superb.screening import screen_encoder
from speechft_ray.superb.tasks.base import TASKS
from tests.contracts.test_tasks import COUNTS, spec_of
from tests.fake_cuda import CudaTensor, FakeCuda, fake_cuda
from tests.finetuning.toy_models import corpus, objective, spec
from tests.speech.toy_models import add_noise, make_wave, toy_config, toy_encoder
from tests.superb.toy_models import toy_corpus

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROUNDING = 1e-4
"""Of a GPU's batches: they are padded, those of a CPU are not."""

HUBERT = add_noise(toy_encoder("hubert"))
LSTM = {"projection": 8, "lstm_layers": 1, "lstm_hidden": 4}


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as made:
        yield made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they save on tensors so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build() -> Encoder:
    return FAMILIES.get("hubert").build(HUBERT)


# The stand-in


def test_the_stand_in_refuses_what_a_gpu_refuses(cuda: FakeCuda) -> None:
    on_gpu, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
    layer = nn.LSTM(3, 2, batch_first=True).to(GPU).eval()
    packed = pack_padded_sequence
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("same device", lambda: on_gpu + on_cpu),
        ("same device", lambda: on_cpu.add_(on_gpu)),
        ("same device", lambda: on_cpu[on_gpu > 0]),
        ("1D CPU int64", lambda: packed(on_gpu.view(3, 1, 1), torch.ones(1, device="cuda").long())),
        ("generator", lambda: torch.randn(3, device="cuda", generator=torch.Generator())),
        ("numpy", on_gpu.numpy),
        ("wrong size", lambda: torch.cuda.set_rng_state(torch.get_rng_state())),
        ("training mode", lambda: layer(on_gpu.view(1, 1, 3))[0].sum().backward()),
    ]
    for text, call in refused:
        with pytest.raises((RuntimeError, TypeError), match=text):
            call()
    assert float((on_gpu * torch.tensor(2.0))[0]) == 2.0  # a scalar on the CPU is none of them
    assert cuda.waits["_local_scalar_dense"] == 1
    state = torch.cuda.get_rng_state()
    first = torch.rand(3, device="cuda").tolist()
    torch.cuda.set_rng_state(state)
    assert torch.rand(3, device="cuda").tolist() == first and state.numel() == 16


# Encoders


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("family", FAMILIES.names())
def test_every_family_has_the_states_of_a_cpu(family: str, large: bool) -> None:
    weights = toy_encoder(family, large=large)
    waves = [make_wave(9000), make_wave(7000, 1), make_wave(5000, 2)]
    with torch.no_grad():
        expected = FAMILIES.get(family).build(weights).hidden_states(waves)
        encoder = FAMILIES.get(family).build(weights)
        with fake_cuda():
            encoder.module().to(GPU)
            encoded = encoder.hidden_states([wave.to(GPU) for wave in waves])
            assert all(isinstance(state, CudaTensor) for state in encoded.states)
            states = [state.cpu() for state in encoded.states]
    assert encoded.frames.tolist() == expected.frames.tolist()
    for state, reference in zip(states, expected.states, strict=True):
        for row, length in enumerate(expected.frames.tolist()):
            torch.testing.assert_close(state[row, :length], reference[row, :length])


# Evaluations


def evaluate_on(device: torch.device, name: str, **more: Any) -> dict[str, Any]:
    """Returns the facts of an evaluation of a toy HuBERT."""
    functions = {key: more.pop(key) for key in ("caches", "work", "report") if key in more}
    report = functions.pop("report", lambda counts: None)
    plan = spec_of(name, **more)
    return evaluate(plan, build(), toy_corpus(COUNTS), device, report, **functions)


def compare_curves(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares training losses, which rounding moves a little where a score may jump."""
    losses, references = (
        [values["loss"] for _, values in each.get("curve", [])] for each in (facts, expected)
    )
    assert losses == pytest.approx(references, rel=ROUNDING)


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_has_the_numbers_of_a_cpu(name: str) -> None:
    expected = evaluate_on(CPU, name, updates=3)
    with fake_cuda():
        facts = evaluate_on(GPU, name, updates=3)
    compare_curves(facts, expected)
    assert len(facts["scores"]) == len(expected["scores"]) == 2 * len(TASKS.get(name).metrics)


@pytest.mark.parametrize("budget_bytes", [10**9, 60_000, 0])
@pytest.mark.parametrize("form", ["exact", "int8", "compact"])
def test_every_form_of_features_has_the_numbers_of_a_cpu(
    form: str, budget_bytes: int, tmp_path: Path
) -> None:
    family = FAMILIES.get("hubert")
    plan: dict[str, Any] = {"features": form, "rank": 9.0 if form == "compact" else None}

    def evaluate_in(folder: str, device: torch.device) -> dict[str, Any]:
        caches = SharedCaches(
            cache=FeatureCache(tmp_path / folder, budget_bytes),
            encoder="e",
            front_end=(family.front_end_prefixes[0], family.describe(HUBERT.config)),
        )
        used = {name: value for name, value in plan.items() if value is not None}
        return evaluate_on(device, "pr", updates=2, caches=caches, **used)

    expected = evaluate_in("cpu", CPU)
    with fake_cuda():
        compare_curves(evaluate_in("gpu", GPU), expected)


@pytest.mark.parametrize("name", ["sid", "pr"])
def test_predicted_features_and_screens(name: str, cuda: FakeCuda) -> None:
    plan, content = spec_of(name, updates=2), toy_corpus(COUNTS)
    line = [WeightedEncoder(0.5, build(), None), WeightedEncoder(0.5, build(), None)]

    def ignore(counts: Mapping[str, float]) -> None:
        pass

    evaluate(plan, build(), content, GPU, ignore, predicted_from=line)
    facts = evaluate(plan, build(), content, GPU, ignore, compared_with=line)
    errors: Any = facts["feature_error"]
    assert errors[0] < ROUNDING
    if name == "sid":
        screens = screen_encoder(plan, build(), [content], GPU, ignore)["screen"]
        assert screens == screen_encoder(plan, build(), [content], CPU, ignore)["screen"]


class Killed(BaseException):
    """Ends a life; nothing on the way may catch it."""


@pytest.mark.parametrize("devices", [(GPU, GPU), (CPU, GPU), (GPU, CPU)])
@pytest.mark.parametrize("name", ["sid", "pr"])
def test_an_evaluation_goes_on_on_either_device(
    name: str,
    devices: tuple[torch.device, torch.device],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for attribute, value in {"MOST_SECONDS": 0.0, "LEAST_SECONDS": 0.0, "SAVE_SHARE": 1e9}.items():
        monkeypatch.setattr(saved_work, attribute, value)

    save = checkpointing.save

    def save_and_die(folder: Path, number: int, *state: Any) -> None:
        save(folder, number, *state)
        if number == 2:
            raise Killed

    with fake_cuda():
        whole = evaluate_on(devices[1], name, updates=4)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpointing, "save", save_and_die)
            evaluate_on(devices[0], name, updates=4, work=tmp_path)
        (state,) = tmp_path.rglob("*-000000002-*.pt")
        compare_curves(evaluate_on(devices[1], name, updates=4, work=tmp_path), whole)
        assert not state.exists()  # newer ones took its place


# Fine-tuning


def start() -> EncoderWeights:
    """Returns a HuBERT with a dictionary for masked prediction."""
    config = toy_config(layer_norm_first=False)
    return add_noise(init_weights({**config, "dictionaries_symbols": [[*"abcdefgh"]]}, 0))


def tune(device: torch.device, work: Path, content: Corpus, case: Mapping[str, Any]) -> Any:
    """Fine-tunes a toy HuBERT, and once more from its last saved state."""
    fields = {key: case[key] for key in ("column", "options") if key in case}
    others = {key: case[key] for key in case if key not in ("head", *fields)}
    plan = spec(
        objective(case["head"], batch_size=4, **fields),
        **{"updates": 4, "validate_every_updates": 2, **others},
    )
    for _ in range(2):
        work.mkdir(exist_ok=True)
        result = finetune(plan, start(), [content], work, device, lambda values: None)
    return result


LORA = AdapterSpec(kind="lora", rank=2, layers=("q_proj", "v_proj"))
DORA = AdapterSpec(kind="dora", rank=2, layers=("q_proj", "v_proj"))
NARROW = {"projection": 8}
CASES: dict[str, dict[str, Any]] = {
    "pooled": {"head": "pooled", "gather": ("fisher", "gram", "waves")},
    "ctc": {"head": "ctc", "options": NARROW},
    "ctc, lstm": {"head": "ctc", "options": LSTM, "gather": ("fisher", "gram")},
    "ctc, specaug": {"head": "ctc", "options": {**LSTM, "specaug": True}},
    "frame": {"head": "frame"},
    "masked": {"head": "masked", "column": None, "options": {"mask_length": 2, "mask_prob": 0.5}},
    "lora": {"head": "pooled", "adapter": LORA},
    "dora": {"head": "pooled", "adapter": DORA, "gather": ("fisher",)},
    "anchor": {"head": "pooled", "anchor_penalty": 0.1},
    "front end": {"head": "pooled", "freeze_front_end": False},
    "head phase": {"head": "pooled", "head_phase_dropout": False, "head_only_fraction": 0.5},
}


def test_every_head_has_a_case() -> None:
    assert {case["head"] for case in CASES.values()} == set(HEADS.names())


@pytest.mark.parametrize("name", CASES)
def test_fine_tuning_has_the_numbers_of_a_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 1e9)
    content = corpus({"train": 8, "dev": 2})
    expected: FinetuneResult = tune(CPU, tmp_path / "cpu", content, CASES[name])
    with fake_cuda():
        result: FinetuneResult = tune(GPU, tmp_path / "gpu", content, CASES[name])
    compare_curves(result.facts, expected.facts)
    tensors = [*result.weights.state.values(), *result.statistics.values()]
    assert not any(isinstance(tensor, CudaTensor) for tensor in tensors)
    assert result.statistics.keys() == expected.statistics.keys()
    for key, value in expected.statistics.items():
        error = (result.statistics[key] - value).norm() / value.norm().clamp_min(1e-12)
        assert error < 100 * ROUNDING, key


def test_an_lstm_head_is_float32_also_in_bfloat16(cuda: FakeCuda, tmp_path: Path) -> None:
    """cuDNN would compute it in float16, and its small gradients would be 0."""
    case = {"head": "ctc", "options": LSTM, "precision": "bfloat16"}
    tune(GPU, tmp_path, corpus({"train": 8, "dev": 2}), case)
    assert cuda.half_recurrences == 0


def test_a_time_warp_copies_no_matrix_of_frames_and_has_the_bits_of_a_cpu(cuda: FakeCuda) -> None:
    frames = torch.tensor([90, 61, 12])
    features = torch.randn(3, 90, 4, generator=torch.Generator().manual_seed(1))
    on_cpu, on_gpu = (
        spec_augment(features.to(device), frames, torch.Generator().manual_seed(0)).cpu()
        for device in (CPU, GPU)
    )
    assert torch.equal(on_cpu, on_gpu)
    assert (3, 90, 90) not in cuda.uploads


def test_wavlm_copies_distances_and_not_pairs_of_frames(cuda: FakeCuda) -> None:
    encoder = FAMILIES.get("wavlm").build(toy_encoder("wavlm"))
    encoder.module().to(GPU)
    with torch.no_grad():
        frames = int(encoder.hidden_states([make_wave(9000).to(GPU)]).frames[0])
    assert cuda.uploads[(2 * frames - 1,)] == 1 and (frames, frames) not in cuda.uploads
