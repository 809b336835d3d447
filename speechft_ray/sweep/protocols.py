"""Interfaces of a sweep (``Perform``, ``Executor``, ``Tracker``) and the records that pass through
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from speechft_ray.core.curves import Point
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.sweep.status_file import SweepStatus

ReportProgress = Callable[[Mapping[str, float]], None]
"""A running job calls it with ``{"done": .., "total": ..}`` and values of its learning curve under
their names in trackers (``core.curves``); a report with ``update`` is a point of the curve."""


class Perform(Protocol):
    """Performs one job, publishes its result in the store and returns its facts. Raises on failure.

    It must be a module-level function, so that a worker can import it by name. Performing a
    complete job only returns its facts.
    """

    def __call__(self, job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]: ...


class Progress(NamedTuple):
    """Progress of a running job; ``total`` is 0 while unknown. ``values``: latest of its curve;
    ``points``: those of its curve since the last look."""

    done: float
    total: float
    values: Mapping[str, float]
    points: Sequence[Point] = ()


class Executor(Protocol):
    """Runs the jobs that are submitted, in this process or on a cluster."""

    def submit(self, job: Job) -> None:
        """Queues a job whose needs are complete. Returns at once."""
        ...

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Waits until a job ended, at most ``timeout_seconds``, and returns the outcomes since the
        last call. Raises ``Interrupted`` when the run was stopped, or its cluster is lost."""
        ...

    def slots(self, job: Job) -> int:
        """Returns how many jobs like this one can run at once, as estimated now; at least 1."""
        ...

    def progress(self) -> Mapping[str, Progress]:
        """Returns the latest progress of the jobs that run now, by fingerprint. Each point of a
        learning curve is returned once; the last ones of a job may be missing."""
        ...

    def stop(self) -> None:
        """Ends running jobs and releases resources; may be called twice.

        Unfinished fine-tuning keeps its last checkpoint.
        """
        ...


@runtime_checkable
class StatusSink(Protocol):
    """An executor that shows the status of the whole sweep, as in the metrics of a cluster."""

    def show_status(self, status: SweepStatus) -> None: ...


class Span(NamedTuple):
    """When something began and ended, in seconds since 1970 (UTC)."""

    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class EncoderRow:
    """One merged encoder in the table of one sweep, read from the store."""

    key: str
    """Fingerprint of the merged encoder."""
    title: str
    """For example ``linear alpha=0.25 narrow-phones seed=0``."""
    params: Mapping[str, str | float | int]
    """What varies: ``alpha``, ``method``, ``finetune``, ``seed``, ``anchor_penalty`` and the
    method's parameters."""
    test: Mapping[str, float] = field(default_factory=dict)
    """Test metrics by metric name, and ``score``; means over probe seeds."""
    dev: Mapping[str, float] = field(default_factory=dict)
    """Dev metrics by metric name, and ``score``; means over probe seeds."""
    spread: Mapping[str, float] = field(default_factory=dict)
    """Sample standard deviations of ``test`` over probe seeds; absent where there is one seed."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Other numbers of this encoder. Trackers log them under these names; tables leave them out."""
    complete: bool
    """Whether every evaluation of this encoder is in the store."""
    unscored: tuple[str, ...] = ()
    """Why metrics are not part of the score, or why this encoder has none; one sentence each."""
    stopped: str | None = None
    """Why it will not be complete: a fine-tuning run that it needs was stopped early."""
    curve: Sequence[tuple[int, Mapping[str, float]]] = ()
    """Points of its probes, all evaluations together; ``log_encoder`` logs those that are
    missing."""
    layer_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Share of each hidden state in what its probes train on, by evaluation; means over probe
    seeds."""
    weight_distance: Mapping[str, float] = field(default_factory=dict)
    """|theta - theta0| / |theta0| from the pre-trained encoder by part, such as ``layer_03``."""
    untuned: str | None = None
    """Which of its fine-tuning runs changed nothing of the encoder, and why; such an encoder cannot
    be selected."""
    unlearnt: str | None = None
    """Which of its fine-tuning runs learnt next to nothing, and what to change."""
    dev_is_test: tuple[str, ...] = ()
    """Metrics that take part in selecting the best merge and whose dev set is their test set."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Its resolved spec and that of its fine-tuning runs by dotted name (``sweep.fields``)."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long its evaluations took, by task."""
    datasets: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of the corpora of its evaluations, by task."""
    span: Span | None = None
    """From its merge to its last evaluation; ``None`` while it is not complete."""

    def flat(self) -> dict[str, float]:
        """Returns all numbers in one mapping: ``pr.per``, ``spread.pr.per``, ``dev.pr.per``."""
        return {
            **self.test,
            **{f"spread.{name}": value for name, value in self.spread.items()},
            **{f"dev.{name}": value for name, value in self.dev.items()},
            **self.extra,
        }


