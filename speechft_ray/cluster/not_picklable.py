"""Parts of Ray Tune that are of use in this process only."""

from __future__ import annotations


class NeverSaved:
    """A part of Tune that is of use in this process only: what Tune pickles of it into its own
    state is an empty shell."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()
