"""Checkpoint files in every layout, and files with every kind of error."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, hugging_face_state, synthetic_state
from safetensors.torch import save_file

import dinoeval
from dinoeval.errors import CheckpointError, ConfigError
from dinoeval.models.checkpoints import open_checkpoint, save_backbone, tensor_digest
from dinoeval.models.zoo import identify

STATE = synthetic_state(TINY)
OTHER = synthetic_state(TINY, seed=1)


def prefixed(prefix: str, state: dict = STATE) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def head(prefix: str) -> dict:
    return {f"{prefix}mlp.0.weight": torch.ones(4, 4), f"{prefix}last_layer.weight_g": torch.ones(9, 1)}


def full(**more) -> dict:
    """Return a checkpoint as main_dino.py writes it: a Namespace of options, NumPy floats of the schedules in the optimizer."""
    return {
        "student": {**prefixed("module.backbone.", OTHER), **head("module.head.")},
        "teacher": {**prefixed("backbone."), **head("head.")},
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.1), "weight_decay": np.float32(0.04), "params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, global_crops_scale=(0.4, 1.0)),
        "dino_loss": {"center": torch.zeros(1, 9)},
        **more,
    }


LAYOUTS = {
    "backbone only": STATE,
    "full": full(),
    "teacher under DDP": full(teacher={**prefixed("module.backbone."), **head("module.head.")}),
    "prefixes nested the other way": prefixed("backbone.module."),
    "compiled": prefixed("_orig_mod.module.backbone."),
    "before June 2021": full(teacher={**STATE, **head("projection_head.")}),
    "module only, old head": {"teacher": {**prefixed("module."), **head("module.projection_head.")}},
    "state_dict": {"state_dict": prefixed("module."), "epoch": 1},
    "timm with classifier": {**STATE, "head.weight": torch.zeros(10, 96), "head.bias": torch.zeros(10)},
    "nested twice": {"teacher": {"state_dict": prefixed("module.")}, "student": prefixed("module.", OTHER)},
    "a container of both": {"model": {"teacher": prefixed("backbone."), "student": OTHER}},
    "flat, networks as prefixes": {**prefixed("teacher.backbone."), **prefixed("student.backbone.", OTHER)},
    "Hugging Face": {**hugging_face_state(STATE), "pooler.dense.weight": torch.zeros(2, 2)},
    "Hugging Face task model": prefixed("vit.", hugging_face_state(STATE)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("container", ["zip", "pickle"])
def test_every_layout_opens_to_same_tensors(tmp_path, layout, container):
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout], path, _use_new_zipfile_serialization=container == "zip")
    assert tensor_digest(open_checkpoint(path).state) == tensor_digest(STATE)
    assert dinoeval.load(TINY, weights=path).digest == tensor_digest(STATE)


@pytest.mark.parametrize("layout", ["backbone only", "timm with classifier", "Hugging Face"])
def test_safetensors_and_folder_open_to_same_tensors(tmp_path, layout):
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in LAYOUTS[layout].items()}, path)
    assert tensor_digest(open_checkpoint(path).state) == tensor_digest(STATE)
    folder = open_checkpoint(tmp_path)  # in the layout of Hugging Face; it may contain the same weights in two formats
    assert tensor_digest(folder.state) == tensor_digest(STATE)
    assert folder.layout.startswith("model.safetensors, safetensors")


def test_key_selects_student_or_teacher(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(full(), path)
    teacher, student = open_checkpoint(path), open_checkpoint(path, "student")
    assert (teacher.key, student.key) == ("teacher", "student")
    assert tensor_digest(student.state) == tensor_digest(OTHER) != tensor_digest(teacher.state)
    assert "key student" in student.layout
    assert "prefix module.backbone." in student.layout
    assert "ignored head" in student.layout


def test_numpy_scalars_open_from_numpy_1_and_2(tmp_path):
    """NumPy 1 pickles scalars as numpy.core.multiarray.scalar, NumPy 2 as numpy._core.multiarray.scalar."""
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        path = tmp_path / "old.pth"
        torch.save(full(), path, _use_new_zipfile_serialization=False, pickle_protocol=2)
        content = path.read_bytes()
        assert b"numpy._core.multiarray\nscalar" in content or b"numpy.core.multiarray\nscalar" in content
        path.write_bytes(content.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module))
        assert open_checkpoint(path).key == "teacher"


def test_tensor_digest_depends_on_names_shapes_values_only(tmp_path):
    digest = tensor_digest(STATE)
    assert digest == tensor_digest(dict(reversed(STATE.items())))
    changed = {**STATE, "cls_token": STATE["cls_token"] + 1e-6}
    reshaped = {**STATE, "cls_token": STATE["cls_token"].reshape(1, 96, 1)}
    renamed = {name.replace("cls_token", "cls"): tensor for name, tensor in STATE.items()}
    assert len({digest, *map(tensor_digest, (changed, reshaped, renamed))}) == 4
    half_precision = {name: tensor.half() for name, tensor in STATE.items()}
    assert tensor_digest(half_precision) == tensor_digest({name: tensor.float() for name, tensor in half_precision.items()})


def test_loaded_tensors_survive_overwrite_of_file(tmp_path):
    """A training run overwrites its checkpoint every epoch, while other processes read it."""
    path = tmp_path / "weights.pth"
    for save in (lambda state: torch.save(state, path), lambda state: save_file(state, path.with_suffix(".safetensors"))):
        save(STATE)
        backbone = dinoeval.load(TINY, weights=max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns))
        save(OTHER)
        assert tensor_digest(backbone.network.state_dict()) == tensor_digest(STATE)


def test_open_raises_when_bit_is_flipped(tmp_path):
    save_backbone(tmp_path / "ours.safetensors", STATE, arch=TINY)
    torch.save(STATE, tmp_path / "weights.pth")
    for path in (tmp_path / "ours.safetensors", tmp_path / "weights.pth"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            open_checkpoint(path)


def test_load_uses_architecture_named_by_file(tmp_path, tiny_weights):
    with pytest.raises(ConfigError, match=r"vit_xs4_16, .*--arch is vit_xs4_16_h6"):
        dinoeval.load("vit_xs4_16_h6", weights=tiny_weights)
    torch.save({"teacher": STATE, "args": {"arch": TINY, "recipe": {}}}, tmp_path / "checkpoint.pth")  # as `dinoeval train` writes it
    assert dinoeval.load(weights=tmp_path / "checkpoint.pth").arch == TINY


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (torch.ones(96, dtype=torch.int8), r"floating-point numbers: norm\.bias"),
        (torch.zeros(96).to_sparse(), r"floating-point numbers: norm\.bias"),
        (torch.tensor(0.0), r"norm\.bias is \(\) .* \(96,\)"),
    ],
)
def test_load_raises_for_integer_sparse_or_scalar_tensor(tmp_path, tensor, named):
    torch.save({**STATE, "norm.bias": tensor}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=named):
        dinoeval.load(TINY, weights=tmp_path / "odd.pth")


class _RunsCode:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['DINOEVAL_TEST_TOUCH']}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_rejected_without_running(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("DINOEVAL_TEST_TOUCH", str(tmp_path / "ran"))
    path = tmp_path / "code.pth"
    torch.save({"teacher": STATE, "args": _RunsCode()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"(posix|os|nt)\.system"):
        open_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_open_raises_for_file_that_is_not_a_checkpoint(tmp_path):
    torch.save(full(), tmp_path / "intact.pth")
    intact = (tmp_path / "intact.pth").read_bytes()
    save_file(STATE, tmp_path / "intact.safetensors")
    tensors = (tmp_path / "intact.safetensors").read_bytes()
    for content, name, named in [
        (b"", "empty.pth", "empty"),
        (b"\n<!DOCTYPE html><html>404", "page.pth", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "pointer.bin", "Git LFS"),
        (intact[: len(intact) // 2], "cut.pth", "truncated"),
        (intact[:100], "stump.pth", "truncated"),
        (tensors[: len(tensors) // 2], "cut.safetensors", "truncated.*safetensors"),
        (b"hello, this is text, nothing more than a line of text", "text.pth", "not a checkpoint"),
        (pickle.dumps([1, 2]), "list.pth", "not a checkpoint|a list"),
    ]:
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)}.*{named}"):
            open_checkpoint(write(tmp_path / name, content))
    with pytest.raises(CheckpointError, match=r"nothing\.pth does not exist"):
        open_checkpoint(tmp_path / "nothing.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="a list"):
        open_checkpoint(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"nothing\.pth.*keys: epoch"):
        open_checkpoint(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({n: t for n, t in STATE.items() if n != "blocks.3.norm1.bias"}, r"missing .*\(1 of 54\): blocks\.3\.norm1\.bias"),
        ({**STATE, "blocks.4.norm1.bias": torch.zeros(96)}, r"unexpected .*\(1\): blocks\.4\.norm1\.bias"),
        ({**STATE, "pos_embed": torch.zeros(1, 51, 96)}, r"pos_embed is \(1, 51, 96\) in the file and \(1, 17, 96\) in the network"),
        ({**STATE, "norm.bias": torch.full((96,), float("nan"))}, r"NaN or infinite values in norm\.bias"),
        (prefixed("encoder."), r"missing .*\(54 of 54\)"),
    ],
)
def test_load_lists_tensors_that_do_not_fit(tmp_path, state, named):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=named):
        dinoeval.load(TINY, weights=tmp_path / "weights.pth")


def test_missing_key_error_lists_networks_of_file(tmp_path):
    torch.save({"student": prefixed("module.backbone."), "epoch": 1}, tmp_path / "student.pth")
    with pytest.raises(CheckpointError, match=r"'teacher'.*--key: student"):
        dinoeval.load(TINY, weights=tmp_path / "student.pth")
    assert dinoeval.load(TINY, weights=tmp_path / "student.pth", key="student").provenance.key == "student"


def test_open_raises_when_prefixes_hide_duplicate_names(tmp_path):
    torch.save({**prefixed("module."), **prefixed("backbone.")}, tmp_path / "twice.pth")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.proj\.bias"):
        open_checkpoint(tmp_path / "twice.pth")


def test_random_weights_are_explicit_and_reproducible():
    first, second = (dinoeval.load(TINY, weights="random") for _ in range(2))
    assert first.digest == second.digest
    assert first.provenance.random
    with pytest.raises(CheckpointError, match=r"'vit_xs4_16'.*--weights random"):
        dinoeval.load(TINY)


def test_load_does_not_change_random_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dinoeval.load(TINY, weights="random")
    assert torch.equal(torch.rand(3), expected)


def test_load_needs_no_arch_for_file_of_dinoeval(tiny_weights):
    backbone = dinoeval.load(weights=tiny_weights)
    assert (backbone.arch, backbone.dim, backbone.depth, backbone.patch_size) == (TINY, 96, 4, 4)


def test_load_suggests_name_and_requires_arch(tmp_path):
    torch.save(STATE, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"Did you mean vit_s16\?"):
        dinoeval.load(weights="vit_s61")
    with pytest.raises(ConfigError, match=r"weights\.pth.*--arch"):
        dinoeval.load(weights=tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["vit_s16", "random", "timm/vit_tiny_patch16_224.pth"])
def test_file_is_never_mistaken_for_a_model_name(tmp_path, monkeypatch, name):
    """`--weights ./vit_s16` is a file, and its Result must not be compared with the scores of the released vit_s16."""
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    torch.save(STATE, name)
    backbone = dinoeval.load(TINY, weights=f"./{name}", device="cpu")
    assert backbone.provenance.name == f"./{name}"
    assert not backbone.provenance.random
    assert identify(backbone.provenance.name, backbone.digest) is None
