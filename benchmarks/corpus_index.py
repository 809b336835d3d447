"""What it costs to open a corpus of 150,000 files: a first plan, a second plan, a worker, and a
whole evaluation of speakers.

    python -m benchmarks.corpus_index [--files 150000] [--folder DIR] [--links] [--parts plan,open]

It lays out a tree like that of VoxCeleb1 with tiny recordings, each with content of its own unless
``--links`` makes them links to a few, and measures each step in a process of its own: CPU seconds
(user and system, of all threads) and peak memory. The encoder of the evaluation is a toy with 13
states of 192 numbers, whose means of the training split (1.4 GB) exceed what an evaluation holds in
memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import soundfile

SPEAKERS, FILES_PER_VIDEO = 1_251, 7
"""VoxCeleb1 has 1,251 speakers and 22,496 videos with 153,516 recordings."""
SAMPLES = 1_600
SOURCES = 64
"""Recordings with a content of their own among links."""
SPACE = """
name: voxceleb
encoder: tiny_hubert
finetune:
  - name: speakers
    objectives: [{head: pooled, corpus: {name: voxceleb1}, column: speaker, batch_size: 8}]
    updates: 2
merge: [{alpha: 0.5}]
evaluate: [{task: sid, corpus: {name: voxceleb1}, updates: 2}]
score: {zero: measured, topline: {sid.accuracy: 100}}
"""
OPEN = """
import resource, time
from pathlib import Path
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.stages.sources import open_corpus

def measure_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return [int(values[name].split()[0]) / 1e3 for name in ("VmRSS", "VmHWM")]

place = Place(storage={storage!r}, encoder="tiny_hubert", corpora={corpora!r})
before, wall, cpu = measure_memory(), time.perf_counter(), time.process_time()
corpus = open_corpus(CorpusSpec(name="voxceleb1"), place)
first = corpus.read(corpus.utterances[-1])
print(
    f"{{len(corpus.utterances)}} utterances: {{time.perf_counter() - wall:.2f}} s, "
    f"{{time.process_time() - cpu:.2f}} CPU s, "
    f"memory {{before[0]:.0f}} -> {{measure_memory()[0]:.0f}} MB, "
    f"peak {{measure_memory()[1]:.0f}} MB; {{corpus.fingerprint}}"
)
"""
EVALUATE = """
import torch
from pathlib import Path
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.encoders.base import HiddenStates
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.stages.sources import open_corpus
from speechft_ray.superb.evaluate import SharedCaches, evaluate

torch.set_num_threads(1)

class Toy:
    dim, state_count = 192, 13
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.maps = torch.randn(13, 400, 192, generator=generator)
    def hidden_states(self, waves):
        windows = torch.stack(list(waves)).unfold(1, 400, 320)
        return HiddenStates(
            tuple(windows @ one for one in self.maps),
            torch.full((len(waves),), windows.shape[1]),
        )
    def module(self):
        return torch.nn.Module()

place = Place(storage={storage!r}, encoder="tiny_hubert", corpora={corpora!r})
corpus = open_corpus(CorpusSpec(name="voxceleb1"), place)
spec = EvalSpec(task="sid", corpus=CorpusSpec(name="voxceleb1"), updates=20)
cache = FeatureCache(Path({storage!r}) / "cache", 10**10)
caches = SharedCaches(cache=cache, encoder="toy", front_end=None)
facts = evaluate(spec, Toy(), corpus, torch.device("cpu"), lambda _: None, caches=caches)
print(facts["utterances"], facts["seconds"])
"""


def lay_out(root: Path, files: int, *, with_links: bool) -> None:
    """Writes the tree of ``files`` recordings and ``iden_split.txt``; equal arguments give equal
    bytes."""
    rng = np.random.default_rng(0)
    lines: list[str] = []
    sources: list[Path] = []
    for index in range(files):
        speaker = index % SPEAKERS
        number = index // SPEAKERS
        part = "test" if 269 <= speaker < 309 else "dev"
        name = f"id1{speaker:04d}/video{number // FILES_PER_VIDEO:06d}/{number:05d}.wav"
        path = root / part / "wav" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if with_links and index >= SOURCES:
            os.link(sources[index % SOURCES], path)
        else:
            wave = (rng.standard_normal(SAMPLES) * 3_000).astype(np.int16)
            soundfile.write(path, wave, 16_000, subtype="PCM_16")
            sources.append(path)
        lines.append(f"{1 if number % 20 < 18 else number % 20 - 16} {name}")
    (root / "iden_split.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(title: str, command: list[str], **extra: str) -> None:
    """Runs a command in a process of its own; prints CPU seconds, peak memory and its output."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **extra}
    )
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{title}: {cpu:.1f} CPU s, {time.perf_counter() - began:.1f} s, "
        f"peak {usage.ru_maxrss / 1e3:.0f} MB"
    )
    tail = output.strip().splitlines()[-4:]
    print(textwrap.indent("\n".join(tail), "    "), flush=True)
    if process.returncode:
        raise SystemExit(output)


def main() -> None:
    """Lays out the tree, measures, and removes what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=150_000)
    parser.add_argument("--folder", type=Path, help="Where to write; default: a temporary folder.")
    parser.add_argument("--links", action="store_true", help="Hard links to a few recordings.")
    parser.add_argument("--parts", default="imports,plan,open,evaluate")
    parser.add_argument("--keep", action="store_true", help="Leave the tree in --folder.")
    options = parser.parse_args()
    parts = options.parts.split(",")
    home = options.folder or Path(tempfile.mkdtemp(prefix="corpus-index-"))
    storage, corpora = home / "runs", home / "corpora"
    try:
        if not corpora.exists():
            began = time.perf_counter()
            lay_out(corpora / "voxceleb1", options.files, with_links=options.links)
            print(f"laid out {options.files} files in {time.perf_counter() - began:.0f} s")
        (home / "space.yaml").write_text(SPACE, encoding="utf-8")
        python = [sys.executable, "-W", "ignore"]
        plan = [*python, "-m", "speechft_ray", "plan", "--space", str(home / "space.yaml")]
        plan += ["--corpora", str(corpora), "--storage", str(storage)]
        if "imports" in parts:
            measure("imports", [*python, "-c", "import speechft_ray.stages.perform"])
        if "plan" in parts:
            measure("first plan", plan)
            measure("second plan", plan)
        names = {"storage": str(storage), "corpora": str(corpora)}
        if "open" in parts:
            measure("a worker", [*python, "-c", OPEN.format(**names)])
        if "evaluate" in parts:
            measure("an evaluation", [*python, "-c", EVALUATE.format(**names)])
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
