"""Sends evaluations outside any sweep to trackers: ``evaluate --track``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Place, read_scores
from speechft_ray.core.specs import EvalSpec
from speechft_ray.storage.open import find_local_root
from speechft_ray.sweep.fields import Fields, dump_fully, flatten
from speechft_ray.sweep.protocols import EncoderRow, SweepEnd, SweepInfo
from speechft_ray.tracking.background import BackgroundTracker
from speechft_ray.tracking.base import TRACKERS

NAME = "evaluations"
"""What trackers call the sweep that all of these evaluations are in."""


def track_evaluations(
    results: Mapping[str, Mapping[str, Any] | None],
    place: Place,
    names: tuple[str, ...],
    mlflow_uri: str | None,
    note: Callable[[str], None],
) -> list[str]:
    """Logs the facts of an encoder's tasks as one entry, and returns a sentence per tracker that
    says how to open it. The same encoder with the same settings is the same entry.

    ``note`` prints what a tracker raised: the results are in the store in any case.
    """
    row = make_row(results, place)
    sentences = []
    for name in names:
        kind = TRACKERS.get(name)
        tracker = kind.open(find_local_root(place.storage), NAME, mlflow_uri)
        if kind.blocks:
            tracker = BackgroundTracker(tracker)
        try:
            tracker.start(SweepInfo(fingerprint(NAME), NAME, {}, label=NAME))
            tracker.log_encoder(row)
            tracker.finish(SweepEnd("finished"))
            sentences.append(tracker.how_to_open())
        except Exception as error:  # whatever a tracker raises ends no evaluation
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            note(f"{name} has no entry of this evaluation ({cause}): give the same command again.")
    return sentences


def make_row(results: Mapping[str, Mapping[str, Any] | None], place: Place) -> EncoderRow:
    """Returns the entry of an encoder with all metrics of its tasks."""
    done = {task: facts for task, facts in results.items() if facts is not None}
    scores = [score for facts in done.values() for score in read_scores(facts)]
    identity = {task: [facts["spec"], facts["encoder"]] for task, facts in done.items()}
    title = f"{Path(place.encoder).name} on {', '.join(done)}"
    return EncoderRow(
        key=fingerprint({NAME: identity}),
        title=title,
        params={"encoder": place.encoder, "tasks": ",".join(done)},
        fields=_list_fields(done),
        test={score.metric: score.mean for score in scores if score.split == "test"},
        dev={score.metric: score.mean for score in scores if score.split == "dev"},
        spread={
            score.metric: statistics.stdev(score.values)
            for score in scores
            if score.split == "test" and len(score.values) > 1
        },
        complete=len(done) == len(results),
    )


def _list_fields(done: Mapping[str, Mapping[str, Any]]) -> Fields:
    """Returns the specs of evaluations under the names that they have in a sweep."""
    fields: dict[str, str] = {}
    for facts in done.values():
        spec = EvalSpec.model_validate(facts["spec"])
        fields |= flatten(dump_fully(spec), f"evaluate.{spec.label}")
    return fields
