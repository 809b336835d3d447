"""Shows the progress of a sweep: live bars on a terminal, plain log lines elsewhere.

A job counts as running once the executor reports progress of it, not while it waits for a device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from speechft_ray.core.records import STAGES, Job, Outcome
from speechft_ray.core.units import format_duration
from speechft_ray.report.table import one_line
from speechft_ray.sweep.protocols import Progress

STATUS_EVERY_SECONDS = 10.0
"""Time between two status lines of a log."""
REDRAW_EVERY_SECONDS = 0.1
RUNNING_SHOWN = 8
"""Number of running jobs with a bar of their own; the others are counted."""
TRUSTED_FRACTION = 0.05
"""Progress of a running job from which its duration is estimated while no job of its stage has
finished."""
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
    ) -> None:
        """``total_by_stage`` counts all jobs of the plan, ``reused`` those that the store has.
        ``expected``: seconds of each job to do, by fingerprint, where a calibration foresees them.

        ``clock`` returns seconds from any fixed moment.
        """
        self._console = console or Console()
        self._clock = clock
        self._begin = self._last_status = self._last_draw = clock()
        names = [
            name
            for name in (*STAGES, *sorted(set(total_by_stage) - set(STAGES)))
            if total_by_stage.get(name)
        ]
        self._stages = {
            name: _Stage(total=total_by_stage[name], reused=reused.get(name, 0)) for name in names
        }
        self._running: dict[str, _Running] = {}
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
        stage = self._stages.setdefault(outcome.stage, _Stage(total=1, reused=0))
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
        elif outcome.ok and self._live is None:
            place = f"{outcome.stage} {stage.complete}/{stage.total}"
            self._line(f"done: {outcome.label} in {format_duration(outcome.seconds)} ({place})")
        self._redraw()

    def on_progress(self, progress: Mapping[str, Progress]) -> None:
        """Takes the progress of all running jobs; call it often."""
        now = self._clock()
        self._running = {
            key: _Running(
                began=self._running[key].began if key in self._running else now, progress=item
            )
            for key, item in progress.items()
            if key in self._jobs
        }
        if self._live is None and now - self._last_status >= STATUS_EVERY_SECONDS:
            self._line(self._status())
            self._last_status = now
        self._redraw()

    def set_summary(self, text: str) -> None:
        """Sets the sentence that is shown with the counts."""
        self._summary = text

    def set_remaining(self, name: str, count: int) -> None:
        """Sets how many jobs of a stage are still to be done, where a search changes that."""
        stage = self._stages.setdefault(name, _Stage(total=0, reused=0))
        stage.total = stage.reused + stage.done + stage.failed + stage.stopped + count

    def note(self, text: str) -> None:
        """Prints lines for people; on a terminal they stay above the live part."""
        for line in text.splitlines():
            self._line(line)

    def time_left(self) -> str:
        """Returns ``about 12 min 00 s left``; ``more than ...`` while a stage has no estimate."""
        # Seconds of work over all stages, and the longest time left of a running job.
        remaining = sum(stage.remaining for stage in self._stages.values())
        if remaining and remaining == len(self._expected):
            return self._foresee_time_left()
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
        if not remaining:
            return "nothing left"
        if seconds <= 0:
            return "time left not known yet"
        duration = format_duration(max(longest, seconds / self._parallel_jobs()))
        return f"{'about' if complete else 'more than'} {duration} left"

    def _foresee_time_left(self) -> str:
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
        return f"about {format_duration(max(longest, seconds / self._parallel_jobs()))} left"

    def _parallel_jobs(self) -> float:
        """Returns how many jobs ran side by side so far on average, at most those that remain."""
        elapsed = max(self._clock() - self._begin, 1e-9)
        finished = sum(sum(stage.seconds) for stage in self._stages.values())
        running = sum(self._clock() - item.began for item in self._running.values())
        remaining = sum(stage.remaining for stage in self._stages.values())
        return max(1.0, min((finished + running) / elapsed, remaining))

    def _typical_seconds(self, stage: _Stage, running: list[_Running]) -> float | None:
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
        return f"{summary}{self._counts()}; {running}; {elapsed} so far, {self.time_left()}"

    def _counts(self) -> str:
        texts = [
            (f"{name} {stage.complete}/{stage.total}", stage.remarks)
            for name, stage in self._stages.items()
        ]
        return "; ".join(f"{text} ({remarks})" if remarks else text for text, remarks in texts)

    def _line(self, text: str) -> None:
        """Prints one line without wrapping, markup or control characters."""
        self._console.print(Text(one_line(text)), soft_wrap=True)

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
        running = Table.grid(padding=(0, 2, 0, 0))
        for key, item in list(self._running.items())[:RUNNING_SHOWN]:
            bar = ProgressBar(total=1.0, completed=item.fraction, width=14)
            values = "  ".join(
                f"{name} {value:.4g}" for name, value in item.progress.values.items()
            )
            spent = format_duration(self._clock() - item.began)
            label = Text(one_line(self._jobs[key].label), no_wrap=True, overflow="ellipsis")
            running.add_row(
                bar,
                Text(f"{item.fraction:4.0%}"),
                Text(spent),
                label,
                Text(one_line(values), "dim", no_wrap=True),
            )
        more = len(self._running) - RUNNING_SHOWN
        last = [f"and {more} more running"] if more > 0 else []
        last.append(f"{format_duration(self._clock() - self._begin)} so far, {self.time_left()}")
        summary = [Text(one_line(self._summary), "bold")] if self._summary else []
        return Group(table, *summary, running, *(Text(line, "dim") for line in last))


@dataclass(kw_only=True)
class _Stage:
    """Counts of the jobs of one stage.

    ``seconds`` are the durations of the jobs that this run finished. ``stopped`` counts jobs that
    were stopped early on purpose, and jobs that need them.
    """

    total: int
    reused: int
    done: int = 0
    failed: int = 0
    stopped: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def complete(self) -> int:
        """Jobs whose result is in the store."""
        return self.reused + self.done

    @property
    def remarks(self) -> str:
        parts = ((self.reused, "reused"), (self.failed, "failed"), (self.stopped, "stopped early"))
        return ", ".join(f"{count} {word}" for count, word in parts if count)

    @property
    def remaining(self) -> int:
        return max(0, self.total - self.reused - self.done - self.failed - self.stopped)


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A running job: the time of its first progress report, in seconds of the clock, and its latest
    one."""

    began: float
    progress: Progress

    @property
    def fraction(self) -> float:
        done, total = self.progress.done, self.progress.total
        return min(1.0, max(0.0, done / total)) if total > 0 else 0.0
