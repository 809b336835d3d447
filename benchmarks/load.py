"""Measures reading and converting a Base-size HuBERT in each format, beside plain ``torch.load``.

    python benchmarks/load.py [--repeats 5] [--folder DIR]

Every figure is the median over processes that each perform one operation: its wall time without
imports, and the peak resident memory of the whole process, with imports and mapped pages of the
file (``ru_maxrss``). Reading includes one pass over every value, since a mapped file is otherwise
not read at all. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FORMATS = ("fairseq", "s3prl", "s3prl-downstream", "hf", "safetensors")
LIMIT = 2.5
"""Peak memory of a conversion, as a multiple of the file."""


def run_child(operation: str, *arguments: str) -> None:
    """Performs one operation and prints its wall time and the peak memory of this process."""
    task = OPERATIONS[operation](*arguments)
    started = time.perf_counter()
    task()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def write_all(folder: str) -> Callable[[], None]:
    """Writes a HuBERT Base with random weights in every format."""
    from speechft_ray.speech.checkpoints.base import FORMATS as REGISTERED
    from speechft_ray.speech.encoders.base import FAMILIES

    family = FAMILIES.get("hubert")
    assert family.example_config is not None
    assert family.init_weights is not None
    weights = family.init_weights(family.example_config(12, 768, False), 0)

    def run() -> None:
        for name in FORMATS:
            REGISTERED.get(name).write(make_path(folder, name), weights, {})

    return run


def do_nothing() -> Callable[[], None]:
    """Only imports."""
    import speechft_ray.speech.checkpoints.convert  # noqa: F401

    return lambda: None


def load_with_torch(path: str, mapped: str) -> Callable[[], None]:
    """Loads the whole file with torch."""
    import torch

    def run() -> None:
        content = torch.load(path, weights_only=True, mmap=mapped == "mmap")
        read_values(content["model_weight"])

    return run


def read(path: str) -> Callable[[], None]:
    """Reads the encoder with our loader."""
    from speechft_ray.speech.checkpoints.load import load_checkpoint

    def run() -> None:
        read_values(load_checkpoint(Path(path)).weights.state)

    return run


def convert(path: str, to: str, out: str) -> Callable[[], None]:
    """Converts the encoder."""
    from speechft_ray.speech.checkpoints.convert import convert as convert_encoder

    def run() -> None:
        convert_encoder(Path(path), to, Path(out))

    return run


def read_values(state: object) -> None:
    """Reads every value."""
    assert isinstance(state, dict)
    assert all(float(tensor.sum()) < float("inf") for tensor in state.values())


OPERATIONS: dict[str, Callable[..., Callable[[], None]]] = {
    "write": write_all,
    "nothing": do_nothing,
    "torch": load_with_torch,
    "read": read,
    "convert": convert,
}


def make_path(folder: str, name: str) -> Path:
    """Returns the path of the file of a format."""
    return Path(folder) / (f"base.{name}.safetensors" if name == "safetensors" else f"base.{name}")


def measure(repeats: int, *arguments: str, out: Path | None = None) -> tuple[float, float]:
    """Returns median seconds and peak bytes of one operation over ``repeats`` processes."""
    results = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, __file__, "--child", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        if out is not None:
            subprocess.run(["rm", "-r", out], check=True)
    seconds = statistics.median(result["seconds"] for result in results)
    return seconds, statistics.median(result["peak_bytes"] for result in results)


def print_table(folder: str, repeats: int) -> None:
    """Prints the table."""
    size = make_path(folder, "s3prl").stat().st_size
    _, idle = measure(repeats, "nothing")
    print(
        f"HuBERT Base, {size / 1e6:.1f} MB as s3prl's; imports alone peak at {idle / 1e6:.0f} MB; "
        f"medians of {repeats}.\n"
    )
    print("| what | seconds | peak MB | peak / file |\n|---|---|---|---|")
    worst = 0.0

    def row(title: str, *arguments: str, out: Path | None = None) -> float:
        seconds, peak = measure(repeats, *arguments, out=out)
        print(f"| {title} | {seconds:.2f} | {peak / 1e6:.0f} | {peak / size:.2f} |", flush=True)
        return peak / size

    row("torch.load (s3prl file)", "torch", str(make_path(folder, "s3prl")), "copy")
    row("torch.load, mmap=True", "torch", str(make_path(folder, "s3prl")), "mmap")
    for name in FORMATS:
        row(f"read {name}", "read", str(make_path(folder, name)))
    pairs = [
        ("fairseq", "hf"),
        *((name, "safetensors") for name in FORMATS),
        *(("safetensors", name) for name in FORMATS[:-1]),
    ]
    for name, to in pairs:
        out = Path(folder) / (f"out.{to}.safetensors" if to == "safetensors" else f"out.{to}")
        worst = max(
            worst,
            row(
                f"convert {name} to {to}",
                "convert",
                str(make_path(folder, name)),
                to,
                str(out),
                out=out,
            ),
        )
    print(f"\nThe largest conversion peaks at {worst:.2f} times the file; the limit is {LIMIT}.")
    if worst > LIMIT:
        raise SystemExit(1)


def main() -> None:
    """Measures and prints. This process imports nothing heavy, since Linux counts the memory of the
    parent at the fork as the child's."""
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="where 2.3 GB of files go; default: a temporary folder",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(1, "write", folder)
        print_table(folder, options.repeats)


if __name__ == "__main__":
    main()
