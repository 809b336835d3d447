"""What a progress display counts: the jobs of a stage, and a job that runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from speechft_ray.core.curves import shorten_name
from speechft_ray.core.units import format_duration
from speechft_ray.sweep.protocols import Progress

TRUSTED_FRACTION = 0.05
"""Progress of a running job from which its duration is estimated while no job of its stage has
finished."""


@dataclass(kw_only=True)
class Stage:
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
class Running:
    """A running job: the time of its first progress report, in seconds of the clock, how far it was
    then (a job that resumes has done a part), and its latest one."""

    began: float
    progress: Progress
    first_fraction: float = 0.0

    @property
    def fraction(self) -> float:
        done, total = self.progress.done, self.progress.total
        return min(1.0, max(0.0, done / total)) if total > 0 else 0.0

    def time_left(self, now: float) -> float | None:
        """Returns the seconds that it still takes, as it goes on; ``None`` while too little of it
        is done."""
        gained = self.fraction - self.first_fraction
        if gained < TRUSTED_FRACTION or now <= self.began:
            return None
        return (now - self.began) * (1.0 - self.fraction) / gained

    def describe(self, now: float) -> list[str]:
        """Returns how far it is (``120/200``, empty while not known), its loss and its metric on
        dev, and the time left; each may be empty."""
        done, total = self.progress.done, self.progress.total
        latest = {shorten_name(name): value for name, value in self._first_values()}
        left = self.time_left(now)
        return [
            f"{done:.0f}/{total:.0f}" if total else "",
            f"loss {latest['loss']:.3g}" if "loss" in latest else "",
            f"dev {latest['dev']:.4g}" if "dev" in latest else "",
            "" if left is None else f"{format_duration(left)} left",
        ]

    def _first_values(self) -> list[tuple[str, float]]:
        """The values in reverse order: of several losses or metrics the first counts, which is
        their mean."""
        return list(self.progress.values.items())[::-1]
