"""A base class for parts of Ray Tune that are of use in this process only."""

from __future__ import annotations


class NotPicklable:
    """Pickles as an empty object, since Tune writes its parts into its own state."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()
