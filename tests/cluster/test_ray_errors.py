"""What Ray's errors become: the cause, which is at their end, and the way out."""

from __future__ import annotations

import errno
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import make_lost_outcome
from speechft_ray.cluster.losses import Losses
from speechft_ray.cluster.ray_errors import MOST_CHARACTERS, explain_import_error, shorten
from speechft_ray.cluster.trial_losses import LossCallback, _handle_actor_error, _handle_error
from speechft_ray.cluster.trials import OutcomeCallback
from speechft_ray.core.errors import UserError
from speechft_ray.sweep.protocols import Progress
from tests.cluster.worker_jobs import job

TRACEBACK = "\n".join(
    [
        "The actor died because of an error raised in its creation task, ray::_Inner.__init__()",
        *(f'  File "ray/serialization.py", line {line}, in deserialize' for line in range(20)),
        "ModuleNotFoundError: No module named 'speechft_ray'",
    ]
)
"""As Ray 2.55 writes it where a worker lacks the package, shortened."""


def actor_death(text: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = text
    return error


def test_the_end_of_a_long_text_is_shown() -> None:
    assert shorten("one\n  two") == "one two"
    text = shorten("begin " + "x" * 400 + " the cause")
    assert text.startswith("... x") and text.endswith(" the cause")
    assert len(text) == MOST_CHARACTERS + 4


def test_only_import_errors_are_explained() -> None:
    assert "No module named 'speechft_ray'" in (explain_import_error(TRACEBACK) or "")
    assert explain_import_error("OutOfMemoryError: Task was killed") is None


def test_a_task_on_a_node_without_the_package_say_so() -> None:
    cause = ModuleNotFoundError("No module named 'speechft_ray'")
    for error in (RayTaskError("perform", TRACEBACK, cause), actor_death(TRACEBACK)):
        sentence = make_lost_outcome(job("a"), error).error or ""
        assert "could not import" in sentence and "'speechft_ray'" in sentence
        assert "speechft_ray must be installed on every node" in sentence
        assert "memory" not in sentence and "token" not in sentence


def test_a_trial_on_a_node_without_the_package_says_so(tmp_path: Any) -> None:
    path = tmp_path / "error.txt"
    path.write_text(TRACEBACK)
    failed: list[str] = []
    callback = OutcomeCallback(
        started=lambda fingerprint: None,
        finish=lambda outcome: None,
        fail=lambda fingerprint, sentence, text: failed.append(sentence),
        stopped={},
    )
    trial = SimpleNamespace(
        trial_id="1",
        config={"job": job("b").model_dump_json()},
        error_file=str(path),
        num_failures=4,
    )
    callback.on_trial_error(0, [], trial)
    path.write_text("x " * 400 + "Worker exit detail: killed by SIGSEGV")
    callback.on_trial_error(0, [], trial)
    assert "could not import" in failed[0] and "memory" not in failed[0]
    assert "killed by SIGSEGV" in failed[1] and "if memory ran out" in failed[1]


class FakeActor:
    """Stands in for an actor class at the boundary to Ray."""

    def options(self, **_: object) -> FakeActor:
        return self

    def remote(self) -> Any:
        return SimpleNamespace(answer=SimpleNamespace(remote=lambda: "reference"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TRACEBACK, "could not import what it needs"),
        ("The actor died unexpectedly. " * 20 + "no reason", "started without a token.*no reason"),
    ],
)
def test_the_first_actor_tells_a_missing_package_from_a_missing_token(
    monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise actor_death(text)

    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "remote", lambda kind: FakeActor())
    monkeypatch.setattr(ray, "get", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(UserError, match=sentence) as caught:
        connecting._check_actors("10.0.0.1:6379")
    assert ("token" in str(caught.value)) == ("token" in sentence)


def test_a_trial_without_memory_is_a_lost_trial_and_no_end_of_tune() -> None:
    """Tune's own handler raises for ``OutOfMemoryError``, which ends the whole experiment."""
    errors: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: errors.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    _handle_actor_error(
        manager, tracked_actor_task=task, exception=OutOfMemoryError("memory ran out")
    )
    # Tune's call, by name, must fit ours as it fits its own.
    assert signature(_handle_actor_error).parameters.keys() >= (
        signature(_handle_error).parameters.keys() - {"self"}
    )
    (error,) = errors
    assert isinstance(error, ActorDiedError) and "memory ran out" in str(error)
    assert manager._failed_actor_ids == {1}
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        _handle_error(manager, task, OutOfMemoryError("memory ran out"))


def test_a_job_without_progress_uses_up_its_lives() -> None:
    losses = Losses(retries=3)
    losses.see({"a": Progress(10, 1000, {})})
    assert losses.count("a") == 1
    losses.see({"a": Progress(19, 1000, {})})  # less than a hundredth further
    assert losses.count("a") == 2
    losses.see({"a": Progress(30, 1000, {})})
    assert losses.number("a") == 0
    assert losses.count("a", out_of_memory=True) == 1 and losses.out_of_memory("a") == 1
    losses.see({"a": Progress(5, 1000, {})})  # the next life begins where its last state was
    assert losses.count("a") == 2
    assert losses.number("b") == 0 and losses.count("b") == 1


def test_progress_gives_a_trial_its_lives_back_before_tune_reads_them() -> None:
    """Tune reads them when a trial is lost, and that may be in the step in which the driver saw the
    progress."""
    losses = Losses(retries=1)
    lost: list[str] = []
    callback = LossCallback(losses, lambda trial: trial.key, lost.append)
    trial: Any = SimpleNamespace(
        key="a", num_failures=1, run_metadata=SimpleNamespace(num_failures=1)
    )
    losses.see({"a": Progress(10, 100, {})})
    callback.on_step_begin(1, [trial])
    callback.on_trial_recover(1, [trial], trial)
    assert lost == ["a"]
    losses.see({"a": Progress(10, 100, {})})
    assert trial.run_metadata.num_failures == 1
    losses.see({"a": Progress(20, 100, {})})
    assert trial.run_metadata.num_failures == 0


@pytest.mark.parametrize("value", ["auto", "", "  auto "])
def test_an_address_in_the_environment_that_says_nothing_is_as_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, value: str
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setenv("RAY_ADDRESS", value)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="no running Ray cluster was found: start one"):
        connect("auto")


def test_a_wrong_address_in_the_environment_is_told_with_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in ("ray://head:10001", "head", "127.0.0.1:1"):
        monkeypatch.setenv("RAY_ADDRESS", value)
        with pytest.raises(UserError, match=f"`{value}` in RAY_ADDRESS"):
            connect("auto")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError("AF_UNIX path length cannot exceed 107 bytes: /long"),
            "too long: export RAY_TMPDIR",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/home/x/.ray"), "export HOME"),
        (OSError(errno.EROFS, "Read-only file system", "/h/.ray/auth_token"), "export HOME"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/scratch/ray"), "export RAY_TMPDIR"),
        (RuntimeError("something else"), "could not be started. Ray says: something else"),
    ],
)
def test_a_local_cluster_that_cannot_start_says_why_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=sentence):
        connect("local")


def test_a_slow_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine; Ray raises ``Exception`` itself after 30 s."""
    attempts: list[object] = []

    def time_out(**options: object) -> None:
        attempts.append(options)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(UserError, match=r"could not be started\. Ray says: The current node timed"):
        connect("local")
    assert len(attempts) == connecting.START_ATTEMPTS
