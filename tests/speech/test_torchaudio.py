"""``import torchaudio`` beside a CPU build of torch: the install step, the environment that it
leaves, and the package's own fallback where nobody ran it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechft_ray.speech.encoders import _torchaudio

SCRIPT = Path(__file__).parents[2] / "scripts" / "fix_torchaudio.py"
EXTENSION = ("_torchaudio.abi3.so", "libtorchaudio.abi3.so")


def run_python(*arguments: str, path: Path | None = None) -> str:
    """Runs a fresh interpreter outside the repository, with one folder on its path; returns its
    output. A failure shows its stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    process = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_transformers_loads_a_speech_model_without_this_package(tmp_path: Path) -> None:
    """As docs/encoders.md does, in the environment of ``make install``. Where it fails, run
    ``python scripts/fix_torchaudio.py``."""
    program = (
        "import sys, torch, transformers\n"
        "config = transformers.WavLMConfig(\n"
        "    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,\n"
        "    conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)\n"
        "model = transformers.WavLMModel(config)\n"
        "model.save_pretrained(sys.argv[1])\n"
        "state = transformers.WavLMModel.from_pretrained(sys.argv[1]).state_dict()\n"
        "assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())\n"
        "assert 'speechft_ray' not in sys.modules and 'torchaudio' in sys.modules\n"
    )
    run_python("-c", program, str(tmp_path))


def write_packages(folder: Path, cuda: str | None, error: str) -> Path:
    """Writes stand-ins of torch and torchaudio. ``error``: what loading the extension raises while
    its files are there, empty where it loads. Returns the folder of the extension."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(f"class version:\n    cuda = {cuda!r}\n")
    library = folder / "torchaudio" / "lib"
    library.mkdir(parents=True)
    for name in EXTENSION:
        (library / name).touch()
    (folder / "torchaudio" / "__init__.py").write_text(
        "from pathlib import Path\n"
        "if list((Path(__file__).parent / 'lib').glob('_torchaudio*.so')):\n"
        f"    if {error!r}: raise OSError({error!r})\n"
    )
    return library


MISSING_CUDA = "libc10_cuda.so: cannot open shared object file: No such file or directory"


def test_an_extension_that_needs_cuda_is_renamed_beside_a_cpu_torch(tmp_path: Path) -> None:
    library = write_packages(tmp_path, None, MISSING_CUDA)
    output = run_python(str(SCRIPT), path=tmp_path)
    assert all(name in output for name in EXTENSION)
    renamed = sorted(name + ".needs-cuda" for name in EXTENSION)
    assert sorted(file.name for file in library.iterdir()) == renamed
    run_python("-c", "import torchaudio", path=tmp_path)
    assert run_python(str(SCRIPT), path=tmp_path) == "", "a second run changes nothing"
    assert sorted(file.name for file in library.iterdir()) == renamed


def test_a_torch_with_cuda_gets_the_extension_back(tmp_path: Path) -> None:
    library = write_packages(tmp_path, None, MISSING_CUDA)
    run_python(str(SCRIPT), path=tmp_path)
    (tmp_path / "torch" / "__init__.py").write_text("class version:\n    cuda = '13.0'\n")
    assert "restored" in run_python(str(SCRIPT), path=tmp_path)
    assert sorted(file.name for file in library.iterdir()) == sorted(EXTENSION)


@pytest.mark.parametrize(
    ("cuda", "error"),
    [(None, ""), ("13.0", ""), ("13.0", MISSING_CUDA), (None, "undefined symbol: aoti_torch_abi")],
)
def test_any_other_environment_is_left_alone(tmp_path: Path, cuda: str | None, error: str) -> None:
    library = write_packages(tmp_path, cuda, error)
    assert run_python(str(SCRIPT), path=tmp_path) == ""
    assert sorted(file.name for file in library.iterdir()) == sorted(EXTENSION)


def test_the_package_needs_no_extension_and_a_description_needs_no_s3prl() -> None:
    """In a fresh interpreter where loading the extension fails, as where ``make install`` was not
    used."""
    program = (
        "import sys\n"
        "class Refusal:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchaudio._extension': raise OSError('libc10_cuda.so: missing')\n"
        "sys.meta_path.insert(0, Refusal())\n"
        "from speechft_ray.speech.encoders.base import FAMILIES\n"
        "families = [family for name, family in FAMILIES.items() if name != 'fbank']\n"
        "configs = [family.example_config(2, 16, False) for family in families]\n"
        "for family, config in zip(families, configs): family.describe(config)\n"
        "assert 's3prl' not in sys.modules and 'torchaudio' not in sys.modules\n"
        "for family, config in zip(families, configs):\n"
        "    family.build(family.init_weights(config, 0))\n"
        "import torchaudio\n"
        "assert torchaudio.functional.filtering._IS_TORCHAUDIO_EXT_AVAILABLE is False\n"
    )
    run_python("-W", "error", "-c", program, path=Path(__file__).parents[2])


class Growing(dict[str, Any]):
    """A mapping that grows while it is walked, as ``sys.modules`` does where a thread imports."""

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            self[f"imported_{len(self)}"] = None
            yield name


def test_modules_that_another_thread_imports_meanwhile_do_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = {"torchaudio": 1, "torchaudio.functional": 1, "torchaudio_extras": 1, "json": 1}
    modules = Growing(parts)
    attempts: list[str] = []

    def import_module(name: str) -> None:
        attempts.append(name)
        if len(attempts) == 1:
            raise OSError("libc10_cuda.so: missing")

    fakes = {"import_module": import_module, "util": SimpleNamespace(find_spec=lambda name: name)}
    monkeypatch.setattr(_torchaudio, "importlib", SimpleNamespace(**fakes))
    monkeypatch.setattr(_torchaudio, "sys", SimpleNamespace(modules=modules))
    _torchaudio.import_torchaudio()
    left = {name for name in modules.keys() if not name.startswith("imported_")}  # noqa: SIM118
    assert left == {"torchaudio._extension", "torchaudio_extras", "json"}
    assert attempts == ["torchaudio"] * 2


def test_forced_alignment_raises_without_the_extension() -> None:
    with pytest.raises(RuntimeError, match="run_python needs torchaudio's compiled extension"):
        _torchaudio._refuse(run_python)()
