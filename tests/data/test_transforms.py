from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import synthetic_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from dinoeval.data.transforms import MEAN, PAPER, STD, CenterCrop, normalize_images, parse_transform
from dinoeval.errors import ConfigError

RELEASED = transforms.Compose(
    [
        transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700))
def test_the_papers_transform_equals_torchvisions_bit_by_bit(width, height):
    image = synthetic_images(1, (width, height))[0]
    assert torch.equal(normalize_images(PAPER(image)[None])[0], RELEASED(image))


def test_a_small_picture_is_enlarged_and_a_square_one_of_the_right_size_only_cropped():
    image = synthetic_images(1, (256, 256))[0]
    np.testing.assert_array_equal(PAPER(image).permute(1, 2, 0).numpy(), np.asarray(image)[16:240, 16:240])
    assert PAPER(synthetic_images(1, (3, 9))[0]).shape == (3, 224, 224)


def test_normalise_by_hand():
    """255 in red is (1 - 0.485) / 0.229 = 2.2489."""
    assert normalize_images(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))[0, 0, 0, 0].item() == pytest.approx(2.2489, abs=1e-4)


def test_names():
    assert parse_transform("auto", 224) == PAPER == parse_transform("dino:256/224", 32)
    assert parse_transform("auto", 32) == CenterCrop(32, 32)
    assert parse_transform("dino@1:73/64", 224).id == "dino@1:73/64"
    for wrong in ("dino:224/256", "timm", "dino:0/0", "dino@2:256/224"):
        with pytest.raises(ConfigError):
            parse_transform(wrong, 224)


def test_grey_and_transparent_pictures_become_rgb_before():
    from dinoeval.data.images import in_memory

    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for picture in (grey, grey.convert("RGBA"), grey.convert("P"), grey.convert("1"), grey.convert("CMYK")):
        assert PAPER(in_memory([picture]).open(0)).shape == (3, 224, 224)
