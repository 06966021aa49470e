"""Files of checkpoints whose bytes, sizes or statements about themselves are wrong, and unusual files that are right."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, synthetic_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dinoeval
from dinoeval.errors import CheckpointError
from dinoeval.models.checkpoints import open_checkpoint, read_pickle, save_backbone, tensor_digest
from dinoeval.models.checkpoints.open import open_contents

STATE = synthetic_state(TINY)
OTHER = synthetic_state(TINY, seed=1)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, files: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)


def rewrite(path: Path, change, method: int = zipfile.ZIP_STORED) -> None:
    torch.save(STATE, path)
    write_zip(path, [(name, change(name, content)) for name, content in members(path).items()], method)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("change", [lambda content: content[:-4], lambda content: content + bytes(4), lambda content: b""])
def test_storage_of_another_size_than_declared_is_refused(tmp_path, method, change):
    path = tmp_path / "weights.pth"
    rewrite(path, lambda name, content: change(content) if name.endswith("/data/3") else content, method)
    with pytest.raises(CheckpointError, match=r"weights\.pth.*storage 3 has [\d,]+ bytes"):
        open_checkpoint(path)


def test_compressed_and_big_endian_zip_files_open(tmp_path):
    path = tmp_path / "weights.pth"
    rewrite(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert tensor_digest(open_checkpoint(path).state) == tensor_digest(STATE)

    def swap(name: str, content: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(content, "<u4").byteswap().tobytes() if "/data/" in name else content

    rewrite(path, swap)
    assert tensor_digest(open_checkpoint(path).state) == tensor_digest(STATE)
    rewrite(path, lambda name, content: b"middle" if name.endswith("byteorder") else content)
    with pytest.raises(CheckpointError, match="byte order"):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_missing_or_repeated_members_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    files = members(path)
    for changed, named in [
        ([item for item in files.items() if not item[0].endswith("data/3")], "storage 3"),
        ([*files.items(), next(item for item in files.items() if item[0].endswith("data/3"))], "two members"),
        ([*files.items(), ("other/data.pkl", b"\x80\x02}.")], "2 files named data.pkl"),
        ([(name.replace("data.pkl", "x"), content) for name, content in files.items()], "0 files named data.pkl"),
        ([*files.items(), (next(iter(files)).replace("data.pkl", "constants.pkl"), b"")], "TorchScript"),
    ]:
        write_zip(path, changed)
        with pytest.raises(CheckpointError, match=rf"weights\.pth.*{named}"):
            open_checkpoint(path)


def test_zip_bomb_is_refused_before_it_expands(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    write_zip(path, [*members(path).items(), ("archive/data/junk", bytes(200 << 20))], zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="expand"):
        open_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_tied_and_sliced_tensors_get_memory_of_their_own(tmp_path, zipped):
    flat = torch.arange(12.0)
    tensors = {"a": flat[:6].view(2, 3), "b": flat[:6].view(3, 2).t(), "c": flat[6:], "d": torch.nn.Parameter(flat.double())}
    torch.save(tensors, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    state = open_checkpoint(tmp_path / "weights.pth").state
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor.float())
        assert state[name].is_contiguous()
        assert state[name].untyped_storage().nbytes() == state[name].nbytes
    assert len({tensor.data_ptr() for tensor in state.values()}) == 4


@pytest.mark.parametrize("zipped", [True, False])
def test_read_pickle_equals_torch_load(tmp_path, zipped):
    content = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, dtype=torch.bfloat16)}}, "betas": (0.9, 0.999)},
        "random": torch.get_rng_state(),
        "names": ["a", "ä"],
        "half": torch.arange(4).to(torch.float8_e4m3fn),
        "complex": torch.tensor([1 + 2j]),
        "wide": torch.tensor([1, 60_000], dtype=torch.uint16),
        "empty": torch.zeros(0, 3),
        "size": torch.Size([2, 3]),
        "device": "cpu",
        "dtype": torch.float16,
    }
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "a.pth")
    expected = torch.load(tmp_path / "new.pth", weights_only=True)  # it cannot read some types from the older format
    assert repr(found) == repr(expected).replace("torch.Size([2, 3])", "(2, 3)")
    assert found["half"].dtype == torch.float8_e4m3fn


def expanded(*shape: int) -> torch.Tensor:
    return torch.zeros(1).expand(*shape)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (expanded(10**7, 10**6), "10,000,000,000,000 elements"),
        (expanded(8 * 10**8), "800,000,000 elements"),
        (torch.zeros(96).to_sparse(), "not dense"),
        (torch.empty(96, device="meta"), "not dense"),
        (torch.zeros(96, dtype=torch.complex64), "not dense"),
        (torch.full((96,), 1e300, dtype=torch.float64), "NaN or infinite"),
    ],
)
def test_tensors_that_are_no_arrays_of_numbers_are_named(tmp_path, tensor, named):
    torch.save({**STATE, "norm.bias": tensor}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=rf"odd\.pth.*({named}).*|odd\.pth.*norm\.bias.*{named}"):
        dinoeval.load(TINY, weights=tmp_path / "odd.pth")


def test_many_views_of_one_storage_are_refused(tmp_path):
    storage = torch.zeros(1 << 18)
    torch.save({f"tensor{number}": storage.view(1 << 18) for number in range(200)}, tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match="52,428,800 elements"):
        open_checkpoint(tmp_path / "many.pth")


def test_legacy_file_is_refused_at_every_cut(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({f"blocks.{number}.norm1.weight": torch.zeros(300) for number in range(8)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for cut in (*range(1, 200, 7), *range(200, len(content) - 1, 997), len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"weights\.pth"):
            open_checkpoint(path)


def test_legacy_storage_of_another_size_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(300)}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert struct.pack("<q", 300) in content[-1300:]
    path = tmp_path / "weights.pth"
    path.write_bytes(content[:-1208] + struct.pack("<q", 299) + content[-1200:])
    with pytest.raises(CheckpointError, match="299 elements"):
        open_checkpoint(path)


def with_header(path: Path, header: object, content: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"a": {**F32, "shape": [5]}}, "a.*16 bytes"),
        ({"a": {**F32, "shape": [-4]}}, "invalid numbers"),
        ({"a": {**F32, "data_offsets": [0, 12], "shape": [3]}}, "describes"),
        ({"a": {**F32, "data_offsets": [4, 16], "shape": [3]}}, "begin at 4"),
        ({"a": F32, "b": F32}, "begin at 0"),
        (b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2), "twice"),
        ({"a": []}, "does not describe 'a'"),
        ({"a": F32, "__metadata__": {"arch": 5}}, "header"),
        (b'{"a":' + b"[" * 100_000, "nested"),
        (b"{nothing", "safetensors"),
    ],
)
def test_safetensors_header_is_compared_with_the_file(tmp_path, header, named):
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors.*{named}"):
        open_checkpoint(with_header(tmp_path / "odd.safetensors", header))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "X"])
def test_unknown_type_in_safetensors_is_named(tmp_path, dtype):
    path = with_header(tmp_path / "odd.safetensors", {"pos_embed": {"dtype": dtype, "shape": [32], "data_offsets": [0, 16]}})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors.*pos_embed"):
        dinoeval.load(TINY, weights=path)


def test_own_files_are_those_of_the_library_and_equal_bytes(tmp_path):
    """The library reads what we write; its own order of metadata is random."""
    tensors = {**STATE, "count": torch.tensor(3), "half": torch.ones(3, dtype=torch.float16)}
    for name in "ab":
        save_backbone(tmp_path / name, dict(reversed(tensors.items()) if name == "b" else tensors.items()), arch=TINY, more="ä", less="x")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_file(tmp_path / "a")
    assert all(torch.equal(loaded[name], tensor.float() if tensor.is_floating_point() else tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata()["more"] == "ä"


@pytest.mark.slow
def test_full_disk_while_converting_is_one_paragraph(tmp_path):
    """A limit on the size of files stands for the full disk."""
    resource = pytest.importorskip("resource")
    torch.save(STATE, tmp_path / "in.pth")
    done = subprocess.run(
        [sys.executable, "-m", "dinoeval", "models", "convert", tmp_path / "in.pth", tmp_path / "out.safetensors", "--arch", TINY],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 2
    assert "out.safetensors cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def write_shards(folder: Path, kind: str) -> dict:
    ending, save = {"model": ("safetensors", save_file), "pytorch_model": ("bin", torch.save)}[kind]
    names = sorted(STATE)
    files = {f"{kind}-{number + 1:05}-of-00003.{ending}": names[number::3] for number in range(3)}
    for file, part in files.items():
        save({name: STATE[name] for name in part}, folder / file)
    size = sum(tensor.nbytes for tensor in STATE.values())
    index = {"metadata": {"total_size": size}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / f"{kind}.{ending}.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("kind", ["model", "pytorch_model"])
def test_shards_open_from_folder_and_index(tmp_path, kind):
    index = write_shards(tmp_path, kind)
    (path,) = tmp_path.glob("*.index.json")
    for place in (tmp_path, path):
        checkpoint = open_checkpoint(place)
        assert tensor_digest(checkpoint.state) == tensor_digest(STATE)
        assert "3 shards" in checkpoint.layout
    second = sorted(set(index["weight_map"].values()))[1]
    (tmp_path / second).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=second):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda index: index["weight_map"].update(cls_token="../model-00001-of-00003.safetensors"), r"\.\./model"),
        (lambda index: index["weight_map"].update(cls_token="/etc/passwd"), "/etc/passwd"),
        (lambda index: index["weight_map"].update(cls_token=r"a\b.safetensors"), r"a\\b"),
        (lambda index: index["weight_map"].update(cls_token="model.safetensors.index.json"), r"index\.json"),
        (lambda index: index["weight_map"].update(extra="model-00001-of-00003.safetensors"), "extra"),
        (lambda index: index["weight_map"].pop("cls_token"), "cls_token"),
        (lambda index: index["metadata"].update(total_size=10**9), "1,000,000,000"),
        (lambda index: index.update(weight_map=[]), "weight_map"),
        (lambda index: index.update(weight_map={}), "no file"),
    ],
)
def test_wrong_index_of_shards_is_refused(tmp_path, change, named):
    index = write_shards(tmp_path, "model")
    change(index)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path)


def test_special_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    (tmp_path / "empty").mkdir()
    for name, named in [
        ("pipe.pth", "regular file"),
        ("loop.pth", "cannot be read"),
        ("zero.pth", "regular file"),
        ("empty", "model.safe"),
    ]:
        with pytest.raises(CheckpointError, match=rf"{name}.*{named}"):
            open_checkpoint(tmp_path / name)


def test_tar_and_plain_pickle_are_named(tmp_path):
    import tarfile

    torch.save(STATE, tmp_path / "weights.pth")
    with tarfile.open(tmp_path / "weights.pth.tar", "w") as archive:
        archive.add(tmp_path / "weights.pth", "weights.pth")
    with pytest.raises(CheckpointError, match="tar archive"):
        open_checkpoint(tmp_path / "weights.pth.tar")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": [1]}))
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        open_checkpoint(tmp_path / "plain.pkl")


def test_checkpoint_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    with pytest.raises(CheckpointError, match="overwritten"), open_contents(path):
        os.utime(path, ns=(1, 1))
