"""Images that are in both splits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from factories import class_folders, synthetic_images
from PIL import Image

from dinoeval.data.images import ImageSet, from_files, from_pixels
from dinoeval.data.leaks import note_shared_images
from dinoeval.data.opening import open_splits


@pytest.fixture
def leaky(tmp_path):
    """Class folders with two evaluation images that are copies of training images, one of them larger than what is compared first."""
    root = class_folders(tmp_path / "images")
    synthetic_images(1, (200, 200), seed=5)[0].save(root / "train/class0/large.bmp")
    shutil.copy(root / "train/class0/large.bmp", root / "val/class1/copy.bmp")
    shutil.copy(root / "train/class2/3.png", root / "val/class2/other.png")
    return root


def test_copies_are_noted_with_examples(leaky):
    train, val = open_splits(str(leaky))
    (note,) = val.notes
    assert note.startswith("2 of 11 images of val are also in train")
    assert "class1/copy.bmp = class0/large.bmp" in note
    assert "class2/other.png = class2/3.png" in note
    assert train.notes == ()


def test_clean_splits_have_no_note(tmp_path):
    """Equal sizes, and equal ends of files, are not enough."""
    root = class_folders(tmp_path, extension="bmp")
    for split, first in (("train", 0), ("val", 255)):
        pixels = np.zeros((200, 200, 3), np.uint8)
        pixels[-1] = first  # BMP stores the last line first
        Image.fromarray(pixels).save(root / split / "class0/x.bmp")
    assert open_splits(str(root))[1].notes == ()


def test_pixels_in_memory_are_compared():
    random = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    train, val = (from_pixels("set", "train", random[:4], np.zeros(4), ["a"]), from_pixels("set", "val", random[3:], np.zeros(3), ["a"]))
    assert "1 of 3 images of val" in note_shared_images(train, val)[0]
    assert "00000.png = 00003.png" in note_shared_images(train, val)[0]
    assert note_shared_images(train, val.subset([1, 2])) == ()


def test_limit_leaves_out_the_most_frequent_sizes(tmp_path):
    """One size has 2 files, another 5; with a limit of 2 files, only the first are compared."""
    one, other = (b"\x89PNG\r\n\x1a\n" + letter * count for letter, count in ((b"a", 10), (b"b", 20)))
    contents = {"train": [one, *[other] * 3], "val": [one, *[other] * 2]}
    for split, files in contents.items():
        for number, content in enumerate(files):
            (tmp_path / f"{split}{number}.png").write_bytes(content)
    train, val = (from_files("set", split, tmp_path, [f"{split}{n}.png" for n in range(len(files))]) for split, files in contents.items())
    assert [note[:6] for note in note_shared_images(train, val, limit=7)] == ["3 of 3"]
    shared, left_out = note_shared_images(train, val, limit=2)
    assert "1 of 3 images of val are also in train" in shared
    assert "1 of 3 images of val were compared" in left_out


def test_unreadable_files_are_not_compared(leaky):
    (leaky / "val/class0/gone.png").symlink_to("nowhere")
    assert "2 of 12 images" in open_splits(str(leaky))[1].notes[0]


def test_files_that_fit_in_the_first_read_are_read_once(leaky, monkeypatch):
    read, content = [], ImageSet.content

    def counted(images: ImageSet, row: int, last: int | None = None) -> bytes:
        read.append((images.split, images.paths[row]))
        return content(images, row, last)

    monkeypatch.setattr(ImageSet, "content", counted)
    assert "2 of 11 images" in open_splits(str(leaky))[1].notes[0]
    twice = {name for name in read if read.count(name) > 1}
    assert twice == {("train", "class0/large.bmp"), ("val", "class1/copy.bmp")}
    assert ("val", "class2/other.png") in read
