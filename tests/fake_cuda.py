"""A stand-in for a CUDA device: tensors that say they are on ``cuda:0``, with values on the CPU.

It has the rules of CUDA on which code fails that only ran on a CPU: operands on two devices,
lengths of packed sequences on the device, a generator of the CPU, numpy, the size of the random
state, cuDNN's backward pass of a recurrent layer in eval mode, and its float16 under autocast. It
counts what makes the host wait for the device. It has no kernels, memory, streams or rounding of a
GPU.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.utils._device
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

RANDOM_STATE_BYTES = 16
"""Seed and offset of CUDA's Philox generator; the state of a CPU has 5056 bytes."""

MIXED = {
    *("aten::copy_", "aten::copy", "aten::_to_copy", "aten::_ctc_loss", "aten::_ctc_loss_backward"),
    *("aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_"),
    *("aten::_index_put_impl_", "aten::_pad_packed_sequence"),
    "aten::_pack_padded_sequence_backward",
}
"""Operations whose operands may be on two devices: copies, indices and lengths on the CPU."""

CUDNN_EVAL = "cudnn RNN backward can only be called in training mode"

_to, _tensor, _ctc_loss = torch.Tensor.to, torch.tensor, functional.ctc_loss
_lstm_forward = nn.LSTM.forward
_Tensor: Any = torch.Tensor


