from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import synthetic_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from dinoeval.data.images import in_memory
from dinoeval.data.transforms import DINO_TRANSFORM, MEAN, STD, CenterCrop, normalize_images, parse_transform
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
def test_dino_transform_equals_torchvision_bit_for_bit(width, height):
    image = synthetic_images(1, (width, height))[0]
    assert torch.equal(normalize_images(DINO_TRANSFORM(image)[None])[0], RELEASED(image))


def test_center_crop_enlarges_small_images_and_crops_large_ones():
    image = synthetic_images(1, (256, 256))[0]
    np.testing.assert_array_equal(DINO_TRANSFORM(image).permute(1, 2, 0).numpy(), np.asarray(image)[16:240, 16:240])
    assert DINO_TRANSFORM(synthetic_images(1, (3, 9))[0]).shape == (3, 224, 224)


def test_normalize_images_matches_a_hand_computed_value():
    """Red 255 becomes (1 - 0.485) / 0.229 = 2.2489."""
    assert normalize_images(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))[0, 0, 0, 0].item() == pytest.approx(2.2489, abs=1e-4)


def test_parse_transform_reads_all_forms():
    assert parse_transform("auto", 224) == DINO_TRANSFORM == parse_transform("dino:256/224", 32)
    assert parse_transform("auto", 32) == CenterCrop(32, 32)
    assert parse_transform("dino@1:73/64", 224).id == "dino@1:73/64"


@pytest.mark.parametrize("name", ["dino:224/256", "timm", "dino:0/0", "dino@2:256/224"])
def test_parse_transform_raises_for_invalid_names(name):
    with pytest.raises(ConfigError, match=f"'{name}'"):
        parse_transform(name, 224)


def test_transform_accepts_images_of_any_mode():
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for image in (gray, gray.convert("RGBA"), gray.convert("P"), gray.convert("1"), gray.convert("CMYK")):
        assert DINO_TRANSFORM(in_memory([image]).open(0)).shape == (3, 224, 224)
