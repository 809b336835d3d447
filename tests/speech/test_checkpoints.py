"""What a checkpoint file keeps, and everything it can be instead of a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints import safetensors_dir
from speechft_ray.speech.checkpoints.catalogue import BASELINE, PACKAGED
from speechft_ray.speech.checkpoints.load import load_encoder, weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import (
    read_encoder,
    read_manifest,
    tensor_sha256,
    write_encoder,
)
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.speech.toy_models import shared_file, toy_config, toy_hubert

MADE = {"by": "a test", "seed": 3}


def s3prl_content(**changes: object) -> dict[str, object]:
    return {**toy_config(), "model_weight": dict(toy_hubert().state), **changes}


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, toy_hubert(), MADE)
    return path


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    path = tmp_path / "hubert.s3prl.pt"
    torch.save(s3prl_content(), path)
    return path


def test_a_folder_and_a_file_give_back_what_was_written(tmp_path: Path, ours: Path) -> None:
    write_encoder(tmp_path / "folder", toy_hubert(), MADE)
    for path in (ours, tmp_path / "folder"):
        found = read_encoder(path)
        assert (found.family, found.config) == ("hubert", toy_config())
        assert all(
            torch.equal(found.state[name], tensor) for name, tensor in toy_hubert().state.items()
        )
        assert read_manifest(path)["made"] == MADE
    assert json.loads((tmp_path / "folder" / "manifest.json").read_text()) == read_manifest(ours)
    assert [
        path.name for path in (tmp_path / "folder").iterdir() if path.name.startswith(".")
    ] == []


def test_float16_halves_the_file_and_rounds_once(tmp_path: Path, ours: Path) -> None:
    write_encoder(tmp_path / "half", toy_hubert(), MADE, dtype="float16")
    stored = load_file(tmp_path / "half" / "encoder.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = read_encoder(tmp_path / "half")
    assert {tensor.dtype for tensor in loaded.state.values()} == {torch.float32}
    assert all(
        torch.equal(loaded.state[name], tensor.half().float())
        for name, tensor in toy_hubert().state.items()
    )
    write_encoder(tmp_path / "again", loaded, MADE, dtype="float16")
    assert weights_fingerprint(read_encoder(tmp_path / "again")) == weights_fingerprint(loaded)


def test_the_manifest_has_the_sha256_of_every_tensor(ours: Path) -> None:
    """Counted by hashlib over the bytes of the file itself, without safetensors."""
    raw = ours.read_bytes()
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
    weights.state["mask_emb"][0] = value  # type: ignore[index]
    with pytest.raises(UserError, match="mask_emb"):
        write_encoder(tmp_path / "x.safetensors", weights, MADE, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ours.read_bytes()

    def full_disk(state: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors_dir, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_encoder(ours, toy_hubert(seed=1), MADE)
    assert ours.read_bytes() == before
    assert list(ours.parent.iterdir()) == [ours]


def test_every_flipped_bit_is_noticed(ours: Path) -> None:
    """One bit in each of many places, from the first byte to the last: refused, or not read at all,
    never another encoder."""
    raw = ours.read_bytes()
    good = weights_fingerprint(read_encoder(ours))
    header = int.from_bytes(raw[:8], "little")
    places = [0, 9, *range(40, len(raw), len(raw) // 60), len(raw) - 1]
    noticed = 0
    for place in places:
        ours.write_bytes(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :])
        try:
            found = read_encoder(ours)
        except UserError as error:
            noticed += 1
            assert str(ours) in str(error)
        else:  # a letter in the description of how it was made harms no weight
            assert place < header + 8
            assert weights_fingerprint(found) == good
    assert noticed >= len([place for place in places if place >= header + 8]) > 20


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
@pytest.mark.parametrize("which", ["ours", "converted"])
def test_truncated_files_are_told(which: str, keep: float, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=str(path)):
        load_encoder(path)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_web_page_under_a_checkpoints_name_is_told(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"hubert.{ending}"
    path.write_text("<!DOCTYPE html><title>404</title>" * 20)
    with pytest.raises(UserError, match=r"not a"):
        load_encoder(path)


class Payload:
    """Pickles into a call of os.system."""

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
        {**s3prl_content(), "extra": Payload(f"touch {trap}")},
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


def test_another_zip_is_told(tmp_path: Path) -> None:
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
        (s3prl_content(model_weight={}), "not a table of tensors"),
        (s3prl_content(model_weight=[torch.zeros(2)]), "not a table of tensors"),
        (s3prl_content(model_weight={"mask_emb": "text"}), "not a table of tensors"),
        (s3prl_content(task_cfg={"normalize": float("nan")}), "not plain data"),
    ],
)
def test_other_layouts_are_told(tmp_path: Path, content: object, sentence: str) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=sentence):
        load_encoder(path)


def test_a_safetensors_file_of_others_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="without a speechft_ray manifest"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("[1", "not JSON"), ("[]", "not JSON"), ("{}", "format None"), ('{"format": 9}', "9")],
)
def test_manifests_of_other_formats_are_told(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"speechft_ray": text})
    with pytest.raises(UserError, match=sentence):
        load_encoder(path)


def test_tensors_outside_the_manifest_are_told(ours: Path) -> None:
    text = json.dumps(read_manifest(ours))
    save_file({**load_file(ours), "stray": torch.zeros(1)}, ours, metadata={"speechft_ray": text})
    with pytest.raises(UserError, match="different tensors"):
        read_encoder(ours)


def test_unknown_places_and_names_are_told(tmp_path: Path) -> None:
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


def test_a_checkpoint_is_the_same_encoder_in_both_formats(ours: Path, converted: Path) -> None:
    assert weights_fingerprint(load_encoder(ours)) == weights_fingerprint(load_encoder(converted))


def test_half_precision_checkpoints_come_back_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save(
        s3prl_content(
            model_weight={name: tensor.half() for name, tensor in toy_hubert().state.items()}
        ),
        path,
    )
    assert {tensor.dtype for tensor in load_encoder(path).state.values()} == {torch.float32}


def test_the_fingerprint_sees_every_difference_and_nothing_else() -> None:
    weights = toy_hubert()
    known = weights_fingerprint(weights)
    backwards = EncoderWeights(
        family="hubert", config=weights.config, state=dict(reversed(list(weights.state.items())))
    )
    assert weights_fingerprint(backwards) == known
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
    found = {known, *map(weights_fingerprint, others)}
    assert len(found) == len(others) + 1
    assert all(len(digits) == 16 for digits in found)


def test_the_fingerprint_is_pinned() -> None:
    """A change here makes every stored result of every user an orphan."""
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
        found = (
            FAMILIES.get(weights.family)
            .build(weights)
            .hidden_states([torch.randn(8_000, generator=torch.Generator().manual_seed(0))])
        )
        assert found.frames.tolist() == [24]


@pytest.mark.shared
def test_the_prototype_loads(tmp_path: Path) -> None:
    weights = load_encoder(shared_file("fixtures/encoders/tiny_hubert_prototype.s3prl.pt"))
    assert sum(tensor.numel() for tensor in weights.state.values()) == 2_360_736
    write_encoder(tmp_path / "ours", weights, MADE)
    assert weights_fingerprint(load_encoder(tmp_path / "ours")) == weights_fingerprint(weights)


def test_reading_a_file_of_ours_imports_no_model_code() -> None:
    """Planning a sweep fingerprints encoders on a head node; s3prl's two seconds of import belong
    to the workers."""
    program = (
        "import sys\n"
        "from speechft_ray.speech.checkpoints.load import load_encoder\n"
        "load_encoder('tiny_hubert')\n"
        "assert 's3prl' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
