"""Addresses of the pages of an MLflow server, and the view of the runs table that they open.

Uses MLflow's REST API alone, so that a command that shows a page need not import MLflow.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

VIEW = "speechft"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of an experiment with the state of a page; ``viewStateShareKey=speechft`` in an address opens
it (mlflow 3.17, the page's own "Share" writes such tags). A query string alone can sort and filter
the table but not choose its columns."""

ENCODERS = "tags.`speechft.kind` = 'encoder'"
"""Filter: runs of merged encoders, without the sweep and its learning curves."""
TRAINING = "tags.`speechft.kind` = 'finetune'"
"""Filter: fine-tuning runs."""

FIRST_COLUMNS = ("alpha", "lambda", "anchor_penalty", "method", "finetune", "seed")
"""Params that come first in the table."""

SCORES = ("dev/score", "test/score", "dev.score", "score")
"""Metrics of the score; the first one that is there sorts the table."""

MOST_COLUMNS = 16
NAME_WIDTH, COLUMN_WIDTH = 260, 110
"""Pixels."""
LOOK_RUNS = 200
"""Runs from which the columns are chosen."""

ANSWER_SECONDS = 20.0

_TEST = re.compile(r"test[./](?!spread)")
_NAME_COLUMN = "attributes.`Run Name`"


class Experiment(NamedTuple):
    """An experiment of MLflow: all sweeps of one name."""

    id: str
    name: str
    view: str | None
    """Value of ``VIEW_TAG``."""


class MlflowApi:
    """A server of MLflow. Calls raise ``OSError`` when it does not answer or refuses."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def list_experiments(self) -> list[Experiment]:
        """Returns the active experiments, the last changed one first."""
        answer = self._call(
            "experiments/search",
            {"max_results": 1000, "order_by": ["last_update_time DESC"]},
        )
        return [_read_experiment(item) for item in answer.get("experiments", [])]

    def set_view(self, experiment: Experiment) -> None:
        """Stores the view of an experiment, if it is another than before."""
        answer = self._call(
            "runs/search",
            {"experiment_ids": [experiment.id], "filter": ENCODERS, "max_results": LOOK_RUNS},
        )
        runs = [item.get("data", {}) for item in answer.get("runs", [])]
        view = json.dumps(make_view(runs))
        if view != experiment.view:
            body = {"experiment_id": experiment.id, "key": VIEW_TAG, "value": view}
            self._call("experiments/set-experiment-tag", body)

    def _call(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", **_make_authorization()}
        request = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/{name}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            try:
                content = json.load(answer)
            except ValueError as error:
                raise OSError(f"{self.address} is no MLflow server") from error
        return content if isinstance(content, dict) else {}


def make_page(address: str, experiment: str) -> str:
    """Returns the address of the runs table of an experiment, in the view of this package."""
    query = {"viewStateShareKey": VIEW, "compareRunsMode": "TABLE"}
    return _make_address(address, experiment, query)


def make_curves_page(address: str, experiment: str) -> str:
    """Returns the address of the charts of all fine-tuning runs of an experiment."""
    # Sorted by time, as is the default, MLflow folds these runs below that of the sweep.
    order = {"orderByKey": "params.`finetune`", "orderByAsc": "true"}
    query = {"searchFilter": TRAINING, **order, "compareRunsMode": "CHART"}
    return _make_address(address, experiment, query)


def make_comparison_page(address: str, experiments: Sequence[str]) -> str:
    """Returns the address of the charts of the merged encoders of several experiments."""
    query = {
        "experiments": json.dumps(list(experiments)),
        "searchFilter": ENCODERS,
        "orderByKey": f"metrics.`{SCORES[0]}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
    }
    text = urllib.parse.urlencode(query)
    return f"{address.rstrip('/')}/#/compare-experiments/s?{text}"


def _make_address(address: str, experiment: str, query: Mapping[str, str]) -> str:
    text = urllib.parse.urlencode({"workflowType": "machine_learning", **query})
    return f"{address.rstrip('/')}/#/experiments/{experiment}/runs?{text}"


def make_view(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the state of the runs table: encoders alone, the best dev score first, and as columns
    what they were merged with and their scores; as charts, parallel coordinates and the score by
    alpha.

    ``runs``: the ``data`` of each run, as the REST API returns it.
    """
    params = [{item["key"]: item["value"] for item in run.get("params", [])} for run in runs]
    metrics = {item["key"] for run in runs for item in run.get("metrics", [])}
    axes = _list_axes(params)
    shown = [*axes, *(name for name in FIRST_COLUMNS if any(name in run for run in params))]
    shown = sorted(dict.fromkeys(shown), key=_rank)
    scores = [name for name in SCORES if name in metrics]
    tests = [name for name in sorted(metrics) if _TEST.match(name) and name not in scores]
    columns = [f"params.`{name}`" for name in shown]
    columns = [*columns, *(f"metrics.`{name}`" for name in (*scores, *tests))][:MOST_COLUMNS]
    state = {
        "searchFilter": ENCODERS,
        "orderByKey": "params.`alpha`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [_NAME_COLUMN, *columns, "runDateAndNestInfo", "duration"],
        "columnWidths": {_NAME_COLUMN: NAME_WIDTH, **dict.fromkeys(columns, COLUMN_WIDTH)},
        "runsHiddenMode": "SHOW_ALL",
    }
    if not scores:
        return state
    return {**state, "orderByKey": f"metrics.`{scores[0]}`", **_make_charts(axes, scores)}


def _list_axes(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the params that differ between runs which have them; of those that differ alike, as
    ``lambda`` and ``finetune.anchor_penalty``, the first. Controls are merged with nothing, and say
    so by ``none``."""
    names = sorted({name for run in runs for name in run}, key=_rank)
    axes: dict[tuple[int, ...], str] = {}
    for name in names:
        values = [run.get(name, "none") for run in runs]
        if len(set(values) - {"none"}) > 1:
            axes.setdefault(tuple(values.index(value) for value in values), name)
    return sorted(axes.values(), key=_rank)


def _rank(name: str) -> tuple[int, str]:
    first = FIRST_COLUMNS.index(name) if name in FIRST_COLUMNS else len(FIRST_COLUMNS)
    return first, name


def _make_charts(axes: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    """Returns the charts of the view (mlflow 3.17, ``RunsChartsCardConfig`` of its page)."""
    common = {"metricSectionId": VIEW, "deleted": False, "isGenerated": False}
    section = {"uuid": VIEW, "name": "Sweep", "display": True, "isReordered": False}
    parallel = {
        **common,
        "uuid": f"{VIEW}-parallel",
        "type": "PARALLEL",
        "selectedParams": list(axes),
        "selectedMetrics": list(scores),
        "showAllRuns": True,
    }
    scatter = {
        **common,
        "uuid": f"{VIEW}-scatter",
        "type": "SCATTER",
        "runsCountToCompare": 100,
        "xaxis": {"key": "alpha", "type": "PARAM"},
        "yaxis": {"key": scores[0], "type": "METRIC"},
    }
    return {
        "isAccordionReordered": True,  # else sections of metrics come before this one
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "compareRunCharts": [parallel, *([scatter] if "alpha" in axes else [])],
    }


def _read_experiment(item: Mapping[str, Any]) -> Experiment:
    tags = {tag["key"]: tag.get("value") for tag in item.get("tags", [])}
    return Experiment(item["experiment_id"], item["name"], tags.get(VIEW_TAG))


def _make_authorization() -> dict[str, str]:
    """Returns the header with the user's password or token, as MLflow's client takes them from the
    environment."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user is None:
        return {}
    pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
