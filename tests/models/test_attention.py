"""Attention of DINO's own networks and of timm models: equal to the formula and to what the networks compute with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from factories import TINY, synthetic_state

import dinoeval
from dinoeval.errors import ConfigError
from dinoeval.models.checkpoints import save_backbone


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal((2, 3, 24, 16), dtype=np.float32))


def slow_attention(backbone: dinoeval.Backbone, images: torch.Tensor) -> np.ndarray:
    """Compute the formula of the paper, one image, one head, one query at a time, in float64."""
    network = backbone.network
    x = network._embed(images)
    for block in network.blocks[:-1]:
        x = block(x)
    last = network.blocks[-1]
    qkv = last.attn.qkv(last.norm1(x)).double().numpy()
    count, tokens, dim = x.shape
    heads = last.attn.num_heads
    size = dim // heads
    weights = np.zeros((count, heads, tokens, tokens))
    for image in range(count):
        for head in range(heads):
            span = slice(head * size, (head + 1) * size)
            q, k = qkv[image, :, :dim][:, span], qkv[image, :, dim : 2 * dim][:, span]
            for query in range(tokens):
                powers = np.exp([float(q[query] @ key) / math.sqrt(size) for key in k])
                weights[image, head, query] = powers / powers.sum()
    return weights


def test_attention_equals_formula(tmp_path, images):
    state = synthetic_state(TINY, spread=0.3)  # makes attention far from uniform
    save_backbone(tmp_path / "w.safetensors", state, arch=TINY)
    backbone = dinoeval.load(weights=tmp_path / "w.safetensors", device="cpu")
    with torch.inference_mode():
        expected = slow_attention(backbone, images)
    assert expected.max() > 0.5
    np.testing.assert_allclose(backbone.attention(images), expected, atol=1e-5)
    some = backbone.attention(images, queries=(0, 24, 7))
    assert some.shape == (2, 3, 3, 25)
    np.testing.assert_allclose(some, expected[:, :, [0, 24, 7]], atol=1e-5)
    np.testing.assert_allclose(some.sum(-1), 1, atol=1e-6)
    for wrong in (25, -1):
        with pytest.raises(ConfigError, match=rf"no token {wrong}\b.*25"):
            backbone.attention(images, queries=(0, wrong))


def test_attention_warns_about_memory_when_all_queries(tiny_weights, caplog, monkeypatch):
    from dinoeval.models import backbone as module

    backbone = dinoeval.load(weights=tiny_weights, device="cpu")
    monkeypatch.setattr(module, "_LARGE_ATTENTION_BYTES", 10_000)  # bytes; 3 heads x 25 x 25 x 4 are 7,500
    with caplog.at_level("WARNING"):
        backbone.attention(torch.zeros(1, 3, 16, 24))
        assert "queries" not in caplog.text
        backbone.attention(torch.zeros(1, 3, 24, 24), queries=(0,))
        assert "queries" not in caplog.text
        backbone.attention(torch.zeros(1, 3, 24, 24))
    assert "all 37 tokens" in caplog.text
    assert "queries=(0,)" in caplog.text


# Plain, with added norms of queries and keys; with a distillation token; with registers.
@pytest.mark.parametrize(
    "arch", ["timm/deit_tiny_patch16_224", "timm/deit_tiny_distilled_patch16_224", "timm/vit_small_patch14_reg4_dinov2"]
)
def test_timm_attention_reproduces_block_output(arch):
    """Our attention, applied to the values of the block, gives what the block passes to its output projection."""
    backbone = dinoeval.load(arch, weights="random", device="cpu")
    generator = torch.Generator().manual_seed(0)
    last = backbone.network.blocks[-1].attn
    torch.nn.init.normal_(last.qkv.weight, std=0.2, generator=generator)
    if arch == "timm/deit_tiny_patch16_224":
        last.q_norm, last.k_norm = torch.nn.LayerNorm(64), torch.nn.LayerNorm(64)
        torch.nn.init.normal_(last.q_norm.weight, generator=generator)
    side = backbone.patch_size * 3
    images = torch.randn((1, 3, side, side), generator=generator)
    seen = {}
    last.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], mixed=output))
    found = backbone.attention(images)
    assert found.shape == (1, last.num_heads, 10, 10)
    prefix = backbone.network.num_prefix_tokens
    with torch.inference_mode():
        x = seen["x"]
        count = x.shape[1]
        parts = last.qkv(x).reshape(1, count, 3, last.num_heads, -1)
        queries, keys, values = (parts[0, :, part].transpose(0, 1) for part in range(3))
        queries, keys = last.q_norm(queries), last.k_norm(keys)
        full = torch.stack([(q @ k.T * k.shape[-1] ** -0.5).softmax(-1) for q, k in zip(queries, keys, strict=True)])  # (heads, T, T)
        mixed = last.proj(last.norm((full @ values).transpose(0, 1).flatten(1)))
        np.testing.assert_allclose(mixed, seen["mixed"][0], atol=1e-5)  # so the network itself uses `full`
    kept = [0, *range(prefix, count)]
    np.testing.assert_allclose(found[0], full[:, kept][:, :, kept], atol=1e-5)
    np.testing.assert_allclose(backbone.attention(images, queries=(3,)), found[:, :, 3:4], atol=1e-5)
    assert (found.sum(-1) <= 1 + 1e-5).all()
    assert (found.sum(-1) < 0.999).any() == (prefix > 1)
    assert not backbone.network.blocks[-1].attn._forward_pre_hooks  # the hook is removed


@pytest.mark.parametrize("arch", ["timm/vit_little_patch16_reg1_gap_256", "timm/eva02_tiny_patch14_224", "timm/resnet18"])
def test_attention_raises_for_unsupported_network(arch):
    backbone = dinoeval.load(arch, weights="random", device="cpu")
    with pytest.raises(ConfigError, match=f"attention of {arch}"):
        backbone.attention(torch.zeros(1, 3, 32, 32), queries=(0,))


@pytest.mark.parametrize(("arch", "patch"), [("timm/vit_tiny_r_s16_p8_224", 32), ("timm/vit_tiny_patch16_224", 16)])
def test_patch_size_is_in_pixels_when_stem_is_convolutional(arch, patch):
    backbone = dinoeval.load(arch, weights="random")
    assert backbone.patch_size == patch
    images = torch.zeros(1, 3, 224, 224)
    assert backbone(images).patches.shape[1:3] == backbone.grid(224, 224) == (224 // patch, 224 // patch)
    assert backbone.attention(images, queries=(0,)).shape[-1] == 1 + (224 // patch) ** 2
