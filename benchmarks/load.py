"""What reading and converting a Base-size HuBERT costs in each format, beside plain ``torch.load``.

    python benchmarks/load.py [--repeats 5] [--folder DIR]

Every figure is the median over processes of their own, each of which does one thing: wall time of
that thing, imports apart, and the peak resident memory of the whole process, imports and mapped
pages of the file included (``ru_maxrss``). Reading includes one pass over every value, since a
mapped file is otherwise not read at all. Files are in the page cache.
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


def child(what: str, *arguments: str) -> None:
    """Does one thing and prints its wall time and the peak of this process."""
    task = TASKS[what](*arguments)
    started = time.perf_counter()
    task()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def make(folder: str) -> Callable[[], None]:
    """Writes a HuBERT Base with random weights in every format."""
    from speechft_ray.speech.checkpoints.base import FORMATS as REGISTERED
    from speechft_ray.speech.encoders.base import FAMILIES

    family = FAMILIES.get("hubert")
    assert family.example_config is not None
    assert family.init_weights is not None
    weights = family.init_weights(family.example_config(12, 768, False), 0)
    return lambda: (
        [REGISTERED.get(name).write(place(folder, name), weights, {}) for name in FORMATS] and None
    )


def nothing() -> Callable[[], None]:
    """What the imports alone take."""
    import speechft_ray.speech.checkpoints.convert  # noqa: F401

    return lambda: None


def plain(path: str, mapped: str) -> Callable[[], None]:
    """torch's own loader, with everything in the file."""
    import torch

    return lambda: heard(torch.load(path, weights_only=True, mmap=mapped == "mmap")["model_weight"])


def read(path: str) -> Callable[[], None]:
    """Our loader."""
    from speechft_ray.speech.checkpoints.load import load_checkpoint

    return lambda: heard(load_checkpoint(Path(path)).weights.state)


def change(path: str, to: str, out: str) -> Callable[[], None]:
    """Our conversion."""
    from speechft_ray.speech.checkpoints.convert import convert

    return lambda: convert(Path(path), to, Path(out)) and None


def heard(state: object) -> None:
    """One pass over every value."""
    assert isinstance(state, dict)
    assert all(float(tensor.sum()) < float("inf") for tensor in state.values())


TASKS: dict[str, Callable[..., Callable[[], None]]] = {
    "make": make,
    "nothing": nothing,
    "plain": plain,
    "read": read,
    "change": change,
}


def place(folder: str, name: str) -> Path:
    """Where the file of a format lies."""
    return Path(folder) / (f"base.{name}.safetensors" if name == "safetensors" else f"base.{name}")


def measured(repeats: int, *arguments: str, out: Path | None = None) -> tuple[float, float]:
    """Median seconds and peak bytes of one thing, done in ``repeats`` processes."""
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, __file__, "--child", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        if out is not None:
            subprocess.run(["rm", "-r", out], check=True)
    return statistics.median(each["seconds"] for each in found), statistics.median(
        each["peak_bytes"] for each in found
    )


def table(folder: str, repeats: int) -> None:
    """Prints the table."""
    size = place(folder, "s3prl").stat().st_size
    _, idle = measured(repeats, "nothing")
    print(
        f"HuBERT Base, {size / 1e6:.1f} MB as s3prl's; imports alone peak at {idle / 1e6:.0f} MB; medians of {repeats}.\n"
    )
    print("| what | seconds | peak MB | peak / file |\n|---|---|---|---|")
    worst = 0.0

    def row(title: str, *arguments: str, out: Path | None = None) -> float:
        seconds, peak = measured(repeats, *arguments, out=out)
        print(f"| {title} | {seconds:.2f} | {peak / 1e6:.0f} | {peak / size:.2f} |", flush=True)
        return peak / size

    row("torch.load (s3prl file)", "plain", str(place(folder, "s3prl")), "copy")
    row("torch.load, mmap=True", "plain", str(place(folder, "s3prl")), "mmap")
    for name in FORMATS:
        row(f"read {name}", "read", str(place(folder, name)))
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
                f"convert {name} to {to}", "change", str(place(folder, name)), to, str(out), out=out
            ),
        )
    print(f"\nThe largest conversion peaks at {worst:.2f} times the file; the limit is {LIMIT}.")
    if worst > LIMIT:
        raise SystemExit(1)


def main() -> None:
    """Parses and measures. This process imports nothing heavy: Linux counts a parent's memory at
    the fork as its child's."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
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
        measured(1, "make", folder)
        table(folder, options.repeats)


if __name__ == "__main__":
    main()
