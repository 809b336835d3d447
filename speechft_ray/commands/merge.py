"""Merging models that lie in files: which road a file takes, and what is refused before anything is
computed."""

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

    Safetensors files without a manifest of ours are merged tensor by tensor, whatever model they
    hold; all else is read as encoders, by name or path, and written in our format. Raises
    ``UserError`` for parameters, files, disks and models that do not fit, before anything is
    computed where that can be known.
    """
    validate_params(method, params, donors=len(donors))
    check_alpha(alpha)
    _refuse_statistics(method)
    _check_places(base, donors, out, replace)
    if METHODS.get(method).blockwise:
        torch.set_num_threads(
            1
        )  # blocks are too small to share, and threads that wait for each other burn the other cores
    if is_plain(base):
        from speechft_ray.merging.streaming import merge_files

        paths = [_plain_path(item) for item in (base, *donors)]
        if out.suffix != ".safetensors":
            raise UserError(
                f"{out} must end in .safetensors, since the base {base} is a plain safetensors file."
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
    """Whether this is a safetensors file that says nothing about the model it holds."""
    path = Path(name_or_path).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as opened:
            return "speechft_ray" not in (opened.metadata() or {})
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
            f"`{method}` needs {needs} statistics of the donors' tuning sets, which files of weights do not hold: merge with "
            f"it in a search space whose fine-tuning says `gather: [{needs}]`."
        )


def _check_places(base: str, donors: Sequence[str], out: Path, replace: bool) -> None:
    places = {_place(base): "the base"}
    for index, donor in enumerate(donors):
        if _place(donor) == _place(base):
            raise UserError(
                f"donor {index + 1} is the base itself, {donor}: give a model that was tuned from it."
            )
        if _place(donor) in places:
            raise UserError(
                f"donor {index + 1} is {places[_place(donor)]} once more, {donor}: give each donor once."
            )
        places[_place(donor)] = f"donor {index + 1}"
    if _place(str(out)) in places:
        raise UserError(
            f"--out {out} is {places[_place(str(out))]}, which a merge never changes: give another file."
        )
    if out.exists() and not replace:
        raise UserError(f"{out} exists: give another --out, or --force to replace it.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"the folder of {out} does not exist: make it, or give another --out.")


def _place(name: str) -> str:
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

    start, *ends = (load_encoder(name) for name in (base, *donors))
    other = [
        f"donor {index + 1} ({end.family})"
        for index, end in enumerate(ends)
        if end.family != start.family
    ]
    if other:
        raise UserError(
            f"the base is of the family {start.family}, but not {', '.join(other)}: merge models of one family."
        )
    check_disk_space(out, sum(4 * tensor.numel() for tensor in start.state.values()))
    protected = FAMILIES.get(start.family).pretraining_only_prefixes
    state = merge(method, params, start.state, [end.state for end in ends], alpha, protected)
    made = {
        "by": "speechft merge",
        "method": method,
        "params": dict(params),
        "alpha": alpha,
        "base": weights_fingerprint(start),
        "donors": [weights_fingerprint(end) for end in ends],
    }
    write_encoder(out, EncoderWeights(family=start.family, config=start.config, state=state), made)
