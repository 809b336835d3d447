"""What a ``.pt`` file may name besides tensors and containers, and the empty classes that stand in
for it.

Nothing of fairseq, omegaconf or argparse is imported: a stand-in keeps the state that the file
gives it as one dictionary and does nothing else, however it is called. So no constructor, no
``__setstate__`` and no attribute of theirs can be used against us. What comes out of a stand-in
goes through ``_plain`` before anybody reads it.
"""

from __future__ import annotations

from typing import Any


class StandIn:
    """An object of a stranger's file: its state, and no behaviour."""

    __slots__ = ("state",)

    def __new__(cls, *_: Any) -> StandIn:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state: dict[Any, Any] = state if isinstance(state, dict) else {}


class Namespace(StandIn):
    """``argparse.Namespace``: the whole configuration of fairseq checkpoints until 2020, and
    ``Args`` of s3prl's."""

    __slots__ = ()


class Container(StandIn):
    """omegaconf's ``DictConfig`` and ``ListConfig``; the values lie in the state under
    ``_content``."""

    __slots__ = ()


class Leaf(StandIn):
    """omegaconf's value nodes; the value lies in the state under ``_val``."""

    __slots__ = ()


class Dictionary(StandIn):
    """``fairseq.data.dictionary.Dictionary``; its words lie in the state under ``symbols``."""

    __slots__ = ()


class Mark(StandIn):
    """A type that omegaconf keeps beside a value (``typing.Any``, ``builtins.dict``), or its
    bookkeeping. Never read."""

    __slots__ = ()


ALLOWED: dict[str, type[StandIn]] = {
    "argparse.Namespace": Namespace,
    "fairseq.data.dictionary.Dictionary": Dictionary,
    "omegaconf.dictconfig.DictConfig": Container,
    "omegaconf.listconfig.ListConfig": Container,
    **{
        f"omegaconf.nodes.{kind}Node": Leaf
        for kind in (
            "Any",
            "String",
            "Integer",
            "Float",
            "Boolean",
        )  # not Enum: its value is a class of the writer's own
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
