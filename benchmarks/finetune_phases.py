"""Draws docs/images/finetune_phases.png: learning rate and trainable parts at every update, from
the functions that fine-tuning uses.

.venv/bin/python -m benchmarks.finetune_phases
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.phases import is_head_only, trainable_names
from speechft_ray.finetuning.schedule import learning_rate

FIGURE_FILE = Path(__file__).parents[1] / "docs" / "images" / "finetune_phases.png"
UPDATES = 1000
VARIANTS: dict[str, dict[str, Any]] = {
    "stable (paper, default)": {},
    "only the front end frozen (s3prl)": {"head_only_fraction": 0.0},
    "regular": {"head_only_fraction": 0.0, "freeze_front_end": False},
}
PARTS = {"front end": "feature_extractor.conv", "transformer": "encoder.layers.0", "head": "head"}
COLOURS = {"front end": "#009E73", "transformer": "#0072B2", "head": "#D55E00"}
FROZEN = "#E4E4E4"


def is_trainable(part: str, update: int, head_only_fraction: float, freeze_front_end: bool) -> bool:
    """Whether a part of encoder and head is trainable at an update."""
    if part == "head":
        return True
    names = trainable_names(
        PARTS.values(),
        freeze_front_end=freeze_front_end,
        front_end_prefixes=("feature_extractor.",),
        pretraining_only_prefixes=(),
    )
    return PARTS[part] in names and not is_head_only(update, head_only_fraction, UPDATES)


def draw_figure() -> None:
    """Writes the figure."""
    fields = FinetuneSpec.model_fields
    figure, (rates, bars) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8.5, 4.6), height_ratios=(1, 1.9)
    )
    shares = [
        learning_rate(update, UPDATES, 1.0, fields["schedule"].default) for update in range(UPDATES)
    ]
    rates.plot([update / UPDATES * 100 for update in range(UPDATES)], shares, color="black")
    rates.set_ylabel("learning rate\n(share of the peak)")
    rates.set_ylim(0, 1.1)
    place, ticks = 0.0, {}
    for title, changes in VARIANTS.items():
        switches = {
            name: changes.get(name, fields[name].default)
            for name in ("head_only_fraction", "freeze_front_end")
        }
        bars.text(0, place - 0.62, title, fontsize=9, fontweight="bold")
        for part in reversed(PARTS):
            trainable = [is_trainable(part, update, **switches) for update in range(UPDATES)]
            for is_on, updates in groupby(range(UPDATES), key=trainable.__getitem__):
                first, *_, last = updates
                span = (first / UPDATES * 100, (last + 1 - first) / UPDATES * 100)
                bars.broken_barh(
                    [span], (place - 0.4, 0.8), color=COLOURS[part] if is_on else FROZEN
                )
            ticks[place] = part
            place += 1
        place += 1
    bars.set_yticks(list(ticks), list(ticks.values()))
    bars.set_ylim(place - 1.4, -1.2)
    bars.set_xlim(0, 100)
    bars.set_xlabel("updates (%)          colour: learns          grey: frozen")
    for axes in (rates, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(FIGURE_FILE, dpi=130)


if __name__ == "__main__":
    draw_figure()
