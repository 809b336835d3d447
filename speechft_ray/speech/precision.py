"""The number type of matrix products and convolutions: float32, TF32 or bfloat16.

Weights, norms, sums and losses are float32 in all three. Nothing else sets the switches of torch,
so what a spec does not ask for is not used: torch itself allows TF32 in convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from speechft_ray.core.specs import Precision
from speechft_ray.speech.encoders.base import Encoder, HiddenStates


@contextmanager
def use_float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Allows TF32 in products of float32 for ``tf32``, and forbids it otherwise.

    Backward passes belong into the context too. The switches are those of the whole process. A CPU
    has no TF32: there nothing is set, and ``tf32`` is float32.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def autocast_products(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which products are bfloat16 for ``bfloat16``, for forward passes."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def encode_in(precision: Precision, encoder: Encoder, device: torch.device) -> Encoder:
    """Returns the encoder in this precision, in which its module runs on ``device``; the same
    encoder where nothing differs."""
    if device.type == "cpu" and precision != "bfloat16":
        return encoder
    return _PreciseEncoder(encoder, precision, device)


class _PreciseEncoder:
    """Another encoder, whose forward passes run in a precision; its states are float32."""

    def __init__(self, encoder: Encoder, precision: Precision, device: torch.device) -> None:
        self._encoder, self._precision, self._device = encoder, precision, device
        self.dim, self.state_count = encoder.dim, encoder.state_count

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """See ``Encoder.hidden_states``."""
        with self._enter():
            return _to_float32(self._encoder.hidden_states(waves))

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Encoder.conv_features``."""
        with self._enter():
            return self._encoder.conv_features(waves)

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """See ``Encoder.hidden_states_from``."""
        with self._enter():
            return _to_float32(self._encoder.hidden_states_from(features, masks))

    def module(self) -> torch.nn.Module:
        """See ``Encoder.module``."""
        return self._encoder.module()

    @contextmanager
    def _enter(self) -> Iterator[None]:
        with (
            use_float32_products(self._precision, self._device),
            autocast_products(self._precision, self._device),
        ):
            yield


def _to_float32(encoded: HiddenStates) -> HiddenStates:
    return encoded._replace(states=tuple(state.float() for state in encoded.states))
