"""Merged encoders as MLflow's LoggedModels: metadata and linked metrics of each, files of the
winner alone.

A model is found again by its tag ``speechft.key``. MLflow has LoggedModels since version 3; where a
server is older, nothing is logged here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.tracking._mlflow_runs import DIGEST_LENGTH, KEY, WINNER, Link, Run
from speechft_ray.tracking._names import name_params, name_run

PLAN = "speechft.plan"
"""Tag of a model: fingerprint of the sweep that it is of."""

MODEL_TYPE = "speech encoder"


class LoggedModels:
    """The models of one sweep, through a client of MLflow. Its errors are raised as they are."""

    def __init__(self, client: Any, experiment: str, plan: str) -> None:
        """Reads the models that MLflow has of the sweep with this fingerprint."""
        self._client, self._experiment, self._plan = client, experiment, plan
        self.are_known = True
        """Whether the server has models at all."""
        self._models: dict[str, Any] = {}
        token = None
        while True:
            try:
                page = client.search_logged_models(
                    [experiment], f"tags.`{PLAN}` = '{plan}'", page_token=token
                )
            except Exception as error:
                if "404" not in str(error):
                    raise
                self.are_known = False
                return
            self._models |= {model.tags[KEY]: model for model in page}
            token = page.token
            if not token:
                return

    def log(self, run: Run, row: EncoderRow) -> Link | None:
        """Creates the model of a row with the corpora that it was evaluated on, if MLflow lacks
        it, and marks it as ready once the row is complete. Returns the link for its metrics."""
        if not self.are_known:
            return None
        from mlflow.entities import LoggedModelStatus

        if row.key not in self._models:
            self._models[row.key] = self._client.create_logged_model(
                self._experiment,
                name=clean_model_name(name_run(row.params, row.fields)),
                source_run_id=run.id,
                tags={KEY: row.key, PLAN: self._plan},
                params=name_params(row.params, row.fields),
                model_type=MODEL_TYPE,
            )
            self._log_inputs(run, row.datasets)
        model = self._models[row.key]
        if row.complete and model.status != LoggedModelStatus.READY:
            self._models[row.key] = self._client.finalize_logged_model(
                model.model_id, LoggedModelStatus.READY
            )
        return Link(model.model_id, row.datasets)

    def set_winner(self, winner: str) -> None:
        """Tags the winner with ``speechft.winner = true``, and removes that tag from others."""
        for key, model in self._models.items():
            if key == winner and model.tags.get(WINNER) != "true":
                self._client.set_logged_model_tags(model.model_id, {WINNER: "true"})
            elif key != winner and WINNER in model.tags:
                self._client.delete_logged_model_tag(model.model_id, WINNER)

    def log_files(self, key: str, folder: Path) -> tuple[str, str]:
        """Stores the files of a model; returns its id and where they are."""
        model = self._models[key]
        self._client.log_model_artifacts(model.model_id, str(folder))
        return model.model_id, model.artifact_location

    def _log_inputs(self, run: Run, datasets: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(label, key[:DIGEST_LENGTH], "speechft", f'{{"fingerprint": "{key}"}}'),
                [InputTag("mlflow.data.context", "eval")],
            )
            for label, key in datasets.items()
        ]
        if inputs:
            self._client.log_inputs(run.id, datasets=inputs)


def clean_model_name(name: str) -> str:
    """Returns a name that MLflow accepts for a model: without ``/ : . % " '`` (mlflow
    ``utils/validation.py``)."""
    return re.sub(r"[/:.%\"']", "_", name)
