from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from factories import synthetic_images

from dinoeval.data import tables
from dinoeval.data.opening import open_images, open_splits
from dinoeval.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A folder with the images x.png, y.png, a/x.png and a/été.png."""
    (tmp_path / "a").mkdir()
    for name, image in zip(("x.png", "y.png", "a/x.png", "a/été.png"), synthetic_images(4), strict=True):
        image.save(tmp_path / name)
    return tmp_path


def test_table_with_splits_sorts_classes_by_name(folder):
    (folder / "set.csv").write_text("path,label,split\nx.png,dog,train\ny.png,a cat,train\nx.png,dog,val\ny.png,a cat,val\n")
    train, val = open_splits(str(folder / "set.csv"))
    assert (train.classes, train.labels.tolist(), val.labels.tolist()) == (("a cat", "dog"), [1, 0], [1, 0])
    assert open_images(folder / "set.csv").paths == ("x.png", "y.png", "x.png", "y.png")


@pytest.mark.parametrize("endings", [("csv", "csv"), ("TSV", "csv")])
def test_folder_with_one_table_per_split(folder, endings):
    for name, ending in zip(("train", "test"), endings, strict=True):
        (folder / f"{name}.{ending}").write_text("label,path\n7,x.png\n3,y.png\n")
    train, test = open_splits(str(folder))
    assert (train.classes, train.labels.tolist(), test.split) == (("3", "7"), [1, 0], "test")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
def test_common_dialects_are_read_alike(folder, separator, encoding, end):
    (folder / f"a{separator}b.png").write_bytes((folder / "x.png").read_bytes())
    lines = [
        ["Path", "label", "split", ""],
        [f'"a{separator}b.png"', "dog", "train", ""],
        ["y.png", "é", "train"],
        ["y.png", "é", "val", ""],
    ]
    (folder / "set.csv").write_bytes((end.join(separator.join(cells) for cells in lines) + end).encode(encoding))
    train, val = open_splits(str(folder / "set.csv"))
    assert (train.paths, train.classes, train.labels.tolist()) == ((f"a{separator}b.png", "y.png"), ("dog", "é"), [0, 1])
    assert (val.paths, val.labels.tolist(), val.classes) == (("y.png",), [1], ("dog", "é"))


@pytest.mark.parametrize(
    "heading",
    [
        "path,label,split",
        "Path,Label,Split",
        "filename,class,set",
        "image,target,subset",
        " file name , Class-Name,split",
        ",path,label,split",
    ],
)
def test_common_names_of_columns_are_read(folder, heading):
    index = "0," if heading.startswith(",") else ""  # an index column of pandas has no name
    rows = [f"{index}{row}" for row in ("x.png, 1 ,train", "./y.png,2,train", "y.png,2,valid")]
    (folder / "set.csv").write_text("\n".join([heading, *rows]))
    train, val = open_splits(str(folder / "set.csv"))
    assert (train.paths, train.classes, val.split, val.labels.tolist()) == (("x.png", "y.png"), ("1", "2"), "val", [1])


def test_excel_separator_line_is_read(folder):
    (folder / "set.csv").write_text("sep=;\nfile;note;label;split\nx.png;a,b;1;train\ny.png;;2;train\nx.png;;1;val\n")
    assert open_splits(str(folder / "set.csv"))[0].paths == ("x.png", "y.png")


@pytest.mark.parametrize("written", ["a\\x.png", "{folder}/a/x.png", "./a/x.png", "a/x.png"])
def test_paths_of_other_systems_are_found(folder, written):
    (folder / "set.csv").write_text(f"path\n{written.format(folder=folder)}\n")
    assert open_images(folder / "set.csv").paths == ("a/x.png",)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_one(tmp_path, on_disk, in_table):
    name = unicodedata.normalize(on_disk, "é/ü.png")
    (tmp_path / name).parent.mkdir()
    synthetic_images(1)[0].save(tmp_path / name)
    (tmp_path / "set.csv").write_text(f"path\n{unicodedata.normalize(in_table, 'é/ü.png')}\n")
    assert open_images(tmp_path / "set.csv").paths == (name,)


@pytest.mark.parametrize(
    ("table", "mentioned"),
    [
        ("picture,label\nx.png,1\n", "'path'.*commas: 'picture', 'label'"),
        ("picture;label\nx.png;1\n", "semicolons: 'picture', 'label'"),
        ("x.png,1,train\ny.png,1,val\n", r"no heading.*'x\.png', '1', 'train'"),
        ("", "is empty"),
        ("path,label,split\n", "no rows"),
        ("path,label,split\n,1,train\n", "line 2"),
        ("path,label\nx.png,1\n", r"'split' with train and val \(or test\), found \(none\)"),
        ("path,label,split\nx.png,1,train\nx.png,1,val\nx.png,1,test\n", r"train and val, found test, train, val"),
        ("path,label,split\nx.png,,train\nx.png,1,val\n", r"1 of 1 rows of train have no label: line 2 \(x\.png\)"),
        ("path,label,split\nx.png,\xa0,train\nx.png,1,val\n", r"have no label: line 2 \(x\.png\)"),
        ("path,label,split\nx.png,1\nx.png,1,val\n", r"found \(none\), val"),
        ("path,label,split\nx.png,1,train\nz.png,1,val\n", r"z\.png"),
        ("path,label,split\nC:\\data\\x.png,1,train\nx.png,1,val\n", "C:/data/x"),
        ("path,label,split\nx.png,1,train\nx.png,2,val\n", "only in train: 1; only in val: 2"),
        ("path,label,split\nx, y.png,1,train\nx.png,1,val\n", "more cells than columns in line 2.*3 columns.*commas"),
        ('path,label,split\n"x.png,1,train\nx.png,1,val\n', "line 2.*quote"),
        ("path,label,split\nx.png,1,train\n./x.png,2,train\nx.png,1,val\n", r"several times with different labels: x\.png \(lines 2, 3\)"),
        ("path,file,split\nx.png,1,train\nx.png,1,val\n", "no column 'label'; its columns are 'path', 'file', 'split'"),
        ("path,class_id,class_name,split\nx.png,1,a,train\nx.png,1,a,val\n", "'class_id', 'class_name'"),
    ],
)
def test_invalid_tables_raise(folder, table, mentioned):
    (folder / "set.csv").write_bytes(table.encode())
    with pytest.raises(DataError, match=mentioned):
        open_splits(str(folder / "set.csv"))


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        ("path\nx.png\né.png\n".encode("latin-1"), "not UTF-8 text: line 3 has the byte 0xe9"),
        (b"path\nx\0.png\n", "zero bytes"),
        (bytes(range(256)) * 4, "set.csv"),
    ],
)
def test_files_that_are_not_text_raise(folder, content, mentioned):
    (folder / "set.csv").write_bytes(content)
    with pytest.raises(DataError, match=mentioned):
        open_images(folder / "set.csv")


def test_repeated_rows_are_noted(folder):
    (folder / "set.csv").write_text("path,label,split\nx.png,1,train\n./x.png,1,train\ny.png,2,train\na/x.png,1,val\n")
    train, val = open_splits(str(folder / "set.csv"))
    assert len(train) == 3
    assert "x.png" in train.notes[0]
    assert [("1 of 2 classes" in note, ": 2" in note) for note in val.notes] == [(True, True)]


def test_multi_label_table_has_any_number_of_labels(tmp_path):
    for number, image in enumerate(synthetic_images(4)):
        image.save(tmp_path / f"{number}.png")
    rows = ["path,labels,split", "0.png,dog; a cat,train", "1.png,,train", "2.png,cow;;cow,train", "3.png,a cat;dog,val"]
    (tmp_path / "set.csv").write_text("\n".join(rows))
    train, val = open_splits(str(tmp_path / "set.csv"))
    assert (train.multi_label, train.labels.dtype, train.classes) == (True, np.int8, ("a cat", "cow", "dog"))
    assert train.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert (val.labels.tolist(), val.classes, "cow" in val.notes[0]) == ([[1, 0, 1]], train.classes, True)
    part = train.subset([2, 0])
    assert (part.labels.tolist(), part.paths, part.multi_label) == ([[0, 1, 0], [1, 0, 1]], ("2.png", "0.png"), True)
    assert part.open(0).tobytes() == train.open(2).tobytes()


@pytest.mark.parametrize(
    ("table", "mentioned"),
    [
        ("path,label,labels,split\nx.png,1,1,train\nx.png,1,1,val\n", "'labels' and one for a single label"),
        ("split,path,labels\ntrain,x.png\nval,x.png,1\n", r"1 of 1 rows of train have no labels: line 2 \(x\.png\)"),
        ("split,path,labels\ntrain,x.png,1,2\nval,x.png,1\n", r"more cells than columns in line 2.*';'"),
        ("split,path,labels\ntrain,x.png,1\nval,x.png,1;2\n", "only in val: 2"),
        ("split,path,labels\ntrain,x.png,\nval,x.png,\n", r"\(train\) has no classes"),
    ],
)
def test_invalid_multi_label_tables_raise(folder, table, mentioned):
    (folder / "set.csv").write_text(table)
    with pytest.raises(DataError, match=mentioned):
        open_splits(str(folder / "set.csv"))


def test_label_matrix_beyond_the_limit_raises(folder, monkeypatch):
    (folder / "set.csv").write_text("path,labels,split\nx.png,1;2,train\ny.png,3,train\nx.png,1,val\n")
    monkeypatch.setattr(tables, "MAX_LABEL_CELLS", 6)
    assert open_splits(str(folder / "set.csv"))[0].labels.shape == (2, 3)
    monkeypatch.setattr(tables, "MAX_LABEL_CELLS", 5)
    with pytest.raises(DataError, match=r"3 distinct labels.*2 images of train"):
        open_splits(str(folder / "set.csv"))


def test_multi_label_and_single_label_splits_raise(folder):
    (folder / "train.csv").write_text("path,label\nx.png,1\n")
    (folder / "val.csv").write_text("path,labels\nx.png,1\n")
    with pytest.raises(DataError, match="multi-label"):
        open_splits(str(folder))
