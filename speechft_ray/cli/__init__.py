"""The ``speechft`` command. Verbs only parse, call and print; what they do stands in
``commands`` and below.

Exit codes: 0 done, 1 some jobs failed, 2 bad input, 75 stopped and resumable (EX_TEMPFAIL: run the
same command again).
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
from collections.abc import Sequence

from speechft_ray.cli import (  # noqa: F401  # importing them adds their verbs
    checkpoints,
    corpora,
    encoders,
    evaluation,
    jobs,
    merging,
    paper,
    storage,
    sweeps,
    ui,
)
from speechft_ray.cli.app import EXIT_USER, app
from speechft_ray.core.errors import (
    EXIT_RESUMABLE,
    DiskFull,
    HeadLost,
    Interrupted,
    StorageDown,
    UserError,
    printable,
)
from speechft_ray.core.full_disk import is_disk_full

_PATHS = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; no input, however bad, shows a traceback."""
    _replace_unprintable()
    try:
        app(prog_name="speechft", args=list(arguments) if arguments is not None else None)
    except UserError as error:
        print(f"speechft: {error}", file=sys.stderr)
        return EXIT_RESUMABLE if isinstance(error, StorageDown) else EXIT_USER
    except DiskFull as error:
        return _report_full_disk(error)
    except HeadLost as error:
        print(error.explain(), file=sys.stderr)
        # What Ray does at the end of a process waits for the head, and changes the exit code.
        atexit.register(_end_at_once)
        return EXIT_RESUMABLE
    except Interrupted:
        print(
            "speechft: stopped. Everything finished is kept; run the same command again to go on.",
            file=sys.stderr,
        )
        return EXIT_RESUMABLE
    except SystemExit as error:
        return int(error.code or 0)
    except Exception as error:
        if is_disk_full(error):
            return _report_full_disk(error)
        if (sentence := _explain_path(error)) is None:
            raise
        print(f"speechft: {sentence}", file=sys.stderr)
        return EXIT_USER
    return 0


def _explain_path(error: Exception) -> str | None:
    """Returns what is wrong with a path that a user gave, for what no check foresaw: a folder of
    somebody else, a name that is too long, a home of nobody; ``None`` for other errors."""
    if isinstance(error, OSError) and error.errno in _PATHS and error.filename:
        name = printable(str(error.filename))
        return f"`{name}` cannot be used ({error.strerror}): give another path."
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "a path begins with ~ and the name of a user who has no home here: write it in full."
    return None


def _replace_unprintable() -> None:
    """Has a question mark printed for a character that the encoding of a terminal or file lacks,
    such as a star in Latin-1, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_RESUMABLE)


def _report_full_disk(error: Exception) -> int:
    print(
        f"speechft: stopped, because the disk is full: {' '.join(str(error).split())}. Everything "
        "finished is kept. Make room (`speechft gc` lists what can go), then run the same command "
        "again to go on.",
        file=sys.stderr,
    )
    return EXIT_RESUMABLE
