"""Areas of training: augmentation, DINO pretraining, batches of fine-tuning, the fine-tuning protocol."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regression_areas.inputs import TINY, class_folders, command, flat_folder, network, pictures
from regression_areas.recording import Book

SPEED = "images_per_second"  # of a log; depends on time


def log_rows(path: Path) -> list[dict[str, Any]]:
    """Read a log of one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def augmentation(book: Book, folder: Path) -> None:
    """Pixels of the multi-crop augmentation and of fine-tuning's, orders, mixtures."""
    from dinoeval.data.dataset import ImageDataset
    from dinoeval.data.opening import open_images, open_splits
    from dinoeval.data.transforms import CenterCrop
    from dinoeval.training.finetune.batches import Mixing, RepeatedOrder, assign_mixup_groups, augmented_images, cropped_images
    from dinoeval.training.finetune.batches import collate as collate_labeled
    from dinoeval.training.finetune.recipes import PRESETS as FINETUNING
    from dinoeval.training.pretrain.augment import MultiCropAugmentation, SeededCrops, collate
    from dinoeval.training.pretrain.presets import PRESETS

    images = open_images(flat_folder(folder / "photos", 6, (90, 70), seed=31))
    recipes = {
        **PRESETS,
        "small": dataclasses.replace(PRESETS["released"], global_crop=32, local_crop=16, local_crops=4),
        "plain": dataclasses.replace(PRESETS["released"], global_crop=24, local_crops=0, flip=False, jitter=0.0, solarize=False),
    }
    for name in ("released", "cifar10", "digits", "small", "plain"):
        rows = range(2) if name == "released" else range(len(images))
        for epoch in (0, 1):
            crops = ImageDataset(images, SeededCrops(MultiCropAugmentation(recipes[name]), 3, epoch))
            for view, stack in enumerate(collate([crops[row] for row in rows])):
                book.add(f"multi_crop/{name}/epoch{epoch}/view{view}", stack)

    train, _ = open_splits(str(class_folders(folder / "classes", train=10)))
    transform = CenterCrop(36, 32)
    for name in ("imagenet", "cifar10", "digits", "short"):
        batch = augmented_images(train, FINETUNING[name], transform, seed=2)
        stack, labels = collate_labeled([batch[0, row, repeat] for row in range(0, 40, 3) for repeat in range(2)])
        book.add_all(f"finetuning/{name}", {"pictures": stack, "labels": labels})
    book.add("finetuning/central", cropped_images(train, transform)[7][0])
    recipe = dataclasses.replace(FINETUNING["imagenet"], train_batch_size=16, mixed_together=8)
    for rank in range(2):
        parts = assign_mixup_groups(16, 8, rank, 2)
        book.add(f"finetuning/dealt/process{rank}", np.concatenate([positions for _, positions in parts]))
    parts = assign_mixup_groups(16, 8, 0, 1)
    order = RepeatedOrder(40, recipe, np.concatenate([positions for _, positions in parts]), seed=1)
    for epoch in (0, 1):
        order.epoch = epoch
        book.add(f"finetuning/order/epoch{epoch}", np.array(list(order)))
    stack, labels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
    for name in ("imagenet", "digits"):
        mixing = Mixing(dataclasses.replace(FINETUNING[name], mixed_together=8), 4, parts, seed=0)
        for step in range(3):
            mixed, targets = mixing(stack.clone(), labels, 1, step)
            book.add_all(f"finetuning/mixed/{name}/step{step}", {"pictures": mixed, "targets": targets})


def pretraining(book: Book, folder: Path) -> None:
    """DINO: 20 steps with their losses, whole runs with checkpoints, a resumed run, schedules."""
    from dinoeval.training.pretrain import schedules
    from dinoeval.training.pretrain.head import DinoHead
    from dinoeval.training.pretrain.objectives import DinoLoss
    from dinoeval.training.pretrain.presets import Recipe
    from dinoeval.training.pretrain.trainer import DinoTrainer

    recipe = Recipe(
        epochs=4, batch_size=4, lr=0.02, warmup_epochs=1, clip_grad=0.3, freeze_last_layer=1, out_dim=64, hidden_dim=32,
        norm_last_layer=False, momentum_teacher=0.9, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=3,
        local_crops=2, drop_path=0.1, global_crop=16, local_crop=8,
    )  # fmt: skip
    for precision in ("fp32", "bf16"):
        torch.manual_seed(3)
        trainer, steps = DinoTrainer(TINY, recipe, 5, torch.device("cpu"), precision), []
        for iteration in range(20):
            draw = np.random.default_rng(iteration)
            crops = [torch.from_numpy(draw.standard_normal((4, 3, size, size), dtype=np.float32)) for size in (16, 16, 8, 8)]
            torch.manual_seed(100 + iteration)
            steps.append(trainer.step(crops, iteration))
        book.table(f"steps/{precision}", steps)
        book.add(f"steps/{precision}/center", trainer.loss.center)
        book.state(f"steps/{precision}/teacher", trainer.teacher.state_dict())
        book.state(f"steps/{precision}/student", trainer.student.state_dict())

    data = class_folders(folder / "classes", train=5, val=4)
    small = {
        "epochs": 4, "batch-size": 4, "lr": 0.01, "warmup-epochs": 1, "out-dim": 48, "hidden-dim": 32, "global-crop": 16, "local-crop": 8,
        "local-crops": 2, "momentum-teacher": 0.95, "device": "cpu", "workers": 0, "save-every": 1, "knn-every": 2, "seed": 7,
    }  # fmt: skip
    words = [word for option, value in small.items() for word in (f"--{option}", value)]
    command("train", "--data", data, "--arch", TINY, "--out", folder / "run", *words)
    _run(book, "run", folder / "run")
    (folder / "resumed").mkdir()
    shutil.copy(folder / "run/checkpoint0000.pth", folder / "resumed/checkpoint.pth")
    command("train", "--data", data, "--arch", TINY, "--out", folder / "resumed", *words)
    _run(book, "resumed", folder / "resumed")
    command("train", "--data", data / "train/class0", "--arch", TINY, "--out", folder / "unlabeled", *words, "--precision", "bf16")
    _run(book, "unlabeled_bf16", folder / "unlabeled")

    book.add_all("schedule", {"cosine": schedules.cosine(0.0005, 1e-6, 20, 7, 3), "momentum": schedules.cosine(0.996, 1.0, 9, 5)})
    book.add("schedule/teacher_temperature", schedules.teacher_temperature(0.04, 0.07, 5, 9))
    torch.manual_seed(5)
    head = DinoHead(24, 40, hidden_dim=16)
    book.state("head", head.state_dict())
    book.add("head/logits", head(torch.randn(6, 24, generator=torch.Generator().manual_seed(6))))
    loss, draw = DinoLoss(40), torch.Generator().manual_seed(8)
    for step in range(2):
        found = loss(torch.randn(12, 40, generator=draw), torch.randn(6, 40, generator=draw), 0.05)
        book.add_all(f"loss/step{step}", {"value": found.value, "teacher_entropy": found.teacher_entropy, "kl": found.kl})
    book.add("loss/center", loss.center)


