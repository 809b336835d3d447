"""What a sweep is handed: how to perform a job, where to run jobs, and who else wants to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from speechft_ray.core.records import Job, Outcome, Place

ReportProgress = Callable[[Mapping[str, float]], None]
"""Called from inside a running job with ``{"done": .., "total": ..}`` and, while tuning, any curve
values at ``done``."""


class Perform(Protocol):
    """Does one job and publishes its result in the store; returns its facts. Raises on failure.

    Must be a module-level function, so that it can be sent to a worker by name. Performing a
    complete job returns its facts.
    """

    def __call__(self, job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]: ...


class Progress(NamedTuple):
    """How far a running job is; ``total`` is 0 while unknown. ``values`` are the last curve
    values."""

    done: float
    total: float
    values: Mapping[str, float]


class Executor(Protocol):
    """Runs jobs somewhere. Never decides which."""

    def submit(self, job: Job) -> None:
        """Queues a job whose needs are complete. Returns at once."""
        ...

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Waits until at least one job ended, or the time is over, and returns what ended since the
        last call."""
        ...

    def slots(self, job: Job) -> int:
        """How many jobs like this one can run at once, as far as is known now; at least 1."""
        ...

    def progress(self) -> Mapping[str, Progress]:
        """The jobs that run now, by fingerprint, with their latest progress."""
        ...

    def stop(self) -> None:
        """Ends running jobs and gives resources back. Unfinished tuning keeps its last checkpoint.
        May be called twice."""
        ...


class EncoderRow(NamedTuple):
    """One merged encoder in the table of one sweep, read from the store."""

    key: str
    """Fingerprint of the merged encoder."""
    title: str
    """For example ``linear alpha=0.25 narrow-phones seed=0``."""
    params: Mapping[str, str | float | int]
    """What varies: ``alpha``, ``method``, ``finetune``, ``seed``, ``anchor_penalty`` and the
    method's parameters."""
    metrics: Mapping[str, float]
    """Test metrics by metric name, and ``score``; dev metrics as ``dev.<name>`` and
    ``dev.score``."""
    complete: bool
    """Whether every evaluation of this encoder is in."""
    stopped: str | None = None
    """Why it will not be complete: a run that it needs was stopped early."""


class Leak(NamedTuple):
    """What a fine-tuning has seen of the test set of a task."""

    finetune: str
    task: str
    utterances: int
    of_utterances: int
    speakers: int
    of_speakers: int
    """0 where the speakers of both cannot be compared."""

    def sentence(self) -> str:
        """Returns the leak in words."""
        voices = (
            f" and {self.speakers} of its {self.of_speakers} speakers" if self.of_speakers else ""
        )
        return f"{self.finetune} was tuned on {self.utterances} of the {self.of_utterances} test utterances of {self.task}{voices}"


class Curve(NamedTuple):
    """The learning curve of one fine-tuning run: ``(update, values)`` in order."""

    key: str
    title: str
    params: Mapping[str, str | float | int]
    points: Sequence[tuple[int, Mapping[str, float]]]


class SweepInfo(NamedTuple):
    """What a tracker needs to know of the sweep as a whole."""

    key: str
    """Fingerprint of the whole plan: a repeated or resumed sweep has the same."""
    name: str
    params: Mapping[str, str | float | int]


class Tracker(Protocol):
    """A view of the results elsewhere. Every call may be repeated: the same key is the same row,
    never a second one.

    Calls raise ``TrackerDown`` when the other side does not answer; nothing is lost, since the
    store has it all.
    """

    def start(self, sweep: SweepInfo) -> None:
        """Finds or opens the view of this sweep."""
        ...

    def log_curve(self, curve: Curve) -> None:
        """Adds or completes one learning curve."""
        ...

    def log_encoder(self, row: EncoderRow) -> None:
        """Adds or completes one merged encoder."""
        ...

    def register_model(self, row: EncoderRow, folder: Path) -> None:
        """Registers the encoder that the sweep chose, whose files lie in ``folder``; a later one
        takes its place."""
        ...

    def finish(
        self, report: Path | None, score_by_alpha: Sequence[tuple[float, float]], status: str
    ) -> None:
        """Attaches the report folder and the alpha curve; ``status`` is ``finished``, ``failed`` or
        ``stopped``."""
        ...

    def how_to_open(self) -> str:
        """The sentence that tells a person how to open this view."""
        ...


class TrackerDown(Exception):
    """The other side of a tracker does not answer; the message says which and how to send the
    results later."""
