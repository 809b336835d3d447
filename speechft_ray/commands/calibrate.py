"""Measures the seconds of the units of work of a sweep on this machine, and keeps them."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from speechft_ray.commands.sizes import SAMPLE_UTTERANCES, PlaceSizes
from speechft_ray.core.errors import UserError
from speechft_ray.core.files import write_json
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec, Precision
from speechft_ray.cost.calibration import (
    EncodingCost,
    describe_device,
    find_device,
    measure_encoder_job,
    measure_encoding,
    measure_finetuning,
    measure_matching,
    measure_merge,
    measure_probe,
)
from speechft_ray.cost.jobs import PlannedJob
from speechft_ray.cost.samples import read_numbers
from speechft_ray.cost.work import probe_unit, tune_unit
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.stages.sources import start_encoder
from speechft_ray.storage.open import find_local_root
from speechft_ray.sweep.plan import FBANK

CALIBRATION_VERSION = 1
"""Raised when units or their measurements change, so that older calibrations are not read."""


def name_device(place: Place) -> str:
    """Returns what jobs run on here, for people."""
    name = describe_device(find_device(place.device))
    return "CPU core" if name == "cpu" else name


def find_calibration(place: Place) -> Path:
    """Returns the file in the store with the calibration of this host, its device and the shape of
    the encoder."""
    weights = start_encoder(place.encoder).weights
    shape = FAMILIES.get(weights.family).describe(weights.config)
    device = describe_device(find_device(place.device))
    identity = [CALIBRATION_VERSION, platform.node(), os.cpu_count(), device, weights.family, shape]
    name = fingerprint(list(map(str, identity)))
    return find_local_root(place.storage) / "calibration" / f"{name}.json"


def read_calibration(place: Place) -> dict[str, float]:
    """Returns the seconds of each unit that was measured here; empty without a calibration."""
    return read_numbers(find_calibration(place))


def calibrate(
    place: Place, jobs: Sequence[PlannedJob], sizes: PlaceSizes, note: Callable[[str], None]
) -> dict[str, float]:
    """Measures the units of these jobs that were not measured here before, and returns all.

    ``note`` prints what could not be measured.
    """
    calibrator = Calibrator(place, sizes, note)
    for job in {_what_it_costs(job): job for job in jobs}.values():
        calibrator.measure(job)
    path = find_calibration(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, calibrator.seconds)
    return calibrator.seconds


def _what_it_costs(job: PlannedJob) -> str:
    """Returns what jobs have in common that need the same measurements."""
    if job.stage == "merge":
        return fingerprint([job.stage, job.payload["method"], len(job.payload["donors"])])
    if job.stage == "evaluate":
        recipe = job.payload.get("recipe") or {"method": "", "donors": []}
        merge = [recipe["method"], len(recipe["donors"])]
        return fingerprint([job.stage, job.payload["spec"], not job.payload["encoder"], merge])
    return job.key


class Calibrator:
    """Measures units that are missing from ``seconds``."""

    def __init__(self, place: Place, sizes: PlaceSizes, note: Callable[[str], None]) -> None:
        self.seconds = read_calibration(place)
        self._sizes, self._note = sizes, note
        self._device = find_device(place.device)
        self._start = start_encoder(place.encoder).weights

    def measure(self, job: PlannedJob) -> None:
        """Measures the units of one job. What its labels or options rule out is left to the job
        itself, which says so."""
        try:
            if job.stage == "corpus":
                self._measure_synthesis(CorpusSpec.model_validate(job.payload["corpus"]))
            elif job.stage == "finetune":
                self._measure_finetuning(FinetuneSpec.model_validate(job.payload["spec"]))
            elif job.stage == "merge":
                self._measure_merge(job.payload)
            else:
                self._measure_evaluation(job)
            self._measure_job(job.stage)
        except UserError as error:
            self._note(f"not calibrated: {job.label}: {error}")

    def _measure_job(self, stage: str) -> None:
        unit = f"job:{stage}"
        if stage != "corpus" and unit not in self.seconds:
            with tempfile.TemporaryDirectory(prefix="speechft-calibration-") as folder:
                self.seconds[unit] = measure_encoder_job(self._start, Path(folder))

    def _measure_synthesis(self, spec: CorpusSpec) -> None:
        unit = f"synthesise:{self._sizes.name(spec)}"
        if unit in self.seconds:
            return
        few = self._sizes.time_synthesis(spec, 4)
        many = self._sizes.time_synthesis(spec, SAMPLE_UTTERANCES)
        self.seconds[unit] = max(0.0, many - few) / (SAMPLE_UTTERANCES - 4)
        start = "synthesise start:"
        self.seconds[start] = max(0.0, few - 4 * self.seconds[unit])

    def _measure_encoding(
        self, spec: CorpusSpec, weights: EncoderWeights, precision: Precision
    ) -> EncodingCost:
        is_fbank = weights.family == FBANK
        size = (self._sizes.fbank if is_fbank else self._sizes.encoder).at(precision)
        name = f"{self._sizes.name(spec)} {size.name}"
        layers, front_end = f"layers:{name}", f"front end:{name}"
        if layers not in self.seconds:
            sample = self._sizes.sample(spec)
            cost = measure_encoding(weights, sample, self._device, precision)
            self.seconds[layers] = cost.layers
            if not is_fbank:
                self.seconds[front_end] = cost.front_end
        return EncodingCost(self.seconds[layers], self.seconds.get(front_end, 0.0))

    def _measure_evaluation(self, job: PlannedJob) -> None:
        spec = EvalSpec.model_validate(job.payload["spec"])
        is_fbank = not job.payload["encoder"]
        size = self._sizes.fbank if is_fbank else self._sizes.encoder
        weights = EncoderWeights(family=FBANK, config={}, state={}) if is_fbank else self._start
        # Folds have the same recordings, so that one of them stands for all.
        corpus = spec.corpora()[0]
        fold = self._sizes.evaluation(spec).folds[0]
        self._measure_encoding(corpus, weights, spec.precision)
        name = probe_unit(spec, fold, size)
        shape = (size.state_count, size.dim, self._device)
        if not fold.trains and f"match:{name}" not in self.seconds:
            sample = self._sizes.sample(corpus)
            self.seconds[f"match:{name}"] = measure_matching(spec, sample, *shape)
        elif fold.trains and f"probe:{name}" not in self.seconds:
            cost = measure_probe(spec, self._sizes.sample(corpus), *shape)
            self.seconds[f"probe:{name}"] = cost.update
            self.seconds[f"score:{name}"] = cost.score
        recipe = job.payload.get("recipe")
        if recipe:
            self._measure_merge(recipe)

    def _measure_finetuning(self, spec: FinetuneSpec) -> None:
        name = tune_unit(spec, self._sizes.finetuning(spec))
        specs = [objective.corpus for objective in spec.objectives]
        costs = [self._measure_encoding(item, self._start, spec.precision) for item in specs]
        if f"tune:{name}" in self.seconds:
            return
        samples = [self._sizes.sample(corpus) for corpus in specs]
        with tempfile.TemporaryDirectory(prefix="speechft-calibration-") as folder:
            cost = measure_finetuning(
                spec, self._start, samples, self._device, Path(folder), costs[0]
            )
        self.seconds[f"tune head:{name}"] = cost.head_only
        self.seconds[f"tune:{name}"] = cost.full

    def _measure_merge(self, recipe: dict[str, object]) -> None:
        donors, method, params = recipe["donors"], str(recipe["method"]), recipe["params"]
        assert isinstance(donors, list)
        assert isinstance(params, dict)
        unit = f"merge:{method} {len(donors)}"
        if donors and unit not in self.seconds:
            self.seconds[unit] = measure_merge(method, params, len(donors), self._start)
