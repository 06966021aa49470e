from __future__ import annotations

import numpy as np
import pytest

from dinoeval.data.mask_folders import read_record, write_masks
from dinoeval.data.masks import read_mask
from dinoeval.errors import ConfigError

MASK = np.array([[0, 1], [2, 0]], np.uint8)
ABOUT = {"lost": [], "constant": {}}


def masks():
    yield "0.png", MASK
    yield "1.png", MASK


def test_a_run_leaves_the_unfinished_masks_of_another_alone(tmp_path):
    """`clip` must not take `.clip.mended.<process>.partial` for its own."""

    def disturbed():
        yield "0.png", MASK
        write_masks(tmp_path / "clip", {}, masks(), lambda: ABOUT)
        yield "1.png", MASK

    write_masks(tmp_path / "clip.mended", {}, disturbed(), lambda: ABOUT)
    for folder in ("clip", "clip.mended"):
        assert (read_mask(tmp_path / folder / "1.png") == MASK).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "clip.mended"]


def test_an_empty_folder_that_is_a_link_is_filled(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_masks(tmp_path / "link", {"a": 1}, masks(), lambda: ABOUT)
    assert (tmp_path / "link").is_symlink()
    assert (read_mask(tmp_path / "there/0.png") == MASK).all()
    assert read_record(tmp_path / "link", {"a": 1})


@pytest.mark.parametrize("record", ["[]", "{}", '{"recipe": [], "masks": {}}', '{"recipe": {}, "masks": {}}', "nonsense"])
def test_a_record_of_another_program_is_refused(tmp_path, record):
    (tmp_path / "dinoeval.json").write_text(record)
    with pytest.raises(ConfigError, match="was not written by this program"):
        read_record(tmp_path, {})
