from __future__ import annotations

import os
import shutil

import pytest
from factories import class_folders, synthetic_images
from torchvision import datasets

from dinoeval.data.opening import open_images, open_splits
from dinoeval.errors import DataError


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
    raises("train is empty")
    synthetic_images(1)[0].save(tmp_path / "train/x.png")
    raises("train contains 1 images but no class folders")
    class_folders(tmp_path)
    (tmp_path / "train/zebra").mkdir()
    raises("train has classes without images: zebra")
    synthetic_images(1)[0].save(tmp_path / "train/zebra/x.png")
    raises("only in train: zebra")
