"""Label propagation: carry the masks of the first frame through a video by the similarity of patch tokens.

Order of operations, as in the released code (eval_video_segmentation.py): the first mask is resized to one label per
token; each later frame gets a soft label map from the first frame and from the last few frames; the soft maps themselves
are context for later frames. For the mask, each channel of a soft map is upsampled bilinearly and rescaled to [0, 1];
the largest channel wins.

C labels including background, h x w tokens, H x W pixels, D dimensions.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoeval.data.frame_transforms import FrameTransform
from dinoeval.errors import DataError
from dinoeval.guard import entry_point
from dinoeval.maths.propagation import propagate
from dinoeval.video_config import PropagationConfig

if TYPE_CHECKING:
    from dinoeval.models.backbone import Backbone

_CHANNELS_AT_ONCE = 8  # Soft maps upsampled together, which bounds the memory.
_ROUNDING = 1e-5  # A channel whose range is below this fraction of its maximum differs by rounding only.


class Propagation:
    """The propagation of masks through one video.

    The memory does not grow with the length of the video.

    Args:
        backbone: A network with patch tokens.
        first_mask: Labels of the first frame, (H, W) uint8: 0 for background, objects numbered from 1.
        transform: From a frame to the input of the network, with the patch size of the network.
        config: Options of the propagation.

    Attributes:
        lost: Labels of the first mask that no token has. With the edge cases of the released code they are in no later mask.
        constant: Labels by frame name whose soft map is positive and constant. Rescaled as released, such a map becomes NaN,
            which wins everywhere, or rounding noise.

    Examples:
        A bright square moves to the right by one token of 8 pixels per frame:

        >>> import dinoeval
        >>> first_mask = np.zeros((64, 64), np.uint8)
        >>> first_mask[24:40, 8:24] = 1
        >>> frames = [Image.fromarray(np.roll(255 * first_mask, 8 * step, axis=1)).convert("RGB") for step in range(3)]
        >>> backbone = dinoeval.load(device="cpu")
        >>> propagation = Propagation(backbone, first_mask, FrameTransform(side=64, patch=8), PropagationConfig())
        >>> [int(np.nonzero(mask)[1].mean() // 8) for mask in propagation.masks(["0", "1", "2"], frames)]  # its column, in tokens
        [1, 2, 3]
    """

    def __init__(self, backbone: Backbone, first_mask: np.ndarray, transform: FrameTransform, config: PropagationConfig) -> None:
        assert backbone.patch_size == transform.patch
        self.backbone, self.first_mask, self.transform, self.config = backbone, first_mask, transform, config
        self.lost: list[int] = []
        self.constant: dict[str, list[int]] = {}

    @entry_point
    def masks(self, names: Iterable[str], frames: Iterable[Image.Image]) -> Iterator[np.ndarray]:
        """Yield the mask of every frame, in order. Frames are read one at a time.

        The mask of a square frame is resized like the frame. The released code swaps its sides.

        Args:
            names: Name of each frame, for messages and for `constant`.
            frames: RGB images of the size of the first mask.

        Yields:
            Labels of a frame, (H, W) uint8. The first mask is the given one.

        Raises:
            DataError: If a frame differs in size from the first mask, or its features are NaN or infinite.
        """
        recent: collections.deque[tuple[Tensor, Tensor]] = collections.deque(maxlen=self.config.context_frames)
        first: tuple[Tensor, Tensor] | None = None
        height, width = self.first_mask.shape
        for name, frame in zip(names, frames, strict=True):
            if frame.size != (width, height):
                expected = "the first mask" if first is None else "the first frame"
                raise DataError(f"frame {name} has {frame.width} x {frame.height} pixels, but {expected} has {width} x {height}")
            tokens = self._tokens(name, frame)
            if first is None:
                first = tokens, self._first_soft_map(tokens)
                yield self.first_mask
                continue
            context = [first, *recent]
            soft = propagate(
                tokens,
                [frame_tokens for frame_tokens, _ in context],
                [soft_map for _, soft_map in context],
                radius=self.config.radius,
                top_k=self.config.top_k,
                temperature=self.config.temperature,
            )
            recent.append((tokens, soft))
            labels = self._decide(name, soft)
            yield np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))

    @torch.no_grad()
    def _tokens(self, name: str, frame: Image.Image) -> Tensor:
        """Return the L2-normalized patch tokens of a frame, (h, w, D)."""
        patches = self.backbone(self.transform(frame)[None]).patches
        assert patches is not None
        self.backbone.check_finite(patches, [name])
        return torch.nn.functional.normalize(patches[0], dim=-1)

    def _first_soft_map(self, tokens: Tensor) -> Tensor:
        """Return the one-hot labels of the first mask at token resolution, (C, h, w)."""
        h, w, _ = tokens.shape
        small = np.asarray(Image.fromarray(self.first_mask).resize((w, h), Image.Resampling.NEAREST))
        self.lost = sorted(set(np.unique(self.first_mask).tolist()) - set(np.unique(small).tolist()) - {0})
        count = 1 + int((small if self.config.edge_cases == "released" else self.first_mask).max())
        soft = (torch.from_numpy(small.copy()) == torch.arange(count, dtype=torch.uint8)[:, None, None]).float()
        if self.config.edge_cases == "fixed":
            self._restore_lost(soft)
        return soft.to(tokens.device)

    def _restore_lost(self, soft: Tensor) -> None:
        """Give each lost label the token that holds most of it, in place. Objects that share a token share its weight."""
        (height, width), (_, h, w) = self.first_mask.shape, soft.shape
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        for label in self.lost:
            inside = self.first_mask == label
            token_indices = (rows[:, None] * w + columns)[inside]
            row, column = divmod(int(np.bincount(token_indices).argmax()), w)
            soft[label, row, column] = 1
            soft[0, row, column] = 0
        soft /= soft.sum(0)

    @torch.no_grad()
    def _decide(self, name: str, soft: Tensor) -> np.ndarray:
        """Turn a soft map (C, h, w) into labels, uint8, at the size of the network's input."""
        best = label = None
        for start in range(0, len(soft), _CHANNELS_AT_ONCE):
            part = soft[start : start + _CHANNELS_AT_ONCE]
            upsampled = torch.nn.functional.interpolate(
                part[None], scale_factor=self.transform.patch, mode="bilinear", align_corners=False, recompute_scale_factor=False
            )[0]
            for channel, values in enumerate(upsampled, start):
                self._rescale(name, channel, values)
            values, places = upsampled.max(0)  # NaN wins, and the first of equal values.
            if best is None or label is None:
                best, label = values, places
                continue
            wins = (values > best) | (values.isnan() & ~best.isnan())
            best, label = values.where(wins, best), (places + start).where(wins, label)
        assert label is not None
        return label.to("cpu", torch.uint8).numpy()

    def _rescale(self, name: str, channel: int, values: Tensor) -> None:
        """Rescale one channel to [0, 1], in place. A channel without positive values is not changed."""
        if values.max() <= 0:
            return
        span = values - values.min()
        if span.max() <= _ROUNDING * values.max():
            self.constant.setdefault(name, []).append(channel)
            if self.config.edge_cases == "fixed":
                return
        values.copy_(span / span.max())