class Leak(NamedTuple):
    """Overlap of the fine-tuning data of a run with the test set of a task."""

    finetune: str
    task: str
    utterances: int
    of_utterances: int
    speakers: int
    of_speakers: int
    """0 where the speakers of the two corpora cannot be compared."""

    def sentence(self) -> str:
        """Returns the leak as one sentence without a full stop."""
        speakers = (
            f" and {self.speakers} of its {self.of_speakers} speakers" if self.of_speakers else ""
        )
        return (
            f"{self.finetune} was tuned on {self.utterances} of the {self.of_utterances} "
            f"test utterances of {self.task}{speakers}"
        )


class Curve(NamedTuple):
    """The learning curve of one run: ``(update, values)`` in order."""

    key: str
    """Fingerprint of the fine-tuning run, or of the encoder whose probes these are."""
    title: str
    params: Mapping[str, str | float | int]
    points: Sequence[tuple[int, Mapping[str, float]]]
    """All of them, or where it runs or failed, new ones."""
    kind: Literal["finetune", "encoder"] = "finetune"
    state: Literal["running", "finished", "failed", "stopped"] = "finished"
    error: str | None = None
    """Why it failed or was stopped; one sentence."""
    fields: Mapping[str, str] = {}
    """The resolved spec of the run by dotted name (``sweep.fields``)."""
    span: Span | None = None
    """When the run began and ended; ``None`` while it runs."""


class SweepInfo(NamedTuple):
    """Identity and facts of a whole sweep, for trackers and reports."""

    key: str
    """Fingerprint of the plan; a repeated or resumed sweep has the same one."""
    name: str
    params: Mapping[str, str | float | int]
    fields: Mapping[str, str] = {}
    """What all of its runs share, by dotted name (``sweep.fields``)."""
    metrics: Sequence[str] = ()
    """Names of the metrics that its evaluations yield."""
    label: str = ""
    """Its name, with the beginning of ``key`` where another sweep has that name."""
    tags: Mapping[str, str] = {}
    """How it was made: facts of its record (``sweep.invocations``)."""
    files: Mapping[str, str] = {}
    """Texts to keep with it by file name: the search space, the resolved spec."""


class Model(NamedTuple):
    """The weights of an encoder that was selected."""

    folder: Path
    """Its unit in the store."""
    card: str
    """What it is and how it was made, in Markdown."""
    write: Callable[[Path], object]
    """Writes it with its card into a new folder, in the layout of transformers. Raises
    ``UserError`` for an encoder that transformers does not have."""


class SweepEnd(NamedTuple):
    """How a sweep ended, for trackers."""

    status: str
    """``finished``, ``failed`` or ``stopped``."""
    report: Path | None = None
    """Folder of its report, or a file."""
    score_by_alpha: Mapping[str, Sequence[tuple[float, float]]] = {}
    """Pairs of alpha and test score by the title of their series (``sweep.series``)."""
    winner: EncoderRow | None = None
    """The merge with the best dev score."""
    tags: Mapping[str, str] = {}
    """How it was made (``SweepInfo.tags``), with its end."""
    leaks: Mapping[str, Sequence[str]] = {}
    """Overlaps of fine-tuning data with test sets, as sentences, by encoder."""


class Tracker(Protocol):
    """Logs the results of a sweep to another system. Every call may be repeated: equal keys are one
    entry, never two.

    Calls raise ``TrackerDown`` when that system does not answer; any other error counts as that,
    too. Nothing is lost, since the store has all results.
    """

    def start(self, sweep: SweepInfo) -> None:
        """Finds or creates the entry of this sweep."""
        ...

    def log_curve(self, curve: Curve) -> None:
        """Logs the points of a learning curve that are missing, and its state. While a run is
        ``running``, this is called with its new points every few seconds."""
        ...

    def log_encoder(self, row: EncoderRow) -> None:
        """Logs one merged encoder, or the metrics that are new in it."""
        ...

    def register_model(self, row: EncoderRow, model: Model) -> None:
        """Registers the selected encoder; a later one replaces it.

        Called after ``finish``.
        """
        ...

    def finish(self, end: SweepEnd) -> None:
        """Attaches the report, the scores by alpha and the winner, and ends the entry of the
        sweep."""
        ...

    def how_to_open(self) -> str:
        """Returns one sentence for people: how to open this tracker."""
        ...


class TrackerDown(Exception):
    """The system behind a tracker does not answer. The message says which one, and the cause."""
