"""The progress display: exact log lines without a terminal, live bars with one, and the estimate
of the time left."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from rich.console import Console

from speechft_ray.core.records import Job, Outcome, Stage
from speechft_ray.report.progress import DONE_LINES, RUNNING_SHOWN, ProgressDisplay
from speechft_ray.sweep.protocols import Progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def job(key: str, stage: Stage = "evaluate", label: str = "") -> Job:
    return Job(stage=stage, fingerprint=key, label=label or f"{stage} {key}", payload={})


def end(key: str, seconds: float, stage: Stage = "evaluate", error: str | None = None) -> Outcome:
    return Outcome(
        stage=stage, fingerprint=key, label=f"{stage} {key}", error=error, seconds=seconds
    )


def at(done: float, total: float = 10.0, **values: float) -> Progress:
    return Progress(done=done, total=total, values=values)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), width=40, force_terminal=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_tells_every_end_and_the_status_every_ten_seconds(clock: Clock, log: Console) -> None:
    with ProgressDisplay(
        {"evaluate": 4, "finetune": 1},
        {"finetune": 1, "evaluate": 1},
        console=log,
        clock=clock,
        timestamp=lambda: f"12:00:{clock.now - 100:02.0f}",
    ) as display:
        display.on_job_start(job("a"))
        display.on_job_start(job("b"))
        display.on_progress({"a": at(1)})
        clock.now += 9
        display.on_progress({"a": at(9)})
        clock.now += 1
        display.on_job_end(end("a", 10.0))
        display.on_progress({"b": at(0)})
        clock.now += 5
        display.note("tracker is down\nresults are safe")
        display.on_job_end(end("b", 5.0, error="out of\nmemory [bold]"))
        clock.now += 1
    start = "finetune 1/1 (1 reused); evaluate 1/4 (1 reused)"
    later = "finetune 1/1 (1 reused); evaluate 2/4 (1 reused)"
    assert lines(log) == [
        f"12:00:00 40 %: {start}; 0 running; 0 s so far, time left not known yet",
        "12:00:10 done: evaluate a in 10 s (evaluate 2/4)",
        f"12:00:10 60 %: {later}; 1 running; 10 s so far, about 20 s left",
        "12:00:15 tracker is down",
        "12:00:15 results are safe",
        "12:00:15 failed: evaluate b: out of memory [bold]",
        "12:00:16 finetune 1/1 (1 reused); evaluate 2/4 (1 reused, 1 failed); ended after 16 s",
    ]


def test_a_log_tells_loss_and_dev_of_what_runs(clock: Clock, log: Console) -> None:
    display = ProgressDisplay(
        {"finetune": 1, "evaluate": 1}, {}, console=log, clock=clock, timestamp=lambda: "now"
    )
    with display:
        display.on_job_start(job("a", "finetune", "finetune narrow seed=0"))
        display.on_job_start(job("b"))
        display.on_progress({"a": at(0, 200), "b": at(0)})
        clock.now += 10
        named = {"train/loss": 0.51234, "train/loss_ctc": 7.0, "dev/x.accuracy": 40.25}
        display.on_progress({"a": at(50, 200, **named, **{"dev/x_ctc": 1.0}), "b": at(1)})
    assert lines(log)[1:-1] == [
        "now 17 %: finetune 0/1; evaluate 0/1; 2 running; 10 s so far, about 1 min 30 s left",
        "now running: finetune narrow seed=0: 25 %, 50/200, loss 0.512, dev 40.25, 30 s left",
    ]


def test_a_long_sweep_has_fewer_lines(clock: Clock, log: Console) -> None:
    shown = []
    with ProgressDisplay({"evaluate": 5000}, {}, console=log, clock=clock) as display:
        for second in range(5000):
            clock.now += 1.0
            display.on_job_end(end(str(second), 1.0))
            before = len(lines(log))
            display.on_progress({})
            shown += [clock.now] if len(lines(log)) > before else []
    pauses = [later - earlier for earlier, later in pairwise(shown)]
    assert pauses[0] == 10 and pauses == sorted(pauses) and pauses[-1] > 200
    done = [line for line in lines(log) if " done: " in line]
    assert len(done) == DONE_LINES and done[-1].endswith("; the next ones are only counted)")


def test_a_narrow_terminal_shows_updates_loss_dev_and_time_left(clock: Clock) -> None:
    console = Console(
        file=io.StringIO(), width=80, height=40, force_terminal=True, color_system=None
    )
    with ProgressDisplay({"finetune": 2}, {}, console=console, clock=clock) as display:
        for key in "ab":
            display.on_job_start(job(key, "finetune", f"finetune narrow-phones lambda=0.01 {key}"))
        display.on_progress({"a": at(90, 200), "b": at(0, 200)})
        clock.now += 60
        named = {"train/loss": 0.51234, "dev/x.accuracy": 40.25}
        display.on_progress({"a": at(120, 200, **named), "b": at(0, 200)})
    shown = [line for line in lines(console) if "loss" in line][-1]
    # Half of what one minute made is left to do for run a, which had resumed.
    row = shown.split("60%")[1]
    assert "finetune narrow-phones" in row and "120/200" in row and "loss 0.512" in row
    assert row.rstrip().endswith("dev 40.25 2 min 40 s left") and len(shown.rstrip()) <= 80


def test_a_log_has_no_control_characters(clock: Clock, log: Console) -> None:
    with ProgressDisplay({"evaluate": 1}, {}, console=log, clock=clock) as display:
        display.note("name \x1b[31mred\x07")
        display.on_job_end(end("a", 1.0, error="\x1b]0;title\x07"))
    assert all(character.isprintable() for line in lines(log) for character in line)


def test_time_left_counts_jobs_side_by_side(clock: Clock, log: Console) -> None:
    display = ProgressDisplay({"evaluate": 10}, {}, console=log, clock=clock)
    for key in "abcd":
        display.on_job_start(job(key))
    display.on_progress({"a": at(0), "b": at(0)})
    clock.now += 60
    display.on_job_end(end("a", 60.0))
    display.on_job_end(end("b", 60.0))
    display.on_progress({"c": at(0), "d": at(0)})
    assert display.time_left() == "about 4 min 00 s left"  # 8 jobs of 60 s, two at a time
    clock.now += 30
    display.on_progress({"c": at(5), "d": at(5)})
    assert display.time_left() == "about 3 min 30 s left"


def test_time_left_of_jobs_that_were_foreseen(clock: Clock, log: Console) -> None:
    """Each by what is expected of it, times what the finished ones took of that: 20 of 10 s."""
    expected = {"a": 10.0, "b": 20.0, "c": 30.0}
    display = ProgressDisplay({"evaluate": 3}, {}, console=log, clock=clock, expected=expected)
    display.on_job_start(job("a"))
    clock.now += 20
    display.on_job_end(end("a", 20.0))
    assert display.time_left() == "about 1 min 40 s left"
    display.on_job_start(job("b"))
    display.on_progress({"b": at(0)})
    clock.now += 10
    assert display.time_left() == "about 1 min 30 s left"


def test_time_left_of_one_last_job_is_its_own(clock: Clock, log: Console) -> None:
    display = ProgressDisplay({"evaluate": 5}, {}, console=log, clock=clock)
    for key in "abcde":
        display.on_job_start(job(key))
    display.on_progress({key: at(0) for key in "abcde"})
    clock.now += 40
    for key in "abcd":
        display.on_job_end(end(key, 40.0))
    display.on_progress({"e": at(5)})
    clock.now -= 10
    assert display.time_left() == "about 10 s left"


def test_a_job_that_outlasts_the_others_is_expected_soon(clock: Clock, log: Console) -> None:
    display = ProgressDisplay({"evaluate": 2}, {}, console=log, clock=clock)
    display.on_job_start(job("b"))
    display.on_progress({"b": at(0)})
    clock.now += 500
    display.on_job_end(end("a", 100.0))
    assert display.time_left() == "about 5 s left"


def test_time_left_is_guessed_from_progress_before_anything_finished(
    clock: Clock, log: Console
) -> None:
    display = ProgressDisplay({"finetune": 3}, {}, console=log, clock=clock)
    display.on_job_start(job("a", "finetune"))
    display.on_progress({"a": at(0, 100)})
    clock.now += 20
    display.on_progress({"a": at(1, 100)})
    assert (
        display.time_left() == "time left not known yet"
    )  # one percent is too little to guess from
    display.on_progress({"a": at(20, 100)})
    assert (
        display.time_left() == "about 4 min 40 s left"
    )  # 80 s of this one, 100 s each of two more


def test_time_left_is_a_lower_bound_while_a_stage_is_unknown(clock: Clock, log: Console) -> None:
    display = ProgressDisplay({"finetune": 2, "evaluate": 5}, {}, console=log, clock=clock)
    clock.now += 50
    display.on_job_end(end("a", 50.0, "finetune"))
    assert display.time_left() == "more than 50 s left"


def test_time_left_when_all_is_reused(clock: Clock, log: Console) -> None:
    assert (
        ProgressDisplay({"evaluate": 5}, {"evaluate": 5}, console=log, clock=clock).time_left()
        == "nothing left"
    )


def test_a_job_that_only_waits_is_not_running(clock: Clock, log: Console) -> None:
    with ProgressDisplay({"evaluate": 2}, {}, console=log, clock=clock) as display:
        display.on_job_start(job("a"))
        display.on_job_start(job("b"))
        display.on_progress({"b": at(1)})
        clock.now += 10
        display.on_progress({"b": at(2)})
    assert "; 1 running; 10 s so far" in lines(log)[1]


def test_a_terminal_shows_bars_running_jobs_and_failures(clock: Clock) -> None:
    console = Console(
        file=io.StringIO(), width=100, height=40, force_terminal=True, color_system=None
    )
    with ProgressDisplay(
        {"finetune": 12, "evaluate": 4}, {"finetune": 1}, console=console, clock=clock
    ) as display:
        for place in range(10):
            display.on_job_start(job(f"run{place}", "finetune", label=f"finetune run{place} [red]"))
        clock.now += 10
        display.on_progress({f"run{place}": at(5, loss=0.123456) for place in range(10)})
        clock.now += 10
        display.on_job_end(end("run0", 20.0, "finetune"))
        display.on_job_end(end("run1", 20.0, "finetune", error="no \x1b[2Jmemory"))
    text = "\n".join(lines(console))
    assert "finetune run7 [red]" in text
    assert "run8" not in text.split("and 2 more running")[0].rsplit("so far", 1)[-1]
    assert " 50%" in text and "loss 0.123" in text
    assert f"and {10 - RUNNING_SHOWN} more running" in text
    assert "failed: finetune run1: no �[2Jmemory" in text
    assert (
        "finetune 2/12 (1 reused, 1 failed); evaluate 0/4; ended after 20 s"
        in text.splitlines()[-1]
    )


def test_leaving_by_an_error_stops_the_live_part_and_keeps_the_error(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with (
        pytest.raises(KeyboardInterrupt),
        ProgressDisplay({"evaluate": 1}, {}, console=console, clock=clock),
    ):
        raise KeyboardInterrupt
    assert lines(console)[-1].endswith("evaluate 0/1; ended after 0 s")
    assert "\x1b[?25h" in "\n".join(lines(console))  # the cursor is back


def test_a_search_changes_what_is_left_and_says_how_it_goes() -> None:
    text, clock = io.StringIO(), Clock()
    display = ProgressDisplay(
        {"evaluate": 4}, {}, console=Console(file=text, width=100), clock=clock
    )
    with display:
        display.on_job_start(job("a"))
        display.on_job_end(end("a", 10.0))
        display.set_remaining("evaluate", 2)  # one was stopped early
        display.set_remaining("merge", 1)
        display.set_summary("trials 1/4, 2 running")
        clock.now += 20
        display.on_progress({})
    lines = text.getvalue().splitlines()
    assert "0 %: evaluate 0/4; 0 running" in lines[0]
    assert (
        "25 %: trials 1/4, 2 running; evaluate 1/3; merge 0/1; 0 running; 20 s so far" in lines[-2]
    )
