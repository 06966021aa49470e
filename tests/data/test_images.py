from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import class_folders, made_up_images
from torchvision import datasets

from dinoeval.data.images import BadImage, open_images, open_splits
from dinoeval.errors import DataError


def test_class_folders_list_as_torchvision_does(tmp_path):
    class_folders(tmp_path, ending="JPEG")
    (tmp_path / "train/class1/deep/er").mkdir(parents=True)
    made_up_images(1)[0].save(tmp_path / "train/class1/deep/er/x.png")
    (tmp_path / "train/class1/notes.txt").write_text("no picture")
    train, val = open_splits(str(tmp_path))
    theirs = datasets.ImageFolder(str(tmp_path / "train"))
    assert [str(tmp_path / "train" / path) for path in train.paths] == [path for path, _ in theirs.samples]
    assert train.labels.tolist() == theirs.targets
    assert list(train.classes) == theirs.classes
    assert (len(train), len(val), val.split) == (25, 9, "val")


def test_test_is_taken_for_val(tmp_path):
    assert open_splits(str(class_folders(tmp_path, val_name="test")))[1].split == "test"


def test_the_fingerprint_knows_names_order_sizes_and_labels_and_not_the_place(tmp_path):
    class_folders(tmp_path / "a")
    before = open_splits(str(tmp_path / "a"))[0]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_splits(str(tmp_path / "b"))[0].fingerprint() == before.fingerprint()
    for change in (
        lambda root: (root / "train/class0/0.png").rename(root / "train/class0/9.png"),
        lambda root: (root / "train/class0/0.png").unlink(),
        lambda root: (root / "train/class0/0.png").rename(root / "train/class1/00.png"),
        lambda root: (root / "train/class0/0.png").open("ab").write(b"!"),
    ):
        shutil.rmtree(tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        change(tmp_path / "b")
        assert open_splits(str(tmp_path / "b"))[0].fingerprint() != before.fingerprint()


def test_another_file_of_the_same_size_changes_the_stamp(tmp_path):
    class_folders(tmp_path, ending="bmp")
    before = open_splits(str(tmp_path))[0]
    path = tmp_path / "train/class0/0.bmp"
    made_up_images(1, seed=9)[0].save(path)
    os.utime(path, ns=(1, 1))
    after = open_splits(str(tmp_path))[0]
    assert (after.fingerprint() == before.fingerprint(), after.stamp == before.stamp) == (True, False)


def test_tables(tmp_path):
    made_up_images(1)[0].save(tmp_path / "x.png")
    (tmp_path / "set.csv").write_text("path,label,split\nx.png,dog,train\nx.png,a cat,train\nx.png,dog,val\nx.png,a cat,val\n")
    train, val = open_splits(str(tmp_path / "set.csv"))
    assert (train.classes, train.labels.tolist(), val.labels.tolist()) == (("a cat", "dog"), [1, 0], [1, 0])
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("label,path\n7,x.png\n3,x.png\n")
    train, test = open_splits(str(tmp_path))
    assert (train.classes, test.split, len(open_images(tmp_path / "set.csv"))) == (("3", "7"), "test", 4)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file,label\nx.png,1\n", "no column 'path'"),
        ("path,label,split\n", "no rows"),
        ("path,label\nx.png,1\n", r"needs a column 'split' with train and val \(or test\); found: \(none\)"),
        ("path,label,split\nx.png,,train\nx.png,1,val\n", "1 of 1 rows of train have no label: x.png"),
        ("path,label,split\nx.png,1,train\ny.png,1,val\n", "no image .*y.png"),
        ("path,label,split\nx.png,1,train\nx.png,2,val\n", "only in train: 1; only in val: 2"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, table, said):
    made_up_images(1)[0].save(tmp_path / "x.png")
    (tmp_path / "set.csv").write_text(table)
    with pytest.raises(DataError, match=said):
        open_splits(str(tmp_path / "set.csv"))


def test_folders_that_cannot_be_used(tmp_path):
    def refused(said: str, where: Path = tmp_path) -> None:
        with pytest.raises(DataError, match=said):
            open_splits(str(where))

    refused("holds neither train/ and val/ .*; it holds nothing")
    refused("no folder or file .*imagnet.*Did you mean imagenet", Path("imagnet"))
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    refused("train is empty")
    made_up_images(1)[0].save(tmp_path / "train/x.png")
    refused("train holds 1 images but no class folders")
    class_folders(tmp_path)
    (tmp_path / "train/zebra").mkdir()
    refused("classes without an image in .*train: zebra")
    made_up_images(1)[0].save(tmp_path / "train/zebra/x.png")
    refused("classes of .* differ between its halves; only in train: zebra")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        open_images(tmp_path / "void")
    with pytest.raises(DataError, match=r"no image .*nothing\.png"):
        open_images([tmp_path / "nothing.png"])


@pytest.mark.parametrize("content", [b"this is text", b"", b"\xff\xd8\xff\xe0 no JPEG after all"])
def test_a_file_that_is_no_picture_is_a_bad_image(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(BadImage):
        open_images(tmp_path).open(0)


def test_a_truncated_picture_is_a_bad_image(tmp_path):
    made_up_images(1, (200, 200))[0].save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage, match="truncated"):
        open_images(tmp_path).open(0)


def test_digits_are_there_without_a_network():
    train, val = open_splits("digits")
    assert (len(train), len(val), train.classes) == (1348, 449, tuple("0123456789"))
    assert train.open(0).size == (8, 8)


def test_named_sets_say_where_they_are_looked_for(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"\$DINOEVAL_DATA/cifar10"):
        open_splits("cifar10")
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/imagenet/train"):
        open_splits("imagenet")
    with pytest.raises(DataError, match=f"is not in {tmp_path}/cifar10 and DINOEVAL_OFFLINE is set"):
        open_splits("cifar10")
    class_folders(tmp_path / "cifar10", val_name="test")
    assert len(open_splits("cifar10")[0]) == 24


def test_cifars_own_files_are_read_through_torchvision(monkeypatch, tmp_path):
    """The published layout with made-up pixels, whose hashes torchvision is told."""
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    folder = tmp_path / "cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        content = {"data": random.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{number}" for number in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, None] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    train, test = open_splits("cifar10")
    assert (len(train), len(test), train.open(0).size, test.labels.tolist()) == (20, 4, (32, 32), [0, 1, 2, 9])
