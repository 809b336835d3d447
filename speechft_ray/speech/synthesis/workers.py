"""Synthesises utterances in worker processes, several at a time.

The audio does not depend on the number of processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from speechft_ray.speech.corpora.base import Progress
from speechft_ray.speech.synthesis.parts import Item

CHUNK_UTTERANCES = 128
"""Utterances per worker process. Fixed, because a chunk's audio follows from its seed and its order
of calls."""

_WORKER = "speechft_ray.speech.synthesis.chunk"
_WORKER_ENVIRONMENT = {
    # By default glibc returns large buffers to the kernel after every utterance, which took most of
    # the time.
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "67108864",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def usable_cores() -> int:
    """Returns the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_into_chunks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yields the items in chunks of one split each, so that growing one split leaves the others."""
    for split in dict.fromkeys(item.split for item in items):
        members = [item for item in items if item.split == split]
        for start in range(0, len(members), CHUNK_UTTERANCES):
            yield members[start : start + CHUNK_UTTERANCES]


def synthesise(
    items: Sequence[Item], folder: Path, workers: int, progress: Progress | None
) -> list[Path]:
    """Synthesises all items and returns the path prefix of each chunk, in item order.

    Each prefix has a ``.pcm`` and a ``.jsonl`` file. ``progress`` counts utterances. Raises
    ``RuntimeError`` with the standard error of a worker that fails.
    """
    chunks = list(split_into_chunks(items))
    prefixes = [folder / f"chunk-{index:05d}" for index in range(len(chunks))]
    done = 0
    with ThreadPoolExecutor(max_workers=max(1, workers)) as threads:
        running = {
            threads.submit(_synthesise_chunk, chunk, prefix): chunk
            for chunk, prefix in zip(chunks, prefixes, strict=True)
        }
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done += len(running.pop(future))
                    future.result()
                    if progress is not None:
                        progress(done, len(items))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return prefixes


def _synthesise_chunk(chunk: Sequence[Item], prefix: Path) -> None:
    # The seed follows from the key of the first utterance: it is the same however large the rest of
    # the corpus is.
    job = {
        "seed": zlib.crc32(chunk[0].key.encode()) & 0x7FFFFFFF,
        "utterances": [asdict(item.spec) for item in chunk],
    }
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    ended = subprocess.run(
        [sys.executable, "-m", _WORKER, str(prefix)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, **_WORKER_ENVIRONMENT, "PYTHONPATH": path},
    )
    if ended.returncode != 0:
        raise RuntimeError(
            f"the speech worker for {chunk[0].key} ended with code {ended.returncode}:\n"
            f"{ended.stderr[-2000:]}"
        )
