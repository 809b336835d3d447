"""Task ``ks``: which spoken keyword (SUPERB on Speech Commands v0.01; s3prl ``speech_commands/config.yaml``).

As in s3prl, training draws utterances with replacement so that every class is equally likely. s3prl draws dev in the same way;
here dev counts each utterance once, which spares the choice of the best checkpoint that noise. The gain of -3 dB and the random
crops of the silence recordings belong to the corpus.
"""

from __future__ import annotations

from speechft_ray.superb.tasks._pooled import labels_task
from speechft_ray.superb.tasks.base import TASKS

TASKS.register("ks", labels_task("ks", ("keyword",), learning_rate=1e-4, draws="balanced"))
