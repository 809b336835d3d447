"""Checks the address of MLflow, and that the driver of its database is installed."""

from __future__ import annotations

import re

from speechft_ray.core.errors import UserError
from speechft_ray.core.passwords import hide_passwords

INSTALLED_AS = {
    "MySQLdb": "mysqlclient",
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
}
"""Names of database drivers on PyPI that differ from those of their modules."""


def check_uri(uri: str, where: str = "") -> None:
    """Raises ``UserError`` for a URI that is neither a database nor a server, and for a database
    whose driver is not installed. ``where`` says where the URI was read."""
    start = f"the MLflow URI `{hide_passwords(uri)}`{where}"
    if not re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?://|https?://", uri):
        raise UserError(
            f"{start} must start with http://, https://, sqlite:///, postgresql://, mysql:// or "
            "mssql://: leave --mlflow out for a database in the storage folder."
        )
    if uri.startswith(("http", "sqlite:")):
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except (NoSuchModuleError, ArgumentError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).replace(uri, hide_passwords(uri)).split())
        raise UserError(
            f"{start} cannot be read as the address of a database ({reason}): write, for example, "
            "postgresql+psycopg2://USER:PASSWORD@HOST:5432/NAME."
        ) from None
    except ImportError as error:
        driver = f"the Python package `{error.name}`" if error.name else "its driver"
        package = INSTALLED_AS.get(error.name or "", error.name or "that package again")
        raise UserError(
            f"{start} needs {driver}, which cannot be imported here ({error}): install {package} "
            "with pip, or leave --mlflow out for a database in the storage folder."
        ) from None


def advise(reason: str) -> str:
    """Returns a sentence with the way out of what a server answered, after a space; empty where
    none is known."""
    for pattern, sentence in _ADVICE.items():
        if re.search(pattern, reason):
            return f" {sentence}"
    return ""


_ADVICE = {
    "Invalid Host header": "Start the server with `--allowed-hosts` and the name by which it is "
    "reached here.",
    r"error code 401\b": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN.",
    r"error code 403\b": "This user may not write to the experiment: whoever manages the server "
    "can give the permission EDIT.",
}
"""By what the text of MLflow's error has (mlflow 3, ``utils/rest_utils.py``)."""
