from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dinoeval.maths import propagation
from dinoeval.maths.propagation import propagate


def slow_propagate(target, context, maps, radius, top_k, temperature):
    """Evaluate the formula token by token, with the affinities of the released code: exp(cosine / temperature), 0 out of reach."""
    height, width, _ = target.shape
    result = torch.empty_like(maps[0])
    for y in range(height):
        for x in range(width):
            affinities, labels = [], []
            for frame, one in zip(context, maps, strict=True):
                for v in range(max(0, y - radius), min(height, y + radius + 1)):
                    for u in range(max(0, x - radius), min(width, x + radius + 1)):
                        affinities.append(torch.exp(target[y, x] @ frame[v, u] / temperature))
                        labels.append(one[:, v, u])
            affinities = torch.stack(affinities)
            least = affinities.sort(descending=True).values[:top_k][-1]
            affinities[affinities < least] = 0
            result[:, y, x] = (affinities[:, None] * torch.stack(labels)).sum(0) / affinities.sum()
    return result


def normalized_tokens(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(
    ("height", "width", "frames", "radius", "top_k"),
    [(7, 5, 1, 2, 5), (5, 23, 3, 3, 5), (12, 11, 2, 12, 1), (3, 3, 2, 0, 5), (1, 2, 1, 1, 5)],
)
def test_propagate_equals_slow_formula(height, width, frames, radius, top_k):
    tokens = normalized_tokens(frames + 1, height, width, 8)
    maps = list(torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(1)))
    result = propagate(tokens[0], list(tokens[1:]), maps, radius=radius, top_k=top_k, temperature=0.1)
    torch.testing.assert_close(result, slow_propagate(tokens[0], tokens[1:], maps, radius, top_k, 0.1), rtol=0, atol=1e-6)


def test_propagate_does_not_depend_on_tile_size(monkeypatch):
    tokens, maps = normalized_tokens(3, 13, 17, 8), list(torch.rand(2, 2, 13, 17))
    results = []
    for tile in (1, 4, 100):
        monkeypatch.setattr(propagation, "_TILE", tile)
        results.append(propagate(tokens[0], list(tokens[1:]), maps, radius=3, top_k=5, temperature=0.1))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=2e-6)


def test_propagate_keeps_all_ties_at_the_top_k_cutoff():
    """Four equal tokens in a row, each with its own label: top_k = 2 keeps all four, so each has a quarter."""
    tokens = torch.zeros(1, 4, 2)
    tokens[..., 0] = 1
    maps = [torch.eye(4)[:, None]]  # channel c labels column c
    result = propagate(tokens, [tokens], maps, radius=3, top_k=2, temperature=0.1)
    torch.testing.assert_close(result, torch.full((4, 1, 4), 0.25))
    # With radius 1 the outer targets are compared with two tokens, the inner ones with three.
    near = propagate(tokens, [tokens], maps, radius=1, top_k=2, temperature=0.1)[:, 0]
    third = 1 / 3
    expected = [[0.5, third, 0, 0], [0.5, third, third, 0], [0, third, third, 0.5], [0, 0, third, 0.5]]
    torch.testing.assert_close(near, torch.tensor(expected))


def test_label_follows_moving_token_within_radius():
    """A token moves by two columns. Its label follows with radius 2 and is lost with radius 1."""
    before, after = torch.zeros(1, 6, 2), torch.zeros(1, 6, 2)
    before[..., 0] = after[..., 0] = 1
    before[0, 1] = after[0, 3] = torch.tensor([0.0, 1.0])
    label = torch.zeros(1, 1, 6)
    label[0, 0, 1] = 1
    assert propagate(after, [before], [label], radius=2, top_k=1, temperature=0.1)[0, 0].tolist() == [0, 0, 0, 1, 0, 0]
    lost = propagate(after, [before], [label], radius=1, top_k=1, temperature=0.1)[0, 0]
    assert lost.tolist() == [0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e-30])
def test_propagate_is_finite_at_low_temperature(temperature):
    """exp(1 / 0.01) overflows float32, so the weights must be relative to the largest."""
    tokens = normalized_tokens(2, 6, 6, 4)
    label = torch.rand(2, 6, 6)
    nearest = propagate(tokens[0], [tokens[1]], [label], radius=6, top_k=1, temperature=0.1)
    low = propagate(tokens[0], [tokens[1]], [label], radius=6, top_k=5, temperature=temperature)
    assert torch.isfinite(low).all()
    if temperature < 1e-3:
        torch.testing.assert_close(low, nearest, rtol=0, atol=1e-2)
