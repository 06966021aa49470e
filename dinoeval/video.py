"""Label propagation through a video: the masks of the first frame are carried from frame to frame by patch tokens.

The order of the released code (eval_video_segmentation.py): the first mask is shrunk to one label a token; every later
frame gets a soft map from the first frame and the last few; soft maps are remembered as they are; for the mask, each
channel is enlarged bilinearly, stretched to [0, 1], and the largest wins.

C labels with background, h x w tokens, H x W pixels, D dims.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoeval.data.frame_transforms import FrameTransform
from dinoeval.errors import ConfigError, DataError
from dinoeval.maths.propagation import RADIUS, TEMPERATURE, TOP_K, propagate

if TYPE_CHECKING:
    from dinoeval.models.backbone import Backbone

CONTEXT = 7  # eval_video_segmentation.py
_MOST = 1_000_000
_CHANNELS = 8  # enlarged at a time
_FLAT = 1e-5  # of the largest value: a smaller span is rounding
Failures = Literal["released", "fixed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PropagationConfig:
    """How labels are carried on; the defaults are the released code's."""

    context: int = CONTEXT
    """How many frames before a frame are looked at, besides the first."""
    radius: int = RADIUS
    """How many rows and columns of tokens away a token looks."""
    top: int = TOP_K
    """How many of the tokens most like it count, with those that are equal to the last."""
    temperature: float = TEMPERATURE
    """They count with weight exp(cosine / temperature)."""
    edge_cases: Failures = "released"
    """What to do about labels that are lost when the first mask is shrunk, and about channels that are the same everywhere."""

    def __post_init__(self) -> None:
        if self.context < 0 or self.radius < 1 or self.top < 1:
            raise ConfigError(f"context must be 0 or more, radius and top 1 or more: {self.context}, {self.radius}, {self.top}")
        if max(self.context, self.radius, self.top) > _MOST:
            raise ConfigError(f"context, radius and top must be {_MOST:,} at most: {self.context}, {self.radius}, {self.top}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be above 0, and a number: {self.temperature}")


class Propagation:
    """One video on its way. Memory does not grow with its length."""

    def __init__(self, backbone: Backbone, first: np.ndarray, transform: FrameTransform, rule: PropagationConfig) -> None:
        """`first` is the mask (H, W) uint8 of the first frame, with the numbers of its objects from 1 up."""
        assert backbone.patch_size == transform.patch
        self.backbone, self.first, self.transform, self.rule = backbone, first, transform, rule
        self.lost: list[int] = []
        """Labels of the first mask that no token has: they are in no later mask."""
        self.constant: dict[str, list[int]] = {}
        """By frame: labels whose soft map is above 0 and the same everywhere. Stretched as released, it becomes NaN, which wins
        everywhere, or rounding noise."""

    def masks(self, names: Iterable[str], pictures: Iterable[Image.Image]) -> Iterator[np.ndarray]:
        """Yield the mask (H, W) uint8 of every frame; that of the first is the one given. Raises DataError.

        The mask of a square frame is shrunk like the frame, where the released code exchanges its sides.
        """
        recent: collections.deque[tuple[Tensor, Tensor]] = collections.deque(maxlen=self.rule.context)
        anchor: tuple[Tensor, Tensor] | None = None
        height, width = self.first.shape
        for name, picture in zip(names, pictures, strict=True):
            if picture.size != (width, height):
                what = "the first mask" if anchor is None else "the first frame"
                raise DataError(f"frame {name} has {picture.width} x {picture.height} pixels, and {what} {width} x {height}")
            tokens = self._tokens(name, picture)
            if anchor is None:
                anchor = tokens, self._first_map(tokens)
                yield self.first
                continue
            past = [anchor, *recent]
            soft = propagate(
                tokens,
                [frame for frame, _ in past],
                [labels for _, labels in past],
                radius=self.rule.radius,
                top_k=self.rule.top,
                temperature=self.rule.temperature,
            )
            recent.append((tokens, soft))
            labels = self._decide(name, soft)
            yield np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))

    @torch.inference_mode()
    def _tokens(self, name: str, picture: Image.Image) -> Tensor:
        """The L2-normalised patch tokens of a frame, (h, w, D)."""
        patches = self.backbone(self.transform(picture)[None]).patches
        assert patches is not None
        self.backbone.check_finite(patches, [name])
        return torch.nn.functional.normalize(patches[0], dim=-1)

    def _first_map(self, tokens: Tensor) -> Tensor:
        """One-hot labels of the first mask at token resolution, (C, h, w)."""
        h, w, _ = tokens.shape
        small = np.asarray(Image.fromarray(self.first).resize((w, h), Image.Resampling.NEAREST))
        self.lost = sorted(set(np.unique(self.first).tolist()) - set(np.unique(small).tolist()) - {0})
        count = 1 + int((small if self.rule.edge_cases == "released" else self.first).max())
        soft = (torch.from_numpy(small.copy()) == torch.arange(count, dtype=torch.uint8)[:, None, None]).float()
        if self.rule.edge_cases == "fixed":
            self._rescue(soft)
        return soft.to(tokens.device)

    def _rescue(self, soft: Tensor) -> None:
        """Give each lost label the token that holds most of it, shared with other objects that are there."""
        (height, width), (_, h, w) = self.first.shape, soft.shape
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        for label in self.lost:
            inside = self.first == label
            cells = (rows[:, None] * w + columns)[inside]
            row, column = divmod(int(np.bincount(cells).argmax()), w)
            soft[label, row, column] = 1
            soft[0, row, column] = 0
        soft /= soft.sum(0)

    @torch.inference_mode()
    def _decide(self, name: str, soft: Tensor) -> np.ndarray:
        """From a soft map (C, h, w) to labels (H, W) uint8 at the size of the network's input."""
        best = label = None
        for start in range(0, len(soft), _CHANNELS):
            part = soft[start : start + _CHANNELS]
            enlarged = torch.nn.functional.interpolate(
                part[None], scale_factor=self.transform.patch, mode="bilinear", align_corners=False, recompute_scale_factor=False
            )[0]
            for channel, values in enumerate(enlarged, start):
                self._stretch(name, channel, values)
            values, places = enlarged.max(0)  # NaN wins, and the first of equals
            if best is None or label is None:
                best, label = values, places
                continue
            wins = (values > best) | (values.isnan() & ~best.isnan())
            best, label = values.where(wins, best), (places + start).where(wins, label)
        assert label is not None
        return label.to("cpu", torch.uint8).numpy()

    def _stretch(self, name: str, channel: int, values: Tensor) -> None:
        """Bring one channel to [0, 1], in place; one without anything above 0 stays."""
        if values.max() <= 0:
            return
        span = values - values.min()
        if span.max() <= _FLAT * values.max():
            self.constant.setdefault(name, []).append(channel)
            if self.rule.edge_cases == "fixed":
                return
        values.copy_(span / span.max())
