"""Parts of pretraining against public code: LARS, Sinkhorn-Knopp, softmax over the batch, InfoNCE with a queue, BYOL.

    python benchmarks/parity_pretraining.py CHECKOUTS

CHECKOUTS is a folder of checkouts: dino, swav, dinov2 (of facebookresearch), moco (branch KaimingHe-patch-1, the last one with
code) and byol-pytorch (of lucidrains, which requires einops). A part is left out if its checkout is missing. Each part gets
equal inputs on both sides. What is trained takes 20 steps. The DINO loss, its head, AdamW and the order of a step are compared
by parity.py.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import released
import torch
from measurement import Options, write_record
from torch import Tensor, nn

from dinoeval.training.pretrain import objectives, targets
from dinoeval.training.pretrain.criterion import Criterion
from dinoeval.training.pretrain.head import ProjectionHead
from dinoeval.training.pretrain.optimizers import Lars, parameter_groups
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.teachers import update_ema

COMMAND = "python benchmarks/parity_pretraining.py CHECKOUTS"
VERSIONS = {"dino": "7c446df", "swav": "06b1b7c", "dinov2": "b8931f7", "moco": "5df3287", "byol-pytorch": "2993126"}
STEPS, ROWS, WIDTH, PROTOTYPES = 20, 32, 64, 300
Row = dict[str, Any]


def load_module(path: Path) -> types.ModuleType:
    """Import a file by its path, without the package that it is in."""
    spec = importlib.util.spec_from_file_location(f"other_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def take_function(path: Path, name: str, **scope: Any) -> Callable:
    """Return a function of a file that cannot be imported, because its other imports are missing."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    exec(compile(tree, str(path), "exec"), scope)
    return scope[name]


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def logits(seed: int, rows: int = ROWS, columns: int = PROTOTYPES) -> Tensor:
    """Make outputs of a head with prototypes of length 1."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def compare_lars(checkouts: Path) -> list[Row]:
    """20 steps of LARS on a network with matrices, vectors, and a matrix of zeros."""
    sys.path.insert(0, str(checkouts / "dino"))
    import utils

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, 8))
    nn.init.zeros_(network[3].weight)
    other = copy.deepcopy(network)
    ours, theirs = Lars(parameter_groups(network)), utils.LARS(utils.get_params_groups(other))
    for step in range(STEPS):
        inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(step))
        for trained, optimizer in ((network, ours), (other, theirs)):
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * step / STEPS
            optimizer.param_groups[0]["weight_decay"] = 0.04
            optimizer.zero_grad()
            trained(inputs).square().sub(1).square().mean().backward()
            optimizer.step()
    largest = max(difference(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    return [{"part": "LARS", "of": "dino", "steps": STEPS, "largest_difference": largest}]


def compare_sinkhorn(checkouts: Path) -> list[Row]:
    """Sinkhorn-Knopp by SwAV and DINOv2; one iteration is the softmax over the batch."""
    rows: list[Row] = []
    scores = logits(1)
    if (checkouts / "swav").exists():
        scope = types.SimpleNamespace(epsilon=0.05, sinkhorn_iterations=3, world_size=1)
        function = take_function(checkouts / "swav/main_swav.py", "distributed_sinkhorn", torch=torch, args=scope, dist=torch.distributed)
        found = targets.sinkhorn(scores, scope.epsilon, scope.sinkhorn_iterations).exp()
        rows.append({"part": "sinkhorn(3)", "of": "swav", "largest_difference": difference(found, function(scores.clone()))})
    if (checkouts / "dinov2").exists():
        loss = load_module(checkouts / "dinov2/dinov2/loss/dino_clstoken_loss.py").DINOLoss(PROTOTYPES)
        for iterations, part in ((1, "softmax_batch"), (3, "sinkhorn(3)")):
            expected = loss.sinkhorn_knopp_teacher(scores.clone(), 0.07, iterations)
            found = targets.sinkhorn(scores, 0.07, iterations).exp()
            rows.append({"part": part, "of": "dinov2", "largest_difference": difference(found, expected)})
    direct = (scores / 0.07).softmax(0)
    found = targets.sinkhorn(scores, 0.07, 1).exp()
    rows.append(
        {"part": "softmax_batch", "of": "its formula", "largest_difference": difference(found, direct / direct.sum(1, keepdim=True))}
    )
    return rows


def compare_info_nce(checkouts: Path) -> list[Row]:
    """20 steps of a linear layer by MoCo's loss in both directions, with one queue for both."""
    module = load_module(checkouts / "moco/moco/builder.py")
    recipe = Recipe(
        **{"objective": "infonce", "target": "none", "out_dim": 0, "freeze_last_layer": 0, "bottleneck_dim": WIDTH, "queue_size": 8 * ROWS}
    )
    torch.manual_seed(2)
    criterion, layer = Criterion(recipe), nn.Linear(WIDTH, WIDTH)
    moco = module.MoCo(lambda num_classes: nn.Identity(), WIDTH, recipe.queue_size, T=recipe.student_temp)
    moco.queue = criterion.queue.T.clone()
    other = copy.deepcopy(layer)
    optimizers = [torch.optim.SGD(one.parameters(), lr=1.0) for one in (layer, other)]
    largest = 0.0
    for step in range(STEPS):
        views = [logits(10 * step + view, ROWS, WIDTH) for view in range(2)]
        keys = [view + 0.3 * logits(10 * step + 5 + number, ROWS, WIDTH) for number, view in enumerate(views)]
        losses = []
        for first, second in ((0, 1), (1, 0)):
            output, labels = copy.deepcopy(moco)(other(views[second]), keys[first])
            losses.append(nn.functional.cross_entropy(output, labels))
        expected = torch.stack(losses).mean()
        for key in keys:
            moco._dequeue_and_enqueue(nn.functional.normalize(key, dim=1))
        found = criterion(layer(torch.cat(views)), torch.cat(keys), 1.0).value
        largest = max(largest, abs(found.item() / expected.item() - 1))
        for value, optimizer in zip((found, expected), optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    row = {"part": "infonce", "of": "moco", "steps": STEPS, "largest_difference": largest}
    return [row | {"weights": difference(layer.weight, other.weight), "queue": difference(criterion.queue.T, moco.queue)}]


def compare_byol(checkouts: Path) -> list[Row]:
    """20 steps of BYOL's projector and predictor, with its loss and its moving average."""
    module = load_module(checkouts / "byol-pytorch/byol_pytorch/byol_pytorch.py")
    recipe = Recipe(
        **{"objective": "mse", "target": "none", "out_dim": 0, "freeze_last_layer": 0, "bottleneck_dim": 48, "hidden_dim": 96},
        **{"head_layers": 2, "head_activation": "relu", "head_batch_norm": True, "predictor_dim": 96},
    )
    torch.manual_seed(3)
    student, teacher, criterion = ProjectionHead(WIDTH, recipe, predictor=True), ProjectionHead(WIDTH, recipe), Criterion(recipe)
    assert student.predictor
    teacher.load_state_dict(student.state_dict(), strict=False)
    projector, target, predictor = (module.MLP(width, 48, 96) for width in (WIDTH, WIDTH, 48))
    projector.load_state_dict(student.mlp.state_dict())
    target.load_state_dict(student.mlp.state_dict())
    predictor.load_state_dict({**student.predictor.state_dict(), "3.bias": torch.zeros(48)})
    predictor[3].bias.requires_grad = False  # BYOL's own code has no such bias.
    average = module.EMA(0.9)
    ours = torch.optim.SGD(student.parameters(), lr=0.05)
    theirs = torch.optim.SGD([*projector.parameters(), *predictor.parameters()], lr=0.05)
    largest = 0.0
    for step in range(STEPS):
        views = torch.cat([logits(20 * step + view, ROWS, WIDTH) for view in range(2)])
        with torch.no_grad():
            keys = target(views).chunk(2)
        queries = predictor(projector(views)).chunk(2)
        expected = torch.cat([module.cosine_loss_fn(queries[one], keys[1 - one]) for one in (0, 1)]).mean()
        with torch.no_grad():
            output = teacher(views)
        found = criterion(student(views), output, 1.0).value
        largest = max(largest, abs(found.item() / expected.item() - 1))
        for value, optimizer in ((found, ours), (expected, theirs)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        update_ema(teacher, student, 0.9)
        module.update_moving_average(average, target, projector)
    row = {"part": "mse and predictor", "of": "byol-pytorch", "steps": STEPS, "largest_difference": largest}
    return [row | {"weights": difference(student.predictor[3].weight, predictor[3].weight)}]


def compare_formulas() -> list[Row]:
    """Objectives by their formulas, computed pair by pair."""
    student, teacher, queue = logits(4, 5 * ROWS, WIDTH), logits(5, 2 * ROWS, WIDTH), logits(6, 100, WIDTH)
    unit = nn.functional.normalize
    views, keys, negatives = unit(student).split(ROWS), unit(teacher).split(ROWS), unit(queue)
    pairs = [(t, v) for t in range(2) for v in range(5) if v != t]
    distances = torch.stack([(views[v] - keys[t]).square().sum(1).mean() for t, v in pairs]).mean()
    scores = [torch.cat(((views[v] * keys[t]).sum(1, keepdim=True), views[v] @ negatives.T), 1) / 0.1 for t, v in pairs]
    contrast = torch.stack([nn.functional.cross_entropy(one, torch.zeros(ROWS, dtype=torch.int64)) for one in scores]).mean()
    found = {"mse": (objectives.mean_squared_error(student, teacher), distances)}
    found["infonce"] = (objectives.info_nce(student, teacher, negatives, 0.1), contrast)
    return [{"part": part, "of": "its formula", "largest_difference": difference(*pair)} for part, pair in found.items()]


def main() -> None:
    options = Options(__file__, "parity_pretraining", __doc__)
    options.add_input("checkouts", "a folder of checkouts")
    args = options.parse()
    rows, left_out = compare_formulas(), []
    checkouts = args.checkouts or Path("/nonexistent")
    if (checkouts / "dino").exists():
        released.use(checkouts / "dino")
    rows += compare_sinkhorn(checkouts)
    requires = {"byol-pytorch": {"einops": "einops"}}
    for name, compare in (("dino", compare_lars), ("moco", compare_info_nce), ("byol-pytorch", compare_byol)):
        present = checkouts / name if (checkouts / name).exists() else None
        if reason := released.why_left_out(present, requires=requires.get(name, {}), name="CHECKOUTS", source=name):
            left_out.append(reason)
        else:
            rows += compare(checkouts)
    for row in rows:
        print(row)
    write_record(args, COMMAND, {"versions": VERSIONS, "rows": rows}, left_out)


if __name__ == "__main__":
    main()
