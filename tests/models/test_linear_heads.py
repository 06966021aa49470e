"""Files of linear heads that are corrupted or hostile."""

from __future__ import annotations

import json

import pytest
import torch

from dinoeval.errors import CheckpointError
from dinoeval.models.checkpoints import write_safetensors
from dinoeval.models.linear_head import open_head, save_head

WEIGHT, BIAS = torch.arange(6.0).reshape(2, 3), torch.tensor([1.0, -1.0])


def released(**changes) -> dict:
    return {"state_dict": {"module.linear.weight": WEIGHT, "module.linear.bias": BIAS, **changes}}


def test_saved_head_opens_equal(tmp_path):
    metadata = {"readout": "last4", "lr": 0.1, "classes": ["a", "b"], "backbone": "0" * 64}
    save_head(tmp_path / "head.pth", {"weight": WEIGHT, "bias": BIAS, "epoch": 4, "score": 50.0}, metadata)
    head = open_head(str(tmp_path / "head.pth"))
    assert torch.equal(head.weight, WEIGHT)
    assert torch.equal(head.bias, BIAS)
    assert head.metadata == metadata


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (released(**{"module.linear.weight": WEIGHT.to_sparse()}), "dense"),
        (released(**{"module.linear.weight": torch.zeros(1).expand(10**5, 10**5)}), "10,000,000,000 elements"),
        (released(**{"module.linear.weight": WEIGHT.int()}), "linear head"),
        (released(**{"module.linear.weight": torch.zeros(2, 0)}), "linear head"),
        (released(**{"module.linear.bias": torch.tensor([0.0, float("nan")])}), "NaN"),
        (released(**{"module.linear.bias": torch.zeros(3)}), "linear head"),
        ({**released(), "dinoeval": []}, "metadata"),
        ({**released(), "dinoeval": {"readout": 5}}, "readout"),
        ({**released(), "dinoeval": {"classes": "ab"}}, "classes"),
        ({**released(), "dinoeval": {"classes": ["a", "b", "c"]}}, "3 are named"),
        ([1], "linear head"),
    ],
)
def test_corrupted_head_is_refused(tmp_path, content, named):
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=rf"head\.pth.*{named}"):
        open_head(str(tmp_path / "head.pth"))


@pytest.mark.parametrize("classes", ["[", '{"a": 1}', "[1, 2]", "null", json.dumps(["a"]), "[" * 10_000])
def test_corrupted_list_of_classes_is_refused(tmp_path, classes):
    write_safetensors(tmp_path / "head.safetensors", {"weight": WEIGHT, "bias": BIAS}, {"classes": classes})
    with pytest.raises(CheckpointError, match=r"head\.safetensors.*class"):
        open_head(str(tmp_path / "head.safetensors"))


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None, lambda path: path.symlink_to(path)])
def test_head_that_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"--head.*head\.pth"):
        open_head(str(tmp_path / "head.pth"))
