"""Collects what a run of a sweep was made with, for its record in the store."""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from speechft_ray import __version__
from speechft_ray.commands.parts import corpus_identity
from speechft_ray.core.passwords import hide_passwords
from speechft_ray.core.provenance import code_version
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, SweepSpec
from speechft_ray.stages.sources import start_encoder
from speechft_ray.sweep.fields import dump_fully
from speechft_ray.sweep.invocations import Invocation, utc_now

PACKAGES = ("torch", "ray", "mlflow", "s3prl")
"""Packages whose versions a record and a report state, beside this one."""

DIRTY = "-dirty"


class SpaceSource(NamedTuple):
    """Where a sweep was read from."""

    path: str | None = None
    text: str | None = None


def read_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that compute results."""
    versions = {"speechft_ray": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def begin_invocation(spec: SweepSpec, plan: str, place: Place, source: SpaceSource) -> Invocation:
    """Returns the record of a run of a sweep that begins now; ``plan`` is its fingerprint."""
    commit = code_version()["commit"]
    return Invocation(
        sweep=spec.name,
        plan=plan,
        command=tuple(map(hide_passwords, sys.argv)),
        space_file=source.path,
        space=source.text,
        spec=dump_fully(spec),
        versions=read_versions(),
        commit=commit.removesuffix(DIRTY) if commit else None,
        dirty=bool(commit and commit.endswith(DIRTY)),
        host=socket.gethostname(),
        cluster={},
        encoder={
            "name": place.encoder,
            "fingerprint": start_encoder(place.encoder).fingerprint,
        },
        corpora={
            role: "+".join(corpus_identity(corpus, place)[0] for corpus in corpora)
            for role, corpora in _list_corpora(spec).items()
        },
        started=utc_now(),
    )


def _list_corpora(spec: SweepSpec) -> dict[str, Sequence[CorpusSpec]]:
    """Returns the corpora of a sweep by what they are for; one for each fold."""
    roles: dict[str, Sequence[CorpusSpec]] = {}
    for run in spec.finetune:
        for objective in run.objectives:
            roles[f"finetune.{run.name}.{objective.head}"] = [objective.corpus]
    for item in spec.evaluate:
        roles[f"evaluate.{item.label}"] = item.corpora()
    return roles
