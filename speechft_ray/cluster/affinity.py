"""Selects the node that an evaluation prefers: the one whose cache holds its corpus."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Job, Place
from speechft_ray.storage.address import is_url


def select_node(job: Job, place: Place, nodes: Iterable[str]) -> str | None:
    """Returns the id of the preferred node of an evaluation; ``None`` where all are equal.

    All evaluations of one corpus prefer one node, whatever they evaluate; different corpora spread.
    Each node draws a number for the corpus and the highest wins (rendezvous hashing: Thaler and
    Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998), so a node that comes or goes moves
    only the corpora that it wins or had won. A cache in a storage folder is the same from every
    node, and other stages have none.
    """
    spec = job.payload.get("spec")
    corpus = spec.get("corpus") if isinstance(spec, dict) else None
    candidates = sorted(nodes)
    has_node_cache = place.cache is not None or is_url(place.storage)
    if job.stage != "evaluate" or not has_node_cache or corpus is None or len(candidates) < 2:
        return None
    return max(candidates, key=lambda node: fingerprint([node, corpus]))


def avoid_nodes(nodes: Collection[str]) -> dict[str, str]:
    """Returns a label selector of Ray that keeps a task or trial from these nodes, named by
    their ids; an empty one where there are none."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"} if nodes else {}
