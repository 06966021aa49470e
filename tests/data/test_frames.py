from __future__ import annotations

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval.data.frames import frame_header, list_frames, missing_frames, read_frame, read_frames
from dinoeval.data.loading import ImageRule
from dinoeval.errors import DataError


def save_rotated(pixels: np.ndarray, path) -> None:
    """Save an image whose EXIF orientation says to rotate it by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)


def test_frames_are_rotated_by_exif_if_the_rule_says_so(tmp_path):
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    save_rotated(pixels, tmp_path / "gray.png")
    for rule, expected in ((ImageRule(), pixels), (ImageRule(exif_transpose=True), np.rot90(pixels, -1))):
        frame = read_frame(tmp_path / "gray.png", rule)
        assert frame_header(tmp_path / "gray.png", rule) == (frame.size, {"oriented"})
        assert np.asarray(frame)[..., 0].tolist() == (expected // 257).tolist()


def test_list_frames_sorts_by_number_and_ignores_other_files(tmp_path):
    for name in ("f10.png", "f9.png", "f1.png", ".hidden.png", "notes.txt"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    assert [path.name for path in list_frames(tmp_path)] == ["f1.png", "f9.png", "f10.png"]


def test_list_frames_raises_when_two_frames_have_one_name(tmp_path):
    for name in ("f9.png", "f9.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"f9\.(png|jpg) or f9\.(png|jpg)"):
        list_frames(tmp_path)


def test_missing_frames_finds_gaps_in_the_numbering(tmp_path):
    paths = [tmp_path / f"{number:05d}.jpg" for number in (5, 6, 9, 10)]
    assert missing_frames(paths) == ["00007", "00008"]
    assert missing_frames(paths[:1]) == []
    assert missing_frames([tmp_path / f"{number:03d}.jpg" for number in (0, 5, 10)]) == []
    assert missing_frames([tmp_path / "a.jpg", tmp_path / "c.jpg"]) == []


def test_missing_frames_list_is_capped_after_an_outlier(tmp_path):
    paths = [tmp_path / f"{number:05d}.png" for number in (0, 1, 3, 1_700_000_000)]
    assert missing_frames(paths)[:2] == ["00002", "00004"]
    assert len(missing_frames(paths)) == 100


def test_read_frames_reads_an_animated_image(tmp_path):
    frames = [Image.new("RGB", (8, 6), (50 * number, 0, 0)) for number in range(4)]
    frames[0].save(tmp_path / "video.gif", save_all=True, append_images=frames[1:])
    names, images = read_frames(tmp_path / "video.gif")
    assert names == ["00000", "00001", "00002", "00003"]
    assert [int(np.asarray(image)[0, 0, 0]) for image in images] == [0, 50, 100, 150]


def test_read_frames_ignores_the_limit_of_the_calling_program(tmp_path, monkeypatch):
    frames = synthetic_images(3, (32, 32))
    frames[0].save(tmp_path / "video.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert [image.size for image in read_frames(tmp_path / "video.gif")[1]] == [(32, 32)] * 3


def test_read_frames_names_ffmpeg_when_given_a_video_file(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"clip\.mp4.*ffmpeg"):
        read_frames(tmp_path / "clip.mp4")


def test_read_frame_raises_when_truncated(tmp_path):
    synthetic_images(1, (64, 64))[0].save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.jpg cannot be decoded"):
        read_frame(tmp_path / "cut.jpg")


def test_read_frames_raises_when_the_folder_is_empty_or_absent(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty contains no frame"):
        read_frames(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere"):
        read_frames(tmp_path / "nowhere")
