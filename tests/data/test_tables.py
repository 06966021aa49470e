from __future__ import annotations

import numpy as np
import pytest
from factories import synthetic_images

from dinoeval.data.opening import open_images, open_splits
from dinoeval.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder with one image, x.png."""
    synthetic_images(1)[0].save(tmp_path / "x.png")
    return tmp_path


def test_table_with_splits_sorts_classes_by_name(folder):
    (folder / "set.csv").write_text("path,label,split\nx.png,dog,train\nx.png,a cat,train\nx.png,dog,val\nx.png,a cat,val\n")
    train, val = open_splits(str(folder / "set.csv"))
    assert (train.classes, train.labels.tolist(), val.labels.tolist()) == (("a cat", "dog"), [1, 0], [1, 0])
    assert len(open_images(folder / "set.csv")) == 4


def test_folder_with_one_table_per_split(folder):
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("label,path\n7,x.png\n3,x.png\n")
    train, test = open_splits(str(folder))
    assert (train.classes, train.labels.tolist(), test.split) == (("3", "7"), [1, 0], "test")


@pytest.mark.parametrize(
    ("table", "mentioned"),
    [
        ("file,label\nx.png,1\n", "'path'"),
        ("path,label,split\n", "no rows"),
        ("path,label,split\n,1,train\n", "line 2"),
        ("path,label\nx.png,1\n", r"'split' with train and val \(or test\), found \(none\)"),
        ("path,label,split\nx.png,1,train\nx.png,1,val\nx.png,1,test\n", r"train and val, found test, train, val"),
        ("path,label,split\nx.png,,train\nx.png,1,val\n", r"1 of 1 rows of train have no label: x\.png"),
        ("path,label,split\nx.png,1,train\ny.png,1,val\n", r"y\.png"),
        ("path,label,split\nx.png,1,train\nx.png,2,val\n", "only in train: 1; only in val: 2"),
    ],
)
def test_invalid_tables_raise(folder, table, mentioned):
    (folder / "set.csv").write_text(table)
    with pytest.raises(DataError, match=mentioned):
        open_splits(str(folder / "set.csv"))


def test_multi_label_table_has_any_number_of_labels(tmp_path):
    for number, image in enumerate(synthetic_images(3)):
        image.save(tmp_path / f"{number}.png")
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
    ("table", "mentioned"),
    [
        ("path,label,labels,split\nx.png,1,1,train\nx.png,1,1,val\n", "'label' and a column 'labels'"),
        ("split,path,labels\ntrain,x.png\nval,x.png,1\n", r"1 of 1 rows of train have no labels: x\.png"),
        ("split,path,labels\ntrain,x.png,1,2\nval,x.png,1\n", r"train have more cells than columns: x\.png.*';'"),
        ("split,path,labels\ntrain,x.png,1;2\nval,x.png,1\n", "only in train: 2"),
        ("split,path,labels\ntrain,x.png,\nval,x.png,\n", r"\(train\) has no classes"),
    ],
)
def test_invalid_multi_label_tables_raise(folder, table, mentioned):
    (folder / "set.csv").write_text(table)
    with pytest.raises(DataError, match=mentioned):
        open_splits(str(folder / "set.csv"))


def test_multi_label_and_single_label_splits_raise(folder):
    (folder / "train.csv").write_text("path,label\nx.png,1\n")
    (folder / "val.csv").write_text("path,labels\nx.png,1\n")
    with pytest.raises(DataError, match="multi-label"):
        open_splits(str(folder))
