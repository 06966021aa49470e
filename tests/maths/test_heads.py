from __future__ import annotations

import math

import pytest
import torch

from dinoeval.maths.heads import Heads

RATES, DECAYS = [0.01, 0.3, 0.1], [0.0, 0.0, 0.05]
CPU = torch.device("cpu")


def batches(count: int, size: int = 16, dim: int = 6, classes: int = 4):
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        yield torch.randn(size, dim, generator=generator), torch.randint(classes, (size,), generator=generator)


def test_heads_equal_torch_sgd_trained_one_by_one():
    heads = Heads(RATES, DECAYS, 6, 4, seed=0, device=CPU)
    oracles = []
    for rate, decay in zip(RATES, DECAYS, strict=True):
        layer = torch.nn.Linear(6, 4)
        layer.weight.data.copy_(heads.weight[0])
        layer.bias.data.zero_()
        oracles.append((layer, torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=decay)))
    for number, (x, y) in enumerate(batches(8)):
        schedule = 1 - number / 10
        losses = heads.step(x, y, schedule)
        for head, (layer, optimizer) in enumerate(oracles):
            optimizer.param_groups[0]["lr"] = RATES[head] * schedule
            loss = torch.nn.functional.cross_entropy(layer(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert losses[head].item() == pytest.approx(loss.item(), rel=1e-5)
    for head, (layer, _) in enumerate(oracles):
        torch.testing.assert_close(heads.weight[head], layer.weight.data)
        torch.testing.assert_close(heads.bias[head], layer.bias.data)


def test_diverged_head_does_not_affect_other_heads():
    both, alone = Heads([3e38, 0.1], [0, 0], 6, 4, seed=0, device=CPU), Heads([0.1], [0], 6, 4, seed=0, device=CPU)
    for x, y in batches(6):
        both.step(x, y, 1.0)
        alone.step(x, y, 1.0)
    assert both.alive.tolist() == [False, True]
    assert both.weight[0].abs().sum() == 0
    torch.testing.assert_close(both.weight[1], alone.weight[0])


def test_head_with_nan_weights_has_no_hit_and_is_stopped():
    heads = Heads([0.1, 0.1], [0, 0], 6, 4, seed=0, device=CPU)
    x, y = next(batches(1))
    heads.weight[0, 0, 0] = float("nan")
    assert (heads.ranks(x, y)[:, 0] > 4).all()
    heads.stop_diverged()
    assert heads.alive.tolist() == [False, True]


def test_ranks_count_classes_ahead_and_break_ties_by_index():
    heads = Heads([0.1, 0.1], [0, 0], 1, 3, seed=0, device=CPU)
    heads.weight[0] = torch.tensor([[3.0], [1.0], [2.0]])  # for x = 1: class 0, then 2, then 1
    heads.weight[1] = torch.tensor([[1.0], [1.0], [1.0]])  # all equal: 0, 1, 2
    x = torch.ones(3, 1)
    assert heads.ranks(x, torch.tensor([0, 1, 2])).tolist() == [[0, 0], [2, 1], [1, 2]]


def test_first_loss_is_log_of_number_of_classes():
    heads = Heads([0.1], [0], 6, 4, seed=0, device=CPU)
    x, y = next(batches(1))
    assert heads.step(x, y, 1.0)[0].item() == pytest.approx(math.log(4), abs=0.05)


def test_restored_heads_continue_identically():
    one, two = (Heads(RATES, DECAYS, 6, 4, seed=0, device=CPU) for _ in range(2))
    steps = list(batches(6))
    for x, y in steps[:3]:
        one.step(x, y, 1.0)
    two.restore(one.state())
    for x, y in steps[3:]:
        assert torch.equal(one.step(x, y, 0.5), two.step(x, y, 0.5))
    assert torch.equal(one.weight, two.weight)
