"""RegMean++: RegMean with the inputs that each layer has behind the merged layers below it (arXiv
2508.03121).

Layer by layer from below, each donor's own layer sees that donor's data as the merged lower layers
transform them. The inner products of these inputs need an encoder's forward pass, so they are
computed before the merge (``stages/layer_grams.py``), from waveforms that the donors' fine-tuning
keeps with ``gather: [waves]``. The equation is RegMean's.
"""

from __future__ import annotations

from speechft_ray.merging.base import METHODS, MergeMethod
from speechft_ray.merging.regmean import RegmeanParams, combine

METHODS.register(
    "regmean_plusplus",
    MergeMethod(params=RegmeanParams, combine=combine, needs="layer_gram", neutral={}),
)
