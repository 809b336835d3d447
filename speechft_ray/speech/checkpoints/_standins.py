"""Stand-ins for the classes that a ``.pt`` file may name besides tensors and containers.

Nothing of fairseq, omegaconf or argparse is imported: a stand-in keeps the state from the file as
one dictionary and does nothing else, so a file cannot misuse a constructor, ``__setstate__`` or
attribute of those packages. ``_plain`` converts the state before it is used.
"""

from __future__ import annotations

from typing import Any


class StandIn:
    """An object of an untrusted file: its state, and no behaviour."""

    __slots__ = ("state",)

    def __new__(cls, *_: Any) -> StandIn:
        instance = super().__new__(cls)
        instance.state = {}
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state: dict[Any, Any] = state if isinstance(state, dict) else {}


class Namespace(StandIn):
    """``argparse.Namespace``: the whole configuration of fairseq checkpoints until 2020, and
    ``Args`` of s3prl's."""

    __slots__ = ()


class Container(StandIn):
    """omegaconf's ``DictConfig`` and ``ListConfig``; the state has values under ``_content``."""

    __slots__ = ()


class Leaf(StandIn):
    """omegaconf's value nodes; the state has the value under ``_val``."""

    __slots__ = ()


class Dictionary(StandIn):
    """``fairseq.data.dictionary.Dictionary``; the state has its words under ``symbols``."""

    __slots__ = ()


class Mark(StandIn):
    """A type that omegaconf stores beside a value (``typing.Any``, ``builtins.dict``), or its
    bookkeeping. Never read."""

    __slots__ = ()


ALLOWED: dict[str, type[StandIn]] = {
    "argparse.Namespace": Namespace,
    "fairseq.data.dictionary.Dictionary": Dictionary,
    "omegaconf.dictconfig.DictConfig": Container,
    "omegaconf.listconfig.ListConfig": Container,
    **{
        f"omegaconf.nodes.{kind}Node": Leaf
        # Not Enum: its value is a class of the program that wrote the file.
        for kind in ("Any", "String", "Integer", "Float", "Boolean")
    },
    "omegaconf.base.ContainerMetadata": Mark,
    "omegaconf.base.Metadata": Mark,
    "collections.defaultdict": Mark,  # omegaconf's cache of resolved texts
    "typing.Any": Mark,
    **{
        f"builtins.{kind}": Mark
        for kind in ("dict", "list", "tuple", "int", "float", "str", "bool")
    },
}
"""Every name that a file may mention, beyond those that ``torch.load(weights_only=True)`` knows
itself (tensors, OrderedDict, Counter, set, bytes and torch's own types)."""
