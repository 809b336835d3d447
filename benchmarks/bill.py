"""Compares the bill of the plan with measured CPU time, on three embedded sweeps.

    python benchmarks/bill.py [--sweep small] [--sweep medium] [--sweep large] [--folder DIR]

Each sweep is planned and calibrated in an empty store, as ``speechft plan --calibrate --cpu`` does,
and then performed in this process, job by job. Measured is the CPU time of the jobs, that of the
processes that synthesise corpora included, so that other work on the machine disturbs little. The
start of Python and of Ray's workers is in neither number. Under eight minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from speechft_ray.commands.bill import compute_bill
from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.sweep import open_sweep
from speechft_ray.core.records import STAGES
from speechft_ray.cost.bill import add_up
from speechft_ray.cost.calibration import read_child_seconds
from speechft_ray.stages.perform import perform, publish_start
from speechft_ray.sweep.space_file import open_space

PHONES = "{name: synthetic, options: {part: phones, speakers: 6, train: 60, dev: 20, test: 0}}"
SPEAKERS = (
    "{name: synthetic, options: {part: sid, seed: 1, speakers: 20, train: 120, dev: 40, test: 0}}"
)
SWEEPS = {
    "small": f"""
name: small
finetune:
  - name: phones
    objectives: [{{head: frame, corpus: {PHONES}, column: phones, batch_size: 8}}]
    updates: 40
    validate_every_updates: 20
merge: [{{method: linear, alpha: 0.5}}]
evaluate:
  - task: ks
    corpus: {{name: synthetic, options: {{part: ks, train: 300, dev: 100, test: 400}}}}
    options: {{protocol: clean}}
    updates: 300
    seeds: 2
""",
    "medium": f"""
name: medium
finetune:
  - name: phones
    objectives: [{{head: ctc, corpus: {PHONES}, column: phones, batch_size: 8}}]
    updates: 80
    validate_every_updates: 40
merge: [{{method: linear, alpha: {{grid: [0.25, 0.5]}}}}]
evaluate:
  - task: pr
    corpus: {{name: synthetic, options: {{part: pr, train: 160, dev: 40, test: 80}}}}
    updates: 80
    batch_size: 16
    learning_rate: 1e-2
    seeds: 2
  - task: sid
    corpus: {{name: synthetic, options: {{part: sid, train: 300, dev: 100, test: 300}}}}
    updates: 400
    learning_rate: 1e-2
    seeds: 3
""",
    "large": f"""
name: large
finetune:
  - name: phones
    objectives: [{{head: frame, corpus: {PHONES}, column: phones, batch_size: 8}}]
    updates: 60
    validate_every_updates: 30
  - name: speakers
    objectives:
      - head: pooled
        corpus: {SPEAKERS}
        column: speaker
        batch_size: 16
    updates: 60
    validate_every_updates: 30
merge:
  - {{method: linear, alpha: 0.25}}
  - {{method: ties, donors: [phones, speakers], alpha: 0.5}}
evaluate:
  - task: pr
    corpus: {{name: synthetic, options: {{part: pr, train: 160, dev: 40, test: 80}}}}
    updates: 60
    batch_size: 16
    learning_rate: [1e-2, 1e-3]
  - task: er
    corpus: {{name: synthetic, options: {{part: er, train: 300, dev: 100, test: 300}}}}
    updates: 400
    learning_rate: grid
  - task: ks
    corpus: {{name: synthetic, options: {{part: ks, train: 300, dev: 100, test: 300}}}}
    options: {{protocol: clean}}
    updates: 300
    seeds: 3
score: {{zero: measured, topline: {{pr.per: 0, er.accuracy: 100, ks.accuracy: 100}}}}
""",
}


def run_sweep(name: str, folder: Path) -> None:
    """Prints the bill and the measured CPU seconds by stage, and in all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(SWEEPS[name], encoding="utf-8")
    spec = open_space(path, print).spec
    sweep = open_sweep(spec, resolve_place(spec, storage=folder / name, cpu=True))
    began, cpu_began = time.monotonic(), _read_cpu_seconds()
    bill = compute_bill(sweep, measure=True, note=print)
    wall, cpu = time.monotonic() - began, _read_cpu_seconds() - cpu_began
    print(f"\n{name}: calibrated in {wall:.1f} s ({cpu:.1f} CPU s)")
    publish_start(sweep.place)
    measured = dict.fromkeys(STAGES, 0.0)
    for job in sweep.plan.jobs.values():
        cpu_began = _read_cpu_seconds()
        perform(job, sweep.place, lambda values: None)
        measured[job.stage] += _read_cpu_seconds() - cpu_began
    for stage in STAGES:
        print_line(stage, bill[stage].seconds, measured[stage])
    print_line("in all", add_up(bill).seconds, sum(measured.values()))


def print_line(name: str, predicted: float, actual: float) -> None:
    """Prints predicted and measured seconds and their ratio."""
    print(f"  {name:9} {predicted:8.1f} {actual:8.1f} CPU s  {predicted / actual:5.2f}", flush=True)


def _read_cpu_seconds() -> float:
    return time.process_time() + read_child_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="append", choices=list(SWEEPS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("stage, predicted, measured, ratio; load", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sweep or SWEEPS:
            run_sweep(name, options.folder or Path(scratch))
            print("  load now", os.getloadavg()[0])


if __name__ == "__main__":
    main()
