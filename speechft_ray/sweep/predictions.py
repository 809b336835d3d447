"""Predicted merges: their identity, and what their jobs need to know.

A predicted merge is a point of the line theta0 + alpha * (merged - theta0) that is not made. Its
features are interpolated between those of a few encodings on the same line
(``superb.interpolation``), so that its evaluation on dev costs no pass through an encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.sweep.titles import PREDICTED_FROM, Params, row_title

VERSION = 1
"""Raised when the features of the same prediction change."""


class Encoding(NamedTuple):
    """A merge on the line whose features others are predicted from."""

    alpha: float
    key: str
    """Fingerprint of the merge."""
    title: str


class Prediction(NamedTuple):
    """A merge that is predicted."""

    recipe: Mapping[str, Any]
    """What the merge would be made of (``PlanBuilder.merge_recipe``)."""
    encodings: tuple[Encoding, ...]
    verify: int
    """How many predictions of its curve, the best on dev, are verified."""

    @property
    def key(self) -> str:
        """Fingerprint of the predicted encoder, which no merge has."""
        points = [[item.alpha, item.key] for item in self.encodings]
        identity = {"stage": "prediction", "version": VERSION, "recipe": self.recipe}
        return fingerprint({**identity, "encodings": points})

    def payload(self) -> dict[str, Any]:
        """Returns what the jobs of its evaluations need to know."""
        points = [[item.alpha, item.key] for item in self.encodings]
        return {"recipe": dict(self.recipe), "encodings": points, "verify": self.verify}


class MergeBuilder(Protocol):
    """What makes the merges of a plan (``sweep.plan.PlanBuilder``)."""

    def merge_recipe(self, spec: MergeSpec, donors: Sequence[str]) -> dict[str, Any]: ...
    def add_merge(self, spec: MergeSpec, donors: Sequence[str], title: str) -> str: ...


def make_prediction(
    builder: MergeBuilder, merge: MergeSpec, donors: Sequence[str], params: Params
) -> Prediction:
    """Adds the merges that a predicted one needs; ``params`` are those of its row."""
    encodings = []
    for alpha in merge.predicted_from:
        title = row_title(real_params(params, alpha))
        key = builder.add_merge(make_real(merge, alpha), donors, title)
        encodings.append(Encoding(alpha, key, title))
    return Prediction(builder.merge_recipe(merge, donors), tuple(encodings), merge.verify)


def make_real(merge: MergeSpec, alpha: float) -> MergeSpec:
    """Returns the merge with this alpha, to be made."""
    return merge.model_copy(update={"alpha": alpha, "predicted_from": (), "verify": 0})


def real_params(params: Params, alpha: str | float | int) -> dict[str, str | float | int]:
    """Returns the parameters of a row with this alpha that is no prediction."""
    return {
        name: alpha if name == "alpha" else value
        for name, value in params.items()
        if name != PREDICTED_FROM
    }


def count_encoders(payload: Mapping[str, Any]) -> int:
    """Returns how many encoders an evaluation may have in memory at once: those that it is
    predicted from, or its own and those that its features are compared with."""
    if "predicted" in payload:
        return len(payload["predicted"]["encodings"])
    compared = payload.get("compared", {"encodings": []})
    return 1 + len(compared["encodings"])


def is_prediction(params: Params) -> bool:
    """Whether the parameters of a row say that its numbers are predicted."""
    return PREDICTED_FROM in params
