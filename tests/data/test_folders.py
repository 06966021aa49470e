from __future__ import annotations

import os
import shutil
import unicodedata

import pytest
from factories import class_folders, synthetic_images
from torchvision import datasets

from dinoeval.data.folders import is_split_folder
from dinoeval.data.images import require_files
from dinoeval.data.opening import open_images, open_splits
from dinoeval.errors import BadImage, DataError


def test_class_folders_are_listed_as_in_torchvision(tmp_path):
    class_folders(tmp_path, extension="JPEG")
    (tmp_path / "train/class1/deep/er").mkdir(parents=True)
    synthetic_images(1)[0].save(tmp_path / "train/class1/deep/er/x.png")
    (tmp_path / "train/class1/notes.txt").write_text("not an image")
    train, val = open_splits(str(tmp_path))
    expected = datasets.ImageFolder(str(tmp_path / "train"))
    assert [str(tmp_path / "train" / path) for path in train.paths] == [path for path, _ in expected.samples]
    assert train.labels.tolist() == expected.targets
    assert list(train.classes) == expected.classes
    assert (len(train), len(val), val.split) == (25, 9, "val")


def test_test_folder_is_used_when_there_is_no_val(tmp_path):
    assert open_splits(str(class_folders(tmp_path, val_name="test")))[1].split == "test"


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "train/class0/0.png").rename(root / "train/class0/9.png"),
        lambda root: (root / "train/class0/0.png").unlink(),
        lambda root: (root / "train/class0/0.png").rename(root / "train/class1/00.png"),
        lambda root: (root / "train/class0/0.png").open("ab").write(b"!"),
    ],
    ids=["order", "count", "label", "size"],
)
def test_fingerprint_changes_with_names_labels_and_sizes(tmp_path, change):
    class_folders(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    change(tmp_path / "b")
    assert open_splits(str(tmp_path / "a"))[0].fingerprint() != open_splits(str(tmp_path / "b"))[0].fingerprint()


def test_fingerprint_does_not_depend_on_the_location(tmp_path):
    class_folders(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_splits(str(tmp_path / "a"))[0].fingerprint() == open_splits(str(tmp_path / "b"))[0].fingerprint()


def test_stamp_changes_when_a_file_is_replaced_by_equal_size(tmp_path):
    class_folders(tmp_path, extension="bmp")
    before = open_splits(str(tmp_path))[0]
    path = tmp_path / "train/class0/0.bmp"
    synthetic_images(1, seed=9)[0].save(path)
    os.utime(path, ns=(1, 1))
    after = open_splits(str(tmp_path))[0]
    assert (after.fingerprint() == before.fingerprint(), after.stamp == before.stamp) == (True, False)


def test_links_to_parent_folders_are_followed_once(tmp_path):
    (tmp_path / "set").mkdir()
    synthetic_images(1)[0].save(tmp_path / "set/x.png")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    assert open_images(tmp_path / "set").paths == ("x.png",)


def test_incomplete_class_folders_raise(tmp_path):
    def raises(mentioned: str) -> None:
        with pytest.raises(DataError, match=mentioned):
            open_splits(str(tmp_path))

    raises("train/ and val/.*contains nothing")
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    raises("train contains nothing")
    synthetic_images(1)[0].save(tmp_path / "train/x.png")
    raises("train contains 1 images but no class folders")
    class_folders(tmp_path)
    (tmp_path / "train/zebra").mkdir()
    raises("train has classes without images: zebra")
    synthetic_images(1)[0].save(tmp_path / "train/zebra/x.png")
    (tmp_path / "val/lion").mkdir()
    synthetic_images(1)[0].save(tmp_path / "val/lion/x.png")
    raises("only in train: zebra; only in val: lion")


STRAYS = [
    ".ipynb_checkpoints/x.png",
    "@eaDir/x.png",
    "__MACOSX/x.png",
    "$RECYCLE.BIN/x.png",
    "lost+found/x.png",
    "._0.png",
    ".DS_Store",
    "Thumbs.db",
]


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("place", ["", "train", "train/class1", "train/class1/deep"])
def test_hidden_files_and_folders_are_neither_images_nor_classes(tmp_path, stray, place):
    class_folders(tmp_path)
    (tmp_path / place / stray).parent.mkdir(parents=True, exist_ok=True)
    synthetic_images(1)[0].save(tmp_path / place / stray, "png")
    train, val = open_splits(str(tmp_path))
    assert (len(train), train.classes, len(val)) == (24, ("class0", "class1", "class2"), 9)
    assert len(open_images(tmp_path)) == 33
    counted = stray not in (".DS_Store", "Thumbs.db") and place != "" and not (place == "train" and "/" not in stray)
    assert dict(train.skipped) == ({"hidden": 1} if counted else {})


def test_hidden_folder_named_by_the_user_is_opened(tmp_path):
    data = class_folders(tmp_path / ".cache/@eaDir")
    assert [len(images) for images in open_splits(str(data))] == [24, 9]
    assert len(open_images(data / "val")) == 9


def test_other_files_are_counted_by_ending(tmp_path):
    class_folders(tmp_path)
    for name in ("train/a.txt", "train/class0/b.TXT", "train/class0/deep/c.txt", "train/class1/README", "val/class2/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    train, val = open_splits(str(tmp_path))
    assert (dict(train.skipped), dict(val.skipped)) == ({".txt": 3, "no ending": 1}, {".mp4": 1})
    assert dict(open_images(tmp_path / "train").skipped) == dict(train.skipped)
    assert dict(train.subset([0]).skipped) == dict(train.skipped)


def test_images_beside_class_folders_are_noted(tmp_path):
    class_folders(tmp_path)
    synthetic_images(1)[0].save(tmp_path / "val/loose.png")
    _, val = open_splits(str(tmp_path))
    assert (len(val), "loose.png" in val.notes[0]) == (9, True)


def test_broken_links_are_unreadable_images_or_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "train/class0/a.png").symlink_to("nowhere")
    (tmp_path / "train/class0/b.png").symlink_to("b.png")  # a loop
    (tmp_path / "train/class0/more").symlink_to("nowhere")
    train, _ = open_splits(str(tmp_path))
    assert (len(train), "class0, left out: more" in train.notes[0]) == (26, True)
    with pytest.raises(DataError, match=r"2 of 26 images.*class0/a\.png, class0/b\.png.*--bad-images skip"):
        require_files(train)
    for row in (8, 9):
        with pytest.raises(BadImage):
            train.open(row)
    (tmp_path / "val/class9").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"val has broken links.*class9"):
        open_splits(str(tmp_path))


@pytest.mark.parametrize("other", ["train.csv", "test/class0/x.png", "labels.TSV"])
def test_tables_and_splits_beside_class_folders_are_noted(tmp_path, other):
    class_folders(tmp_path)
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).write_text("path,label\n")
    train, _ = open_splits(str(tmp_path))
    assert other.partition("/")[0] in train.notes[0]


