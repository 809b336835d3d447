"""Real fine-tuning of a toy encoder as a job, which can kill its own process. Workers import this
module by name.

As a script it is a driver that submits one job and waits: python -m tests.cluster.tuning_jobs
ADDRESS STORAGE JOB
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Job, Place
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.sweep.protocols import ReportProgress


def tuning(name: str, spec: FinetuneSpec, **more: Any) -> Job:
    """A fine-tuning job that takes both CPUs of the test cluster, so that trials come one after the
    other."""
    payload = {"spec": spec.model_dump(mode="json"), "start": "toy", "title": spec.name, **more}
    return Job(
        stage="finetune",
        fingerprint=f"tune-{name}",
        label=f"finetune {name}",
        payload=payload,
        resources=ResourceRequest(cpus=2),
    )


def perform(job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
    """Fine-tunes; a state is saved after every update, and life number i ends by SIGKILL at update
    ``kills[i]``."""
    from speechft_ray.finetuning import loop
    from speechft_ray.speech.encoders.base import FAMILIES
    from tests.finetuning.toy_models import TOY

    loop.SAVE_EVERY_SECONDS = loop.REPORT_EVERY_SECONDS = 0.0
    loop.SAVE_SHARE = float("inf")
    FAMILIES._discovered = True
    FAMILIES._parts["toy"] = TOY
    kills: Any = job.payload.get("kills", [])
    lives = Path(place.storage) / f"lives-{job.fingerprint}"
    life = len(lives.read_text().split()) if lives.exists() else 0
    begun = False

    def report_and_die(values: Mapping[str, float]) -> None:
        nonlocal begun
        if not begun:  # the first update of this life
            begun = True
            with lives.open("a") as file:
                file.write(f"{values['done']:g}\n")
        report(values)
        time.sleep(float(str(job.payload.get("pause_seconds", 0))))
        if life < len(kills) and values["done"] >= kills[life]:
            os.kill(os.getpid(), signal.SIGKILL)

    return tune_toy(
        FinetuneSpec.model_validate(job.payload["spec"]),
        Path(place.storage) / f"work-{job.fingerprint}",
        report_and_die,
    )


def tune_toy(spec: FinetuneSpec, work: Path, report: ReportProgress) -> dict[str, Any]:
    """Fine-tunes the toy encoder; returns the fingerprint of the tuned weights, and the curve."""
    import torch

    from speechft_ray.finetuning.run import finetune
    from tests.finetuning.toy_models import corpus, start_weights

    work.mkdir(exist_ok=True)
    tones = corpus({"train": 14, "dev": 6})
    result = finetune(spec, start_weights(0.2), [tones], work, torch.device("cpu"), report)
    bits = {
        name: value.flatten().view(torch.int32).tolist()
        for name, value in result.weights.state.items()
    }
    return {
        "weights": fingerprint(bits),
        "curve": result.facts["curve"],
        "best_dev": result.facts["best_dev"],
    }


def main(address: str, storage: str, job: str) -> None:
    """Submits the job to a running cluster and waits, to be killed."""
    from speechft_ray.cluster.connect import connect
    from speechft_ray.cluster.executor import RayExecutor

    cluster = connect(address)
    executor = RayExecutor(perform, Place(storage=storage, encoder="none"), cluster=cluster)
    executor.submit(Job.model_validate_json(job))
    while True:
        executor.outcomes(1.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
