"""`dinoeval models`."""

from __future__ import annotations

import torch

from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.testing import TINY_ARCH, tiny_state


def test_models_lists_published_scores(call):
    code, out, _ = call("models")
    row = next(line for line in out.splitlines() if line.startswith("vit_s8 "))
    assert (code, row.split()[3:5]) == (0, ["78.3", "79.7"])
    assert "dinoeval models fetch vit_s8" in row


def test_convert_reads_a_full_checkpoint(call, tmp_path):
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in tiny_state().items()}}, tmp_path / "a.pth")
    code, out, _ = call("models", "convert", tmp_path / "a.pth", tmp_path / "a.safetensors", "--arch", TINY_ARCH)
    assert (code, "backbone." in out) == (0, True)
    assert call("models", "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors")[0] == 0
    converted = open_checkpoint(tmp_path / "b.safetensors")
    assert converted.arch == TINY_ARCH
    assert tensor_digest(converted.state) == tensor_digest(tiny_state())


def test_embed_rejects_a_checkpoint_as_image(call, tmp_path):
    torch.save(tiny_state(), tmp_path / "a.pth")
    assert call("embed", tmp_path / "a.pth", "--out", tmp_path / "x.npy")[0] == 2
