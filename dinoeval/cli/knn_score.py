"""The k-NN score of a network during training."""

from __future__ import annotations

import copy
import logging

import numpy as np
import torch
from torch import nn

from dinoeval.data.dataset import ImageDataset
from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import parse_transform
from dinoeval.features.forward import forward
from dinoeval.features.readout import Cls
from dinoeval.maths.neighbors import l2_normalize, nearest, vote
from dinoeval.models.backbone import Backbone, Provenance

_K, _TEMPERATURE = 20, 0.07  # as in `dinoeval knn`
_PIXELS = 32  # side of the images that are compared pixel by pixel
_MAX_COMPARED = 100_000
_log = logging.getLogger(__name__)


class KnnScore:
    """k-NN top-1 of networks on the evaluation images, in percent.

    Args:
        train: Images with one label each.
        val: Evaluation images with labels of the same classes.
        arch: Architecture of the networks.
        device: Where they run.
    """

    def __init__(self, train: ImageSet, val: ImageSet, arch: str, device: torch.device) -> None:
        self.train, self.val, self.arch, self.device = train, val, arch, device

    def __call__(self, network: nn.Module) -> float:
        """Score a network.

        Args:
            network: Maps images to features. A copy of it is evaluated.

        Returns:
            k-NN top-1 (k = 20, temperature 0.07), in percent.
        """
        backbone = Backbone(copy.deepcopy(network), arch=self.arch, provenance=Provenance("in training", ""), device=self.device)
        transform = parse_transform("auto", backbone.config.image_size)
        return self._score(*(forward(backbone, split, Cls(), transform, batch_size=256) for split in (self.train, self.val)))

    def report_pixels(self) -> None:
        """Log the score of raw pixels, which shows how easy the dataset is."""
        if len(self.train) > _MAX_COMPARED:
            return
        transform = parse_transform("auto", _PIXELS)
        pixels = []
        for split in (self.train, self.val):
            dataset = ImageDataset(split, lambda image, _: transform(image))
            rows = [item for item in map(dataset.__getitem__, range(len(split))) if isinstance(item, torch.Tensor)]
            if len(rows) < len(split):  # Unreadable images are reported by the training.
                return
            pixels.append(l2_normalize(torch.stack(rows).flatten(1).float().numpy()))
        _log.info("k-NN top-1 of raw pixels (%d x %d): %.2f", _PIXELS, _PIXELS, self._score(*pixels))

    def _score(self, features: np.ndarray, queries: np.ndarray) -> float:
        k = min(_K, len(self.train))
        cosines, rows = nearest(queries, [features], k)
        assert self.train.labels is not None
        assert self.val.labels is not None
        labels, classes = self.train.labels[rows], len(self.train.classes)
        predicted = vote(cosines, labels, ks=[k], temperature=_TEMPERATURE, num_classes=classes)[0, :, 0]
        return 100 * float((predicted == self.val.labels).mean())
