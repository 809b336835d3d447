"""Merges models from files: checks the inputs, then merges encoders or plain safetensors files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from speechft_ray.commands.adapters import (
    ADD_WEIGHTED_ADAPTER,
    check_combination,
    make_combined_donor,
)
from speechft_ray.commands.configurations import (
    compare_configurations,
    compare_plain_files,
    load_with_notes,
    read_configuration_beside,
)
from speechft_ray.commands.merge_models import has_adapter, is_plain, plain_path
from speechft_ray.commands.notes import print_notes
from speechft_ray.core.errors import UserError
from speechft_ray.merging.algebra import check_alpha
from speechft_ray.merging.alignment import StateDict, join_first_five
from speechft_ray.merging.base import METHODS, validate_params

if TYPE_CHECKING:
    from speechft_ray.speech.encoders.base import EncoderWeights


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
    an encoder. Donors may be folders of LoRA adapters of the base; the method
    ``add_weighted_adapter`` combines adapters as peft does.

    Raises ``UserError`` for parameters, files, disks and models that do not fit, before anything is
    computed where possible.
    """
    # Check everything that needs no tensor.
    if method == ADD_WEIGHTED_ADAPTER:
        check_combination(params, donors)
    else:
        validate_params(method, params, donors=len(donors))
        _refuse_statistics(method)
    check_alpha(alpha)
    check_paths(base, donors, out, replace)
    if method != ADD_WEIGHTED_ADAPTER and METHODS.get(method).blockwise:
        # Blocks are too small to share, and waiting threads would occupy the other cores.
        torch.set_num_threads(1)
    # A plain base makes a plain result, any other base an encoder.
    if is_plain(base) and not any(has_adapter(donor) for donor in donors):
        from speechft_ray.merging.streaming import merge_files

        paths = [plain_path(item) for item in (base, *donors)]
        if out.suffix != ".safetensors":
            raise UserError(
                f"{out} must end in .safetensors, since the base {base} is a plain safetensors "
                "file."
            )
        compare_plain_files(base, donors)
        merge_files(method, params, paths[0], paths[1:], alpha, out)
    else:
        _merge_in_memory(method, params, base, donors, alpha, out)


def read_states(first: str, second: str) -> list[Mapping[str, torch.Tensor]]:
    """Returns the tensors of two models, encoders or plain safetensors files, without parameters
    of pre-training that the two do not both have.

    Prints what their loaders noted, and where only the normalisation of waveforms differs. Raises
    ``UserError`` for what cannot be read, and for encoders that are different networks.
    """
    names = (first, second)
    encoders = [None if is_plain(name) else load_with_notes(name) for name in names]
    configurations = [
        encoder or read_configuration_beside(name)
        for name, encoder in zip(names, encoders, strict=True)
    ]
    notes = compare_configurations(
        configurations[0], {"the second model": configurations[1]}, "the first model"
    )
    print_notes("diff", [f"{note}." for note in notes])
    states: list[Mapping[str, torch.Tensor]] = [
        encoder.state if encoder else load_file(plain_path(name))
        for name, encoder in zip(names, encoders, strict=True)
    ]
    left_out = _list_unshared(encoders[0], *states) if encoders[0] else []
    if left_out:
        count = f"{len(left_out)} parameters that only pre-training uses"
        note = f"{count} are left out, since the models do not both have them"
        print_notes("diff", [f"{note}: {join_first_five(left_out)}."])
    return [
        {name: tensor for name, tensor in state.items() if name not in left_out} for state in states
    ]


def _list_unshared(encoder: EncoderWeights, first: StateDict, second: StateDict) -> list[str]:
    """Returns the parameters of pre-training that one model lacks or has in another shape."""
    from speechft_ray.speech.encoders.compatibility import find_protected_prefixes

    prefixes = find_protected_prefixes(encoder, [second])
    return [
        name
        for name in {**first, **second}
        if name.startswith(prefixes)
        and not (name in first and name in second and first[name].shape == second[name].shape)
    ]


def _refuse_statistics(method: str) -> None:
    needs = METHODS.get(method).gather
    if needs:
        raise UserError(
            f"`{method}` needs {needs} statistics of the donors' tuning sets, which files of "
            "weights do not hold: merge with it in a search space whose fine-tuning says "
            f"`gather: [{needs}]`."
        )


def check_paths(base: str, donors: Sequence[str], out: Path, replace: bool) -> None:
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


def _merge_in_memory(
    method: str,
    params: Mapping[str, Any],
    base: str,
    donors: Sequence[str],
    alpha: float,
    out: Path,
) -> None:
    from speechft_ray.commands.merge_models import read_models, write_merged
    from speechft_ray.merging.algebra import merge
    from speechft_ray.merging.streaming import check_disk_space

    models = read_models(base, [] if method == ADD_WEIGHTED_ADAPTER else donors)
    check_disk_space(out, sum(4 * tensor.numel() for tensor in models.base.values()))
    states, kind, options = models.donors, method, params
    if method == ADD_WEIGHTED_ADAPTER:
        checked = check_combination(params, donors)
        states, kind, options = (make_combined_donor(checked, donors, models.base),), "linear", {}
    state = merge(kind, options, models.base, states, alpha, models.list_protected_prefixes())
    provenance = {"method": method, "params": dict(params), "alpha": alpha}
    write_merged(models, state, out, provenance)
