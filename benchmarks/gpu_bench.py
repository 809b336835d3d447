"""Sizes, clocks and rows of ``gpu.py``, and its sections ``device`` and ``encode``."""

from __future__ import annotations

import importlib
import re
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.lengths import CORPORA, simulate_samples
from speechft_ray.core.specs import Precision
from speechft_ray.core.units import SAMPLE_RATE_HZ, frame_count
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights, Shape
from speechft_ray.speech.gpu_memory import is_out_of_memory
from speechft_ray.speech.heads.featurizer import layer_normalize
from speechft_ray.speech.precision import encode_in, use_float32_products

HUBERT = FAMILIES.get("hubert")
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
SECTION_SECONDS = 15.0
"""Time that must be left for a section to begin."""


@dataclass
class Bench:
    """One run: its device and sizes, the rows so far, and when it must end (``time.monotonic``)."""

    device: torch.device
    toy: bool
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    peak_flops: dict[str, float] = field(default_factory=dict)
    """Of a large matrix product, by precision."""

    @property
    def shapes(self) -> dict[str, tuple[int, int, bool]]:
        """Layers, width and whether it is like Large."""
        if self.toy:
            return {"Base (toy)": (1, 16, False), "Large (toy)": (1, 16, True)}
        return {"Base": (12, 768, False), "Large": (24, 1024, True)}

    @property
    def case_seconds(self) -> float:
        """Time for one measurement."""
        return 0.02 if self.toy else 3.0

    @cached_property
    def samples(self) -> list[int]:
        """Lengths of utterances like LibriSpeech's."""
        count = 6 if self.toy else 96
        samples = simulate_samples(CORPORA["librispeech"]["train"], count)
        return [length // 20 for length in samples] if self.toy else samples

    def count_seconds_left(self) -> float:
        """Returns the seconds that are left."""
        return self.ends - time.monotonic()

    def add(self, section: str, case: str, value: float | None, unit: str, note: str = "") -> None:
        """Adds a row, and prints it, so that a run that is killed leaves what it measured."""
        row = {"section": section, "case": case, "value": value, "unit": unit, "note": note}
        self.rows.append(row)
        print("#", *(str(cell) for cell in row.values()), flush=True)

    def build(self, name: str) -> tuple[EncoderWeights, Encoder, Shape]:
        """Returns an encoder of that shape on the device, its weights and its shape."""
        assert HUBERT.example_config is not None and HUBERT.init_weights is not None
        config = HUBERT.example_config(*self.shapes[name])
        weights = HUBERT.init_weights(config, 0)
        encoder = HUBERT.build(weights)
        encoder.module().to(self.device).eval()
        return weights, encoder, HUBERT.describe(config)

    def measure(self, work: Callable[[], object], warmups: int = 2) -> float:
        """Returns the median seconds of a call."""
        for _ in range(warmups):
            work()
        self.synchronize()
        spent: list[float] = []
        while not spent or (sum(spent) < self.case_seconds and len(spent) < 1000):
            began = time.perf_counter()
            work()
            self.synchronize()
            spent.append(time.perf_counter() - began)
        return median(spent)

    def synchronize(self) -> None:
        """Waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_peak(self) -> None:
        """Begins a new measurement of memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def format_peak(self) -> str:
        """Returns the most memory that was allocated since ``reset_peak``; on a CPU the peak of the
        process."""
        if self.device.type == "cuda":
            return f"peak {torch.cuda.max_memory_allocated(self.device) / 1e9:.2f} GB"
        status = Path("/proc/self/status")
        sizes = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else []
        return f"process peak {int(sizes[0]) * 1024 / 1e9:.2f} GB" if sizes else ""


def run_section(bench: Bench, section: str) -> None:
    """Runs one section. An error is a row of the table, and the traceback is printed."""
    if bench.count_seconds_left() < SECTION_SECONDS and not bench.toy:
        bench.add(
            section, "left out", None, "", f"{max(0.0, bench.count_seconds_left()):.0f} s were left"
        )
        return
    warnings.filterwarnings("ignore")  # s3prl's weight norm
    if bench.toy:
        torch.set_num_threads(1)
    module = "gpu_training" if section in ("finetune", "probes", "oom") else "gpu_bench"
    began = time.monotonic()
    try:
        getattr(importlib.import_module(f"benchmarks.{module}"), f"measure_{section}")(bench)
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        bench.add(section, "failed", None, "", f"{type(error).__name__}: {first[:200]}")
    bench.add(section, "time of the section", time.monotonic() - began, "s")


def list_precisions(bench: Bench) -> Sequence[Precision]:
    """Returns the precisions that differ on the device: a CPU has no TF32."""
    return PRECISIONS if bench.device.type == "cuda" else ("float32", "bfloat16")


def measure_device(bench: Bench) -> None:
    """Names the device and measures square matrix products."""
    device, size = bench.device, 128 if bench.toy else 8192
    name, memory = device.type, None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory / 1e9
        bench.add("device", "memory", memory, "GB", name)
    bench.add("device", "torch", None, "", f"{torch.__version__}, {name}")
    if device.type == "cpu" and not bench.toy:
        size = 2048
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    for precision in list_precisions(bench):
        with use_float32_products(precision, device):
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            one, two = left.to(dtype), right.to(dtype)
            seconds = bench.measure(lambda one=one, two=two: one @ two)  # type: ignore[misc]
        bench.peak_flops[precision] = 2 * size**3 / seconds
        bench.add(
            "device",
            f"matrix product {size}, {precision}",
            bench.peak_flops[precision] / 1e12,
            "TFLOP/s",
        )


def count_flops(shape: Shape, samples: int) -> float:
    """Returns the floating point operations of the products of one encoding: two per multiplication
    and addition. The positional convolution has a kernel of 128 in 16 groups."""
    total, length, channels = 0.0, samples, 1
    for width, kernel, stride in shape.conv_layers:
        length = (length - kernel) // stride + 1
        total += 2.0 * length * width * kernel * channels
        channels = width
    frames, dim = length, shape.dim
    total += 2.0 * frames * channels * dim + 2.0 * frames * dim * 128 * dim / 16
    linear = 2.0 * frames * (4 * dim**2 + 2 * dim * shape.feed_forward_dim)
    return total + shape.layers * (linear + 4.0 * frames**2 * dim)


def make_batches(bench: Bench) -> dict[str, list[list[int]]]:
    """Returns batches of lengths by name: each utterance alone, equal lengths, and neighbours by
    length padded to the longest, 160 s of audio in each."""
    samples = sorted(bench.samples, reverse=True)
    mean = sum(samples) / len(samples)
    size = 2 if bench.toy else max(1, round(160 * SAMPLE_RATE_HZ / mean))
    padded = [samples[start : start + size] for start in range(0, len(samples), size)]
    middle = samples[len(samples) // 2]
    equal = [[middle] * len(batch) for batch in padded]
    singles = [[length] for length in samples[:: max(1, len(samples) // 24)]]
    return {"one by one": singles, "equal length": equal, "padded": padded}


def measure_encode(bench: Bench) -> None:
    """Measures throughput for every shape, precision and kind of batch, and the errors."""
    for name in bench.shapes:
        if bench.count_seconds_left() < SECTION_SECONDS and not bench.toy:
            bench.add("encode", f"{name}: left out", None, "", "no time was left")
            continue
        _, encoder, shape = bench.build(name)
        generator = torch.Generator().manual_seed(0)
        waves = {
            samples: (0.1 * torch.randn(samples, generator=generator)).to(bench.device)
            for samples in set(bench.samples)
        }
        _measure_errors(bench, name, encoder, waves)
        for precision in list_precisions(bench):
            for kind, batches in make_batches(bench).items():
                _measure_throughput(bench, name, encoder, shape, precision, kind, batches, waves)


def _measure_throughput(
    bench: Bench,
    name: str,
    encoder: Encoder,
    shape: Shape,
    precision: Precision,
    kind: str,
    batches: Sequence[Sequence[int]],
    waves: dict[int, torch.Tensor],
) -> None:
    case = f"{name}, {precision}, {kind}"
    encoder = encode_in(precision, encoder, bench.device)
    bench.reset_peak()

    @torch.no_grad()
    def encode(batch: Sequence[int]) -> None:
        states = encoder.hidden_states([waves[samples] for samples in batch]).states
        for state in states:
            layer_normalize(state.float())

    spent, audio, flops = 0.0, 0.0, 0.0
    try:
        encode(batches[0])  # the longest: allocates, and warms up
        encode(batches[0])
        bench.synchronize()
        while spent < bench.case_seconds:
            for batch in batches:
                began = time.perf_counter()
                encode(batch)
                bench.synchronize()
                spent += time.perf_counter() - began
                audio += sum(batch) / SAMPLE_RATE_HZ
                flops += sum(count_flops(shape, samples) for samples in batch)
                if spent >= 2 * bench.case_seconds:
                    break
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        bench.reset_peak()
        bench.add("encode", case, None, "x real time", "out of memory")
        return
    peak = bench.peak_flops.get(precision)
    share = f"{flops / spent / peak:.1%} of peak, " if peak else ""
    bench.add("encode", case, audio / spent, "x real time", share + bench.format_peak())


@torch.no_grad()
def _measure_errors(
    bench: Bench, name: str, encoder: Encoder, waves: dict[int, torch.Tensor]
) -> None:
    """Compares normalised states with those of the utterance alone in float32."""
    lengths = sorted(waves)
    batch = [lengths[0], lengths[len(lengths) // 2], lengths[-1]]

    def encode(encoder: Encoder, lengths: Sequence[int]) -> list[torch.Tensor]:
        """Returns ``(layers, frames, dim)`` of each utterance."""
        states = encoder.hidden_states([waves[samples] for samples in lengths]).states
        stacked = layer_normalize(torch.stack(states).float())
        return [
            stacked[:, row, : frame_count(samples)].cpu() for row, samples in enumerate(lengths)
        ]

    exact = encode_in("float32", encoder, bench.device)
    references = [encode(exact, [samples])[0] for samples in batch]
    for precision in list_precisions(bench):
        other = encode_in(precision, encoder, bench.device)
        for kind, states in (
            ("one by one", [encode(other, [samples])[0] for samples in batch]),
            ("padded", encode(other, batch)),
        ):
            if (precision, kind) == ("float32", "one by one"):
                continue
            gaps = [(one - two).abs() for one, two in zip(states, references, strict=True)]
            root = torch.cat([gap.flatten() for gap in gaps]).square().mean().sqrt()
            largest = max(float(gap.max()) for gap in gaps)
            bench.add(
                "encode",
                f"{name}, {precision}, {kind}: error against float32 alone",
                largest,
                "largest",
                f"root mean square {float(root):.2e}, of states with variance 1",
            )
