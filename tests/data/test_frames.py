from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from dinoeval.data.frames import FrameTransform, frame_size, frames_in, missing_frames, open_frame, opencv_resize, read_frames
from dinoeval.errors import ConfigError, DataError


def slow_resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """OpenCV's arithmetic on one channel, a pixel at a time: weights of 11 bits, sums that lose 4, then 16, then 2 bits."""

    def place(at: int, length: int, wanted: int) -> tuple[int, int, int, int]:
        exact = np.float32((at + 0.5) * (1 / (wanted / length)) - 0.5)
        low = int(np.floor(exact))
        part = exact - np.float32(low)
        return low, low + 1, round(float((1 - part) * np.float32(2048))), round(float(part * np.float32(2048)))

    result = np.zeros((height, width), np.uint8)
    lines, columns = pixels.shape
    for y in range(height):
        up, down, weight_up, weight_down = place(y, lines, height)
        for x in range(width):
            left, right, weight_left, weight_right = place(x, columns, width)
            if left < 0 or left >= columns - 1:  # beyond the middle of the outermost column nothing is mixed
                left = right = min(max(left, 0), columns - 1)
                weight_left, weight_right = 2048, 0
            lines_at = [pixels[min(max(row, 0), lines - 1)].astype(int) for row in (up, down)]
            sums = [int(line[left]) * weight_left + int(line[right]) * weight_right for line in lines_at]
            total = ((sums[0] >> 4) * weight_up >> 16) + ((sums[1] >> 4) * weight_down >> 16)
            result[y, x] = (total + 2) >> 2
    return result


@pytest.mark.parametrize(
    ("size", "target"), [((7, 9), (11, 5)), ((12, 8), (6, 4)), ((5, 5), (5, 9)), ((1, 3), (4, 2)), ((20, 31), (13, 31))]
)
def test_resizing_follows_the_fixed_point_rule(size, target):
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 2)).astype(np.uint8)
    found = opencv_resize(pixels, *target)
    for channel in range(2):
        assert (found[..., channel] == slow_resize(pixels[..., channel], *target)).all()


def test_resizing_equals_opencv():
    """Where OpenCV is installed; dinoeval does not use it."""
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    for _ in range(50):
        (h, w), target = random.integers(1, 120, 2), tuple(random.integers(1, 120, 2).tolist())
        pixels = random.integers(0, 256, (h, w, 3)).astype(np.uint8)
        assert (opencv_resize(pixels, *target) == cv2.resize(pixels, target)).all()


@pytest.mark.parametrize(
    ("frame", "wanted", "patch"),
    [((854, 480), (832, 480), 16), ((480, 854), (480, 832), 8), ((1920, 1080), (832, 480), 8), ((600, 600), (448, 480), 16),
     ((640, 480), (640, 480), 16), ((854, 480), (826, 476), 14)],
)  # fmt: skip
def test_sizes(frame, wanted, patch):
    """Of 480 * 854 / 480 = 854 pixels 832 are left; a square is taken for landscape; a patch of 14 leaves whole patches."""
    assert FrameTransform(patch=patch).size(*frame) == wanted


