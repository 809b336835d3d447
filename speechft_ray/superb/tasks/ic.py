"""Task ``ic``: the intent of a command as action, object and location (SUPERB on Fluent Speech
Commands; s3prl ``fluent_commands/config.yaml``).

One head whose logits are cut into three parts; the loss is the sum of three cross-entropies, and an
answer is right when all three labels are.
"""

from __future__ import annotations

from speechft_ray.superb.tasks._pooled import make_label_task
from speechft_ray.superb.tasks.base import TASKS, Published

PUBLISHED = Published("fluent_speech_commands", 200_000, 5_000)

TASKS.register(
    "ic",
    make_label_task(
        "ic", ("action", "object", "location"), learning_rate=1e-4, published=PUBLISHED
    ),
)
