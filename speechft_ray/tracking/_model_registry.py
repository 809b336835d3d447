"""Registers the winner of a sweep in MLflow's model registry."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.sweep.protocols import EncoderRow, Model
from speechft_ray.tracking._logged_models import LoggedModels
from speechft_ray.tracking._mlflow_runs import KEY, KIND, PARENT, Run
from speechft_ray.tracking._names import name_params
from speechft_ray.tracking._pyfunc_folder import write_pyfunc_folder

ALIAS = "champion"
"""Alias of the version of the registered model that the last run of a sweep selected:
``models:/NAME@champion``."""

LAYOUT = "speechft.layout"
"""Tag of a version: ``pyfunc``, which ``mlflow.pyfunc.load_model`` reads, or ``raw``, the file of
the store. Versions of 0.4.0 and before have none, and are registered again."""


class Files(NamedTuple):
    """Where the files of a version are."""

    source: str
    layout: str
    model_id: str | None


def register_version(
    client: Any,
    models: LoggedModels,
    name: str,
    run: Run,
    parent: Run,
    row: EncoderRow,
    model: Model,
    work: Path,
) -> None:
    """Registers an encoder as a version of the model ``name``, with the alias ``champion``, unless
    it is one; that keeps its number. ``work``: folder for the files in between."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, tags={KIND: "sweep"})
    versions = client.search_model_versions(f"name = '{name}'")
    version = next(
        (item for item in versions if item.tags.get(KEY) == row.key and LAYOUT in item.tags), None
    )
    if version is None:
        files = _log_files(client, models, run, row, model, work)
        short = {f"speechft.{key}": text for key, text in name_params(row.params, {}).items()}
        version = client.create_model_version(
            name,
            files.source,
            run_id=run.id,
            tags={**short, KEY: row.key, PARENT: parent.id, LAYOUT: files.layout},
            description=strip_front_matter(model.card),
            model_id=files.model_id,
        )
    description = strip_front_matter(model.card)
    if client.get_registered_model(name).description != description:
        client.update_registered_model(name, description)
    client.set_registered_model_alias(name, ALIAS, version.version)


def strip_front_matter(card: str) -> str:
    """Returns a model card without its YAML head, which MLflow would show as text."""
    return re.sub(r"\A---\n.*?^---\n", "", card, flags=re.DOTALL | re.MULTILINE)


def _log_files(
    client: Any, models: LoggedModels, run: Run, row: EncoderRow, model: Model, work: Path
) -> Files:
    """Stores the encoder as a model that MLflow loads, with the LoggedModel of its merge; as the
    file of the store where transformers has no such encoder, or the server no LoggedModels."""
    link = models.log(run, row)
    if link is not None:
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=work) as folder:
            try:
                model.write(write_pyfunc_folder(Path(folder) / "model", link.model))
            except UserError:
                pass
            else:
                model_id, place = models.log_files(row.key, Path(folder) / "model")
                return Files(place, "pyfunc", model_id)
    client.log_artifacts(run.id, str(model.folder), "encoder")
    return Files(f"runs:/{run.id}/encoder", "raw", None)
