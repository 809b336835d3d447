"""Task ``label``: any label column of the user's own recordings, named with ``column``.

Not a SUPERB task: the probe and its optimiser are those of ER (s3prl ``emotion/config.yaml``).
"""

from __future__ import annotations

from speechft_ray.superb.tasks._pooled import make_label_task
from speechft_ray.superb.tasks.base import TASKS

TASKS.register("label", make_label_task("label", (), learning_rate=1e-4))
