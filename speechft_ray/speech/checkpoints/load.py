"""The one loader: a catalogue name or a path, whatever the format, to weights in memory."""

from __future__ import annotations

from pathlib import Path

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.checkpoints.cache import find
from speechft_ray.speech.checkpoints.catalogue import BASELINE, is_name, names
from speechft_ray.speech.checkpoints.download import Progress
from speechft_ray.speech.checkpoints.s3prl import read_s3prl
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, tensor_sha256
from speechft_ray.speech.encoders.base import EncoderWeights


def load_encoder(name_or_path: str | Path, progress: Progress | None = None) -> EncoderWeights:
    """Returns an encoder by name (the catalogue's, or ``hf:OWNER/NAME``), or from a file or folder.

    A name that is not in the cache is downloaded; ``progress`` is then told the bytes of each file.

    Formats: our folder or ``.safetensors`` file, and the s3prl-converted ``.pt``. A file is never executed; sha256 sums are
    checked where the format has them. Raises ``UserError`` for a name or path that leads nowhere, another format, and damaged
    files.
    """
    name = str(name_or_path)
    if name == BASELINE:
        return EncoderWeights(family=BASELINE, config={}, state={})
    path = find(name, progress) if is_name(name) else Path(name_or_path).expanduser()
    if path.is_dir() or path.suffix == ".safetensors":
        return read_encoder(path)
    if not path.exists():
        raise UserError(_nowhere(name))
    if path.suffix in (".pt", ".pth", ".ckpt"):
        return read_s3prl(path)
    raise UserError(f"{path} has an unknown ending. Allowed: a folder of ours, `.safetensors`, or an s3prl-converted `.pt`.")


def weights_fingerprint(weights: EncoderWeights) -> str:
    """Returns the identity of an encoder, 16 hex digits: family, configuration, and name, shape and float32 bytes of each
    tensor.

    It does not depend on the file, its format or the order of tensors in it.
    """
    tensors = {name: [list(tensor.shape), tensor_sha256(tensor.detach().float())] for name, tensor in weights.state.items()}
    return fingerprint({"family": weights.family, "config": dict(weights.config), "tensors": tensors})


def _nowhere(name: str) -> str:
    if "/" in name or "." in name:
        return f"there is no encoder at {name}: the file does not exist. Give a path or a name: {', '.join(names())}."
    return unknown_name("encoder", name, names()) + " Or give the path of a checkpoint."
