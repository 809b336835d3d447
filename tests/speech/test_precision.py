"""Products in TF32 and bfloat16: only where they are asked for, and how far from float32."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.precision import encode_in, use_float32_products
from tests.speech.toy_models import add_noise, make_wave, toy_encoder

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def read_switches() -> tuple[bool, bool]:
    """The switches of a GPU, which torch has without one too."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_tf32_is_allowed_inside_a_context_that_asks_for_it() -> None:
    before = read_switches()
    with use_float32_products("float32", GPU):
        assert read_switches() == (False, False)
        with pytest.raises(KeyError), use_float32_products("tf32", GPU):
            assert read_switches() == (True, True)
            raise KeyError
        with use_float32_products("bfloat16", GPU):
            assert read_switches() == (False, False)
    assert read_switches() == before
    with use_float32_products("tf32", CPU):
        assert read_switches() == before


def test_tf32_is_float32_on_a_cpu() -> None:
    encoder = FAMILIES.get("hubert").build(toy_encoder("hubert"))
    assert encode_in("tf32", encoder, CPU) is encode_in("float32", encoder, CPU) is encoder


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("family", FAMILIES.names())
def test_bfloat16_is_close_to_float32(family: str, large: bool) -> None:
    """Relative to its norm, no state is off by more than some of the 2**-9 of one rounding; what
    has no learned products is not rounded."""
    exact = FAMILIES.get(family).build(add_noise(toy_encoder(family, large=large)))
    rounded = encode_in("bfloat16", exact, CPU)
    waves = [make_wave(16_000), make_wave(7_000, 1)]
    with torch.inference_mode():
        states, others = exact.hidden_states(waves), rounded.hidden_states(waves)
        fronts, roundeds = exact.conv_features(waves), rounded.conv_features(waves)
    assert torch.equal(states.frames, others.frames)
    for state, other in zip(states.states, others.states, strict=True):
        assert other.dtype == torch.float32
        for index, frames in enumerate(states.frames.tolist()):
            error = (other - state)[index, :frames].norm() / state[index, :frames].norm()
            assert error < 5e-2
    is_learned = bool(FAMILIES.get(family).front_end_prefixes)
    assert all(
        torch.equal(one, other) != is_learned for one, other in zip(fronts, roundeds, strict=True)
    )
    assert torch.equal(states.states[-1], others.states[-1]) == (family == "fbank")


def test_precision_is_identity_where_it_is_not_the_default() -> None:
    plain = EvalSpec(task="pr", corpus=CorpusSpec(), updates=1)
    specs = [plain.model_copy(update={"precision": name}) for name in ("tf32", "bfloat16")]
    assert "precision" not in plain.model_dump(mode="json")
    assert len({fingerprint(spec) for spec in (plain, *specs)}) == 3
    assert [EvalSpec.model_validate(spec.model_dump(mode="json")) for spec in specs] == specs
    with pytest.raises(ValidationError, match="'float32', 'tf32' or 'bfloat16'"):
        EvalSpec.model_validate({**plain.model_dump(), "precision": "fp16"})
