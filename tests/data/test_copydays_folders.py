from __future__ import annotations

import shutil

import pytest
from set_factories import copydays_tree, synthetic_videos

from dinoeval.data.copydays import BLOCKS, PUBLISHED_COUNTS, open_copydays
from dinoeval.errors import DataError


@pytest.fixture
def root(tmp_path):
    images = [path for frames in synthetic_videos(tmp_path / "videos", videos=2, frames=3).values() for path in frames]
    return copydays_tree(tmp_path / "copydays", images, scenes=4, strong=6)


def test_published_dataset_has_20_blocks_of_3212_images():
    assert len(BLOCKS) == 20
    assert sum(PUBLISHED_COUNTS.values()) == 3_212


def test_copydays_has_rows_and_scenes_of_all_blocks(root):
    opened = open_copydays(root)
    assert list(opened.blocks) == list(BLOCKS)
    assert [len(rows) for rows in opened.blocks.values()] == [4, 6, *[4] * 18]
    assert [opened.images.paths[row] for row in opened.blocks["strong"]] == [
        f"strong/{name}.jpg" for name in ("200001", "200002", "200101", "200102", "200201", "200301")
    ]
    assert opened.scenes[opened.blocks["strong"]].tolist() == ["2000", "2000", "2001", "2001", "2002", "2003"]


def test_copydays_leaves_out_absent_blocks_but_needs_strong(root):
    shutil.rmtree(root / "crops")
    assert len(open_copydays(root).blocks) == 11
    shutil.rmtree(root / "strong")
    with pytest.raises(DataError, match="no folder strong"):
        open_copydays(root)


def test_copydays_names_missing_copies(root):
    (root / "jpegqual/8/200200.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images.*jpegqual/8/200200\.jpg"):
        open_copydays(root)
    assert open_copydays(root, allow_missing=True).missing == ("jpegqual/8/200200.jpg",)


def test_copydays_names_missing_originals(root):
    (root / "original/200300.jpg").unlink()
    with pytest.raises(DataError, match=r"19 images: strong/200301\.jpg.*original/200300\.jpg"):
        open_copydays(root, allow_missing=True)


def test_copydays_raises_when_two_originals_share_a_scene(root):
    (root / "original/200200.jpg").rename(root / "original/200199.jpg")
    with pytest.raises(DataError, match=r"200100\.jpg, 200199\.jpg"):
        open_copydays(root)


def test_copydays_raises_when_a_block_is_empty(root):
    for path in (root / "crops/80").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="crops/80"):
        open_copydays(root)


def test_copydays_raises_when_the_folder_does_not_exist(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*nothing"):
        open_copydays(tmp_path / "nowhere")


def test_copydays_ignores_hidden_files_and_counts_others(root):
    for name in ("original/._200000.jpg", "strong/.DS_Store", "strong/@eaDir/x.jpg", "jpegqual/8/list.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    opened = open_copydays(root)
    assert [len(rows) for rows in opened.blocks.values()] == [4, 6, *[4] * 18]
    assert dict(opened.images.skipped) == {".txt": 1}
