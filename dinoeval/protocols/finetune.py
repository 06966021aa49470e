"""Fine-tuning of the whole network on a labelled data set by DeiT's recipe (Tables 6 and 11).

The backbone and a new linear head are trained together; the last epoch is scored, on the evaluation half's central crops.
The released code has no fine-tuning. The recipes are DeiT's with what the authors wrote in issues 31, 81, 144 and 171 of
facebookresearch/dino; see `training/recipes.py`. What is not published: the factor that the head's initial weights are
multiplied by, the settings for Flowers and Cars, and whether ViT-S/16 had those of ViT-B/16.

Other than DeiT: what is drawn for a picture depends on seed, epoch and picture alone, so that a run that was stopped goes
on as if it had not been, and the number of processes changes nothing but rounding, the draws of stochastic depth, and
BatchNorm's statistics where a network has any.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from dinoeval import distributed
from dinoeval.data.images import ImageSet, open_splits
from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.models.zoo import ZOO
from dinoeval.protocols._classification import resolve_dataset
from dinoeval.results import Reference, Result, proportion_error
from dinoeval.session import SplitRecord, describe_data
from dinoeval.training.finetune.recipes import PRESETS, FinetuneRecipe, get_finetune_recipe

if TYPE_CHECKING:
    from dinoeval.session import Session
    from dinoeval.training.finetune.run import Outcome

VERSION = 1
TARGETS = {  # images to train on, images to score, classes
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "inat18": (437_513, 24_426, 8_142),
    "inat19": (265_240, 3_003, 1_010),
    "flowers": (2_040, 6_149, 102),
    "cars": (8_144, 8_041, 196),
    "imagenet": (1_281_167, 50_000, 1_000),
}
_TABLE_6 = {  # the rows of DINO, in the order of TARGETS
    "vit_s16": (99.0, 90.5, 72.0, 78.2, 98.5, 93.0, 81.5),
    "vit_b16": (99.1, 91.7, 72.6, 78.6, 98.8, 93.0, 82.8),
}
PAPER = {
    f"{arch} {target}": Reference(metric="top1", value=value, decimals=1, source="Table 6 of the paper")
    for arch, row in _TABLE_6.items()
    for target, value in zip(TARGETS, row, strict=True)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Fine-tuning of the whole network. A run that was stopped goes on when the same command is given again.

    --batch-size is the images of a forward pass in each process: it bounds memory, and gradients are summed up to
    --train-batch-size. --precision is that of training, with float32 weights.
    """

    data: str | None = None
    """As for `dinoeval knn`: a folder, a CSV table or a name; by default $DINOEVAL_DATA/imagenet, or else the built-in digits."""
    preset: str = "auto"
    """Where the recipe comes from: cifar10, cifar100, inat18, inat19, flowers, cars, imagenet (the paper's), short or digits (ours);
    auto goes by the name of the data set. The next six options change it."""
    epochs: int | None = None
    """Passes over the training half."""
    lr: float | None = None
    """Peak learning rate for a batch of 512; it is scaled by the batch."""
    train_batch_size: int | None = None
    """Images a step, over all processes."""
    warmup_epochs: int | None = None
    """Epochs in which the learning rate rises; fewer than all."""
    weight_decay: float | None = None
    """Not of biases, norms, [CLS] and positions."""
    drop_path: float | None = None
    """Stochastic depth."""
    out: str | None = None
    """Folder of the run: checkpoint.pth, log.txt, and at the end backbone.safetensors and head.safetensors."""
    save_every: int = 0
    """Epochs between checkpoints that are kept beside the last one; 0 for none."""
    seed: int = 0
    """Of the head, order, augmentation, mixing and stochastic depth."""


def run(config: Config, session: Session) -> Result:
    """Fine-tune a copy of the session's backbone; a Result whose metrics are top1 and top5 in percent, of the last epoch."""
    began = time.monotonic()
    data, notes = resolve_dataset(config.data, session.backbone.arch)
    _check(config, session)
    train, val = open_splits(data)
    preset, recipe = _recipe(config, data)
    opened = time.monotonic()
    outcome = _train(config, session, recipe, train, val)
    assert val.labels is not None
    right = outcome.predictions == val.labels[:, None]  # (Q, 5)
    outcomes = {"top1": right[:, 0], "top5": right.any(1)}
    metrics = {metric: 100 * float(hits.mean()) for metric, hits in outcomes.items()}
    references, why_not = published(preset, recipe, session, train, val)
    asked = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "save_every")}
    return Result(
        protocol="finetune",
        version=VERSION,
        metrics=metrics,
        standard_errors={metric: proportion_error(value, len(val)) for metric, value in metrics.items()},
        config={**asked, **recipe.record(), "data": data, "preset": preset},
        backbone=session.describe_backbone(),
        data=describe_data(data, train=SplitRecord(train, []), val=SplitRecord(val, [])),
        transform=session.transform.id,
        machine={**session.machine, "processes": str(distributed.world_size())},
        seconds={"open": opened - began, "train and score": time.monotonic() - opened, "total": time.monotonic() - began},
        references=references,
        not_comparable=why_not,
        notes=[*notes, *_notes(preset, outcome)],
        samples={
            "path": list(val.paths),
            "label": val.labels.tolist(),
            "prediction": outcome.predictions[:, 0].tolist(),
            **{metric: hits.astype(int).tolist() for metric, hits in outcomes.items()},
        },
    )


