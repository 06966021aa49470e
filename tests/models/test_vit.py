"""The vision transformer: tokens, positions and attention, against the released code and slow formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from factories import TINY, synthetic_state
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoeval.models.architectures import VitConfig, parse_architecture
from dinoeval.models.vit import VisionTransformer


def network(arch: str | VitConfig, **kwargs) -> VisionTransformer:
    config = parse_architecture(arch) if isinstance(arch, str) else arch
    model = VisionTransformer(config, **kwargs).eval()
    model.load_state_dict(synthetic_state(config, spread=0.03))
    return model


def image_of(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng((height, width)).standard_normal((1, 3, height, width), dtype=np.float32))


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (320, 320), (250, 333), (480, 832)])
def test_tokens_equal_released_code(golden, size):
    """[CLS] and sums of patch tokens that vision_transformer.py computed from the same weights and image."""
    expected = golden["vit_ti16"]["{}x{}".format(*size)]
    model = network("vit_ti16")
    with torch.inference_mode():
        earlier, last = model.tokens(image_of(*size), 4)[::3]
        torch.testing.assert_close(model(image_of(*size))[0, :16], torch.tensor(expected["cls"]), atol=1e-4, rtol=0)
        torch.testing.assert_close(last[0, 0, :16], torch.tensor(expected["cls"]), atol=1e-4, rtol=0)
        torch.testing.assert_close(earlier[0, 1:, :4].sum(0), torch.tensor(expected["patch sums"]), atol=5e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "parameters", "tokens"),
    [
        ("vit_ti16", 5_524_416, 197),
        ("vit_s16", 21_665_664, 197),
        ("vit_s8", 21_670_272, 785),
        ("vit_s5", 22_067_712, 1937),
        ("vit_b16", 85_798_656, 197),
        ("vit_b8", 85_807_872, 785),
    ],
)
def test_parameter_and_position_counts_equal_paper(arch, parameters, tokens):
    with torch.device("meta"):
        model = VisionTransformer(parse_architecture(arch))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.pos_embed.shape[1] == tokens
    assert len(model.state_dict()) == 150


def slow_resample(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bicubic (a = -0.75) by the formula: output i reads source (i + 0.5) * S / (g + 0.1) - 0.5, borders repeated."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    side = len(table)

    def weights(count: int) -> np.ndarray:
        matrix = np.zeros((count, side))
        for i in range(count):
            source = (i + 0.5) * side / (count + 0.1) - 0.5
            first = math.floor(source)
            for j in range(first - 1, first + 3):
                matrix[i, min(max(j, 0), side - 1)] += kernel(source - j)
        return matrix

    return np.einsum("ia,jb,abd->ijd", weights(rows), weights(columns), table)


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 90), st.integers(4, 90))
def test_positions_are_resampled_by_offset_factor(height, width):
    """Any size, multiples of the patch or not, against the formula."""
    model = network(TINY)
    side, rows, columns = 4, height // 4, width // 4
    stored = model.pos_embed.detach()
    found = model.position_table(height, width).detach()
    if rows * columns == side * side and height == width:
        assert found is not None
        torch.testing.assert_close(found, stored, atol=0, rtol=0)
        return
    expected = slow_resample(stored[0, 1:].reshape(side, side, -1).double().numpy(), rows, columns)
    np.testing.assert_allclose(found[0, 1:].numpy(), expected.reshape(rows * columns, -1), atol=2e-5)
    torch.testing.assert_close(found[:, 0], stored[:, 0], atol=0, rtol=0)


def test_positions_are_resampled_unless_image_is_square():
    """16 x 18 pixels have 4 x 4 patches like 16 x 16, but positions are resampled; for 17 x 17 they are not."""
    model = network(TINY)
    assert torch.equal(model.position_table(17, 17), model.pos_embed)
    assert not torch.equal(model.position_table(16, 18), model.pos_embed)


def test_pixels_past_last_patch_are_ignored():
    model = network(TINY)
    image = image_of(19, 22)
    with torch.inference_mode():
        other = image.clone()
        other[..., 16:, :], other[..., :, 20:] = 9.0, -9.0
        torch.testing.assert_close(model(image), model(other), atol=0, rtol=0)


def test_last_attention_reproduces_block_output():
    """The attention, applied to the values of the last block, gives the output of its attention layer."""
    model = network(TINY)
    image = image_of(16, 24)
    with torch.inference_mode():
        attention = model.last_attention(image)
        assert attention.shape == (1, 3, 25, 25)
        torch.testing.assert_close(attention.sum(-1), torch.ones(1, 3, 25))
        before = model._embed(image)
        for block in model.blocks[:-1]:
            before = block(before)
        last = model.blocks[-1]
        normed = last.norm1(before)
        values = last.attn.project(normed)[2]
        torch.testing.assert_close(last.attn.proj((attention @ values).transpose(1, 2).flatten(2)), last.attn(normed), atol=1e-5, rtol=1e-4)


def test_forward_equals_last_layer_and_layers_ascend():
    model = network(TINY)
    with torch.inference_mode():
        outputs = model.tokens(image_of(16, 16), 99)
        assert len(outputs) == 4
        torch.testing.assert_close(model(image_of(16, 16)), outputs[-1][:, 0], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(model.tokens(image_of(16, 16), 2)[0], outputs[-2], atol=0, rtol=0)


def test_drop_path_grows_with_depth_and_is_off_in_eval():
    model = network(TINY, drop_path=0.6)
    assert [round(block.drop_path.rate, 3) for block in model.blocks] == [0.0, 0.2, 0.4, 0.6]
    with torch.no_grad():
        torch.testing.assert_close(model(image_of(16, 16)), network(TINY)(image_of(16, 16)), atol=0, rtol=0)
        torch.manual_seed(0)
        assert not torch.equal(model.train()(image_of(16, 16)), model.eval()(image_of(16, 16)))
