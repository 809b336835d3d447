"""Writes a folder in MLflow's format of models: an encoder in the layout of transformers, and the
code that computes hidden states with it ("models from code", without a pickle).

Written here rather than by ``mlflow.pyfunc.save_model``, which takes seconds to import and runs the
model's code. The format is MLflow's documented one (mlflow.org, "MLflow Models").
"""

from __future__ import annotations

import json
import platform
import shutil
import uuid
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

CODE = Path(__file__).with_name("_hidden_states.py")
ENCODER = "artifacts/encoder"


def write_pyfunc_folder(folder: Path, model_id: str) -> Path:
    """Writes everything but the encoder into a new folder, and returns the path for that."""
    (folder / ENCODER).parent.mkdir(parents=True)
    shutil.copyfile(CODE, folder / "hidden_states.py")
    torch = version("torch").partition("+")[0]
    requirements = [f"mlflow=={version('mlflow')}", f"torch=={torch}", "transformers>=5", "numpy"]
    (folder / "requirements.txt").write_text("\n".join([*requirements, ""]), encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "dependencies": ["-r requirements.txt"],
    }
    flavor = {
        "loader_module": "mlflow.pyfunc.loaders.code_model",
        "model_code_path": "hidden_states.py",
        "artifacts": {"encoder": {"path": ENCODER, "uri": ""}},
        "env": {"virtualenv": "python_env.yaml"},
        "python_version": platform.python_version(),
        "streamable": False,
    }
    content = {
        "flavors": {"python_function": flavor},
        "mlflow_version": version("mlflow"),
        "model_id": model_id,
        "model_uuid": uuid.uuid4().hex,
        "utc_time_created": str(datetime.now(timezone.utc).replace(tzinfo=None)),
    }
    # JSON is YAML.
    for name, data in (("python_env.yaml", environment), ("MLmodel", content)):
        (folder / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return folder / ENCODER
