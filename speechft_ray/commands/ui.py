"""The verb ``ui``: MLflow over the results of a storage, at the page of its sweeps."""

from __future__ import annotations

import os
import threading
import webbrowser
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.passwords import hide_passwords
from speechft_ray.storage.address import is_url, resolve_storage
from speechft_ray.storage.open import open_existing
from speechft_ray.tracking._uris import check_uri
from speechft_ray.tracking.addresses import DATABASE, make_database_uri, read_addresses
from speechft_ray.tracking.mlflow_pages import (
    Experiment,
    MlflowApi,
    make_comparison_page,
    make_curves_page,
    make_page,
)
from speechft_ray.tracking.mlflow_server import MlflowServer, choose_port

SHOWN_SWEEPS = 10
"""Sweeps whose pages are printed where none is named."""


class Target(NamedTuple):
    """What a person wants to see."""

    folder: Path
    """The storage folder; for a bucket its folder on this node."""
    sweep: str | None
    address: str
    """What a person calls the storage."""


def find_target(target: str | None, storage: str | Path) -> Target:
    """Returns what a person means by a folder, a URL, or the name of a sweep in ``storage``. Raises
    ``UserError`` where that storage is not there."""
    if target is not None and (is_url(target) or Path(target).expanduser().is_dir()):
        storage, target = target, None
    storage = resolve_storage(storage)
    if is_url(storage):
        return Target(open_existing(storage).root, target, storage)
    if not Path(storage).is_dir():
        unknown = f"`{target}` is no folder, and there" if target is not None else "there"
        raise UserError(
            f"{unknown} is no storage folder {storage}: give the folder of your sweeps, as in "
            "`speechft ui FOLDER`, or the name of a sweep with --storage FOLDER."
        )
    return Target(Path(storage), target, storage)


def find_uri(target: Target, uri: str | None) -> str:
    """Returns where a sweep was logged: ``uri`` if given, else what its last run used. Without a
    name, the sweep that ran last counts.

    Raises ``UserError`` for a database in the storage that is not there.
    """
    folder, sweep, address = target
    addresses = read_addresses(folder)
    last = addresses.get(sweep) if sweep is not None else next(iter(addresses.values()), None)
    chosen = uri or last
    if chosen is not None:
        if ":***@" in chosen:
            chosen = _find_password(chosen)
        check_uri(chosen)
        return chosen
    if sweep is not None and addresses and sweep not in addresses:
        raise UserError(f"{unknown_name('sweep', sweep, addresses)} (Storage {address}.)")
    if not (folder / DATABASE).is_file():
        where = (
            f"of {address} has logged to a database on this node"
            if is_url(address)
            else (f"in {address} has logged to MLflow")
        )
        raise UserError(
            f"no sweep {where} yet: `speechft run --storage {address}` does, and computes nothing "
            "of a finished sweep again; or give another storage, or the address with --mlflow."
        )
    return make_database_uri(folder)


def _find_password(uri: str) -> str:
    from_environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    if hide_passwords(from_environment) == uri:
        return from_environment
    raise UserError(
        f"the sweep was logged at {uri}, whose password is not stored: give the whole address with "
        "--mlflow or in MLFLOW_TRACKING_URI."
    )


def open_pages(
    target: Target,
    uri: str,
    port: int | None,
    is_to_open: bool,
    stop: threading.Event,
    console: Console,
) -> None:
    """Prints the pages of the sweeps that MLflow has, and serves them until ``stop`` is set; a
    tracking server of its own is only pointed at.

    Raises ``UserError`` where the sweep is not there or MLflow does not start.
    """
    if uri.startswith("http"):
        _print_remote(uri, target.sweep, is_to_open, console)
        return
    with MlflowServer(uri, choose_port(port)) as server:
        console.print(f"MLflow over {hide_passwords(uri)} is starting ...")
        server.wait_until_ready(stop)
        if stop.is_set():
            return
        api = MlflowApi(server.address)
        experiments = _select(_list_experiments(api), target.sweep, f"in {target.address}")
        pages = _print_pages(api, experiments, console)
        console.print("Ctrl-C ends it.")
        if is_to_open:
            webbrowser.open(pages[0])
        server.wait(stop)


def _print_remote(uri: str, sweep: str | None, is_to_open: bool, console: Console) -> None:
    api = MlflowApi(uri)
    try:
        experiments = _list_experiments(api)
    except UserError as error:
        console.print(f"MLflow: {hide_passwords(uri)}")
        raise UserError(str(error)) from None
    names = {item.name for item in experiments}
    shown = experiments if sweep is None else _select(experiments, sweep, f"at {uri}")
    if not names:
        console.print(f"MLflow: {hide_passwords(uri)} (no sweep is logged there yet)")
        return
    pages = _print_pages(api, shown, console)
    if is_to_open:
        webbrowser.open(pages[0])


def _list_experiments(api: MlflowApi) -> list[Experiment]:
    """Returns the experiments without the empty one that MLflow creates itself."""
    try:
        return [item for item in api.list_experiments() if item.name != "Default"]
    except (OSError, KeyError) as error:
        raise UserError(
            f"MLflow at {hide_passwords(api.address)} does not answer as MLflow does ({error}): "
            "see that it runs, and that MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are "
            "set if it asks for them."
        ) from None


def _select(experiments: list[Experiment], sweep: str | None, where: str) -> list[Experiment]:
    if not experiments:
        raise UserError(f"no sweep is logged {where} yet: start one with `speechft run`.")
    if sweep is None:
        return experiments
    selected = [item for item in experiments if item.name == sweep]
    if not selected:
        raise UserError(unknown_name("sweep", sweep, [item.name for item in experiments]))
    return selected


def _print_pages(api: MlflowApi, experiments: list[Experiment], console: Console) -> list[str]:
    """Prints one line for each sweep, the last changed one first, and returns the addresses."""
    pages = []
    for item in experiments[:SHOWN_SWEEPS]:
        try:
            api.set_view(item)
        except (OSError, KeyError):  # one that may not be written has the table of MLflow
            pages.append(f"{api.address}/#/experiments/{item.id}/runs")
        else:
            pages.append(make_page(api.address, item.id))
        console.print(f"{item.name}: {pages[-1]}")
        console.print(f"  curves: {make_curves_page(api.address, item.id)}")
    if len(experiments) > 1:
        last = [item.id for item in experiments[:2]]
        console.print(f"The last two compared: {make_comparison_page(api.address, last)}")
    more = len(experiments) - SHOWN_SWEEPS
    if more > 0:
        console.print(f"and {more} more: name one to see its page.")
    return pages
