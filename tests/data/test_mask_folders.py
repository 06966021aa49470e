from __future__ import annotations

import numpy as np
import pytest

from dinoeval.data.mask_folders import read_record, write_masks
from dinoeval.data.masks import read_mask
from dinoeval.errors import ConfigError

MASK = np.array([[0, 1], [2, 0]], np.uint8)


def describe() -> dict:
    return {"lost": [], "constant": {}}


def masks():
    yield "0.png", MASK
    yield "1.png", MASK


def test_write_masks_keeps_temporary_folders_of_other_runs(tmp_path):
    """`clip` must not remove `.clip.fixed.<process>.partial`."""

    def masks_with_a_run_in_between():
        yield "0.png", MASK
        write_masks(tmp_path / "clip", {}, masks(), describe)
        yield "1.png", MASK

    write_masks(tmp_path / "clip.fixed", {}, masks_with_a_run_in_between(), describe)
    for folder in ("clip", "clip.fixed"):
        assert (read_mask(tmp_path / folder / "1.png") == MASK).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "clip.fixed"]


def test_write_masks_fills_an_empty_folder_behind_a_link(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_masks(tmp_path / "link", {"a": 1}, masks(), describe)
    assert (tmp_path / "link").is_symlink()
    assert (read_mask(tmp_path / "target/0.png") == MASK).all()
    assert read_record(tmp_path / "link", {"a": 1})


def test_read_record_names_settings_that_differ(tmp_path):
    write_masks(tmp_path / "clip", {"radius": 12, "network": {"depth": 12}}, masks(), describe)
    with pytest.raises(ConfigError, match=r"clip .*depth was 12 and is 4"):
        read_record(tmp_path / "clip", {"radius": 12, "network": {"depth": 4}})


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "{}",
        '{"recipe": [], "masks": {}, "lost": [], "constant": {}}',
        '{"recipe": {}, "masks": {}}',
        '{"recipe": {}, "masks": {}, "lost": [null], "constant": {}}',
        '{"recipe": {}, "masks": {"../dinoeval.json": ""}, "lost": [], "constant": {}}',
        '{"recipe": ' + '{"a": ' * 10**5 + "1" + "}" * 10**5 + "}",
        "nonsense",
    ],
)
def test_read_record_raises_for_records_of_other_programs(tmp_path, record):
    (tmp_path / "dinoeval.json").write_text(record)
    with pytest.raises(ConfigError, match=r"dinoeval\.json"):
        read_record(tmp_path, {})
