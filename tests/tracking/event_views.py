"""Reads event files by the reader of TensorBoard itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class EventRun(NamedTuple):
    """The last text of each tag, and the values of each scalar by step."""

    texts: dict[str, str]
    scalars: dict[str, dict[int, float]]
    events: int


def read_tensorboard_runs(folder: Path, sweep: str) -> dict[str, EventRun]:
    """Returns the runs of one sweep by their key."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (root,) = folder.glob(f"*-{sweep[:12]}")
    runs: dict[str, EventRun] = {}
    for path in sorted(root.iterdir()):
        reader: Any = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
        reader.Reload()
        tags = reader.Tags()
        texts = {
            tag.removesuffix("/text_summary"): reader.Tensors(tag)[-1]
            .tensor_proto.string_val[0]
            .decode()
            for tag in tags["tensors"]
        }
        scalars: dict[str, dict[int, float]] = {}
        events = sum(len(reader.Tensors(tag)) for tag in tags["tensors"])
        for tag in tags["scalars"]:
            points = [(event.step, event.value) for event in reader.Scalars(tag)]
            assert len(dict(points)) == len(points), "a point is there twice"
            scalars[tag] = dict(points)
            events += len(points)
        assert texts["key"] not in runs, "a key has two runs"
        runs[texts["key"]] = EventRun(texts, scalars, events)
    return runs


def read_tensorboard_champion(folder: Path, sweep: str) -> tuple[str, int]:
    """Returns the encoder that was selected last, and how many different ones were."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (root,) = folder.glob(f"*-{sweep[:12]}")
    (path,) = root.glob(f"sweep-{sweep[:12]}")
    reader: Any = EventAccumulator(str(path), size_guidance={"tensors": 0})
    reader.Reload()
    texts = [
        event.tensor_proto.string_val[0].decode().split()[0]
        for event in reader.Tensors("champion/text_summary")
    ]
    return texts[-1], len(set(texts))
