"""Every protocol checks its data before it loads the network, which may have to be downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from segmentation_factories import masked_folder
from video_factories import davis_tree, synthetic_video

import dinoeval
from dinoeval.errors import CheckpointError, DinoevalError


def davis(root: Path) -> dict[str, Any]:
    davis_tree(root, {"a": synthetic_video()})
    (root / "Annotations/480p/a/00002.png").unlink()
    return {"data": root}


def segment(root: Path) -> dict[str, Any]:
    masked_folder(root)
    mask = min((root / "masks").iterdir())
    Image.open(mask).resize((9, 7)).save(mask)
    return {"data": root}


def copydays(root: Path) -> dict[str, Any]:
    (root / "original").mkdir(parents=True)
    return {"data": root}


def missing_list(root: Path) -> dict[str, Any]:
    return {"train_subset": root / "missing.txt"}


def no_queries(root: Path) -> dict[str, Any]:
    (root / "roxford5k").mkdir(parents=True)
    return {"data": root}


def one_class(root: Path) -> dict[str, Any]:
    for split in ("train", "val"):
        folder = root / split / "cat"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
    return {"data": root, "preset": "short"}


CASES = {
    "copydays": (copydays, "original|strong"),
    "davis": (davis, "00002"),
    "finetune": (one_class, "cat"),
    "knn": (missing_list, "missing.txt"),
    "linear": (missing_list, "missing.txt"),
    "logistic": (missing_list, "missing.txt"),
    "retrieval": (no_queries, "roxford5k"),
    "segment": (segment, "9 x 7"),
}


@pytest.mark.parametrize("protocol", CASES)
def test_data_is_checked_before_the_network_is_loaded(protocol, tmp_path):
    make, named = CASES[protocol]
    with pytest.raises(DinoevalError, match=named) as raised:
        dinoeval.evaluate(protocol, "missing.pth", **make(tmp_path / "data"))
    assert not isinstance(raised.value, CheckpointError)


def test_missing_weights_are_named_if_the_data_are_right(image_folder):
    with pytest.raises(CheckpointError, match=r"missing\.pth"):
        dinoeval.evaluate("knn", "missing.pth", data=image_folder, k=3)
