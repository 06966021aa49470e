from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from dinoeval.data.frame_transforms import FrameTransform, opencv_resize
from dinoeval.errors import ConfigError

BACKENDS = ("opencv", "pil", "torchvision")


def slow_resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """The arithmetic of OpenCV on one channel, pixel by pixel: weights of 11 bits, sums shifted by 4, 16 and 2 bits."""

    def place(at: int, length: int, target: int) -> tuple[int, int, int, int]:
        exact = np.float32((at + 0.5) * (1 / (target / length)) - 0.5)
        low = int(np.floor(exact))
        part = exact - np.float32(low)
        return low, low + 1, round(float((1 - part) * np.float32(2048))), round(float(part * np.float32(2048)))

    result = np.zeros((height, width), np.uint8)
    lines, columns = pixels.shape
    for y in range(height):
        up, down, weight_up, weight_down = place(y, lines, height)
        for x in range(width):
            left, right, weight_left, weight_right = place(x, columns, width)
            if left < 0 or left >= columns - 1:  # Beyond the center of the outermost column nothing is mixed.
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
def test_opencv_resize_equals_slow_fixed_point_resize(size, target):
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 2)).astype(np.uint8)
    found = opencv_resize(pixels, *target)
    for channel in range(2):
        assert (found[..., channel] == slow_resize(pixels[..., channel], *target)).all()


def test_opencv_resize_equals_cv2_when_installed():
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    for _ in range(50):
        (h, w), target = random.integers(1, 120, 2), tuple(random.integers(1, 120, 2).tolist())
        pixels = random.integers(0, 256, (h, w, 3)).astype(np.uint8)
        assert (opencv_resize(pixels, *target) == cv2.resize(pixels, target)).all()


@pytest.mark.parametrize(
    ("frame", "expected", "patch"),
    [
        ((854, 480), (832, 480), 16),
        ((480, 854), (480, 832), 8),
        ((1920, 1080), (832, 480), 8),
        ((600, 600), (448, 480), 16),
        ((640, 480), (640, 480), 16),
        ((854, 480), (826, 476), 14),
    ],
)
def test_frame_size_is_cut_to_multiples_of_64_and_patch(frame, expected, patch):
    """Square frames are treated as landscape."""
    assert FrameTransform(patch=patch).size(*frame) == expected


def test_frames_are_normalized_with_red_std_of_0228():
    found = FrameTransform(side=64, patch=16)(Image.new("RGB", (64, 64), (255, 0, 128)))
    expected = [(1 - 0.485) / 0.228, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert found.shape == (3, 64, 64)
    assert found.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


def test_resize_backends_equal_their_libraries():
    image = synthetic_images(1, (300, 150))[0]
    scale = torch.tensor(FrameTransform().std)[:, None, None]
    pixels = {backend: FrameTransform(side=64, resize_backend=backend)(image) * scale for backend in BACKENDS}
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    mean = torch.tensor(FrameTransform().mean)[:, None, None]
    from_tensor = vision.resize(tensor.float(), [64, 128], InterpolationMode.BILINEAR, antialias=False) / 255 - mean
    assert torch.allclose(pixels["torchvision"], from_tensor, atol=1e-5)
    small = torch.from_numpy(np.array(image.resize((128, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255 - mean
    assert torch.allclose(pixels["pil"], small, atol=1e-5)
    assert (pixels["opencv"] - pixels["torchvision"]).abs().max() < 1.5 / 255  # rounding only
    assert (pixels["opencv"] - pixels["pil"]).abs().max() > 5 / 255  # PIL antialiases


def test_transform_id_names_the_resize_backend():
    assert [FrameTransform(resize_backend=backend).id for backend in BACKENDS] == [f"davis@1:480/64/16:{backend}" for backend in BACKENDS]


def test_transform_raises_for_sides_below_64():
    with pytest.raises(ConfigError, match=r"--image-size .* 64 .*32"):
        FrameTransform(side=32)
