"""Options of label propagation, shared by the protocol `davis` and the command `propagate`.

They are not in `video.py`, so that help texts do not import torch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

from dinoeval.data.frame_transforms import SIDE, FrameTransform, ResizeBackend, frame_transform
from dinoeval.errors import ConfigError

if TYPE_CHECKING:
    from dinoeval.session import Session

# eval_video_segmentation.py; the paper only states that it follows Jabri et al., whose code has other values.
CONTEXT_FRAMES, RADIUS, TOP_K, TEMPERATURE = 7, 12, 5, 0.1
_MAX_OPTION = 1_000_000  # Larger values have no effect on a video and overflow in torch.
EdgeCases = Literal["released", "fixed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PropagationConfig:
    """Options of label propagation. The defaults are those of the released code."""

    context_frames: int = CONTEXT_FRAMES
    """Previous frames used as context, besides the first frame."""
    radius: int = RADIUS
    """Radius of the search window, in tokens (rows and columns)."""
    top_k: int = TOP_K
    """Number of most similar context tokens to average. Tokens that tie with the last one are included."""
    temperature: float = TEMPERATURE
    """Temperature of the weights exp(cosine / T)."""
    edge_cases: EdgeCases = "released"
    """Handling of two edge cases: an object that is lost when the first mask is resized to tokens, and a constant soft map. released:
    the object is never predicted; the map becomes NaN (which wins everywhere) or noise. fixed: the object gets the token that holds
    most of it; the map is not changed."""

    def __post_init__(self) -> None:
        for name, minimum in (("context_frames", 0), ("radius", 1), ("top_k", 1)):
            value = getattr(self, name)
            if not minimum <= value <= _MAX_OPTION:
                raise ConfigError(f"--{name.replace('_', '-')} must be from {minimum} to {_MAX_OPTION:,}, got {value}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"--temperature must be a finite number above 0, got {self.temperature}")

    def propagation_options(self) -> dict[str, Any]:
        """Return the options of label propagation alone, without those of a subclass.

        Returns:
            Value by field name. Records of finished masks hold it.

        Examples:
            >>> VideoConfig(image_size=240).propagation_options()["context_frames"]
            7
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(PropagationConfig)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoConfig(PropagationConfig):
    """Options of label propagation and of its input frames.

    Together with the network they determine the masks.
    """

    image_size: int = SIDE
    """Short side of the frames in the network, in pixels. Smaller is faster and less precise."""
    resize_backend: ResizeBackend = "opencv"
    """Library whose bilinear filter resizes the frames. The released code uses OpenCV."""

    def frame_transform(self, session: Session) -> FrameTransform:
        """Return the transform from a frame to the input of the session's network.

        Args:
            session: Its network gives the patch size, its transform the mean and standard deviation.

        Returns:
            The transform.

        Raises:
            ConfigError: If the session resizes with --transform or skips unreadable images, the network has no patches, or the
                frames are too small.
        """
        if session.config.bad_images == "skip":
            raise ConfigError("--bad-images skip does not apply to videos, because every frame is needed: remove it")
        session.backbone.check_offers(patches=True)
        patch = session.backbone.patch_size
        assert patch is not None
        return frame_transform(self.image_size, self.resize_backend, patch, *session.normalization())
