from __future__ import annotations

import pytest

from dinoeval.data.opening import open_images, open_splits
from dinoeval.errors import DataError


def test_unknown_dataset_suggests_the_nearest_name():
    with pytest.raises(DataError, match=r"'imagnet'.*Did you mean imagenet"):
        open_splits("imagnet")


def test_other_files_are_not_a_dataset(tmp_path):
    (tmp_path / "notes.txt").write_text("path,label,split\n")
    with pytest.raises(DataError, match=r"notes\.txt"):
        open_splits(str(tmp_path / "notes.txt"))


def test_open_images_raises_for_empty_folders(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path} contains no image"):
        open_images(tmp_path)


@pytest.mark.parametrize("where", ["nothing.png", ["nothing.png"], ""])
def test_open_images_raises_for_paths_that_do_not_exist(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'(nothing\.png)?' does not exist"):
        open_images(where)


def test_open_images_raises_for_an_empty_list():
    with pytest.raises(DataError, match="no images"):
        open_images([])
