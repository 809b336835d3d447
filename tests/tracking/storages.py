"""Storage folders with an MLflow database: MLflow takes ten seconds to create one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speechft_ray.sweep.protocols import SweepInfo
from speechft_ray.tracking.mlflow import MlflowTracker


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database, created as the first run creates it."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        MlflowTracker(None, root).start(SweepInfo("template", "template", {}))
    return root


@pytest.fixture
def mlflow_storage(mlflow_template: Path, tmp_path: Path) -> Path:
    """A copy of the folder."""
    root = tmp_path / "storage"
    root.mkdir()
    shutil.copy(mlflow_template / "mlflow.db", root / "mlflow.db")
    return root
