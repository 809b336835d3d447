"""Merging file to file: the bits of ``algebra.merge``, whole files or none, and memory that does
not depend on the size of the model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechft_ray.core.errors import UserError
from speechft_ray.merging import streaming
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.base import METHODS
from speechft_ray.merging.param_reader import BLOCK
from speechft_ray.merging.streaming import merge_files
from tests.merging.toy_states import BASE, DONORS, StateDict, copy_state

Files = Callable[..., list[Path]]

MEASURE_PEAK = """
import sys
from pathlib import Path
import torch
from speechft_ray.merging.base import METHODS
from speechft_ray.merging.streaming import merge_files
torch.set_num_threads(1)
METHODS.names()
def read_peak_mb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
base, *donors, out = map(Path, sys.argv[1:])
before = read_peak_mb()
merge_files("ties", {}, base, donors, 0.5, out, memory_bytes=0)
print(read_peak_mb() - before)
"""
"""Prints by how many MB a merge raises the peak memory of its process."""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    def write(*states: StateDict) -> list[Path]:
        paths = [tmp_path / f"in{index}.safetensors" for index in range(len(states))]
        for path, state in zip(paths, states, strict=True):
            save_file({key: tensor.clone() for key, tensor in state.items()}, path)
        return paths

    return write


def assert_file_equal(path: Path, expected: StateDict) -> None:
    actual = load_file(path)
    assert set(actual) == set(expected)
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype and torch.equal(actual[key], tensor), key


@pytest.mark.parametrize("method", [name for name, actual in METHODS.items() if not actual.needs])
def test_every_method_gives_the_bits_of_a_merge_in_memory(
    method: str, files: Files, tmp_path: Path
) -> None:
    donors = DONORS[: METHODS.get(method).donors(METHODS.get(method).params())[1] or 2]
    base, *paths = files(BASE, *donors)
    for alpha in (0.0, 0.6, 1.0):
        expected = merge(
            method, {}, copy_state(BASE), [copy_state(donor) for donor in donors], alpha
        )  # a file shares no tensors
        for memory in (None, 0):
            merge_files(
                method, {}, base, paths, alpha, tmp_path / "out.safetensors", memory_bytes=memory
            )
            assert_file_equal(tmp_path / "out.safetensors", expected)


def test_tensors_of_several_blocks_and_of_none(files: Files, tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(1)

    def state() -> StateDict:
        large, one = (torch.randn(shape, generator=source) for shape in ((2 * BLOCK + 17,), ()))
        return {"large": large, "empty": torch.zeros(0, 4), "one": one}

    states = [state() for _ in range(3)]
    base, *donors = files(*states)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("ties", {}),
        ("dare_ties", {"density": 0.5}),
        ("ties", {"like": "mergekit", "density": 0.3}),
    ]
    for method, params in cases:
        merge_files(method, params, base, donors, 0.5, tmp_path / "out.safetensors")
        assert_file_equal(
            tmp_path / "out.safetensors", merge(method, params, states[0], states[1:], 0.5)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_types_of_the_base_are_kept(
    dtype: torch.dtype, files: Files, tmp_path: Path
) -> None:
    base = {
        "a": torch.arange(12.0).reshape(3, 4).to(dtype),
        "flags": torch.tensor([True, False]),
        "n": torch.tensor([3]),
    }
    donor = {**base, "a": base["a"] * 1.5}
    paths = files(base, donor)
    merge_files("linear", {}, paths[0], paths[1:], 0.5, tmp_path / "out.safetensors")
    assert_file_equal(tmp_path / "out.safetensors", merge("linear", {}, base, [donor], 0.5))


def test_a_kernel_is_merged_from_its_factors(files: Files, tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(2)
    states = [
        {
            "p.weight_g": torch.rand(1, 1, 8, generator=source) + 1,
            "p.weight_v": torch.randn(4, 2, 8, generator=source),
        }
        for _ in range(3)
    ]
    base, *donors = files(*states)
    merge_files("linear", {"pos_conv": "kernel"}, base, donors, 0.5, tmp_path / "out.safetensors")
    assert_file_equal(
        tmp_path / "out.safetensors",
        merge("linear", {"pos_conv": "kernel"}, states[0], states[1:], 0.5),
    )


def test_nothing_half_written(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, donor, broken, other = files(
        BASE,
        DONORS[0],
        {**DONORS[1], "gain": torch.tensor([float("inf")])},
        {**DONORS[1], "gain": torch.zeros(3)},
    )
    out = tmp_path / "out.safetensors"
    before = sorted(tmp_path.iterdir())
    for donors, words in (
        ([donor, broken], "donor 2 has NaN or infinite"),
        ([other], "1 differ in shape or kind: gain"),
    ):
        with pytest.raises(UserError, match=words):
            merge_files("linear", {}, base, donors, 0.5, out)
    monkeypatch.setattr(
        streaming,
        "interpolate_into",
        lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(UserError, match="cannot be written"):
        merge_files("linear", {}, base, [donor], 0.5, out)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_reported_before_anything_is_read(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, donor = files(BASE, DONORS[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    monkeypatch.setattr(streaming, "_merge", lambda *arguments: pytest.fail("computed"))
    with pytest.raises(UserError, match="free some space or give another --out"):
        merge_files("linear", {}, base, [donor], 0.5, tmp_path / "out.safetensors")


def test_a_file_that_is_cut_short_is_refused(files: Files, tmp_path: Path) -> None:
    base, donor = files(BASE, DONORS[0])
    donor.write_bytes(donor.read_bytes()[:-5])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        merge_files("linear", {}, base, [donor], 0.5, tmp_path / "out.safetensors")


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A start and three donors with 16 more tensors of 2 MB each, 128 MB in all and 32 MB in the
    result, raise the peak by less than half a file."""
    small, large = (measure_peak_mb(tmp_path / str(tensors), tensors) for tensors in (8, 24))
    assert large - small < 16


def measure_peak_mb(folder: Path, tensors: int) -> int:
    """Returns by how much a merge of three donors with so many tensors of 2 MB raises the peak of a
    fresh process."""
    folder.mkdir()
    paths = [folder / f"{seed}.safetensors" for seed in range(4)]
    for seed, path in enumerate(paths):
        state = {f"t{i:02}": torch.full((512, 1024), float(seed + i)) for i in range(tensors)}
        save_file(state, path)
    command = [
        sys.executable,
        "-c",
        MEASURE_PEAK,
        *map(str, paths),
        str(folder / "out.safetensors"),
    ]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
