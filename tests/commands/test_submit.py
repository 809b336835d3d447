"""What ``speechft submit`` sends to a cluster."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cli import main
from speechft_ray.cluster import jobs
from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.submit import Submission, plan_submission
from speechft_ray.core.errors import UserError
from tests.e2e.small_world import write_space

STORAGE = {"--storage": ["/shared/runs"]}


def test_a_space_of_the_package_is_sent_by_its_name() -> None:
    plan = plan_submission("alpha", STORAGE)
    assert plan.sweep == "alpha" and not plan.files
    expected = "--space alpha --address auto --storage /shared/runs"
    assert plan.arguments == tuple(expected.split())
    assert plan.metadata[jobs.SWEEP] == "alpha"


def test_a_space_file_and_an_encoder_file_are_shipped(tmp_path: Path) -> None:
    encoder = tmp_path / "my encoder.safetensors"
    encoder.write_bytes(b"weights")
    space = write_space(tmp_path, encoder=str(encoder))
    plan = plan_submission(str(space), STORAGE)
    assert dict(plan.files) == {"small.yaml": space, encoder.name: encoder}
    assert plan.arguments[:2] == ("--space", "small.yaml")
    assert plan.arguments[-2:] == ("--encoder", "./my encoder.safetensors")
    smoke = plan_submission(
        str(space), {**STORAGE, "--smoke": [], "--set": ["encoder=tiny_hubert"]}
    )
    assert smoke.sweep == "small-smoke" and set(smoke.files) == {"small.yaml"}


def test_a_large_encoder_must_be_on_the_cluster(tmp_path: Path) -> None:
    encoder, lines = tmp_path / "base.pt", list[str]()
    with encoder.open("wb") as file:
        file.truncate(200_000_000)
    plan = plan_submission("alpha", {**STORAGE, "--encoder": [str(encoder)]}, note=lines.append)
    assert not plan.files and plan.arguments[-1] == str(encoder)
    assert "200 MB" in lines[0]


@pytest.mark.parametrize("flag", ["--storage", "--corpora", "--cache", "--report"])
def test_paths_of_the_cluster_are_absolute(flag: str) -> None:
    with pytest.raises(UserError, match=rf"{flag} `runs` must be a path on the cluster"):
        plan_submission("alpha", {**STORAGE, flag: ["runs"]})
    plan_submission("alpha", {**STORAGE, flag: ["s3://bucket/runs"]})


def test_a_password_is_not_sent_with_the_command_of_a_job() -> None:
    uri = "postgresql://u:se/cret@db/x"
    with pytest.raises(UserError, match=r"u:\*\*\*@db/x` has a password") as error:
        plan_submission("alpha", {"--storage": ["/shared"], "--mlflow": [uri]})
    assert "cret" not in str(error.value)


def test_mistakes_of_the_space_are_reported_here(tmp_path: Path) -> None:
    space = write_space(tmp_path, colour="red")
    with pytest.raises(UserError, match="colour"):
        plan_submission(str(space), STORAGE)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0], 0), ([2], 2), ([75], 75), ([137, 137, 0], 0), ([137, 1], 1), ([137, 139, 134], 134)],
)
def test_a_driver_that_a_signal_ends_is_started_again(
    tmp_path: Path, codes: list[int], expected: int
) -> None:
    """``python`` is a script that ends with one code after the other."""
    plan = Submission(
        sweep="a", arguments=("--space", "it's"), files={}, storage="/runs", retries=2
    )
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"; echo "$@" >> calls; read code < codes\n'
        'sed -i 1d codes; exit "$code"\n'
    )
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        plan.entrypoint, shell=True, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == expected
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["-m speechft_ray run --space it's"] * len(codes)
    assert done.stdout.count("is started again") == len(codes) - 1


class SentJobs:
    """Looks at what is uploaded while it is there."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.modules: list[str] = []

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, *, runtime_env: dict[str, Any], submission_id: str, **rest: Any) -> str:
        self.variables = runtime_env["env_vars"]
        self.entrypoint = rest["entrypoint"]
        for path in Path(runtime_env.get("working_dir", "/nowhere")).glob("*"):
            self.files[path.name] = path.read_text()
        for module in runtime_env.get("py_modules", ()):
            assert (Path(module) / "search_spaces" / "alpha.yaml").is_file()
            self.modules.append(Path(module).name)
        return submission_id


@pytest.mark.parametrize("package", ["ship", "installed"])
def test_the_package_and_the_files_are_uploaded(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The whole command, from its arguments to Ray's client."""
    client = SentJobs()
    monkeypatch.setattr(jobs, "open_client", lambda cluster, note: client)
    space = write_space(tmp_path)
    command = f"submit {space} --storage /shared/runs --package {package} --cpu --retries 7"
    command += " --set evaluate[0].updates=5 --set evaluate[1].updates=6"
    assert main(shlex.split(command)) == 0
    assert client.files == {"small.yaml": space.read_text()}
    assert client.modules == (["speechft_ray"] if package == "ship" else [])
    assert int(client.variables["RAY_JOB_STOP_WAIT_TIME_S"]) > 20
    run = client.entrypoint.partition("speechft_ray run ")[2].partition(";")[0]
    assert shlex.split(run) == [
        *("--space", "small.yaml", "--address", "auto", "--storage", "/shared/runs"),
        *("--set", "evaluate[0].updates=5", "--set", "evaluate[1].updates=6"),
        *("--cpu", "--retries", "7"),
    ]
    assert "job small: sweep small" in capsys.readouterr().out


def test_options_that_make_no_sense_on_a_cluster_are_refused(capsys: Any) -> None:
    for flag in ("--plan", "--in-process", "--address=auto"):
        assert main(["submit", "alpha", "--storage", "/runs", flag]) == 2
        assert "No such option" in capsys.readouterr().err
    assert main(["submit", "alpha"]) == 2
    assert "--storage" in capsys.readouterr().err


def test_a_storage_in_the_folder_of_a_job_is_refused() -> None:
    folder = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1")
    spec: Any = None
    with pytest.raises(UserError, match="be lost with it"):
        resolve_place(spec, storage=folder / "runs", encoder="tiny_hubert")
