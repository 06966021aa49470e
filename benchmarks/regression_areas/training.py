"""Areas of training: augmentation, DINO pretraining, batches of fine-tuning, the fine-tuning protocol."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import dinoeval
from dinoeval.data.dataset import ImageDataset
from dinoeval.data.opening import open_images, open_splits
from dinoeval.data.transforms import CenterCrop
from dinoeval.session import SessionConfig
from dinoeval.training.finetune import batches
from dinoeval.training.finetune.recipes import PRESETS as FINETUNE_PRESETS
from dinoeval.training.pretrain import augment, schedules
from dinoeval.training.pretrain.criterion import Criterion
from dinoeval.training.pretrain.head import ProjectionHead
from dinoeval.training.pretrain.presets import get_recipe
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.trainer import Trainer
from regression_areas.inputs import TINY, class_folders, command, image_folder, make_images, network
from regression_areas.recording import Recorder


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log of one JSON object per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def augmentation(record: Recorder, folder: Path) -> None:
    """Pixels of the multi-crop augmentation and of the augmentation of fine-tuning, orders, mixtures."""
    images = open_images(image_folder(folder / "photos", 6, (90, 70), seed=31))
    released = get_recipe("released")
    recipes = {
        **{name: get_recipe(name) for name in ("released", "cifar10", "digits")},
        "small": dataclasses.replace(released, global_crop=32, local_crop=16, local_crops=4),
        "plain": dataclasses.replace(released, global_crop=24, local_crops=0, flip=False, jitter=0.0, solarize=False),
    }
    for name, recipe in recipes.items():
        for epoch in (0, 1):
            crops = ImageDataset(images, augment.SeededCrops(augment.MultiCropAugmentation(recipe), 3, epoch))
            stacks = augment.collate([crops[row] for row in range(2 if name == "released" else len(images))])
            record.add_all(f"multi_crop/{name}/epoch{epoch}", {f"view{view}": stack for view, stack in enumerate(stacks)})

    train, _ = open_splits(str(class_folders(folder / "classes", train=10)))
    transform = CenterCrop(36, 32)
    for name in ("imagenet", "cifar10", "digits", "short"):
        augmented = batches.augmented_images(train, FINETUNE_PRESETS[name], transform, seed=2)
        stack, labels = batches.collate([augmented[0, row, repeat] for row in range(0, 40, 3) for repeat in range(2)])
        record.add_all(f"finetuning/{name}", {"pictures": stack, "labels": labels})
    record.add("finetuning/central", batches.cropped_images(train, transform)[7][0])
    for rank in range(2):
        positions = [part for _, part in batches.assign_mixup_groups(16, 8, rank, 2)]
        record.add(f"finetuning/dealt/process{rank}", np.concatenate(positions))
    groups = batches.assign_mixup_groups(16, 8, 0, 1)
    recipe = dataclasses.replace(FINETUNE_PRESETS["imagenet"], train_batch_size=16, mixed_together=8)
    order = batches.RepeatedOrder(40, recipe, np.concatenate([positions for _, positions in groups]), seed=1)
    for epoch in (0, 1):
        order.epoch = epoch
        record.add(f"finetuning/order/epoch{epoch}", np.array(list(order)))
    stack, labels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
    for name in ("imagenet", "digits"):
        mixing = batches.Mixing(dataclasses.replace(FINETUNE_PRESETS[name], mixed_together=8), 4, groups, seed=0)
        for step in range(3):
            mixed, targets = mixing(stack.clone(), labels, 1, step)
            record.add_all(f"finetuning/mixed/{name}/step{step}", {"pictures": mixed, "targets": targets})


def pretraining(record: Recorder, folder: Path) -> None:
    """DINO: 20 steps with their losses, whole runs with checkpoints, a resumed run, schedules."""
    for precision in ("fp32", "bf16"):
        _steps(record, precision)
    data = class_folders(folder / "classes", train=5, val=4)
    options = {
        **{"arch": TINY, "device": "cpu", "workers": 0, "seed": 7, "epochs": 4, "batch-size": 4, "lr": 0.01, "warmup-epochs": 1},
        **{"out-dim": 48, "hidden-dim": 32, "global-crop": 16, "local-crop": 8, "local-crops": 2, "momentum-teacher": 0.95},
        **{"save-every": 1, "knn-every": 2},
    }
    words = [word for option, value in options.items() for word in (f"--{option}", value)]
    command("train", "--data", data, "--out", folder / "run", *words)
    (folder / "resumed").mkdir()
    shutil.copy(folder / "run/checkpoint0000.pth", folder / "resumed/checkpoint.pth")
    command("train", "--data", data, "--out", folder / "resumed", *words)
    command("train", "--data", data / "train/class0", "--out", folder / "unlabeled_bf16", *words, "--precision", "bf16")
    for name in ("run", "resumed", "unlabeled_bf16"):
        _add_pretraining_run(record, name, folder / name)

    record.add_all("schedule", {"cosine": schedules.cosine(0.0005, 1e-6, 20, 7, 3), "momentum": schedules.cosine(0.996, 1.0, 9, 5)})
    record.add("schedule/teacher_temperature", schedules.teacher_temperature(0.04, 0.07, 5, 9))
    torch.manual_seed(5)
    head = ProjectionHead(24, Recipe(out_dim=40, hidden_dim=16))
    record.add_state("head", head.state_dict())
    record.add("head/logits", head(torch.randn(6, 24, generator=torch.Generator().manual_seed(6))))
    loss, draw = Criterion(Recipe(out_dim=40)), torch.Generator().manual_seed(8)
    for step in range(2):
        found = loss(torch.randn(12, 40, generator=draw), torch.randn(6, 40, generator=draw), 0.05)
        watched = {name: value for name, value in found.numbers().items() if name != "loss"}
        record.add_all(f"loss/step{step}", {"value": found.value, **watched})
    record.add("loss/center", loss.center)


def _steps(record: Recorder, precision: Any) -> None:
    """Record 20 steps on random crops."""
    teacher = {"momentum_teacher": 0.9, "warmup_teacher_temp": 0.04, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 3}
    sizes = {"out_dim": 64, "hidden_dim": 32, "norm_last_layer": False, "local_crops": 2, "global_crop": 16, "local_crop": 8}
    steps = {"epochs": 4, "batch_size": 4, "lr": 0.02, "warmup_epochs": 1, "clip_grad": 0.3, "freeze_last_layer": 1, "drop_path": 0.1}
    torch.manual_seed(3)
    trainer, values = Trainer(TINY, Recipe(**teacher, **sizes, **steps), 5, torch.device("cpu"), precision), []
    for iteration in range(20):
        draw = np.random.default_rng(iteration)
        crops = [torch.from_numpy(draw.standard_normal((4, 3, size, size), dtype=np.float32)) for size in (16, 16, 8, 8)]
        torch.manual_seed(100 + iteration)
        values.append(trainer.step(crops, iteration))
    record.add_table(f"steps/{precision}", values)
    record.add(f"steps/{precision}/center", trainer.loss.center)
    record.add_state(f"steps/{precision}/teacher", trainer.teacher.state_dict())
    record.add_state(f"steps/{precision}/student", trainer.student.state_dict())


def _add_pretraining_run(record: Recorder, name: str, folder: Path) -> None:
    """Record the log, the checkpoint and the backbone of a run."""
    record.add_table(f"{name}/log", read_log(folder / "log.txt"))
    state = torch.load(folder / "checkpoint.pth", weights_only=False)
    record.add_all(name, {"epoch": state["epoch"], "center": state["dino_loss"]["center"]})
    for part in ("student", "teacher"):
        record.add_state(f"{name}/{part}", state[part])
    optimizer = {f"{number}.{key}": value for number, values in state["optimizer"]["state"].items() for key, value in values.items()}
    record.add_state(f"{name}/optimizer", optimizer)
    backbone = dinoeval.load(weights=folder / "teacher.safetensors", device="cpu")
    record.add_all(name, {"digest": backbone.digest, "features": dinoeval.embed(backbone, make_images(3, seed=33))})


def finetune(record: Recorder, folder: Path) -> None:
    """The fine-tuning protocol: several recipes of two epochs, a resumed run, other precisions and networks."""
    data, backbone = str(class_folders(folder / "classes")), network(folder)
    common = {"backbone": backbone, "data": data, "epochs": 2, "warmup_epochs": 0, "train_batch_size": 8}
    short = {"preset": "short", "epochs": 4, "lr": 0.02, "save_every": 1}
    bf16 = {"backbone": network(folder, precision="bf16"), "session": SessionConfig(precision="bf16")}
    (folder / "resumed").mkdir()
    for name, options in {
        "short": short,
        "sgd": {"preset": "cars", "lr": 0.5, "seed": 4},
        "imagenet": {"preset": "imagenet", "lr": 0.01, "weight_decay": 0.3, "drop_path": 0.3},
        "warmup": {"preset": "cifar10", "epochs": 3, "warmup_epochs": 1, "lr": 0.01, "train_batch_size": 16},
        "resumed": short,
        "small_passes": {**short, "session": SessionConfig(batch_size=3, transform="dino:20/16")},
        "bf16": {**short, **bf16},
        "digits": {"backbone": dinoeval.load(device="cpu"), "data": "digits", "epochs": 1, "train_batch_size": None},
    }.items():
        out = folder / name
        if name == "resumed":
            shutil.copy(folder / "short/checkpoint0001.pth", out / "checkpoint.pth")
        record.run("finetune", {name: {**options, "out": str(out)}}, **common)
        record.add_table(f"{name}/log", read_log(out / "log.txt"))
        record.add_state(f"{name}/head", load_file(out / "head.safetensors"))
        record.add(f"{name}/digest", dinoeval.load(weights=out / "backbone.safetensors", device="cpu").digest)
        record.add_state(f"{name}/average", torch.load(out / "checkpoint.pth", weights_only=False)["model_ema"])
    library = dinoeval.load("timm/vit_tiny_patch16_224", weights="random", device="cpu")
    few = {"preset": "short", "epochs": 1, "train_batch_size": 48, "session": SessionConfig(transform="dino:32/32")}
    record.run("finetune", {"timm": {"backbone": library, **few}}, **common)
