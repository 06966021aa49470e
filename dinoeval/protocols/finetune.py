"""Fine-tuning of the whole network on a labeled dataset with the recipe of DeiT (Tables 6 and 11).

The backbone and a new linear head are trained together. The last epoch is scored on center crops of the evaluation split.
The released code has no fine-tuning. The recipes are those of DeiT with what the authors wrote in issues 31, 81, 144 and
171 of facebookresearch/dino; see `training/finetune/recipes.py`. Three things are not published: the factor that scales the
initial weights of the head, the settings for Flowers and Cars, and whether ViT-S/16 had those of ViT-B/16.

Unlike in DeiT, the random draws for an image depend only on the seed, the epoch and the image. So a resumed run equals an
uninterrupted one. The number of processes only changes rounding, the draws of stochastic depth, and the statistics of
BatchNorm in networks that have it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dinoeval import distributed
from dinoeval.data.images import ImageSet, require_files
from dinoeval.data.opening import open_splits
from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.protocols._classification import dataset_notes, labels_of, resolve_dataset, score_predictions
from dinoeval.results import Result, Scores
from dinoeval.run_record import SplitRecord
from dinoeval.training.finetune.recipes import FinetuneRecipe, get_finetune_recipe

if TYPE_CHECKING:
    from dinoeval.session import Session, SessionConfig
    from dinoeval.training.finetune.run import Outcome

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Fine-tune the whole network. To resume an interrupted run, rerun the same command.

    --batch-size is the number of images per forward pass in each process, which bounds memory. Gradients are accumulated up
    to --train-batch-size. --precision is the precision of training; the weights stay in float32.
    """

    data: str | None = None
    """Folder, CSV table or name, as `dinoeval knn` takes (default: $DINOEVAL_DATA/imagenet, else the built-in digits)."""
    preset: str = "auto"
    """Training recipe. From the paper: cifar10, cifar100, inat18, inat19, flowers, cars, imagenet. Not from the paper: short, digits.
    auto chooses by the name of the dataset. The next six options override values of the recipe."""
    epochs: int | None = None
    """Passes over the training split (default: from the preset)."""
    lr: float | None = None
    """Peak learning rate for a batch of 512; scaled by --train-batch-size / 512 (default: from the preset)."""
    train_batch_size: int | None = None
    """Images per step, over all processes (default: from the preset)."""
    warmup_epochs: int | None = None
    """Epochs in which the learning rate rises (default: from the preset)."""
    weight_decay: float | None = None
    """Weight decay of all parameters except biases, norms, [CLS] and positions (default: from the preset)."""
    drop_path: float | None = None
    """Stochastic-depth rate of the last block (default: from the preset)."""
    out: str | None = None
    """Run folder: checkpoint.pth, log.txt, and at the end backbone.safetensors and head.safetensors (default: nothing is saved)."""
    save_every: int = 0
    """Epochs between checkpoints that are kept in addition to the last; 0 keeps none."""
    seed: int = 0
    """Random seed of the head, the order, augmentation, mixing and stochastic depth."""


def run(config: Config, session: Session) -> Result:
    """Fine-tune a copy of the session's backbone and score its last epoch.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with `top1` and `top5` in percent.

    Raises:
        ConfigError: If an option is out of range, or --out belongs to a different run.
        DataError: If the dataset cannot be used or an image cannot be read.
        DinoevalError: If training diverges or the memory of the GPU is too small.
    """
    from dinoeval.training.finetune.run import check_fits

    record = session.record("finetune", VERSION, config)
    with record.stage("open"):
        data = resolve_dataset(config.data)
        _check(config, session.config)
        train, val = (images.with_rule(session.rule) for images in open_splits(data))
        for images in (train, val):
            require_files(images, advice="")
        preset, recipe = _recipe(config, data)
        check_fits(train, val, recipe)
        _check_size(session)
        record.use_data(data, train=SplitRecord(train, [], train.remarks()), val=SplitRecord(val, [], val.remarks()))
    with record.stage("train and score"):
        outcome = _train(config, session, recipe, train, val)
    record.resolved |= {**recipe.record(), "preset": preset, "out": None, "save_every": None}
    record.details |= {"training_precision": session.config.precision, "processes": distributed.world_size()}
    record.notes += [*dataset_notes(config.data, session.backbone.arch), *_notes(preset, outcome)]
    # The frozen backbone may have been loaded in another precision: training reads its float32 weights.
    return record.result(_scores(outcome, val), backbone={**session.describe_backbone(), "precision": session.config.precision})


def _recipe(config: Config, data: str) -> tuple[str, FinetuneRecipe]:
    """Return the name of the preset, and its recipe with the options that were passed."""
    preset, recipe = get_finetune_recipe(config.preset, data)
    names = {field.name for field in dataclasses.fields(FinetuneRecipe)}
    passed = {name: value for name, value in dataclasses.asdict(config).items() if name in names and value is not None}
    return preset, dataclasses.replace(recipe, **passed)


def _check(config: Config, session: SessionConfig) -> None:
    for option, value in (("--seed", config.seed), ("--save-every", config.save_every)):
        if value < 0:
            raise ConfigError(f"{option} must be at least 0, got {value}")
    if session.bad_images == "skip":
        raise ConfigError("--bad-images skip does not apply: every epoch must use the same images. Fix or remove unreadable images")


def _check_size(session: Session) -> None:
    patch = session.backbone.patch_size
    if patch is not None and session.transform.crop < patch:
        raise ConfigError(f"images of {session.transform.crop} pixels are smaller than a patch of {patch} pixels: change --transform")


def _train(config: Config, session: Session, recipe: FinetuneRecipe, train: ImageSet, val: ImageSet) -> Outcome:
    import torch

    from dinoeval.training.finetune.run import FinetuneRun, FinetuneSettings

    settings = FinetuneSettings(
        out=config.out,
        seed=config.seed,
        precision=session.config.precision,
        save_every=config.save_every,
        workers=session.config.workers,
        forward_images=session.config.batch_size,
    )
    try:
        return FinetuneRun(session.backbone, train, val, recipe, session.transform, settings).finish()
    except torch.cuda.OutOfMemoryError as error:
        raise DinoevalError(
            "out of GPU memory: reduce --batch-size, for example to 32 (--train-batch-size does not change), or pass --precision bf16. "
            "Rerun the same command to resume from the last epoch"
        ) from error


def _scores(outcome: Outcome, val: ImageSet) -> Scores:
    labels = labels_of(val)
    scores = score_predictions(outcome.predictions, labels)
    return dataclasses.replace(scores, samples={"path": list(val.paths), "label": labels.tolist(), **scores.samples})


def _notes(preset: str, outcome: Outcome) -> list[str]:
    top1 = [row["top1"] for row in outcome.history]
    best = max(range(len(top1)), key=top1.__getitem__)
    notes = [
        f"scored after the last of {len(top1)} epochs; the best epoch was {best + 1} with top1 {top1[best]:.2f}, which would be "
        "selection on the evaluation images"
    ]
    if preset in ("flowers", "cars"):
        notes.append("the settings of the paper for Flowers and Cars are not published; these are the settings of DeiT")
    return notes
