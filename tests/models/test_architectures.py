"""Names of architectures and the configurations that they stand for."""

from __future__ import annotations

import pytest

from dinoeval.errors import ConfigError
from dinoeval.models.architectures import VitConfig, parse_architecture


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_s16", VitConfig()),
        ("vit_ti4_32", VitConfig(patch_size=4, image_size=32, dim=192, num_heads=3)),
        ("vit_s16_h12", VitConfig(num_heads=12)),
        ("vit_xs2_16_h2", VitConfig(patch_size=2, image_size=16, dim=96, depth=4, num_heads=2)),
    ],
)
def test_parse_architecture_reads_sizes_and_heads(name, expected):
    assert parse_architecture(name) == expected


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("vit_s7x", "Did you mean vit_s"),
        ("vits16", r"Did you mean vit_s16\?"),
        ("vit_s16_h7", "384 .* 7 heads"),
        ("vit_s64_32", "64 .* 32"),
    ],
)
def test_parse_architecture_raises_for_invalid_name(name, named):
    with pytest.raises(ConfigError, match=named):
        parse_architecture(name)
