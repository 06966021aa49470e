"""`dinoeval train`."""

from __future__ import annotations

import copy
import dataclasses
from typing import Annotated, Literal

import tyro

from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_images, open_splits
from dinoeval.data.transforms import parse_transform
from dinoeval.distributed import world_size
from dinoeval.errors import ConfigError
from dinoeval.features.extract import forward
from dinoeval.features.readout import Cls
from dinoeval.files import expand
from dinoeval.maths.neighbors import nearest, vote
from dinoeval.models.backbone import Backbone, Provenance, choose_device
from dinoeval.models.vit import VisionTransformer
from dinoeval.training.pretrain import loop
from dinoeval.training.pretrain.presets import PRESETS, Recipe, get_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train a backbone with DINO. A run that was stopped goes on when the same command is given again."""

    data: str
    """A data set as for `dinoeval knn` (its training half is used, its labels for the k-NN score only), or a folder of images."""
    arch: str
    """Such as vit_s16, vit_ti4_32."""
    out: str
    """Folder of the run: checkpoint.pth, log.txt, teacher.safetensors."""
    preset: str = "released"
    """Where the recipe's defaults come from."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward passes."""
    workers: int = 1
    """Processes that augment."""
    seed: int = 0
    """Of weights, order and augmentation."""
    save_every: int = 20
    """Epochs between checkpoints that are kept; 0 for none."""
    knn_every: int = 10
    """Epochs between k-NN scores of the teacher; 0 for none."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Recipe)


def train(args: list[str], program: str) -> int:
    """Parse with the preset's values as defaults, then train."""
    words = [word for arg in args for word in arg.split("=", 1)]
    preset = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "--preset"), "released")
    default = Options(data=tyro.MISSING, arch=tyro.MISSING, out=tyro.MISSING, preset=preset, recipe=get_recipe(preset))
    options = tyro.cli(Options, args=args, prog=program, default=default, description=f"{Options.__doc__} Presets: {', '.join(PRESETS)}.")
    if world_size() > 1:
        raise ConfigError("this version trains in one process: start it without torchrun")
    images, probe = _open(options)
    final = loop.train(
        images, options.arch, options.out, options.recipe, device=options.device, precision=options.precision,
        workers=options.workers, seed=options.seed, save_every=options.save_every, probe=probe, probe_every=options.knn_every,
    )  # fmt: skip
    print(f"{final}\nscore it: dinoeval knn --weights {final} --data {options.data}")
    return 0


def _open(options: Options) -> tuple[ImageSet, loop.Probe | None]:
    """The images to train on, and the k-NN score where they have labels."""
    folder = expand(options.data)
    if folder.is_dir() and not any((folder / half).exists() for half in ("train", "val", "test", "train.csv")):
        return open_images(folder), None  # pictures without labels
    images, val = open_splits(options.data)
    if not options.knn_every:
        return images, None
    if images.multi_label:
        raise ConfigError(f"{options.data} has several labels an image, and the k-NN score during training takes one: say --knn-every 0")
    device, _ = choose_device(options.device)

    def probe(network: VisionTransformer) -> float:
        """k-NN top-1 at k = 20, in percent."""
        backbone = Backbone(copy.deepcopy(network), arch=options.arch, provenance=Provenance("in training", ""), device=device)
        transform = parse_transform("auto", backbone.config.image_size)
        bank, queries = (forward(backbone, half, Cls(), transform, batch_size=256) for half in (images, val))
        k = min(20, len(images))
        cosines, rows = nearest(queries, [bank], k)
        assert images.labels is not None
        assert val.labels is not None
        classes = len(images.classes)
        predicted = vote(cosines, images.labels[rows], ks=[k], temperature=0.07, num_classes=classes)[0, :, 0]
        return 100 * float((predicted == val.labels).mean())

    return images, probe