class CudaTensor(_Tensor):  # type: ignore[misc]
    """A tensor on the stand-in; ``elem`` has its values. To torch's own code it is on ``meta``,
    the one device without values for which every build has kernels."""

    elem: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> CudaTensor:
        """Wraps a tensor of the CPU."""
        made: CudaTensor = _Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device="meta",
        )
        made.elem = elem
        return made

    device = property(lambda self: torch.device("cuda:0"))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation outside of ``fake_cuda``: nothing is counted."""
        return _run(func, args, kwargs or {}, Counter(), Counter())

    def __repr__(self, **options: Any) -> str:
        return f"CudaTensor({self.elem})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saves the values, as ``torch.load`` with ``map_location="cpu"`` reads them."""
        return self.elem.detach().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_make_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_make_index(index), value)

    def data_ptr(self) -> int:
        """Returns the address of the values."""
        return self.elem.data_ptr()

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:
        """Returns a tensor on the stand-in."""
        return CudaTensor(self.elem.new_tensor(data, **options))

    def tolist(self) -> Any:
        """Returns the values, as a copy to the CPU does."""
        return self.cpu().tolist()

    def numpy(self, *args: Any, **options: Any) -> Any:
        """Raises ``TypeError``, as on a GPU."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy


def _make_index(index: Any) -> Any:
    """Replaces lists, which torch would copy to the ``meta`` device."""
    if isinstance(index, tuple):
        return tuple(map(_make_index, index))
    return torch.as_tensor(index) if isinstance(index, list) else index


class FakeCuda(TorchDispatchMode):
    """The stand-in while it is entered. ``waits``: what made the host wait for the device, by
    operation; ``uploads``: tensors that were copied to it, by shape; ``half_recurrences``: passes
    of recurrent layers that cuDNN would compute in float16."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[tuple[int, ...]] = Counter()
        self.half_recurrences = 0
        self._random_states: dict[bytes, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation."""
        return _run(func, args, kwargs or {}, self.waits, self.uploads)

    def get_random_state(self, device: Any = "cuda") -> torch.Tensor:
        """Returns the random state in CUDA's size. The stand-in draws from the CPU's generator."""
        state = torch.get_rng_state()
        key = hashlib.sha256(state.numpy().tobytes()).digest()[:RANDOM_STATE_BYTES]
        self._random_states[key] = state
        return torch.frombuffer(bytearray(key), dtype=torch.uint8)

    def set_random_state(self, state: torch.Tensor, device: Any = "cuda") -> None:
        """Takes over a state of this or another stand-in. Raises ``RuntimeError`` for another
        size."""
        if state.numel() != RANDOM_STATE_BYTES:
            raise RuntimeError("RNG state is wrong size")
        known_state = self._random_states.get(state.numpy().tobytes())
        if known_state is None:  # of another process: as good as any seed
            torch.default_generator.manual_seed(int(state.long().sum()))
        else:
            torch.set_rng_state(known_state)

    def run_lstm(self, layer: nn.LSTM, features: Any, *states: Any) -> Any:
        """Runs a recurrent layer by cuDNN's rules."""
        output, last = _lstm_forward(layer, features, *states)
        is_packed = isinstance(output, PackedSequence)
        data = output.data if is_packed else output
        if isinstance(data, CudaTensor):
            self.half_recurrences += torch.is_autocast_enabled("cuda")
            if not layer.training and torch.is_grad_enabled():
                data = _NoBackward.apply(data)  # type: ignore[no-untyped-call]
                output = output._replace(data=data) if is_packed else data
        return output, last


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(CUDNN_EVAL)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Enters a stand-in for ``cuda:0``: ``torch.device("cuda")`` works inside. Tensors of it stay
    valid inside only."""
    torch._C._ensureCUDADeviceGuardSet()
    mode = FakeCuda()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)

    def run_lstm(layer: nn.LSTM, features: Any, *states: Any) -> Any:
        return mode.run_lstm(layer, features, *states)

    try:
        with (
            patch.object(torch.cuda, "_lazy_init", lambda: None),
            patch.object(torch.cuda, "get_rng_state", mode.get_random_state),
            patch.object(torch.cuda, "set_rng_state", mode.set_random_state),
            patch.object(torch.cuda, "is_bf16_supported", lambda **options: True),
            patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            patch.object(torch.Tensor, "pin_memory", lambda self, *args: self),
            patch.object(torch.Tensor, "to", _convert),
            patch.object(torch, "tensor", _make_tensor),
            patch.object(functional, "ctc_loss", _compute_ctc_loss),
            patch.object(nn.LSTM, "forward", run_lstm),
            patch.object(nn.LSTM, "flatten_parameters", lambda layer: None),  # asks for cuDNN
            mode,
        ):
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _run(
    func: Any,
    args: Any,
    kwargs: dict[str, Any],
    waits: Counter[str],
    uploads: Counter[tuple[int, ...]],
) -> Any:
    """Runs one operation on the values, after checking the devices of its operands."""
    name = func._schema.name
    on_device: list[CudaTensor] = []
    on_cpu: list[torch.Tensor] = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, CudaTensor):
            on_device.append(value)
            return value.elem
        if isinstance(value, torch.Tensor):
            on_cpu.append(value)
        return value

    plain_args, options = _map(unwrap, args), _map(unwrap, kwargs)
    device = kwargs.get("device")
    asked = torch.device(device).type if device is not None else None
    if not on_device and asked not in _list_own_devices():
        return func(*args, **kwargs)
    if name == "aten::_fused_sdp_choice":
        return 0  # plain products
    _check_devices(name, args, on_device, on_cpu, kwargs)
    if _waits(name, args, asked):
        waits[name.removeprefix("aten::")] += 1
    if name == "aten::_to_copy" and on_cpu and asked != "cpu":
        uploads[tuple(on_cpu[0].shape)] += 1
    if device is not None:
        options["device"] = torch.device("cpu")
    if options.get("pin_memory"):
        options["pin_memory"] = False
    out = func(*plain_args, **options)
    if asked == "cpu":
        return out
    if name == "aten::_pack_padded_sequence":
        return CudaTensor(out[0]), out[1]  # the sizes of batches stay on the CPU
    same: dict[int, torch.Tensor] = {
        id(tensor.elem): tensor for tensor in on_device
    }  # an operation in place returns its own
    same |= {id(tensor): tensor for tensor in on_cpu}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return same[id(value)] if id(value) in same else CudaTensor(value)

    return _map(wrap, out)


def _list_own_devices() -> tuple[str, ...]:
    """Returns the devices that stand for CUDA: also ``meta``, which torch's own code asks for
    beside a tensor that is there, unless weights without values are built."""
    current = torch.utils._device.CURRENT_DEVICE
    is_building = current is not None and current.type == "meta"
    return ("cuda",) if is_building else ("cuda", "meta")


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """Applies a function to what lists, tuples and dictionaries hold (torch's ``tree_map`` takes
    twice as long as the operation)."""
    if isinstance(value, list | tuple):
        return type(value)([_map(change, item) for item in value])
    if isinstance(value, dict):
        return {key: _map(change, item) for key, item in value.items()}
    return change(value)


def _check_devices(
    name: str,
    args: Any,
    on_device: list[CudaTensor],
    on_cpu: list[torch.Tensor],
    kwargs: dict[str, Any],
) -> None:
    """Raises ``RuntimeError`` where CUDA does."""
    if kwargs.get("generator") is not None and kwargs["generator"].device.type == "cpu":
        raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
    if name == "aten::_pack_padded_sequence" and isinstance(args[1], CudaTensor):
        raise RuntimeError("'lengths' argument should be a 1D CPU int64 tensor, not on cuda:0")
    if not on_device or not on_cpu or name == "aten::_pack_padded_sequence":
        return
    target = args[0] if args else None
    is_cpu_target = isinstance(target, torch.Tensor) and not isinstance(target, CudaTensor)
    if "index" in name and name in MIXED:
        refused = is_cpu_target  # an index on the CPU is fine, one on the device for the CPU is not
    elif name in MIXED:
        refused = False
    else:
        # A scalar on the CPU may be combined with values on the device, but not the reverse.
        refused = any(tensor.dim() for tensor in on_cpu) or (name.endswith("_") and is_cpu_target)
    if refused:
        shapes = [tuple(tensor.shape) for tensor in on_cpu]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device; CPU: {shapes}")


def _waits(name: str, args: Any, asked: str | None) -> bool:
    """Whether the host waits for the device: values or their number are needed on the CPU."""
    if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
        return True
    if name == "aten::copy_":
        return isinstance(args[1], CudaTensor) and not isinstance(args[0], CudaTensor)
    return name == "aten::_to_copy" and asked == "cpu"


def _name_device(value: Any, *, is_on_device: bool) -> Any:
    """Returns ``meta`` for a device of CUDA, where a tensor of the stand-in is already."""
    if not isinstance(value, str | torch.device) or torch.device(value).type != "cuda":
        return value
    return torch.device("meta") if is_on_device else torch.device("cuda:0")


def _convert(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """``Tensor.to``, which compares devices by what torch's own code sees."""
    is_on_device = isinstance(self, CudaTensor)
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    args = tuple(_name_device(value, is_on_device=is_on_device) for value in args)
    if "device" in options:
        options["device"] = _name_device(options["device"], is_on_device=is_on_device)
    return _to(self, *args, **options)


def _make_tensor(data: Any, device: Any = None, **options: Any) -> torch.Tensor:
    """``torch.tensor``, which makes values without calling an operation."""
    if device is not None and torch.device(device).type == "cuda":
        return _tensor(data, **options).to("cuda")
    return _tensor(data, device=device, **options)


def _compute_ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    frames: torch.Tensor,
    lengths: torch.Tensor,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> torch.Tensor:
    """``ctc_loss``, whose mean copies the lengths to the device inside torch."""
    compute: Callable[..., torch.Tensor] = _ctc_loss
    if not isinstance(log_probs, CudaTensor) or reduction != "mean":
        return compute(log_probs, targets, frames, lengths, blank, reduction, zero_infinity)
    if not isinstance(targets, CudaTensor):
        raise RuntimeError("ctc_loss: expected targets on the device of the logits")
    each = compute(log_probs, targets, frames, lengths, blank, "none", zero_infinity)
    return (each / lengths.clamp_min(1).to("cuda")).mean()
