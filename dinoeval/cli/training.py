"""`dinoeval train`."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence

import tyro

from dinoeval.cli.options import parse
from dinoeval.data.images import ImageSet
from dinoeval.data.loading import ImageRule
from dinoeval.data.opening import open_images, open_splits
from dinoeval.data.transforms import parse_transform
from dinoeval.distributed import world_size
from dinoeval.errors import ConfigError
from dinoeval.features.forward import forward
from dinoeval.features.readout import Cls
from dinoeval.files import expand
from dinoeval.maths.neighbors import nearest, vote
from dinoeval.models.backbone import Backbone, Provenance
from dinoeval.models.loading import choose_device
from dinoeval.models.vit import VisionTransformer
from dinoeval.training.pretrain import loop
from dinoeval.training.pretrain.presets import PRESETS, get_recipe

_K, _TEMPERATURE = 20, 0.07  # of the k-NN score during training, as in `dinoeval knn`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train a backbone with DINO. Rerun the same command to resume an interrupted run."""

    data: str
    """Labeled dataset as for `dinoeval knn` (trained on its training images; labels serve the k-NN score only), or a folder of
    images."""
    arch: str
    """Architecture, such as vit_s16 or vit_ti4_32."""
    preset: str = "released"
    """Training recipe whose values are the defaults of the options below."""


def train(args: Sequence[str], program: str) -> int:
    """Train a backbone; the values of --preset are the defaults of the other options.

    Args:
        args: The words after the name of the command.
        program: What the user typed before them.

    Raises:
        DinoevalError: If an option or the data cannot be used.
    """
    words = [word for arg in args for word in arg.split("=", 1)]
    preset = next((following for word, following in itertools.pairwise(words) if word == "--preset"), "released")
    defaults = Options(data=tyro.MISSING, arch=tyro.MISSING, preset=preset), loop.PretrainSettings(out=tyro.MISSING), get_recipe(preset)
    options, settings, recipe = parse(defaults, args, program, f"{Options.__doc__} Presets: {', '.join(PRESETS)}.")
    if world_size() > 1:
        raise ConfigError("training does not support multiple processes: run it without torchrun")
    images, knn_eval = _open(options, settings)
    final = loop.train(images, options.arch, recipe, settings, knn_eval)
    print(f"{final}\nto evaluate it: dinoeval knn --weights {final} --data {options.data}")
    return 0


def _open(options: Options, settings: loop.PretrainSettings) -> tuple[ImageSet, loop.KnnEval | None]:
    """Open the images to train on; the second value computes the k-NN score, if they have labels."""
    folder = expand(options.data)
    if folder.is_dir() and not any((folder / name).exists() for name in ("train", "val", "test", "train.csv")):
        return open_images(folder), None
    images, val = (split.with_rule(ImageRule(settings.exif_transpose)) for split in open_splits(options.data))
    if not settings.knn_every:
        return images, None
    if images.multi_label:
        raise ConfigError(f"{options.data} is a multi-label dataset, which the k-NN score does not support: pass --knn-every 0")
    device, _ = choose_device(settings.device)

    def knn_eval(network: VisionTransformer) -> float:
        """Return the k-NN top-1 of a network on the evaluation images, in percent."""
        backbone = Backbone(copy.deepcopy(network), arch=options.arch, provenance=Provenance("in training", ""), device=device)
        transform = parse_transform("auto", backbone.config.image_size)
        train_features, queries = (forward(backbone, split, Cls(), transform, batch_size=256) for split in (images, val))
        k = min(_K, len(images))
        cosines, rows = nearest(queries, [train_features], k)
        assert images.labels is not None
        assert val.labels is not None
        predicted = vote(cosines, images.labels[rows], ks=[k], temperature=_TEMPERATURE, num_classes=len(images.classes))[0, :, 0]
        return 100 * float((predicted == val.labels).mean())

    return images, knn_eval
