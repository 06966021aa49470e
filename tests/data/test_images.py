from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import class_folders, synthetic_images
from torchvision import datasets

from dinoeval.data.images import ImageSet, in_memory, require_classes
from dinoeval.data.opening import open_images, open_splits
from dinoeval.errors import BadImage, DataError


def test_class_folders_list_as_torchvision_does(tmp_path):
    class_folders(tmp_path, ending="JPEG")
    (tmp_path / "train/class1/deep/er").mkdir(parents=True)
    synthetic_images(1)[0].save(tmp_path / "train/class1/deep/er/x.png")
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
    synthetic_images(1, seed=9)[0].save(path)
    os.utime(path, ns=(1, 1))
    after = open_splits(str(tmp_path))[0]
    assert (after.fingerprint() == before.fingerprint(), after.stamp == before.stamp) == (True, False)


def test_tables(tmp_path):
    synthetic_images(1)[0].save(tmp_path / "x.png")
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
    synthetic_images(1)[0].save(tmp_path / "x.png")
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
    synthetic_images(1)[0].save(tmp_path / "train/x.png")
    refused("train holds 1 images but no class folders")
    class_folders(tmp_path)
    (tmp_path / "train/zebra").mkdir()
    refused("classes without an image in .*train: zebra")
    synthetic_images(1)[0].save(tmp_path / "train/zebra/x.png")
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
    synthetic_images(1, (200, 200))[0].save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage, match="truncated"):
        open_images(tmp_path).open(0)


def labelled(labels: np.ndarray, classes: tuple[str, ...]) -> ImageSet:
    return dataclasses.replace(in_memory(synthetic_images(len(labels))), labels=labels, classes=classes, name="made", split="train")


def test_a_table_may_hold_several_labels_an_image(tmp_path):
    for number, picture in enumerate(synthetic_images(3)):
        picture.save(tmp_path / f"{number}.png")
    rows = ["path,labels,split", "0.png,dog; a cat,train", "1.png,,train", "2.png,cow;;cow,train", "2.png,a cat;cow;dog,val"]
    (tmp_path / "set.csv").write_text("\n".join(rows))
    train, val = open_splits(str(tmp_path / "set.csv"))
    assert (train.multi_label, train.labels.dtype, train.classes) == (True, np.int8, ("a cat", "cow", "dog"))
    assert train.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert val.labels.tolist() == [[1, 1, 1]]
    part = train.subset([2, 0])
    assert (part.labels.tolist(), part.paths, part.multi_label) == ([[0, 1, 0], [1, 0, 1]], ("2.png", "0.png"), True)
    assert part.open(0).tobytes() == train.open(2).tobytes()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("path,label,labels,split\nx.png,1,1,train\nx.png,1,1,val\n", "a column 'label' and a column 'labels'"),
        ("split,path,labels\ntrain,x.png\nval,x.png,1\n", "1 of 1 rows of train have no labels: x.png"),
        ("split,path,labels\ntrain,x.png,1,2\nval,x.png,1\n", "rows of train are longer than the heading: x.png.*separated by ';'"),
        ("split,path,labels\ntrain,x.png,1;2\nval,x.png,1\n", "only in train: 2"),
        ("split,path,labels\ntrain,x.png,\nval,x.png,\n", r"\(train\) names no class"),
    ],
)
def test_tables_of_several_labels_that_cannot_be_used(tmp_path, table, said):
    synthetic_images(1)[0].save(tmp_path / "x.png")
    (tmp_path / "set.csv").write_text(table)
    with pytest.raises(DataError, match=said):
        open_splits(str(tmp_path / "set.csv"))


def test_halves_of_different_kinds_are_refused(tmp_path):
    synthetic_images(1)[0].save(tmp_path / "x.png")
    (tmp_path / "train.csv").write_text("path,label\nx.png,1\n")
    (tmp_path / "val.csv").write_text("path,labels\nx.png,1\n")
    with pytest.raises(DataError, match="one half has one label an image, the other any number"):
        open_splits(str(tmp_path))


def test_the_fingerprint_knows_every_mark_of_several_labels():
    zero = np.zeros((3, 2), np.int8)
    marks = [zero, *(zero.copy() for _ in range(2))]
    marks[1][1, 0], marks[2][1, 0] = 1, -1
    several = {labelled(each, ("a", "b")).fingerprint() for each in marks}
    assert len(several) == 3
    # The same bytes mean the opposite: everything is of the one class, nothing is.
    assert labelled(np.zeros(3, np.int64), ("a",)).fingerprint() != labelled(np.zeros((3, 1), np.int8), ("a",)).fingerprint()


def test_a_protocol_can_ask_for_classes():
    one = labelled(np.array([1, 1, 1]), ("a", "b", "c"))
    with pytest.raises(DataError, match=r"of made \(train\) are of too few classes: b; 2 are needed"):
        require_classes(one)
    require_classes(one, at_least=1)
    require_classes(labelled(np.array([1, 0, 1]), ("a", "b", "c")))
    absent = labelled(np.array([[0, 1], [-1, 1]], np.int8), ("a", "b"))  # a is difficult, which is not present
    with pytest.raises(DataError, match="too few classes: b; 2"):
        require_classes(absent)
    with pytest.raises(DataError, match="has no labels"):
        require_classes(in_memory(synthetic_images(1)))
