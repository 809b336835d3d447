"""Merges models from files: checks the inputs, then merges encoders or plain safetensors files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from speechft_ray.core.errors import UserError
from speechft_ray.merging.algebra import check_alpha
from speechft_ray.merging.base import METHODS, validate_params


def merge_models(
    method: str,
    params: Mapping[str, Any],
    base: str,
    donors: Sequence[str],
    alpha: float,
    out: Path,
    replace: bool = False,
) -> None:
    """Merges donors into a base and writes the result, whole or not at all.

    Safetensors files without this package's manifest are merged tensor by tensor, whatever model
    they hold. All other inputs are read as encoders, by name or path, and the result is written as
    an encoder. Raises ``UserError`` for parameters, files, disks and models that do not fit, before
    anything is computed where possible.
    """
    # Check everything that needs no tensor.
    validate_params(method, params, donors=len(donors))
    check_alpha(alpha)
    _refuse_statistics(method)
    _check_paths(base, donors, out, replace)
    if METHODS.get(method).blockwise:
        # Blocks are too small to share, and waiting threads would occupy the other cores.
        torch.set_num_threads(1)
    # A plain base makes a plain result, any other base an encoder.
    if is_plain(base):
        from speechft_ray.merging.streaming import merge_files

        paths = [_plain_path(item) for item in (base, *donors)]
        if out.suffix != ".safetensors":
            raise UserError(
                f"{out} must end in .safetensors, since the base {base} is a plain safetensors "
                "file."
            )
        merge_files(method, params, paths[0], paths[1:], alpha, out)
    else:
        _merge_encoders(method, params, base, donors, alpha, out)


def read_state(name_or_path: str) -> Mapping[str, torch.Tensor]:
    """Returns the tensors of an encoder, or of a plain safetensors file. Raises ``UserError`` for
    what cannot be read."""
    if is_plain(name_or_path):
        state: dict[str, torch.Tensor] = load_file(_plain_path(name_or_path))
        return state
    from speechft_ray.speech.checkpoints.load import load_encoder

    return load_encoder(name_or_path).state


def is_plain(name_or_path: str) -> bool:
    """Whether this is a safetensors file without this package's manifest."""
    path = Path(name_or_path).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "speechft_ray" not in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). Copy it again from where it came."
        ) from error


def _plain_path(name: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"{name} is not a safetensors file, which it must be, since the base is a plain one."
        )
    return path


def _refuse_statistics(method: str) -> None:
    needs = METHODS.get(method).needs
    if needs:
        raise UserError(
            f"`{method}` needs {needs} statistics of the donors' tuning sets, which files of "
            "weights do not hold: merge with it in a search space whose fine-tuning says "
            f"`gather: [{needs}]`."
        )


def _check_paths(base: str, donors: Sequence[str], out: Path, replace: bool) -> None:
    """Raises ``UserError`` for inputs that are the same file, and for an output that is an input,
    exists or has no folder."""
    labels = {_resolve(base): "the base"}
    for index, donor in enumerate(donors):
        path = _resolve(donor)
        if path == _resolve(base):
            raise UserError(
                f"donor {index + 1} is the base itself, {donor}: give a model that was tuned "
                "from it."
            )
        if path in labels:
            raise UserError(
                f"donor {index + 1} is {labels[path]} once more, {donor}: give each donor once."
            )
        labels[path] = f"donor {index + 1}"
    if _resolve(str(out)) in labels:
        raise UserError(
            f"--out {out} is {labels[_resolve(str(out))]}, which a merge never changes: "
            "give another file."
        )
    if out.exists() and not replace:
        raise UserError(f"{out} exists: give another --out, or --force to replace it.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"the folder of {out} does not exist: make it, or give another --out.")


def _resolve(name: str) -> str:
    """Returns the resolved path of a file or folder, or the name of an encoder itself."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _merge_encoders(
    method: str,
    params: Mapping[str, Any],
    base: str,
    donors: Sequence[str],
    alpha: float,
    out: Path,
) -> None:
    from speechft_ray.merging.algebra import merge
    from speechft_ray.merging.streaming import check_disk_space
    from speechft_ray.speech.checkpoints.load import load_encoder, weights_fingerprint
    from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
    from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

    base_encoder, *donor_encoders = (load_encoder(name) for name in (base, *donors))
    family = base_encoder.family
    others = [
        f"donor {index + 1} ({donor.family})"
        for index, donor in enumerate(donor_encoders)
        if donor.family != family
    ]
    if others:
        raise UserError(
            f"the base is of the family {family}, but not {', '.join(others)}: "
            "merge models of one family."
        )
    check_disk_space(out, sum(4 * tensor.numel() for tensor in base_encoder.state.values()))
    protected = FAMILIES.get(family).pretraining_only_prefixes
    donor_states = [donor.state for donor in donor_encoders]
    state = merge(method, params, base_encoder.state, donor_states, alpha, protected)
    merged = EncoderWeights(family=family, config=base_encoder.config, state=state)
    provenance = {
        "by": "speechft merge",
        "method": method,
        "params": dict(params),
        "alpha": alpha,
        "base": weights_fingerprint(base_encoder),
        "donors": [weights_fingerprint(donor) for donor in donor_encoders],
    }
    write_encoder(out, merged, provenance)
