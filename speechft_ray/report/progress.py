"""Shows the progress of a sweep: live bars on a terminal, plain log lines elsewhere.

A job counts as running once the executor reports progress of it, not while it waits for a device.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType, TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from speechft_ray.core.records import STAGES, Job, Outcome
from speechft_ray.core.units import format_duration
from speechft_ray.report.running import TRUSTED_FRACTION, Running, Stage
from speechft_ray.report.table import one_line
from speechft_ray.sweep.protocols import Progress

STATUS_EVERY_SECONDS = 10.0
"""Time between two status lines of a log, at first."""
STATUS_SHARE, STATUS_AT_MOST_SECONDS = 0.05, 600.0
"""Later a line comes when so large a share of the time so far has passed, within these bounds: 79
lines in the first hour, 228 in a day."""
DONE_LINES = 20
"""So many finished jobs of a stage have a line of their own in a log; later ones are counted."""
REDRAW_EVERY_SECONDS = 0.1
RUNNING_SHOWN = 8
"""Number of running jobs with a line of their own in the live part; the others are counted."""
RUNNING_LOGGED = 3
"""The same in a log, under each status line."""
BAR_COLUMNS = 100
"""Width of a terminal from which running jobs have bars."""
LATE_FRACTION = 0.05
"""Time left of a job that takes longer than usual, as a share of the usual duration."""


class ProgressDisplay:
    """Shows a sweep while it runs. All calls come from one thread; leaving the context prints the
    final counts."""

    def __init__(
        self,
        total_by_stage: Mapping[str, int],
        reused: Mapping[str, int],
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        expected: Mapping[str, float] = MappingProxyType({}),
        timestamp: Callable[[], str] = lambda: time.strftime("%Y-%m-%d %H:%M:%S"),
    ) -> None:
        """``total_by_stage`` counts all jobs of the plan, ``reused`` those that the store has.
        ``expected``: seconds of each job to do, by fingerprint, where a calibration foresees them.

        ``clock`` returns seconds from any fixed moment, ``timestamp`` the time of day that starts
        every line of a log.
        """
        self._console = console or Console()
        self._clock, self._timestamp = clock, timestamp
        self._begin = self._last_status = self._last_draw = clock()
        names = [
            name
            for name in (*STAGES, *sorted(set(total_by_stage) - set(STAGES)))
            if total_by_stage.get(name)
        ]
        self._stages = {
            name: Stage(total=total_by_stage[name], reused=reused.get(name, 0)) for name in names
        }
        self._running: dict[str, Running] = {}
        self._jobs: dict[str, Job] = {}
        self._expected = dict(expected)
        self._spent = self._foreseen = 0.0
        self._summary = ""
        self._live: Live | None = None

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._live = Live(
                self._picture(), console=self._console, auto_refresh=False, transient=True
            )
            self._live.start()
        else:
            self._line(self._status())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._line(f"{self._counts()}; ended after {format_duration(self._clock() - self._begin)}")

    def on_job_start(self, job: Job) -> None:
        """Registers a job that was submitted to the executor."""
        self._jobs[job.fingerprint] = job

    def on_job_end(self, outcome: Outcome) -> None:
        """Counts a job that ended. Prints every failure, and in a log every job."""
        self._running.pop(outcome.fingerprint, None)
        self._jobs.pop(outcome.fingerprint, None)
        foreseen = self._expected.pop(outcome.fingerprint, 0.0)
        if outcome.ok and foreseen:
            self._spent += outcome.seconds
            self._foreseen += foreseen
        stage = self._stages.setdefault(outcome.stage, Stage(total=1, reused=0))
        if outcome.ok:
            stage.done += 1
            stage.seconds.append(outcome.seconds)
        elif outcome.stopped:
            stage.stopped += 1
        else:
            stage.failed += 1
        if not outcome.ok and outcome.blocked_by is None:
            self._line(
                f"{'stopped' if outcome.stopped else 'failed'}: {outcome.label}: {outcome.error}"
            )
        elif outcome.ok and self._live is None and stage.done <= DONE_LINES:
            place = f"{outcome.stage} {stage.complete}/{stage.total}"
            if stage.done == DONE_LINES and stage.remaining:
                place += "; the next ones are only counted"
            self._line(f"done: {outcome.label} in {format_duration(outcome.seconds)} ({place})")
        self._redraw()

    def on_progress(self, progress: Mapping[str, Progress]) -> None:
        """Takes the progress of all running jobs; call it often."""
        now = self._clock()
        self._running = {
            key: self._update_running(self._running.get(key), item, now)
            for key, item in progress.items()
            if key in self._jobs
        }
        pause = min(
            STATUS_AT_MOST_SECONDS,
            max(STATUS_EVERY_SECONDS, STATUS_SHARE * (self._last_status - self._begin)),
        )
        if self._live is None and now - self._last_status >= pause:
            self._line(self._status())
            self._log_running(now)
            self._last_status = now
        self._redraw()

    def _update_running(self, earlier: Running | None, item: Progress, now: float) -> Running:
        if earlier is None:
            first = Running(began=now, progress=item)
            return Running(began=now, progress=item, first_fraction=first.fraction)
        return replace(earlier, progress=item)

    def _log_running(self, now: float) -> None:
        """Prints the running jobs of which something is known besides that they run."""
        running = [(key, item) for key, item in self._running.items() if item.progress.values]
        for key, item in running[:RUNNING_LOGGED]:
            parts = ", ".join(part for part in item.describe(now) if part)
            share = f"{100 * item.fraction:.0f} %"
            self._line(f"running: {self._jobs[key].label}: {share}, {parts}")

    def set_summary(self, text: str) -> None:
        """Sets the sentence that is shown with the counts."""
        self._summary = text

    def set_remaining(self, name: str, count: int) -> None:
        """Sets how many jobs of a stage are still to be done, where a search changes that."""
        stage = self._stages.setdefault(name, Stage(total=0, reused=0))
        stage.total = stage.reused + stage.done + stage.failed + stage.stopped + count

    def note(self, text: str) -> None:
        """Prints lines for people; on a terminal they stay above the live part."""
        for line in text.splitlines():
            self._line(line)

    def count_jobs(self) -> dict[str, dict[str, int]]:
        """Returns the number of jobs by stage and state (``sweep.status_file.STATES``)."""
        running: Counter[str] = Counter(self._jobs[key].stage for key in self._running)
        return {
            name: {
                "to_do": max(0, stage.remaining - running[name]),
                "running": running[name],
                "done": stage.complete,
                "failed": stage.failed,
                "stopped": stage.stopped,
            }
            for name, stage in self._stages.items()
        }

    def sum_parts(self) -> float:
        """Returns what the running jobs have done, in jobs."""
        return sum(item.fraction for item in self._running.values())

    def estimate_seconds_left(self) -> float | None:
        """Returns the estimated time left; ``None`` while a stage has no estimate."""
        seconds, is_complete = self._estimate()
        return seconds if is_complete else None

    def time_left(self) -> str:
        """Returns ``about 12 min 00 s left``; ``more than ...`` while a stage has no estimate."""
        seconds, is_complete = self._estimate()
        if seconds is None:
            return "time left not known yet"
        if not seconds and is_complete:
            return "nothing left"
        return f"{'about' if is_complete else 'more than'} {format_duration(seconds)} left"

    def _estimate(self) -> tuple[float | None, bool]:
        """Returns the seconds left of the stages that have an estimate, if any, and whether all
        have one."""
        # Seconds of work over all stages, and the longest time left of a running job.
        remaining = sum(stage.remaining for stage in self._stages.values())
        if not remaining:
            return 0.0, True
        if remaining == len(self._expected):
            return self._foresee_seconds_left(), True
        seconds, longest, complete = 0.0, 0.0, True
        for name, stage in self._stages.items():
            running = [item for key, item in self._running.items() if self._jobs[key].stage == name]
            typical = self._typical_seconds(stage, running)
            if typical is None:
                complete = complete and stage.remaining == 0
                continue
            rests = [
                max(LATE_FRACTION * typical, typical - (self._clock() - item.began))
                for item in running
            ]
            seconds += sum(rests) + max(0, stage.remaining - len(running)) * typical
            longest = max([longest, *rests])
        # Divided by the jobs side by side.
        if seconds <= 0:
            return None, False
        return max(longest, seconds / self._parallel_jobs()), complete

    def _foresee_seconds_left(self) -> float:
        """Returns the time left where every job was foreseen: what is expected of each, scaled by
        what the finished ones took."""
        factor = self._spent / self._foreseen if self._foreseen else 1.0
        seconds, longest = 0.0, 0.0
        for key, foreseen in self._expected.items():
            rest = factor * foreseen
            if key in self._running:
                elapsed = self._clock() - self._running[key].began
                rest = max(LATE_FRACTION * rest, rest - elapsed)
            seconds, longest = seconds + rest, max(longest, rest)
        return max(longest, seconds / self._parallel_jobs())

    def _parallel_jobs(self) -> float:
        """Returns how many jobs ran side by side so far on average, at most those that remain."""
        elapsed = max(self._clock() - self._begin, 1e-9)
        finished = sum(sum(stage.seconds) for stage in self._stages.values())
        running = sum(self._clock() - item.began for item in self._running.values())
        remaining = sum(stage.remaining for stage in self._stages.values())
        return max(1.0, min((finished + running) / elapsed, remaining))

    def _typical_seconds(self, stage: Stage, running: list[Running]) -> float | None:
        """Returns the mean duration of the finished jobs of a stage, or an estimate from the
        progress of the running ones; ``None`` without either."""
        if stage.seconds:
            return statistics.fmean(stage.seconds)
        estimates = [
            (self._clock() - item.began) / item.fraction
            for item in running
            if item.fraction >= TRUSTED_FRACTION and self._clock() > item.began
        ]
        return statistics.fmean(estimates) if estimates else None

    def _status(self) -> str:
        elapsed = format_duration(self._clock() - self._begin)
        summary = f"{self._summary}; " if self._summary else ""
        running = f"{len(self._running)} running"
        counts = f"{summary}{self._counts()}; {running}"
        return f"{self._percent()}: {counts}; {elapsed} so far, {self.time_left()}"

    def _percent(self) -> str:
        """Returns the share of the jobs that is done; running ones count in part."""
        total = sum(stage.total for stage in self._stages.values())
        left = sum(stage.remaining for stage in self._stages.values())
        done = total - left + sum(item.fraction for item in self._running.values())
        return f"{int(100 * done / total)} %" if total else "100 %"

    def _counts(self) -> str:
        texts = [
            (f"{name} {stage.complete}/{stage.total}", stage.remarks)
            for name, stage in self._stages.items()
        ]
        return "; ".join(f"{text} ({remarks})" if remarks else text for text, remarks in texts)

    def _line(self, text: str) -> None:
        """Prints one line without wrapping, markup or control characters; in a log, with the
        time."""
        start = "" if self._console.is_terminal else f"{self._timestamp()} "
        self._console.print(Text(start + one_line(text)), soft_wrap=True)

    def _redraw(self) -> None:
        now = self._clock()
        if self._live is not None and now - self._last_draw >= REDRAW_EVERY_SECONDS:
            self._live.update(self._picture(), refresh=True)
            self._last_draw = now

    def _picture(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, stage in self._stages.items():
            bar = ProgressBar(total=stage.total, completed=stage.total - stage.remaining, width=30)
            table.add_row(
                Text(name, "bold"),
                bar,
                Text(f"{stage.complete}/{stage.total}"),
                Text(stage.remarks),
            )
        running = self._picture_running()
        more = len(self._running) - RUNNING_SHOWN
        last = [f"and {more} more running"] if more > 0 else []
        elapsed = format_duration(self._clock() - self._begin)
        last.append(f"{self._percent()}; {elapsed} so far, {self.time_left()}")
        summary = [Text(one_line(self._summary), "bold")] if self._summary else []
        return Group(table, *summary, running, *(Text(line, "dim") for line in last))

    def _picture_running(self) -> Table:
        """Returns a line for each running job: share, label, updates, loss, dev, time left."""
        wide = self._console.width >= BAR_COLUMNS
        running = Table.grid(padding=(0, 1 + wide, 0, 0), expand=not wide)
        if wide:
            running.add_column()
        running.add_column(justify="right", no_wrap=True)
        running.add_column(ratio=None if wide else 1, no_wrap=True, overflow="ellipsis")
        for _ in range(4):
            running.add_column(justify="right", no_wrap=True)
        for key, item in list(self._running.items())[:RUNNING_SHOWN]:
            bar = [ProgressBar(total=1.0, completed=item.fraction, width=14)] if wide else []
            texts = [Text(text, "dim") for text in item.describe(self._clock())]
            label = Text(one_line(self._jobs[key].label))
            running.add_row(*bar, Text(f"{item.fraction:4.0%}"), label, *texts)
        return running
