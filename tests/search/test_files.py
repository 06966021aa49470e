"""An index whose images were deleted, changed, linked or moved after it was built."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval import search
from dinoeval.errors import DinoevalError
from dinoeval.search.files import FileDetails

ALL = -1.0
"""A threshold that all pairs reach."""


def listed(index: search.ImageIndex, threshold: float = ALL) -> set[str]:
    return {path for group in index.duplicates(threshold) for path in group.paths}


def replace_keeping_size(path: Path, times: os.stat_result | None = None) -> None:
    """Replace the content of a file by other bytes of the same number, and restore its times on demand."""
    size = path.stat().st_size
    path.write_bytes(np.random.default_rng(0).bytes(size))
    if times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_links_to_one_file_are_one_image(photos, backbone, tmp_path, caplog):
    original = photos / "class1/2.png"
    (photos / "class0/0-album.png").symlink_to(original)
    os.link(original, photos / "class2/backup.png")
    (photos / "class2/album").symlink_to(photos / "class0", target_is_directory=True)
    shutil.copy(photos / "class0/3.png", photos / "class1/copy.png")
    index = search.build(photos, tmp_path / "index", backbone)
    files = index.check_files()
    row = index.paths.index(str(original))
    assert files.links[row] == [str(photos / "class0/0-album.png"), str(photos / "class2/backup.png")]
    (group,) = index.duplicates(0.99999)
    assert group.paths == [str(photos / "class0/3.png"), str(photos / "class1/copy.png")]
    assert group.identical_to == [None, str(photos / "class0/3.png")]
    assert str(photos / "class2/backup.png") in caplog.text
    assert len(listed(index)) == 25
    everything = index.duplicates(ALL)[0]
    assert everything.links[everything.paths.index(str(original))] == files.links[row]


def test_deleted_and_changed_images_are_named_and_left_out(photos, backbone, tmp_path, caplog):
    index = search.build(photos, tmp_path / "index", backbone)
    gone, rewritten, disguised = (photos / f"class{number}/4.png" for number in range(3))
    touched = photos / "class0/5.png"
    gone.unlink()
    replace_keeping_size(rewritten)
    replace_keeping_size(disguised, disguised.stat() if os.name != "nt" else None)  # Windows records no other time
    touched.touch()
    os.link(photos / "class0/6.png", tmp_path / "backup.png")  # changes a time of the file, and nothing else
    files = index.check_files()
    assert files.deleted == [str(gone)]
    assert files.changed == [str(rewritten), str(disguised)]
    assert listed(index) == set(index.paths) - {str(gone), str(rewritten), str(disguised)}
    assert all(str(path) in caplog.text for path in (gone, rewritten, disguised))
    assert str(touched) not in caplog.text
    index.measure_threshold()  # of the others


def test_index_whose_images_are_all_gone_is_refused(photos, backbone, tmp_path):
    index = search.build(photos, tmp_path / "index", backbone)
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(DinoevalError, match=r"24 .*class0/0\.png.*search build"):
        index.duplicates(0.9)


def test_one_remaining_image_has_no_duplicates(photos, backbone, tmp_path):
    index = search.build(photos, tmp_path / "index", backbone)
    for path in index.paths[1:]:
        Path(path).unlink()
    assert index.duplicates(ALL) == []


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_index_moved_with_its_images_finds_them(photos, backbone, tmp_path, move):
    (tmp_path / "old").mkdir()
    photos = photos.rename(tmp_path / "old/photos")
    search.build(photos, tmp_path / "old/index", backbone)
    move(tmp_path / "old", tmp_path / "new")
    shutil.rmtree(tmp_path / "old", ignore_errors=True)
    index = search.open(tmp_path / "new/index")
    assert index.manifest["folder"] == str(tmp_path / "new/photos")
    assert listed(index) == {
        str(tmp_path / "new/photos" / path.relative_to(tmp_path / "new/photos")) for path in images_in(tmp_path / "new")
    }
    query = tmp_path / "new/photos/class0/3.png"
    (matches,) = index.query(query, k=30)
    assert len(matches.paths) == 23
    assert str(query) not in matches.paths


def images_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def test_build_follows_moved_images_without_new_features(photos, backbone, tmp_path):
    before = search.build(photos, tmp_path / "index", backbone)
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)  # other times of the files
    with pytest.raises(DinoevalError, match="--out"):
        search.build(moved, tmp_path / "index", backbone)  # the images are still there
    shutil.rmtree(photos)
    entries = len(list(Path(os.environ["DINOEVAL_CACHE"]).iterdir()))
    index = search.build(moved, tmp_path / "index", backbone)
    np.testing.assert_array_equal(index.vectors(), before.vectors())
    assert len(list(Path(os.environ["DINOEVAL_CACHE"]).iterdir())) == entries
    assert listed(search.open(tmp_path / "index")) == {str(path) for path in images_in(moved)}


@pytest.mark.skipif(os.name == "nt", reason="Windows records no time of the last change of the file record")
def test_build_detects_replaced_files_of_equal_size_and_time(photos, backbone, tmp_path):
    search.build(photos, tmp_path / "index", backbone)
    path = photos / "class1/1.png"
    before = path.stat()
    content = bytearray(path.read_bytes())
    synthetic_images(1, seed=99)[0].save(tmp_path / "other.png")
    other = (tmp_path / "other.png").read_bytes()
    size = max(len(content), len(other))
    path.write_bytes(bytes(content).ljust(size, b"\0"))
    index = search.build(photos, tmp_path / "index", backbone)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.write_bytes(other.ljust(size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    row = index.paths.index(str(path))
    after = search.build(photos, tmp_path / "index", backbone)
    assert not np.allclose(index.vectors()[row], after.vectors()[after.paths.index(str(path))], atol=1e-4)


def test_index_of_the_current_folder_is_that_of_its_absolute_path(photos, backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    first = search.build(".", "../index", backbone)
    monkeypatch.chdir(tmp_path)
    again = search.build(photos, photos.parent / "index", backbone)
    assert (first.paths, first.manifest) == (again.paths, again.manifest)


def test_file_details_are_those_of_the_file(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (0, 86_400 * 365))
    details = FileDetails.of(str(tmp_path / "a.png"))
    assert details is not None
    assert (details.width, details.height, details.size) == (30, 20, (tmp_path / "a.png").stat().st_size)
    assert details.modified[:4] in ("1970", "1971")  # in any time zone
    if hasattr(os, "mkfifo"):  # not on Windows
        os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("text")
    assert [FileDetails.of(str(tmp_path / name)) for name in ("pipe.png", "text.png", "none.png")] == [None] * 3
