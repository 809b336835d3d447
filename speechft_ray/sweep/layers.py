"""Reads what the store has by layer: the learnt layer weights of probes, and the distances of
merges and fine-tuning runs from what they started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from speechft_ray.core.metrics import label_evaluation
from speechft_ray.core.store import Store
from speechft_ray.sweep.curves import describe_run
from speechft_ray.sweep.fields import list_varying_params
from speechft_ray.sweep.lineage import WEIGHT_DISTANCE
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Curve


class TuningDistances(NamedTuple):
    """How far fine-tuning moved an encoder from its start."""

    run: Curve
    """The run, without points."""
    weights: Mapping[str, float]
    """|theta - theta0| / |theta0| by part of the encoder, such as ``layer_03``."""
    cka: Sequence[float | None]
    """Linear CKA of each hidden state with that of the start; ``None`` where it is undefined."""


def read_layer_weights(
    manifest: Mapping[str, Any], name: str | None
) -> dict[str, tuple[float, ...]]:
    """Returns the share of each hidden state in the sum that the probes of an evaluation train on,
    a mean over probe seeds, by the label of the evaluation; empty for a task without training and
    for features of one layer."""
    by_seed: Sequence[Sequence[float]] = manifest.get("layer_weights") or ()
    sizes = {len(shares) for shares in by_seed}
    if len(sizes) != 1 or min(sizes) < 2:
        return {}
    label = label_evaluation(str(manifest["spec"]["task"]), name)
    return {label: tuple(map(fmean, zip(*by_seed, strict=True)))}


def read_weight_distance(key: str, store: Store) -> dict[str, float]:
    """Returns the distance of a merge from the pre-trained encoder by part; empty where it was not
    stored: by versions before 0.7, for the pre-trained encoder, and for merges in memory."""
    if not store.is_complete("merge", key):
        return {}
    distance: dict[str, float] = store.manifest("merge", key).get(WEIGHT_DISTANCE, {})
    return distance


def read_tuning_distances(plan: Plan, store: Store) -> list[TuningDistances]:
    """Returns the distances of the fine-tuning runs of a plan that are complete, at the checkpoint
    with the best validation."""
    varying = list_varying_params(plan.jobs)
    distances = []
    for job in plan.of_stage("finetune"):
        if store.is_complete("finetune", job.fingerprint):
            facts = store.manifest("finetune", job.fingerprint)
            best = facts.get("diagnostics", {}).get("best", {})
            run = describe_run(job)
            run = run._replace(params={**run.params, **varying[job.fingerprint]})
            weights, cka = best.get("weight_distance", {}), best.get("cka", [])
            distances.append(TuningDistances(run, weights, cka))
    return distances
