"""Every fault that docs/reliability.md promises something for, and the tests that provoke it:
``make test-faults`` runs them and ends with this table. A row without a test says so.

"Equal": the tests compare results, table or weights with an undisturbed run. "Ends": they check
that jobs end as documented.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """One fault; ``tests`` are node ids without parameters."""

    number: str
    fault: str
    shows: Literal["Equal", "Ends", ""] = ""
    tests: tuple[str, ...] = ()


_LOSSES, _LOCK = "tests/cluster/test_losses.py::", "tests/sweep/test_lock.py::"
_NODES, _RESUME = "tests/cluster/test_nodes.py::", "tests/superb/test_resume.py::"
_UNITS, _PARTS = "tests/e2e/test_bad_units.py::", "tests/e2e/test_lost_parts.py::"
_RATES = "tests/superb/test_evaluate.py::"
_SIGNALS = "tests/e2e/test_signals.py::"
_ERRORS, _MENDING = "tests/cluster/test_ray_errors.py::", "tests/sweep/test_mending.py::"

ROWS = (
    Row(
        "1",
        "driver killed three times",
        "Equal",
        ("tests/e2e/test_sweep.py::test_killed_three_times_the_result_is_the_same",),
    ),
    Row("2", "SIGTERM, SIGINT", "Ends", ("tests/e2e/test_sweep.py::test_a_signal_ends_resumably",)),
    Row("2b", "SIGTERM while Ray starts", "Ends", (f"{_SIGNALS}test_while_ray_starts",)),
    Row(
        "2c",
        "SIGHUP, SIGUSR1, nohup",
        "Ends",
        (
            "tests/cli/test_signals.py::test_every_stop_signal_sets_the_event",
            "tests/cli/test_signals.py::test_under_nohup_a_dropped_connection_stops_nothing",
        ),
    ),
    Row(
        "2d",
        "SIGTERM with an MLflow that hangs",
        "Ends",
        (f"{_SIGNALS}test_with_an_mlflow_that_hangs",),
    ),
    Row(
        "2e",
        "SIGTERM with --in-process during a long fine-tuning",
        "Ends",
        (
            f"{_SIGNALS}test_in_process_while_a_long_fine_tuning_runs",
            "tests/sweep/test_local.py::test_a_job_saves_its_state_and_stops_at_once",
        ),
    ),
    Row(
        "3",
        "worker of a trial, of an evaluation killed",
        "Equal",
        (
            f"{_LOSSES}test_after_killed_drivers_and_workers_the_weights_are_the_same_to_the_bit",
            f"{_LOSSES}test_a_killed_worker_is_replaced",
        ),
    ),
    Row(
        "3b",
        "a worker lost again and again, with progress",
        "Ends",
        (f"{_LOSSES}test_progress_gives_a_job_its_lives_back",),
    ),
    Row(
        "3c",
        "a long evaluation killed",
        "Equal",
        (f"{_RESUME}test_every_task_goes_on_to_the_same_bits",),
    ),
    Row(
        "4, 5",
        "a node lost",
        "Ends",
        (f"{_NODES}test_jobs_of_a_lost_node_run_again_elsewhere",),
    ),
    Row(
        "6",
        "a node drained",
        "Equal",
        (
            "tests/cluster/test_draining.py",
            f"{_RESUME}test_a_job_that_must_leave_its_node_saves_at_once",
        ),
    ),
    Row(
        "7a",
        "one unit fails",
        "Ends",
        ("tests/e2e/test_bad_input.py::test_one_failing_task_does_not_stop_the_others",),
    ),
    Row(
        "7b",
        "a probe diverges",
        "Ends",
        (
            f"{_UNITS}test_a_probe_that_diverges_fails_alone_and_its_reason_stays",
            f"{_RATES}test_a_rate_that_diverges_is_not_selected_and_alone_fails",
        ),
    ),
    Row(
        "7c",
        "a recording rotten in the middle, on_bad_audio: skip",
        "Equal",
        (f"{_UNITS}test_a_recording_that_is_rotten_in_the_middle_is_left_out",),
    ),
    Row(
        "8a",
        "memory runs out in a task",
        "Ends",
        (
            f"{_LOSSES}test_when_memory_runs_out_the_next_life_has_more_of_the_node",
            f"{_LOSSES}test_after_memory_ran_out_no_job_waits_for_cpus_that_no_node_has",
        ),
    ),
    Row(
        "8b",
        "memory runs out in a trial, Tune breaks",
        "Ends",
        (
            f"{_ERRORS}test_a_trial_without_memory_is_a_lost_trial_and_no_end_of_tune",
            f"{_LOSSES}test_trials_go_on_when_tune_breaks",
        ),
    ),
    Row(
        "10a-d",
        "files and manifests damaged, a digit changed",
        "Equal",
        (
            f"{_MENDING}test_what_is_damaged_is_computed_again_and_the_table_is_equal",
            "tests/core/test_store.py::test_one_changed_digit_in_a_manifest_is_noticed",
        ),
    ),
    Row(
        "10j",
        "MLflow's database cut",
        "Equal",
        (
            f"{_PARTS}test_mlflows_database_is_cut",
            "tests/tracking/test_mlflow.py::test_a_damaged_database_is_set_aside_with_a_sentence",
        ),
    ),
    Row("11", "Tune's state cut", "Equal", (f"{_PARTS}test_tunes_state_is_cut",)),
    Row(
        "12",
        "MLflow answers nothing",
        "Equal",
        ("tests/e2e/test_bad_input.py::test_a_silent_mlflow_does_not_stop_the_sweep",),
    ),
    Row(
        "13a, c",
        "drivers of one sweep at the same instant",
        "Ends",
        (f"{_LOCK}test_of_drivers_that_start_at_the_same_instant_one_runs",),
    ),
    Row(
        "13d",
        "a driver on another host",
        "Ends",
        (
            f"{_LOCK}test_a_living_driver_of_another_host_keeps_its_lock",
            f"{_LOCK}test_a_dead_driver_of_another_host_is_followed_whatever_its_clock_says",
        ),
    ),
    Row(
        "13e",
        "a container restarted",
        "Ends",
        (f"{_LOCK}test_a_restarted_container_is_not_locked_out_by_its_own_number",),
    ),
    Row(
        "14a",
        "disk full",
        "Equal",
        ("tests/e2e/test_full_disk.py::test_a_full_disk_stops_resumably_with_one_sentence",),
    ),
    Row("14b", "read-only storage", "Ends", ("tests/e2e/test_read_only_storage.py",)),
    Row(
        "15",
        "a worker stopped",
        "Ends",
        (f"{_LOSSES}test_a_job_that_hangs_is_killed_and_runs_again",),
    ),
    Row("+", "the head lost", "Equal", (f"{_PARTS}test_the_head_is_lost",)),
    Row(
        "+",
        "a node that sees another folder",
        "Ends",
        (
            "tests/core/test_marker.py::test_another_folder_is_told_with_the_node_and_not_made",
            "tests/cluster/test_unfit_nodes.py",
        ),
    ),
    Row(
        "+",
        "the output closed",
        "Ends",
        ("tests/core/test_closed_output.py::test_a_reader_that_ends_early_ends_nothing_else",),
    ),
    Row(
        "+",
        "two sweeps that share units, in one storage",
        "Ends",
        (
            "tests/e2e/test_submit.py::test_two_sweeps_compute_their_fine_tuning_once",
            "tests/sweep/test_claims.py::test_the_claims_of_a_driver_that_has_ended_are_taken_over",
        ),
    ),
    Row(
        "+",
        "two nodes without a shared disk, one killed, and the driver",
        "Equal",
        ("tests/storage/test_two_nodes.py",),
    ),
)


def read_results(report: Path) -> dict[str, list[str]]:
    """Returns the outcomes of each test by its node id without parameters, from pytest's junit
    report."""
    results: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        node = case.get("classname", "").replace(".", "/") + ".py::" + case.get("name", "")
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        results.setdefault(node.partition("[")[0], []).append(outcome)
    return results


def judge(row: Row, results: dict[str, list[str]]) -> str:
    """Returns what the tests of a row say: the worst outcome of any of them."""
    if not row.tests:
        return "no test"
    outcomes: list[str] = []
    for test in row.tests:
        own = [
            outcome
            for node, each in results.items()
            if node == test or node.startswith(f"{test}::")
            for outcome in each
        ]
        outcomes += own or ["not run"]
    return next(
        outcome for outcome in ("failed", "not run", "skipped", "passed") if outcome in outcomes
    )


def main() -> int:
    """Runs the tests, prints the table, and returns pytest's exit code."""
    tests = list(dict.fromkeys(test for row in ROWS for test in row.tests))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow or not slow"]
        code = subprocess.call([*command, f"--junit-xml={report}", *tests], cwd=ROOT)
        results = read_results(report) if report.is_file() else {}
    print(f"\n{'row':8}{'fault':64}{'shows':8}result")
    for row in ROWS:
        print(f"{row.number:8}{row.fault:64}{row.shows:8}{judge(row, results)}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
