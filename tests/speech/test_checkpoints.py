"""Round trips of our own format, identity of encoders, and files that are no checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints import safetensors_dir
from speechft_ray.speech.checkpoints._safetensors import tensor_sha256
from speechft_ray.speech.checkpoints.catalogue import BASELINE, PACKAGED
from speechft_ray.speech.checkpoints.load import load_checkpoint, load_encoder, weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.speech.toy_models import toy_config, toy_hubert, write_tiny_hubert

PROVENANCE = {"by": "a test", "seed": 3}


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest in the metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        manifest: dict[str, Any] = json.loads(file.metadata()["speechft_ray"])
    return manifest


def make_s3prl_content(**changes: object) -> dict[str, object]:
    return {**toy_config(), "model_weight": dict(toy_hubert().state), **changes}


def assert_equal_states(state: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.fixture
def native_file(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, toy_hubert(), PROVENANCE)
    return path


@pytest.fixture
def s3prl_file(tmp_path: Path) -> Path:
    path = tmp_path / "hubert.s3prl.pt"
    torch.save(make_s3prl_content(), path)
    return path


def test_a_folder_and_a_file_give_back_what_was_written(tmp_path: Path, native_file: Path) -> None:
    write_encoder(tmp_path / "folder", toy_hubert(), PROVENANCE)
    for path in (native_file, tmp_path / "folder"):
        weights = read_encoder(path)
        assert (weights.family, weights.config) == ("hubert", toy_config())
        assert all(
            torch.equal(weights.state[name], tensor) for name, tensor in toy_hubert().state.items()
        )
        assert load_checkpoint(path).provenance == PROVENANCE
    assert json.loads((tmp_path / "folder" / "manifest.json").read_text()) == read_manifest(
        native_file
    )
    assert [
        path.name for path in (tmp_path / "folder").iterdir() if path.name.startswith(".")
    ] == []


def test_float16_halves_the_file_and_rounds_once(tmp_path: Path, native_file: Path) -> None:
    write_encoder(tmp_path / "half", toy_hubert(), PROVENANCE, dtype="float16")
    stored = load_file(tmp_path / "half" / "encoder.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = read_encoder(tmp_path / "half")
    assert {tensor.dtype for tensor in loaded.state.values()} == {torch.float32}
    assert all(
        torch.equal(loaded.state[name], tensor.half().float())
        for name, tensor in toy_hubert().state.items()
    )
    write_encoder(tmp_path / "again", loaded, PROVENANCE, dtype="float16")
    assert weights_fingerprint(read_encoder(tmp_path / "again")) == weights_fingerprint(loaded)


def test_the_manifest_has_the_sha256_of_every_tensor(native_file: Path) -> None:
    """Computed by hashlib over the bytes of the file, without safetensors."""
    raw = native_file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    manifest = json.loads(header.pop("__metadata__")["speechft_ray"])
    data = raw[8 + size :]
    expected = {
        name: hashlib.sha256(data[slice(*entry["data_offsets"])]).hexdigest()
        for name, entry in header.items()
    }
    assert manifest["sha256"] == expected
    assert len(expected) == len(toy_hubert().state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_the_file_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    weights = toy_hubert()
    weights.state["mask_emb"][0] = value
    with pytest.raises(UserError, match="mask_emb"):
        write_encoder(tmp_path / "x.safetensors", weights, PROVENANCE, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(
    native_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = native_file.read_bytes()

    def full_disk(state: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors_dir, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_encoder(native_file, toy_hubert(seed=1), PROVENANCE)
    assert native_file.read_bytes() == before
    assert list(native_file.parent.iterdir()) == [native_file]


def test_every_flipped_bit_is_detected(native_file: Path) -> None:
    """One bit at each of many places, from the first byte to the last: an error, or the same
    encoder where the bit is not read."""
    raw = native_file.read_bytes()
    good = weights_fingerprint(read_encoder(native_file))
    header = int.from_bytes(raw[:8], "little")
    places = [0, 9, *range(40, len(raw), len(raw) // 60), len(raw) - 1]
    detected = 0
    for place in places:
        native_file.write_bytes(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :])
        try:
            weights = read_encoder(native_file)
        except UserError as error:
            detected += 1
            assert str(native_file) in str(error)
        else:  # a letter of the provenance changes no weight
            assert place < header + 8
            assert weights_fingerprint(weights) == good
    assert detected >= len([place for place in places if place >= header + 8]) > 20


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
@pytest.mark.parametrize("which", ["native_file", "s3prl_file"])
def test_truncated_files_are_reported(
    which: str, keep: float, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(which)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=str(path)):
        load_encoder(path)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_web_page_under_a_checkpoints_name_is_reported(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"hubert.{ending}"
    path.write_text("<!DOCTYPE html><title>404</title>" * 20)
    with pytest.raises(UserError, match=r"not a"):
        load_encoder(path)


class Payload:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_wants_code_is_refused_by_name_and_not_run(
    tmp_path: Path, legacy: bool
) -> None:
    path, trap = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save(
        {**make_s3prl_content(), "extra": Payload(f"touch {trap}")},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(UserError, match=r"would have to run .*\.system"):
        load_encoder(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("protocol", "sentence"),
    [(2, r"would have to run .*\.system"), (4, "not written by torch.save")],
)
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int, sentence: str) -> None:
    path, trap = tmp_path / "bare.pt", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Payload(f"touch {trap}"), protocol))
    with pytest.raises(UserError, match=sentence):
        load_encoder(path)
    assert not trap.exists()


def test_another_zip_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "photos.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="damaged"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"state_dict": {}}, "no encoder in a format that is known"),
        ([1, 2], "no encoder in a format that is known"),
        ({"model_weight": {}}, "lacks `task_cfg`, `model_cfg`"),
        (make_s3prl_content(model_weight={}), "not a table of tensors"),
        (make_s3prl_content(model_weight=[torch.zeros(2)]), "not a table of tensors"),
        (make_s3prl_content(model_weight={"mask_emb": "text"}), "not a table of tensors"),
        (make_s3prl_content(task_cfg={"normalize": float("nan")}), "not plain data"),
    ],
)
def test_other_layouts_are_reported(tmp_path: Path, content: object, sentence: str) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=sentence):
        load_encoder(path)


def test_a_safetensors_file_of_others_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="without a speechft_ray manifest"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("[1", "not JSON"), ("[]", "not JSON"), ("{}", "format None"), ('{"format": 9}', "9")],
)
def test_manifests_of_other_formats_are_reported(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"speechft_ray": text})
    with pytest.raises(UserError, match=sentence):
        load_encoder(path)


@pytest.mark.parametrize("first_byte", range(256))
def test_a_header_of_any_length_is_read(native_file: Path, first_byte: int) -> None:
    """The file begins with the length of its header, so any byte may be the first: also 0x80, as in
    a pickle, and 0x50, as in a zip file."""
    raw = native_file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    padding = (first_byte - length) % 256
    header = raw[8 : 8 + length] + b" " * padding
    native_file.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    assert native_file.read_bytes()[0] == first_byte
    checkpoint = load_checkpoint(native_file)
    assert checkpoint.format == "safetensors"
    assert_equal_states(checkpoint.weights.state, toy_hubert().state)


def test_a_file_cut_inside_a_header_that_begins_like_a_pickle_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(struct.pack("<Q", 0x380) + b'{"weight":{"dtype":"F32",')
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_encoder(path)


def test_tensors_outside_the_manifest_are_reported(native_file: Path) -> None:
    text = json.dumps(read_manifest(native_file))
    save_file(
        {**load_file(native_file), "stray": torch.zeros(1)},
        native_file,
        metadata={"speechft_ray": text},
    )
    with pytest.raises(UserError, match="different tensors"):
        read_encoder(native_file)


def test_unknown_places_and_names_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean `tiny_hubert`"):
        load_encoder("tiny_huber")
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(tmp_path / "gone.pt")
    with pytest.raises(UserError, match="no encoder at"):
        load_encoder(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match=r"encoder\.safetensors"):
        load_encoder(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="not a file of torch"):
        load_encoder(tmp_path / "notes.txt")


def test_a_checkpoint_is_the_same_encoder_in_both_formats(
    native_file: Path, s3prl_file: Path
) -> None:
    assert weights_fingerprint(load_encoder(native_file)) == weights_fingerprint(
        load_encoder(s3prl_file)
    )


def test_half_precision_checkpoints_come_back_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save(
        make_s3prl_content(
            model_weight={name: tensor.half() for name, tensor in toy_hubert().state.items()}
        ),
        path,
    )
    assert {tensor.dtype for tensor in load_encoder(path).state.values()} == {torch.float32}


def test_the_fingerprint_sees_every_difference_and_nothing_else() -> None:
    weights = toy_hubert()
    fingerprint = weights_fingerprint(weights)
    backwards = EncoderWeights(
        family="hubert", config=weights.config, state=dict(reversed(list(weights.state.items())))
    )
    assert weights_fingerprint(backwards) == fingerprint
    others = [
        EncoderWeights(family="other", config=weights.config, state=weights.state),
        EncoderWeights(family="hubert", config={**weights.config, "x": 1}, state=weights.state),
        EncoderWeights(
            family="hubert", config=weights.config, state={**weights.state, "extra": torch.zeros(0)}
        ),
        EncoderWeights(
            family="hubert",
            config=weights.config,
            state={**weights.state, "mask_emb": weights.state["mask_emb"][None]},
        ),
    ]
    nudged = weights.state["mask_emb"].clone()
    nudged[3] = torch.nextafter(nudged[3], torch.tensor(9.0))
    others.append(
        EncoderWeights(
            family="hubert", config=weights.config, state={**weights.state, "mask_emb": nudged}
        )
    )
    fingerprints = {fingerprint, *map(weights_fingerprint, others)}
    assert len(fingerprints) == len(others) + 1
    assert all(len(digits) == 16 for digits in fingerprints)


def test_the_fingerprint_is_pinned() -> None:
    """A change here invalidates every stored result of every user."""
    weights = EncoderWeights(
        family="hubert", config={"a": [1, 2.5]}, state={"w": torch.tensor([[1.0, -2.0]])}
    )
    assert (
        tensor_sha256(weights.state["w"])
        == hashlib.sha256(struct.pack("<2f", 1.0, -2.0)).hexdigest()
    )
    assert weights_fingerprint(weights) == "4127f8c1cfff4532"


def test_every_name_that_needs_no_network_loads_and_builds() -> None:
    for name in (BASELINE, *PACKAGED):
        weights = load_encoder(name)
        states = (
            FAMILIES.get(weights.family)
            .build(weights)
            .hidden_states([torch.randn(8_000, generator=torch.Generator().manual_seed(0))])
        )
        assert states.frames.tolist() == [24]


def test_an_s3prl_converted_tiny_hubert_loads(tmp_path: Path) -> None:
    weights = load_encoder(write_tiny_hubert(tmp_path))
    original = load_encoder("tiny_hubert")
    assert weights.state.keys() == original.state.keys()
    assert sum(tensor.numel() for tensor in weights.state.values()) == 2_367_136
    write_encoder(tmp_path / "ours", weights, PROVENANCE)
    assert weights_fingerprint(load_encoder(tmp_path / "ours")) == weights_fingerprint(weights)


def test_reading_our_format_imports_no_model_code() -> None:
    """A plan needs fingerprints of encoders, but not s3prl, whose import takes two seconds."""
    program = (
        "import sys\n"
        "from speechft_ray.speech.checkpoints.load import load_encoder\n"
        "load_encoder('tiny_hubert')\n"
        "assert 's3prl' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
