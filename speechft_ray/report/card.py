"""The model card of a merged encoder: what it is, how it was made, its results, and what to mind.

The front matter is that of the Hugging Face hub (huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from speechft_ray.report.table import one_line

UNKNOWN_LICENCE = (
    "The licence of the encoder that it was made from is not known to the tool that wrote this "
    "card: look it up before you share the weights."
)
INTRODUCTION = (
    "A speech encoder: `{encoder}`, fine-tuned and merged with its pre-trained weights (Speech-FT, "
    "arXiv 2502.12672), by speechft_ray; the recipe is below. Input: audio at 16 kHz; "
    "output: hidden states of every layer."
)
NO_LEAK = "No overlap of its tuning data with a test set was detected."
NOT_CHECKED = (
    "Not checked: the storage has no report of a sweep with this encoder that compared its tuning "
    "data with test sets."
)
FROM_THE_HUB = "hf:"


class Loader(NamedTuple):
    """How an encoder is loaded: the library, and lines of Python."""

    library: str
    lines: tuple[str, ...]


LOADERS = {
    "hf": Loader(
        "transformers",
        (
            "from transformers import AutoModel",
            "",
            'encoder = AutoModel.from_pretrained("PATH OR NAME OF THIS FOLDER")',
            "states = encoder(waveforms, output_hidden_states=True).hidden_states",
        ),
    ),
    "s3prl": Loader(
        "s3prl",
        (
            "from s3prl.upstream.{family}.expert import UpstreamExpert",
            "",
            'encoder = UpstreamExpert("PATH OF THIS FILE").eval()',
            'states = encoder(waveforms)["hidden_states"]',
        ),
    ),
    "fairseq": Loader(
        "fairseq",
        (
            "from fairseq import checkpoint_utils",
            "",
            'models, _, _ = checkpoint_utils.load_model_ensemble_and_task(["PATH OF THIS FILE"])',
            "encoder = models[0].eval()",
        ),
    ),
}
"""Loaders of the formats of other tools by the name of the format."""
OWN_LOADER = Loader(
    "speechft_ray",
    (
        "import speechft_ray",
        "",
        'weights = speechft_ray.load_encoder("PATH OF THIS FILE OR FOLDER")',
        "encoder = speechft_ray.build_encoder(weights)",
        "states = encoder.hidden_states(waveforms).states",
    ),
)
"""Reads every format."""


class Card(NamedTuple):
    """What a card says."""

    title: str
    encoder: str
    """Name of the encoder that the sweep starts from."""
    licence: str | None
    """That encoder's, as the hub spells it; ``None``: not known."""
    fields: Mapping[str, str]
    """Resolved spec of the merge and its fine-tuning runs (``sweep.fields``)."""
    facts: Mapping[str, str]
    """What it was made with (``sweep.invocations.list_facts``)."""
    table: str = ""
    """Results of the sweep as a table in Markdown; empty where none are at hand."""
    leaks: Sequence[str] | None = None
    """Overlaps of its tuning data with test sets, as sentences; ``None``: not looked for."""


def render_card(card: Card) -> str:
    """Returns the card as Markdown with its front matter, for the format of transformers."""
    loader = LOADERS["hf"]
    front: dict[str, object] = {
        "library_name": loader.library,
        "pipeline_tag": "feature-extraction",
        "tags": ["speech", "speech-ft", "model-merging"],
    }
    if card.licence is not None:
        front["license"] = card.licence
    if card.encoder.startswith(FROM_THE_HUB):
        front["base_model"] = card.encoder.removeprefix(FROM_THE_HUB)
    licence = (
        f"The encoder that it was made from, `{card.encoder}`, has the licence `{card.licence}`."
        if card.licence is not None
        else UNKNOWN_LICENCE
    )
    parts = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        "---",
        f"# {one_line(card.title)}",
        "",
        INTRODUCTION.format(encoder=one_line(card.encoder)),
        "",
        "```python",
        *loader.lines,
        "```",
        "",
        *(["## Results", "", card.table.strip(), ""] if card.table else []),
        "## Train and test data in common",
        "",
        *_describe_leaks(card.leaks),
        "",
        "## How it was made",
        "",
        *_list(card.fields),
        *(["", "Made with:", "", *_list(card.facts)] if card.facts else []),
        "",
        "## Licence",
        "",
        licence,
        "",
    ]
    return "\n".join(parts)


def set_format(card: str, form: str, family: str) -> str:
    """Returns a card with the library and the lines that load an encoder of this family in a
    format."""
    loader = LOADERS.get(form, OWN_LOADER)
    code = "\n".join(("```python", *loader.lines, "```")).format(family=family)
    name = f"library_name: {json.dumps(loader.library)}"
    card = re.sub(r"^library_name: .*$", lambda _: name, card, count=1, flags=re.MULTILINE)
    return re.sub(
        r"^```python\n.*?^```$", lambda _: code, card, count=1, flags=re.MULTILINE | re.DOTALL
    )


def _describe_leaks(leaks: Sequence[str] | None) -> list[str]:
    if leaks is None:
        return [NOT_CHECKED]
    return [f"- {one_line(text)}." for text in leaks] or [NO_LEAK]


def _list(values: Mapping[str, str]) -> list[str]:
    return [f"- {name}: `{one_line(value).replace('`', ' ')}`" for name, value in values.items()]
