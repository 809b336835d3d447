"""Verbs about sweeps on a cluster that this machine may leave: submit, logs, stop, list."""

from __future__ import annotations

import inspect
import json
import sys
import time
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from speechft_ray.cli.app import app
from speechft_ray.cli.sweep_options import Json
from speechft_ray.cli.sweeps import run

Cluster = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="Ray's dashboard on the head: http://HEAD:8265."
    ),
]
Name = Annotated[str, typer.Argument(help="Job, or sweep: its latest job.")]
Follow = Annotated[bool, typer.Option("--follow", help="Until the job ends; end with its code.")]

HERE = "http://127.0.0.1:8265"

NOT_SUBMITTED = ("space", "address", "plan", "calibrate", "throughput", "in_process", "storage")
"""Parameters of ``run`` that ``submit`` has not, or has in another form."""


def submit(
    context: typer.Context,
    space: Annotated[
        str, typer.Argument(help="Search space: a YAML file, or the name of a packaged one.")
    ],
    storage: Annotated[
        str, typer.Option(help="Where everything is kept; every node of the cluster must see it.")
    ],
    cluster: Cluster = HERE,
    package: Annotated[
        Literal["ship", "installed"],
        typer.Option(help="Send this version of speechft_ray, or use the one of the nodes."),
    ] = "ship",
    driver_retries: Annotated[
        int, typer.Option(min=0, help="How often a driver that was killed is started again.")
    ] = 3,
    follow: Follow = False,
    **_run: Any,
) -> None:
    """Run a sweep on a cluster that goes on when this machine leaves, with the options of `run`.

    Its driver runs on the head. The same command goes on where a stopped one ended, as a new job.
    """
    from speechft_ray.cluster.jobs import explain_errors, open_client
    from speechft_ray.commands.submit import plan_submission, send

    options = {"--storage": [storage], **_read_run_options(context)}
    submission = plan_submission(
        space, options, package=package, retries=driver_retries, note=_print_note
    )
    client = open_client(cluster, _print_note)
    with explain_errors(cluster):
        job = send(client, submission)
    print(f"job {job}: sweep {submission.sweep} in {storage}")
    if follow:
        _follow(client, job, cluster)
    for verb, what in (("logs --follow", "watch it"), ("stop", "stop it, to go on later")):
        print(f"  speechft {verb} {job} --cluster {cluster}  # {what}")


@app.command("logs")
def show_logs(name: Name, cluster: Cluster = HERE, follow: Follow = False) -> None:
    """Print the log of a sweep on a cluster."""
    from speechft_ray.cluster.jobs import explain_errors, find_sweep, open_client

    client = open_client(cluster, _print_note)
    with explain_errors(cluster):
        job = find_sweep(client, name)
        if not follow:
            print(client.get_job_logs(job.id), end="")
            return
    _follow(client, job.id, cluster)


@app.command("stop")
def stop_job(name: Name, cluster: Cluster = HERE) -> None:
    """Stop a sweep on a cluster. What is finished is kept, and the same `submit` goes on."""
    from speechft_ray.cluster.jobs import explain_errors, find_sweep, open_client, stop_sweep

    client = open_client(cluster, _print_note)
    with explain_errors(cluster):
        job = find_sweep(client, name)
        if job.is_over:
            print(f"job {job.id} has ended already: {job.state}")
            return
        job = stop_sweep(client, job)
    print(f"job {job.id}: {job.state}" + (" yet" if not job.is_over else ""))


@app.command("list")
def list_jobs(cluster: Cluster = HERE, as_json: Json = False) -> None:
    """List the sweeps that were submitted to a cluster."""
    from speechft_ray.cluster.jobs import explain_errors, list_sweeps, open_client

    client = open_client(cluster, _print_note)
    with explain_errors(cluster):
        jobs = list_sweeps(client)
    if as_json:
        print(json.dumps({"jobs": [job._asdict() for job in jobs]}))
        return
    table = Table("job", "sweep", "state", "code", "begin", "user", "storage", box=None)
    for job in jobs:
        begin = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
        code = "" if job.exit_code is None else str(job.exit_code)
        table.add_row(job.id, job.sweep, job.state, code, begin, job.user, job.storage)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


def _follow(client: Any, job: str, cluster: str) -> None:
    """Writes the log of a job until it ends, and ends with the exit code of its driver."""
    from speechft_ray.cluster.jobs import FAILED, explain_errors, follow_log

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        with explain_errors(cluster):
            code = follow_log(client, job, write).exit_code
    except KeyboardInterrupt:
        _print_note(f"the job {job} goes on; `speechft stop {job}` stops it.")
        raise SystemExit(130) from None
    raise SystemExit(FAILED if code is None else code)


def _read_run_options(context: typer.Context) -> dict[str, list[str]]:
    """Returns the options of ``run`` that were given: values by flag, none for a switch."""
    options: dict[str, list[str]] = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name not in _RUN_PARAMETERS or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        values = value if isinstance(value, list | tuple) else [value]
        flag = max(parameter.opts, key=len)
        options[flag] = [] if value is True else [str(item) for item in values]
    return options


def _print_note(text: str) -> None:
    typer.echo(text, err=True)


def _take_options_of_run() -> dict[str, inspect.Parameter]:
    """Gives ``submit`` the options of ``run`` and returns those."""
    own = inspect.signature(submit, eval_str=True)
    options = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(run, eval_str=True).parameters.items()
        if name not in NOT_SUBMITTED
    }
    first = [item for item in own.parameters.values() if item.kind is not item.VAR_KEYWORD]
    signature = own.replace(parameters=[*first, *options.values()])
    submit.__signature__ = signature  # type: ignore[attr-defined]
    submit.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()}
    return options


_RUN_PARAMETERS = _take_options_of_run()
app.command()(submit)