def _run(book: Book, name: str, folder: Path) -> None:
    """Record what a run of pretraining left behind."""
    import dinoeval

    book.table(f"{name}/log", log_rows(folder / "log.txt"), leave_out=(SPEED,))
    state = torch.load(folder / "checkpoint.pth", weights_only=False)
    book.add_all(name, {"epoch": state["epoch"], "center": state["dino_loss"]["center"]})
    for part in ("student", "teacher"):
        book.state(f"{name}/{part}", state[part])
    optimizer = {f"{number}.{key}": value for number, values in state["optimizer"]["state"].items() for key, value in values.items()}
    book.state(f"{name}/optimizer", optimizer)
    backbone = dinoeval.load(weights=folder / "teacher.safetensors", device="cpu")
    book.add_all(name, {"digest": backbone.digest, "features": dinoeval.embed(backbone, pictures(3, seed=33))})


def finetune(book: Book, folder: Path) -> None:
    """The fine-tuning protocol: several recipes of two epochs, and a resumed run."""
    import dinoeval
    from dinoeval.session import SessionConfig

    data, backbone = str(class_folders(folder / "classes")), network(folder)
    common = {"data": data, "epochs": 2, "warmup_epochs": 0, "train_batch_size": 8}
    runs = {
        "short": {"preset": "short", "epochs": 4, "lr": 0.02, "save_every": 1},
        "sgd": {"preset": "cars", "lr": 0.5, "seed": 4},
        "imagenet": {"preset": "imagenet", "lr": 0.01, "weight_decay": 0.3, "drop_path": 0.3},
        "warmup": {"preset": "cifar10", "epochs": 3, "warmup_epochs": 1, "lr": 0.01, "train_batch_size": 16},
    }
    for name, options in runs.items():
        out = folder / name
        book.result(name, dinoeval.evaluate("finetune", backbone, **common | options | {"out": str(out)}))
        _finetuned(book, name, out)
    (folder / "resumed").mkdir()
    shutil.copy(folder / "short/checkpoint0001.pth", folder / "resumed/checkpoint.pth")
    resumed = common | runs["short"] | {"out": str(folder / "resumed")}
    book.result("resumed", dinoeval.evaluate("finetune", backbone, **resumed))
    _finetuned(book, "resumed", folder / "resumed")
    parts = SessionConfig(batch_size=3, transform="dino:20/16")
    book.result(
        "small_passes",
        dinoeval.evaluate("finetune", backbone, session=parts, **common | runs["short"] | {"out": str(folder / "small_passes")}),
    )
    half = SessionConfig(precision="bf16")
    book.result(
        "bf16",
        dinoeval.evaluate(
            "finetune", network(folder, precision="bf16"), session=half, **common | runs["short"] | {"out": str(folder / "bf16")}
        ),
    )
    digits = {"data": "digits", "epochs": 1, "warmup_epochs": 0, "out": str(folder / "digits")}
    book.result("digits", dinoeval.evaluate("finetune", dinoeval.load(device="cpu"), **digits))
    for name in ("small_passes", "bf16", "digits"):
        _finetuned(book, name, folder / name)
    library = dinoeval.load("timm/vit_tiny_patch16_224", weights="random", device="cpu")
    few = {"data": data, "preset": "short", "epochs": 1, "warmup_epochs": 0, "train_batch_size": 48}
    book.result("timm", dinoeval.evaluate("finetune", library, session=SessionConfig(transform="dino:32/32"), **few))


def _finetuned(book: Book, name: str, folder: Path) -> None:
    """Record what a run of fine-tuning left behind."""
    from safetensors.torch import load_file

    import dinoeval

    book.table(f"{name}/log", log_rows(folder / "log.txt"), leave_out=(SPEED,))
    book.state(f"{name}/head", load_file(folder / "head.safetensors"))
    book.add(f"{name}/digest", dinoeval.load(weights=folder / "backbone.safetensors", device="cpu").digest)
    average = torch.load(folder / "checkpoint.pth", weights_only=False)["model_ema"]
    book.state(f"{name}/average", average)