def test_class_of_one_split_only(tmp_path):
    """A class without evaluation images keeps its number and is noted; the others keep theirs."""
    class_folders(tmp_path)
    shutil.rmtree(tmp_path / "val/class1")
    train, val = open_splits(str(tmp_path))
    assert (val.classes, val.labels.tolist()) == (train.classes, [0, 0, 0, 2, 2, 2])
    assert "1 of 3 classes have no image in val: class1" in val.notes
    (tmp_path / "val/class1").mkdir()
    (tmp_path / "val/zebra").mkdir()
    again = open_splits(str(tmp_path))[1]
    assert (again.labels.tolist(), again.classes, again.notes) == (
        val.labels.tolist(),
        val.classes,
        ("classes only in val, which have no image: zebra", *val.notes),
    )
    shutil.rmtree(tmp_path / "train/class2")
    with pytest.raises(DataError, match="only in val: class2"):
        open_splits(str(tmp_path))


def test_composed_and_decomposed_class_names_are_one(tmp_path):
    class_folders(tmp_path)
    for split, form in (("train", "NFC"), ("val", "NFD")):
        (tmp_path / split / "class0").rename(tmp_path / split / unicodedata.normalize(form, "forêt"))
    train, val = open_splits(str(tmp_path))
    assert val.classes == train.classes == ("class1", "class2", "forêt")


def test_is_split_folder_tells_splits_from_images(tmp_path):
    class_folders(tmp_path / "a")
    assert [is_split_folder(tmp_path / name) for name in ("", "a", "a/train")] == [False, True, False]
