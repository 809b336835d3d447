"""Opens a client of MLflow and creates its database."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

from speechft_ray.core.files import name_new_file

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default, 7 retries, takes four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per run
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment variables for MLflow; one that the user has set stays."""


def open_client(uri: str) -> Any:
    """Returns a client of MLflow at ``uri``; a sqlite database that is not there is created."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    # Else they log every migration of a fresh database and every retry.
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:"):  # a connection that stays would keep a file that was moved
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        # Created under another name: a driver that is killed in these ten seconds would leave a
        # partial database, which MLflow refuses.
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            MlflowClient(tracking_uri=f"sqlite:///{fresh}")
            name_new_file(fresh, path)  # or another driver created one in the meantime
        finally:
            fresh.unlink(missing_ok=True)
    return MlflowClient(tracking_uri=uri)
