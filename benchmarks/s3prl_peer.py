"""s3prl's own downstream code as a peer: its experts, featurizer and losses, imported beside
today's torchaudio.

Nothing of s3prl is changed. Modules that it imports and never calls here (sound effects, listing of
files, a sampler) are given empty stand-ins for the time of the import; what it calls
(``editdistance``, ``h5py``, ``lxml``, ``dtw``) is looked for in ``.peers/``, which ``make
peers-s3prl`` fills. Experts whose constructor opens a corpus are put together by hand from the same
parts; their ``forward`` and ``log_records``, which are compared, are untouched.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from speechft_ray.core.units import FRAME_STRIDE_SAMPLES
from speechft_ray.speech.encoders import _torchaudio  # noqa: F401  # makes torchaudio importable before s3prl asks for it
from speechft_ray.superb.extractor import Batch

PEERS = Path(__file__).parents[1] / ".peers" / "s3prl"
STAND_INS = {
    "torchaudio.sox_effects": ("apply_effects_file",),
    "librosa": (),
    "librosa.util": ("find_files",),
    "sox": ("Transformer",),
    "catalyst": (),
    "catalyst.data": (),
    "catalyst.data.sampler": ("DistributedSamplerWrapper",),
}
OPTIONAL = {"editdistance": ("eval",), "h5py": ("File",), "lxml": ("etree",), "dtw": ("dtw",)}
"""Called by some experts; a stand-in is enough to import the others."""


def expert_module(name: str) -> ModuleType:
    """Returns ``s3prl.downstream.<name>``."""
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    with stand_ins():
        return importlib.import_module(f"s3prl.downstream.{name}")


@contextmanager
def stand_ins() -> Iterator[None]:
    """Lets s3prl's imports find empty modules where the real ones are not installed."""
    added = []
    for name, members in {**STAND_INS, **OPTIONAL}.items():
        if name in sys.modules or (name in OPTIONAL and importlib.util.find_spec(name)):
            continue
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module
        added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


class Encoding(nn.Module):
    """s3prl's own HuBERT expert (``upstream/hubert/expert.py``), frozen as its runner freezes it; a
    batch is waves."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        with stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # s3prl's weight norm
            from s3prl.upstream.hubert.expert import UpstreamExpert

            self.expert = UpstreamExpert(str(checkpoint))

    def take(self, batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return batch

    @torch.no_grad()
    def forward(self, waves: Sequence[torch.Tensor]) -> dict[str, Any]:
        found: dict[str, Any] = self.expert(waves)
        return found

    def get_downsample_rates(self, key: str) -> int:
        return FRAME_STRIDE_SAMPLES


class Frames(nn.Module):
    """An upstream that gives the states of the batch it was handed."""

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.states = [torch.zeros(1, 50, dim) for _ in range(layers)]

    def take(self, batch: Batch) -> list[torch.Tensor]:
        """Holds a batch, padded as s3prl's upstreams pad, and returns waves of the right length."""
        pieces = torch.split(
            batch.states.transpose(0, 1), batch.frames.tolist()
        )  # each (frames, layers, dim)
        padded = nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
        self.states = list(padded.unbind(2))
        return [torch.zeros(count * FRAME_STRIDE_SAMPLES) for count in batch.frames.tolist()]

    def forward(self, waves: Sequence[torch.Tensor]) -> dict[str, Any]:
        return {"hidden_states": self.states}

    def get_downsample_rates(self, key: str) -> int:
        return FRAME_STRIDE_SAMPLES


Forward = Callable[
    [nn.Module, str, list[torch.Tensor], Sequence[Any], dict[str, list[Any]]], torch.Tensor
]
"""``(expert, mode, features, examples, records) -> loss``: calls the expert's ``forward`` with what
its loader would give."""


class Peer:
    """s3prl's featurizer and one of its experts, trained as its runner does
    (``downstream/runner.py``)."""

    def __init__(
        self, expert: nn.Module, forward: Forward, upstream: nn.Module, normalize: bool = False
    ) -> None:
        """``upstream`` takes a batch and returns waves, and maps these to states; ``normalize`` is
        s3prl's option."""
        from s3prl.upstream.interfaces import Featurizer

        self.expert, self.run, self.upstream = expert, forward, upstream
        with redirect_stderr(StringIO()):
            self.featurizer = Featurizer(upstream, upstream_device="cpu", normalize=normalize)

    def parameters(self) -> list[nn.Parameter]:
        """One group: layer weights, then the expert's."""
        return [*self.featurizer.parameters(), *self.expert.parameters()]

    def loss(
        self, mode: str, batch: Any, examples: Sequence[Any], records: dict[str, list[Any]]
    ) -> torch.Tensor:
        """One call of featurizer and expert."""
        waves = self.upstream.take(batch)
        features = self.featurizer(waves, self.upstream(waves))
        return self.run(self.expert, mode, features, examples, records)

    def metrics(self, records: dict[str, list[Any]], split: str | None = None) -> dict[str, float]:
        """What ``log_records`` writes for a split (dev unless given), by the last part of its
        names."""
        told: dict[str, float] = {}

        def add(name: str, value: float, global_step: int) -> None:
            told[name.rsplit("-", 1)[-1]] = float(value)

        with redirect_stdout(StringIO()):
            self.expert.log_records(
                split or self.dev_name,
                records=records,
                logger=SimpleNamespace(add_scalar=add),
                global_step=0,
                batch_ids=[],
                total_batch_num=0,
            )
        return told

    dev_name = "dev"


def bare(module: ModuleType, parts: Mapping[str, Any]) -> nn.Module:
    """Returns an expert with these parts, its constructor left out."""
    expert: nn.Module = module.DownstreamExpert.__new__(module.DownstreamExpert)
    nn.Module.__init__(expert)
    for name, part in parts.items():
        setattr(expert, name, part)
    return expert


@contextmanager
def cuda_stays_here() -> Iterator[None]:
    """``.cuda()`` returns the tensor itself: the speaker verification expert moves its mask without
    asking for the device."""
    before = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.cuda = before  # type: ignore[method-assign]
