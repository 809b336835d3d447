"""Warnings of other packages that say nothing new to who runs a sweep.

``warnings.catch_warnings`` replaces the filters of the whole process and puts back the old ones at
its end. Of two threads that are inside it at once, each undoes what the other did. So it is not
used in code that runs beside other threads.
"""

from __future__ import annotations

import re
import warnings


def ignore_warning(category: type[Warning], message: str = "") -> None:
    """Ignores warnings of a category whose text begins with ``message``, a regular expression.

    The filter stays for the life of the process, and is added again where something removed it.
    Call this before the code that warns.
    """
    pattern = re.compile(message, re.IGNORECASE) if message else None
    if ("ignore", pattern, category, None, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", message, category)
