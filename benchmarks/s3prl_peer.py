"""s3prl's own downstream code: its experts, featurizer and losses, imported with a current
torchaudio.

Nothing of s3prl is changed. Modules that it imports and never calls here (sound effects, listing of
files, a sampler) are replaced by empty modules during the import; what it calls (``editdistance``,
``h5py``, ``lxml``, ``dtw``) is imported from ``.peers/``, which ``make peers-s3prl`` fills. Experts
whose constructor opens a corpus are built by hand from the same parts; their ``forward`` and
``log_records``, which are compared, are untouched.
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

# Makes torchaudio importable before s3prl imports it.
from speechft_ray.speech.encoders import _torchaudio  # noqa: F401
from speechft_ray.superb.extractor import Batch

PEERS = Path(__file__).parents[1] / ".peers" / "s3prl"
STAND_INS: dict[str, tuple[str, ...]] = {
    "torchaudio.sox_effects": ("apply_effects_file",),
    "librosa": (),
    "librosa.util": ("find_files",),
    "sox": ("Transformer",),
    "catalyst": (),
    "catalyst.data": (),
    "catalyst.data.sampler": ("DistributedSamplerWrapper",),
}
OPTIONAL = {"editdistance": ("eval",), "h5py": ("File",), "lxml": ("etree",), "dtw": ("dtw",)}
"""Called by some experts; an empty module is enough to import the others."""


def expert_module(name: str) -> ModuleType:
    """Returns ``s3prl.downstream.<name>``."""
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    with stand_ins():
        return importlib.import_module(f"s3prl.downstream.{name}")


@contextmanager
def stand_ins() -> Iterator[None]:
    """Inserts empty modules for those that s3prl imports and that are not installed."""
    added = []
    for name, members in {**STAND_INS, **OPTIONAL}.items():
        if name in sys.modules or (name in OPTIONAL and importlib.util.find_spec(name)):
            continue
        module = ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module
        added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


class Upstream(nn.Module):
    """An s3prl upstream: maps waves to states."""

    def load(self, batch: Any) -> Sequence[torch.Tensor]:
        """Returns the waves of a batch."""
        raise NotImplementedError

    def get_downsample_rates(self, key: str) -> int:
        return FRAME_STRIDE_SAMPLES


class Encoding(Upstream):
    """s3prl's own HuBERT expert (``upstream/hubert/expert.py``), frozen as in its runner; a batch
    is a list of waves."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        with stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # s3prl's weight norm
            from s3prl.upstream.hubert.expert import UpstreamExpert

            self.expert = UpstreamExpert(str(checkpoint))

    def load(self, batch: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return batch

    @torch.no_grad()
    def forward(self, waves: Sequence[torch.Tensor]) -> dict[str, Any]:
        states: dict[str, Any] = self.expert(waves)
        return states


class Frames(Upstream):
    """An upstream that returns the states of the batch that was loaded last."""

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.states = [torch.zeros(1, 50, dim) for _ in range(layers)]

    def load(self, batch: Batch) -> list[torch.Tensor]:
        """Stores the states of a batch, padded as in s3prl's upstreams, and returns waves of the
        matching lengths."""
        utterances = torch.split(
            batch.states.transpose(0, 1), batch.frames.tolist()
        )  # each (frames, layers, dim)
        padded = nn.utils.rnn.pad_sequence(list(utterances), batch_first=True)
        self.states = list(padded.unbind(2))
        return [torch.zeros(count * FRAME_STRIDE_SAMPLES) for count in batch.frames.tolist()]

    def forward(self, waves: Sequence[torch.Tensor]) -> dict[str, Any]:
        return {"hidden_states": self.states}


Forward = Callable[
    [nn.Module, str, list[torch.Tensor], Sequence[Any], dict[str, list[Any]]], torch.Tensor
]
"""``(expert, mode, features, examples, records) -> loss``: calls the expert's ``forward`` with the
arguments of its loader."""


class Peer:
    """s3prl's featurizer and one of its experts, trained as in its runner
    (``downstream/runner.py``)."""

    def __init__(
        self, expert: Any, forward: Forward, upstream: Upstream, normalize: bool = False
    ) -> None:
        """``upstream`` loads the waves of a batch and maps them to states; ``normalize`` is s3prl's
        option."""
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
        """Calls featurizer and expert."""
        waves = self.upstream.load(batch)
        features = self.featurizer(waves, self.upstream(waves))
        return self.run(self.expert, mode, features, examples, records)

    def metrics(self, records: dict[str, list[Any]], split: str | None = None) -> dict[str, float]:
        """Returns what ``log_records`` writes for a split (default: dev), by the last part of its
        names."""
        values: dict[str, float] = {}

        def add(name: str, value: float, global_step: int) -> None:
            values[name.rsplit("-", 1)[-1]] = float(value)

        with redirect_stdout(StringIO()):
            self.expert.log_records(
                split or self.dev_name,
                records=records,
                logger=SimpleNamespace(add_scalar=add),
                global_step=0,
                batch_ids=[],
                total_batch_num=0,
            )
        return values

    dev_name = "dev"


def build_without_init(module: ModuleType, parts: Mapping[str, Any]) -> nn.Module:
    """Returns an expert with these parts, without a call of its constructor."""
    expert: nn.Module = module.DownstreamExpert.__new__(module.DownstreamExpert)
    nn.Module.__init__(expert)
    for name, part in parts.items():
        setattr(expert, name, part)
    return expert


@contextmanager
def no_cuda() -> Iterator[None]:
    """Lets ``.cuda()`` return the tensor itself: the speaker verification expert moves its mask to
    a GPU unconditionally."""
    before = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = before  # type: ignore[method-assign]
