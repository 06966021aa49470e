from __future__ import annotations

import shutil

import pytest
from set_factories import copydays_tree, synthetic_videos

from dinoeval.data.copydays import BLOCKS, PUBLISHED, open_copydays
from dinoeval.errors import DataError


@pytest.fixture
def root(tmp_path):
    pictures = [path for frames in synthetic_videos(tmp_path / "videos", videos=2, frames=3).values() for path in frames]
    return copydays_tree(tmp_path / "copydays", pictures, scenes=4, strong=6)


def test_blocks_and_scenes(root):
    opened = open_copydays(root)
    assert list(opened.blocks) == list(BLOCKS)
    assert len(BLOCKS) == 20
    assert sum(PUBLISHED.values()) == 3_212
    assert [len(rows) for rows in opened.blocks.values()] == [4, 6, *[4] * 18]
    assert [opened.images.paths[row] for row in opened.blocks["strong"]] == [
        f"strong/{name}.jpg" for name in ("200001", "200002", "200101", "200102", "200201", "200301")
    ]
    assert opened.scenes[opened.blocks["strong"]].tolist() == ["2000", "2000", "2001", "2001", "2002", "2003"]


def test_blocks_that_are_not_there_are_left_out(root):
    shutil.rmtree(root / "crops")
    assert len(open_copydays(root).blocks) == 11
    shutil.rmtree(root / "strong")
    with pytest.raises(DataError, match="has no folder strong"):
        open_copydays(root)


def test_a_missing_file_is_named(root):
    (root / "jpegqual/8/200200.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 images.*jpegqual/8/200200.jpg"):
        open_copydays(root)
    assert open_copydays(root, allow_missing=True).missing == ("jpegqual/8/200200.jpg",)
    (root / "original/200300.jpg").unlink()
    with pytest.raises(DataError, match=r"no original of 19 images: strong/200301.jpg.*original/200300.jpg"):
        open_copydays(root, allow_missing=True)


def test_names_that_do_not_tell_the_scene(root):
    (root / "original/200200.jpg").rename(root / "original/200199.jpg")
    with pytest.raises(DataError, match=r"same four characters.*200100.jpg, 200199.jpg"):
        open_copydays(root)


def test_an_empty_block_and_no_set(root, tmp_path):
    for path in (root / "crops/80").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no \.jpg file in crops/80"):
        open_copydays(root)
    with pytest.raises(DataError, match="It holds nothing"):
        open_copydays(tmp_path / "nowhere")
