"""The verb submit: sends a sweep to a cluster, with the files of this machine that it needs."""

from __future__ import annotations

import getpass
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import speechft_ray
from speechft_ray.commands.parts import SEARCH_SPACES, find_space
from speechft_ray.commands.smoke import SUFFIX
from speechft_ray.core.errors import UserError
from speechft_ray.core.passwords import hide_passwords
from speechft_ray.speech.checkpoints.catalogue import is_encoder_name
from speechft_ray.sweep.space_changes import parse_changes
from speechft_ray.sweep.space_file import open_space

Package = Literal["ship", "installed"]

MOST_BYTES = 90_000_000
"""Of the files of this machine; Ray's dashboard takes 100 MiB at once (ray ``ray_constants.py``,
``DASHBOARD_CLIENT_MAX_SIZE``, 2.60)."""

CLUSTER_PATHS = ("--storage", "--corpora", "--manifest", "--cache", "--report")
"""Options of ``run`` whose values are paths on the nodes of the cluster."""

SIGNALS = 128
"""A shell gives a process that a signal ended the exit code 128 + signal (POSIX, 2.8.2)."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is sent to a cluster."""

    sweep: str
    """Name of the sweep; the job is named after it."""
    arguments: tuple[str, ...]
    """Those of ``speechft run``."""
    files: Mapping[str, Path]
    """Files of this machine by their names in the working folder of the job."""
    storage: str
    package: Package = "ship"
    retries: int = 3

    @property
    def entrypoint(self) -> str:
        """The command of the driver for a shell. A driver that a signal ends, as when memory ran
        out, is started again."""
        run = shlex.join(("python", "-m", "speechft_ray", "run", *self.arguments))
        return (
            f"n=0; while :; do {run}; c=$?; "
            f"if [ $c -le {SIGNALS} ] || [ $n -ge {self.retries} ]; then exit $c; fi; "
            f'n=$((n+1)); echo "speechft: the driver ended with $c and is started again, '
            f'$n of {self.retries}"; done'
        )

    @property
    def metadata(self) -> dict[str, str]:
        """What ``speechft list`` shows of the job."""
        from speechft_ray.cluster.jobs import STORAGE, SWEEP, USER

        return {SWEEP: self.sweep, STORAGE: self.storage, USER: _find_user()}


def plan_submission(
    space: str,
    options: Mapping[str, Sequence[str]],
    *,
    package: Package = "ship",
    retries: int = 3,
    note: Callable[[str], None] = print,
) -> Submission:
    """Returns what is sent for a search space and options of ``run`` (flag to values).

    The space is read and checked here. A space outside the package and an encoder file of this
    machine are shipped; all other paths are those of the cluster. ``note`` gets what a user should
    know. Raises ``UserError``.
    """
    _check_paths(options)
    _check_passwords(options)
    file = find_space(space)
    opened = open_space(file, note, parse_changes(list(options.get("--set", ()))))
    sweep = opened.spec.name + (SUFFIX if "--smoke" in options else "")
    files: dict[str, Path] = {}
    arguments = ["--space", space, "--address", "auto"]
    if not file.resolve().is_relative_to(SEARCH_SPACES.resolve()):
        files[file.name] = file
        arguments[1] = file.name
    passed = dict(options)
    encoder = next(iter(options.get("--encoder", ())), opened.spec.encoder)
    path = Path(encoder).expanduser()
    if not is_encoder_name(encoder) and path.is_file():
        if path.stat().st_size <= MOST_BYTES:
            name = f"encoder{path.suffix}" if path.name in files else path.name
            files[name] = path
            passed["--encoder"] = [f"./{name}"]
        else:
            note(
                f"the encoder `{encoder}` has {path.stat().st_size / 1e6:.0f} MB and is not "
                f"shipped, since Ray takes {MOST_BYTES / 1e6:.0f} MB: the head of the cluster must "
                "have it under this path."
            )
    for flag, values in passed.items():
        arguments += [text for value in values for text in (flag, value)] if values else [flag]
    return Submission(
        sweep=sweep,
        arguments=tuple(arguments),
        files=files,
        storage=options["--storage"][0],
        package=package,
        retries=retries,
    )


def send(client: Any, submission: Submission) -> str:
    """Uploads the files of a submission, submits it and returns the id of the job."""
    from speechft_ray.cluster.jobs import STOP_SECONDS, submit

    # Read by the process that stops the driver (ray ``job_supervisor.py``, 2.60).
    runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    with tempfile.TemporaryDirectory() as folder:
        if submission.files:
            working = Path(folder) / "working_dir"
            working.mkdir()
            for name, path in submission.files.items():
                shutil.copyfile(path, working / name)
            runtime_env["working_dir"] = str(working)
        if submission.package == "ship":
            module = Path(folder) / speechft_ray.__name__
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(speechft_ray.__file__).parent, module, ignore=ignore)
            runtime_env["py_modules"] = [str(module)]
        return submit(
            client, submission.sweep, submission.entrypoint, runtime_env, submission.metadata
        )


def _check_paths(options: Mapping[str, Sequence[str]]) -> None:
    for flag in CLUSTER_PATHS:
        for value in options.get(flag, ()):
            if not (value.startswith(("/", "~")) or "://" in value):
                raise UserError(
                    f"{flag} `{value}` must be a path on the cluster that begins with /, since the "
                    "folder of a job there ends with it; for the storage, one that every node sees."
                )


def _check_passwords(options: Mapping[str, Sequence[str]]) -> None:
    """Raises ``UserError`` for a password: Ray shows the command of a job to all."""
    for flag, values in options.items():
        if hidden := next((one for one in map(hide_passwords, values) if one not in values), None):
            raise UserError(
                f"{flag} `{hidden}` has a password, which Ray's dashboard would show with the "
                "command of the job: set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD of a server, where the driver runs."
            )


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return ""
