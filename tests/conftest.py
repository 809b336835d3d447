"""A storage with a finished sweep and a finished search, for all tests that read one."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path

import pytest

# Under nohup, and in the background of a script, the tests inherit ignored signals, and so would
# every process that they start and stop.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

STORE = Path(__file__).parent / "data" / "store_before_renaming"


@pytest.fixture(scope="session")
def finished_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a storage with the sweep `small-sweep` and the search `small-search`; read only.

    No job is computed: the store is the one that tests/identity holds today's code to.
    """
    from speechft_ray.commands import results
    from speechft_ray.commands import sweep as commands
    from speechft_ray.commands.parts import resolve_place
    from speechft_ray.sweep.space_file import read_space
    from tests.identity.recordings import write_recordings

    home = tmp_path_factory.mktemp("finished")
    storage = home / "runs"
    shutil.copytree(STORE, storage, ignore=shutil.ignore_patterns("tables"))
    (encoder,) = storage.glob("encoder/*/encoder.safetensors")
    start = shutil.copy(encoder, home / "start.safetensors")
    manifest = write_recordings(home / "recordings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "open_trackers", lambda *_: [])
        patch.setattr(results, "write_report", lambda *_: None)  # figures take half of the time
        for name in ("small_sweep", "small_search"):
            spec = read_space(Path(__file__).parent / "identity" / f"{name}.yaml")
            place = resolve_place(
                spec, storage=storage, encoder=str(start), manifest=manifest, cpu=True
            )
            sweep = commands.open_sweep(spec, place)
            assert commands.run(sweep, None, home / name, None, threading.Event()) == []
    return storage


@pytest.fixture
def storage_copy(finished_storage: Path, tmp_path: Path) -> Path:
    """Returns a copy of the finished storage that a test may change."""
    return Path(shutil.copytree(finished_storage, tmp_path / "runs"))