def test_colours_have_the_deviation_of_the_script():
    found = FrameTransform(side=64, patch=16)(Image.new("RGB", (64, 64), (255, 0, 128)))
    expected = [(1 - 0.485) / 0.228, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert found.shape == (3, 64, 64)
    assert found.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


def test_readings_are_those_of_the_libraries():
    picture = synthetic_images(1, (300, 150))[0]
    scale = torch.tensor(FrameTransform().std)[:, None, None]
    pixels = {reading: FrameTransform(side=64, reading=reading)(picture) * scale for reading in ("opencv", "pil", "torchvision")}
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    mean = torch.tensor(FrameTransform().mean)[:, None, None]
    whole = vision.resize(tensor.float(), [64, 128], InterpolationMode.BILINEAR, antialias=False) / 255 - mean
    assert torch.allclose(pixels["torchvision"], whole, atol=1e-5)
    small = torch.from_numpy(np.array(picture.resize((128, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255 - mean
    assert torch.allclose(pixels["pil"], small, atol=1e-5)
    assert (pixels["opencv"] - pixels["torchvision"]).abs().max() < 1.5 / 255  # rounding alone
    assert (pixels["opencv"] - pixels["pil"]).abs().max() > 5 / 255  # PIL antialiases
    assert len({FrameTransform(reading=reading).id for reading in ("opencv", "pil", "torchvision")}) == 3


def test_frames_stand_upright(tmp_path):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:20] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=turned)
    assert frame_size(tmp_path / "turned.jpg") == (40, 20)
    exif_transpose = np.asarray(open_frame(tmp_path / "turned.jpg"))
    assert exif_transpose.shape == (20, 40, 3)
    assert exif_transpose[:, 30:].mean() > 240 > 20 > exif_transpose[:, :10].mean()


def test_any_kind_of_picture_becomes_rgb(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).repeat(4).reshape(16, 64)
    kinds = {"grey.png": ramp.astype(np.uint8), "deep.png": ramp * 256 + 255}
    for name, pixels in kinds.items():
        Image.fromarray(pixels).save(tmp_path / name)
        assert (np.asarray(open_frame(tmp_path / name)) == ramp[..., None]).all()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert np.asarray(open_frame(tmp_path / "print.jpg"))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_frames_go_by_their_numbers(tmp_path):
    for name in ("f10.png", "f9.png", "f1.png", ".hidden.png", "notes.txt"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    assert [path.name for path in frames_in(tmp_path)] == ["f1.png", "f9.png", "f10.png"]
    Image.new("RGB", (4, 4)).save(tmp_path / "f9.jpg")
    with pytest.raises(DataError, match=r"f9\.(png|jpg) and f9"):
        frames_in(tmp_path)


def test_missing_numbers_are_found(tmp_path):
    paths = [tmp_path / f"{number:05d}.jpg" for number in (5, 6, 9, 10)]
    assert missing_frames(paths) == ["00007", "00008"]
    assert missing_frames(paths[:1]) == []
    assert missing_frames([tmp_path / f"{number:03d}.jpg" for number in (0, 5, 10)]) == []
    assert missing_frames([tmp_path / "a.jpg", tmp_path / "c.jpg"]) == []


def test_a_stray_number_does_not_count_up_to_it(tmp_path):
    paths = [tmp_path / f"{number:05d}.png" for number in (0, 1, 3, 1_700_000_000)]
    assert missing_frames(paths)[:2] == ["00002", "00004"]
    assert len(missing_frames(paths)) == 100


def test_16_bit_pictures_stand_upright_too(tmp_path):
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3) * 256
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    Image.fromarray(pixels).save(tmp_path / "grey.png", exif=turned)
    frame = open_frame(tmp_path / "grey.png")
    assert frame.size == frame_size(tmp_path / "grey.png") == (2, 3)
    assert np.asarray(frame)[..., 0].tolist() == np.rot90(pixels >> 8, -1).tolist()


def test_an_animated_picture_is_a_video(tmp_path):
    frames = [Image.new("RGB", (8, 6), (50 * number, 0, 0)) for number in range(4)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    names, pictures = read_frames(tmp_path / "film.gif")
    assert names == ["00000", "00001", "00002", "00003"]
    assert [int(np.asarray(picture)[0, 0, 0]) for picture in pictures] == [0, 50, 100, 150]


def test_what_is_no_frame_is_named(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"clip\.mp4.*ffmpeg"):
        read_frames(tmp_path / "clip.mp4")
    synthetic_images(1, (64, 64))[0].save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.jpg cannot be decoded"):
        open_frame(tmp_path / "cut.jpg")
    with pytest.raises(DataError, match="holds no frame"):
        read_frames(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere"):
        read_frames(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="64 pixels or more"):
        FrameTransform(side=32)