def _recipe(config: Config, data: str) -> tuple[str, FinetuneRecipe]:
    """The preset's recipe with the options that were given in its place."""
    preset, recipe = get_finetune_recipe(config.preset, data)
    names = {field.name for field in dataclasses.fields(FinetuneRecipe)}
    given = {name: value for name, value in dataclasses.asdict(config).items() if name in names and value is not None}
    return preset, dataclasses.replace(recipe, **given)


def _check(config: Config, session: Session) -> None:
    if config.seed < 0 or config.save_every < 0:
        raise ConfigError("seed and save_every must be 0 or more")
    if session.config.bad_images == "skip":
        raise ConfigError("finetune does not skip bad images: an epoch has to be the same every time. Mend or remove them.")
    patch = session.backbone.patch_size
    if patch is not None and session.transform.crop < patch:
        raise ConfigError(f"images of {session.transform.crop} pixels are smaller than a patch of {patch}")


def _train(config: Config, session: Session, recipe: FinetuneRecipe, train: ImageSet, val: ImageSet) -> Outcome:
    import torch

    from dinoeval.training.finetune.run import Run, Settings

    settings = Settings(
        out=config.out, seed=config.seed, save_every=config.save_every,
        workers=session.config.workers, forward_images=session.config.batch_size,
    )  # fmt: skip
    try:
        return Run(session.backbone, train, val, recipe, session.transform, settings, session.config.precision).finish()
    except torch.cuda.OutOfMemoryError as error:
        raise DinoevalError(
            "the GPU's memory is too small for a forward pass: lower --batch-size (32, say), which leaves the batch of a step as "
            "it is, or say --precision bf16. The same command goes on from the last epoch."
        ) from error


def _notes(preset: str, outcome: Outcome) -> list[str]:
    top1 = [row["top1"] for row in outcome.history]
    best = max(range(len(top1)), key=top1.__getitem__)
    notes = [
        f"scored after the last of {len(top1)} epochs; the best was number {best + 1} with top1 {top1[best]:.2f}, "
        "which is selection on the images it is scored on and no result"
    ]
    if preset in ("flowers", "cars"):
        notes.append("the paper's settings for Flowers and Cars are not published; these are DeiT's")
    return notes


def published(preset: str, recipe: FinetuneRecipe, session: Session, train: ImageSet, val: ImageSet) -> tuple[list[Reference], str | None]:
    """The paper's number for this network on this target, or why there is none."""
    backbone = session.backbone
    arch = backbone.provenance.name if backbone.provenance.name in ZOO else backbone.arch
    if preset not in TARGETS:
        return [], f"'{preset}' is a recipe of ours; the paper's are {', '.join(TARGETS)}"
    theirs = PRESETS[preset].record()
    changed = [f"{name} {value} for {theirs[name]}" for name, value in recipe.record().items() if value != theirs[name]]
    counts = TARGETS[preset]
    reasons = [
        (backbone.provenance.random, "the weights are random"),
        (arch not in _TABLE_6, f"Table 6 has {', '.join(_TABLE_6)}, not {arch}"),
        (
            (len(train), len(val), len(train.classes)) != counts,
            f"{preset} has {counts[0]:,} + {counts[1]:,} images of {counts[2]:,} classes",
        ),
        (bool(changed), f"the recipe is not the paper's: {', '.join(changed)}"),
        (session.transform.id != "dino@1:256/224", f"the transform is {session.transform.id}, the paper's dino@1:256/224"),
        (session.config.precision == "bf16", "the precision is bf16; DeiT's code trains in fp16"),
        (backbone.provenance.key == "student", "the student was fine-tuned, the paper takes the teacher"),
    ]
    for holds, reason in reasons:
        if holds:
            return [], reason
    return [PAPER[f"{arch} {preset}"]], None
