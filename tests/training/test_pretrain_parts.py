"""The parts of a recipe: targets, objectives with their state, teachers, heads, optimizers.

They are compared with public code by benchmarks/parity_pretraining.py.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from factories import TINY
from torch import Tensor, nn

from dinoeval.errors import ConfigError
from dinoeval.training.pretrain import objectives, targets
from dinoeval.training.pretrain.criterion import Criterion
from dinoeval.training.pretrain.head import ProjectionHead
from dinoeval.training.pretrain.monitor import find_collapse
from dinoeval.training.pretrain.networks import build_pair
from dinoeval.training.pretrain.optimizers import Lars
from dinoeval.training.pretrain.presets import PAPER, get_preset
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.targets import Reducer
from dinoeval.training.pretrain.trainer import Trainer

CPU = torch.device("cpu")
SMALL = Recipe(
    **{"epochs": 3, "batch_size": 4, "warmup_epochs": 0, "out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8, "lr": 1.0},
    **{"global_crop": 16, "local_crop": 8, "local_crops": 1, "drop_path": 0.0, "queue_size": 24, "freeze_last_layer": 0},
)
EMBEDDING = {"out_dim": 0, "target": "none", "head_batch_norm": True, "head_activation": "relu"}


def draw(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def crops(seed: int, recipe: Recipe = SMALL) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [recipe.global_crop] * 2 + [recipe.local_crop] * recipe.local_crops
    return [torch.randn(recipe.batch_size, 3, size, size, generator=generator) for size in sizes]


class TwoProcesses:
    """Runs a function in two threads that stand for two processes, and combines their tensors."""

    def __init__(self) -> None:
        self.barrier, self.slots = threading.Barrier(2), [torch.zeros(0)] * 2

    def reducer(self, rank: int) -> Reducer:
        def exchange(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def call(tensor: Tensor) -> Tensor:
                self.slots[rank] = tensor
                self.barrier.wait()
                combined = combine(*self.slots)
                self.barrier.wait()
                return combined

            return call

        return Reducer(exchange(torch.add), exchange(torch.maximum), exchange(lambda one, two: torch.cat((one, two))))

    def run(self, function: Callable[[int, Reducer], Tensor]) -> list[Tensor]:
        found: list[Tensor] = [torch.zeros(0)] * 2
        threads = [
            threading.Thread(target=lambda rank=rank: found.__setitem__(rank, function(rank, self.reducer(rank)))) for rank in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def test_sinkhorn_balances_prototypes_and_rows_sum_to_one():
    logits = draw(64, 8)
    found = targets.sinkhorn(logits, 0.5, 200).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found.sum(0), torch.full((8,), 8.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(targets.sinkhorn(logits + draw(1, 8, 1), 0.5, 3), targets.sinkhorn(logits, 0.5, 3), rtol=1e-4, atol=1e-4)


def test_sinkhorn_takes_logits_of_any_size():
    """Prototypes of trained length: exp would be infinite for one row and 0 for all columns of another."""
    logits = draw(16, 5) * 1000
    logits[3] -= 50_000
    assert torch.isfinite(targets.sinkhorn(logits, 0.04, 3)).all()


@pytest.mark.parametrize(
    ("operation", "columns"),
    [
        (lambda logits, reducer: targets.sinkhorn(logits, 0.1, 3, reducer), None),
        (lambda logits, reducer: targets.sinkhorn(logits, 0.1, 1, reducer), None),
        (targets.mean_of_rows, 0),
    ],
    ids=["sinkhorn", "softmax_batch", "center"],
)
def test_operations_over_the_batch_do_not_depend_on_the_number_of_processes(operation, columns):
    logits = draw(12, 7)
    whole = operation(logits, targets.LOCAL)
    parts = TwoProcesses().run(lambda rank, reducer: operation(logits[rank * 6 : rank * 6 + 6], reducer))
    expected = [whole, whole] if columns == 0 else whole.split(6)
    torch.testing.assert_close(parts, list(expected), rtol=1e-6, atol=1e-6)


def test_hard_targets_are_one_hot_after_centering():
    criterion = Criterion(dataclasses.replace(SMALL, target="hard", out_dim=3))
    criterion.center = torch.tensor([[5.0, 0.0, 0.0]])
    teacher = torch.tensor([[5.5, 1.0, 0.0]]).repeat(2, 1)  # 0.5, 1, 0 after centering
    student = torch.tensor([[0.0, 0.2, 0.0]]).repeat(3, 1)
    loss = criterion(student, teacher, 0.04)
    assert loss.value.item() == pytest.approx(-F.log_softmax(student[0] / 0.1, -1)[1].item())
    assert loss.numbers()["teacher_entropy"] == 0


def test_mse_subtracts_the_center_before_the_length_is_taken():
    centered, plain = (Criterion(dataclasses.replace(SMALL, objective="mse", target=target, out_dim=2)) for target in ("center", "none"))
    centered.center = torch.tensor([[1.0, 0.0]])
    student, teacher = torch.tensor([[0.0, 2.0]]).repeat(3, 1), torch.tensor([[1.0, 3.0]]).repeat(2, 1)
    assert centered(student, teacher, 1.0).value.item() == pytest.approx(0, abs=1e-6)
    assert plain(student, teacher, 1.0).value.item() == pytest.approx(2 - 2 * 3 / 10**0.5)
    assert "center" not in plain.state_dict()


def test_queue_keeps_the_last_keys_and_wraps_around():
    recipe = dataclasses.replace(SMALL, objective="infonce", **EMBEDDING, bottleneck_dim=4, queue_size=5)
    criterion, initial = Criterion(recipe), None
    initial = criterion.queue.clone()
    batches = [draw(4, 4, seed) for seed in range(3)]
    for number, keys in enumerate(batches):
        before = criterion.queue.clone()
        expected = objectives.info_nce(draw(6, 4, 9), keys, before, 0.1)  # The keys of a batch are no negatives of it.
        assert criterion(draw(6, 4, 9), keys, 1.0).value.item() == pytest.approx(expected.item())
        if number == 0:
            torch.testing.assert_close(criterion.queue, torch.cat((F.normalize(keys, dim=1), initial[4:])))
    last = F.normalize(torch.cat(batches), dim=1)[-5:]
    torch.testing.assert_close(criterion.queue.roll(-int(criterion.queue_position), 0), last)
    assert sorted(criterion.state_dict()) == ["queue", "queue_position"]


def test_info_nce_of_random_keys_is_ln_of_their_number():
    """ln(1 + Q) for outputs that are all equal."""
    ones = torch.ones(6, 4)
    assert objectives.info_nce(ones, ones[:4], F.normalize(torch.ones(10, 4), dim=1), 0.1).item() == pytest.approx(math.log(11))


@pytest.mark.parametrize("kind", ["ema", "copy", "previous_step", "previous_epoch"])
def test_teacher_is_the_student_of_the_right_moment(kind):
    """Section 5.2: two steps per epoch; the student before and after each."""
    torch.manual_seed(0)
    trainer = Trainer(TINY, dataclasses.replace(SMALL, teacher=kind, momentum_teacher=0.5, momentum_teacher_end=0.5), 2, CPU)
    weight = lambda network: network.head.mlp[0].weight.detach().clone()  # noqa: E731
    students, teachers = [weight(trainer.student)], [weight(trainer.teacher)]
    for iteration in range(6):
        trainer.step(crops(iteration), iteration)
        students.append(weight(trainer.student))
        teachers.append(weight(trainer.teacher))
    assert not torch.equal(students[3], students[4])
    average = [students[0]]
    for student in students[1:]:
        average.append(0.5 * average[-1] + 0.5 * student)
    expected = {
        "ema": average,
        "copy": students,
        "previous_step": [students[0], *students[:-1]],
        "previous_epoch": [students[number - number % 2] for number in range(7)],
    }[kind]
    torch.testing.assert_close(teachers, expected)


def test_predictor_belongs_to_the_student_only():
    recipe = dataclasses.replace(SMALL, predictor_dim=12)
    student, teacher = build_pair(TINY, recipe)
    extra = set(student.state_dict()) - set(teacher.state_dict())
    assert extra == {f"head.predictor.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")}
    assert not set(teacher.state_dict()) - set(student.state_dict())
    x = draw(3, 96)
    torch.testing.assert_close(teacher.head(x), student.head.last_layer(F.normalize(student.head.mlp(x), dim=-1)))
    trainer = Trainer(TINY, recipe, 2, CPU)
    before = copy.deepcopy(trainer.student.head.predictor.state_dict())
    trainer.step(crops(0), 0)
    trainer.step(crops(1), 1)
    assert not torch.equal(before["0.weight"], trainer.student.head.predictor.state_dict()["0.weight"])
    restored = Trainer(TINY, recipe, 2, CPU)
    restored.restore(copy.deepcopy(trainer.state(1)))
    assert all(torch.equal(tensor, restored.student.state_dict()[name]) for name, tensor in trainer.student.state_dict().items())


def test_byol_predictor_has_no_last_bias():
    head = ProjectionHead(8, dataclasses.replace(SMALL, objective="mse", **EMBEDDING, predictor_dim=12), predictor=True)
    assert [type(layer) for layer in head.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert head.predictor[3].bias is None
    assert head(draw(4, 8)).norm(dim=1).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(("layers", "expected"), [(3, 22_352_128 - (65536 - 4096) * 257), (2, 2_365_696), (1, 1_151_232)])
def test_parameters_of_heads_with_bottleneck(layers, expected):
    """training of Figure "head design": K = 4,096 with 384 inputs; layers before the prototypes."""
    with torch.device("meta"):
        head = ProjectionHead(384, Recipe(out_dim=4096, head_layers=layers))
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


@pytest.mark.parametrize(("layers", "expected"), [(1, 1_576_960), (2, 9_181_184), (3, 13_377_536), (4, 17_573_888)])
def test_heads_without_bottleneck_end_in_a_linear_layer(layers, expected):
    recipe = Recipe(out_dim=4096, head_layers=layers, bottleneck_dim=0)
    with torch.device("meta"):
        head = ProjectionHead(384, recipe)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected
    head = ProjectionHead(12, dataclasses.replace(recipe, out_dim=20, hidden_dim=16))
    x = draw(5, 12)
    torch.testing.assert_close(head(x), head.last_layer(head.mlp(x)))
    assert isinstance(head.last_layer, nn.Linear)
    assert len(head.mlp) == 2 * (layers - 1)


def test_lars_scales_matrices_by_their_norm_and_vectors_not():
    """utils.py: 0.001 * |p| / |g + wd p|; a momentum of 0.9."""
    matrix, vector = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.ones(2))
    optimizer = Lars([{"params": [matrix], "weight_decay": 0.1}, {"params": [vector]}], lr=2.0)
    matrix.grad, vector.grad = torch.full((2, 2), 0.7), torch.full((2,), 0.5)
    optimizer.step()
    assert matrix[0, 0].item() == pytest.approx(3 - 2 * 0.001 * 3)  # The direction has length 1 per |p|.
    assert vector[0].item() == pytest.approx(0.0)
    vector.grad = torch.zeros(2)
    optimizer.step()
    assert vector[0].item() == pytest.approx(-2 * 0.45)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "infonce"}, "--objective infonce .*--target none, got center"),
        ({"objective": "mse", "target": "sinkhorn"}, "center or none, got sinkhorn"),
        ({"out_dim": 0, "freeze_last_layer": 0}, "--objective ce .*--out-dim"),
        ({"out_dim": 0, "bottleneck_dim": 0}, "no output"),
        ({"objective": "mse", "out_dim": 0}, "--freeze-last-layer 0"),
        ({"bottleneck_dim": 0, "predictor_dim": 8}, "--predictor-dim .*--bottleneck-dim"),
        ({"head_layers": 0}, "--head-layers .* 0"),
    ],
)
def test_parts_that_do_not_fit_are_rejected(changes, named):
    with pytest.raises(ConfigError, match=named):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("means", "changes", "named"),
    [
        ({"teacher_entropy": 6.2379, "kl": 0.0002}, {}, "uniform"),
        ({"teacher_entropy": 0.001, "kl": 0.0002}, {"target": "none"}, "--target center"),
        ({"teacher_entropy": 0.001, "kl": 0.0002}, {}, "--center-momentum"),
        ({"teacher_entropy": 6.219, "kl": 0.0135}, {}, None),  # a plateau of a healthy run on digits
        ({"teacher_entropy": 6.046, "kl": 0.0002}, {}, None),
        ({"teacher_entropy": 0.0, "kl": 7.2}, {"target": "hard"}, None),
        ({"teacher_spread": 0.004}, {"objective": "mse", "target": "none"}, "--predictor-dim"),
        ({"teacher_spread": 0.89}, {"objective": "mse"}, None),
    ],
)
def test_collapse_is_an_end_of_the_entropy_without_divergence(means, changes, named):
    found = find_collapse(means, Recipe(out_dim=512, **changes))
    assert (found is None) == (named is None)
    assert named is None or named in (found or "")


UNIQUE = {(preset.arch, preset.recipe): name for name, preset in reversed(PAPER.items())}
SMALL_UNIQUE = {get_preset(name, "digits").recipe: name for name in reversed(PAPER)}


@pytest.mark.parametrize("name", UNIQUE.values())
def test_presets_build(name):
    preset = get_preset(name)
    with torch.device("meta"):
        student, teacher = build_pair(preset.arch, preset.recipe)
    assert sum(parameter.numel() for parameter in student.parameters()) >= sum(parameter.numel() for parameter in teacher.parameters())


@pytest.mark.parametrize("name", SMALL_UNIQUE.values())
def test_presets_train_on_a_small_base(name):
    preset = get_preset(name, "digits")
    recipe = dataclasses.replace(preset.recipe, batch_size=4, epochs=30, warmup_epochs=0, warmup_teacher_temp_epochs=0)
    recipe = dataclasses.replace(recipe, out_dim=min(recipe.out_dim, 4096))
    torch.manual_seed(0)
    trainer = Trainer(preset.arch, recipe, steps=1, device=CPU)
    before = trainer.student.backbone.blocks[0].attn.qkv.weight.detach().clone()
    numbers = [trainer.step(crops(step, recipe), step) for step in range(2)]
    assert all(math.isfinite(value) for step in numbers for value in step.values())
    assert not torch.equal(before, trainer.student.backbone.blocks[0].attn.qkv.weight)
    restored = Trainer(preset.arch, recipe, steps=1, device=CPU)
    restored.restore(copy.deepcopy(trainer.state(2)))
    following = []
    for one in (trainer, restored):
        torch.manual_seed(1)
        following.append(one.step(crops(3, recipe), 3))
    assert following[0] == following[1]
