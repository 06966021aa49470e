"""Multi-crop augmentation of whole batches on the device of the images, in the released order and with its probabilities.

`draw` takes all random numbers of a batch from one generator. `render` is a pure function of images and draws, so that
torch.compile can fuse it. Crop, resize and flip of an image are two small matrix products, and so is the blur.

Two details differ from the augmentation by PIL (`MultiCropAugmentation`). Values stay real numbers between the steps, while
PIL rounds to 1/255 after each step. The blur is a Gaussian, which PIL approximates by box filters. Distributions are equal.

N images of H x W pixels, V views (crops of one image), s pixels of a view's side, M = V*N views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dinoeval.data.transforms import MEAN, STD
from dinoeval.training.pretrain.recipe import Recipe

ASPECT = (3 / 4, 4 / 3)  # RandomResizedCrop of torchvision
_TRIES = 10  # RandomResizedCrop of torchvision
_JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
_BRIGHTNESS, _CONTRAST, _HUE = 0, 1, 3  # positions in _JITTER
_GRAY, _BLUR, _SOLARIZE = 0.2, (1.0, 0.1), 0.2  # probabilities; one blur per global view
_LOCAL_BLUR = 0.5
_LUMA = (0.2989, 0.587, 0.114)  # rgb_to_grayscale of torchvision
_CUBIC = -0.5  # parameter of the bicubic filter of PIL


class Draws(NamedTuple):
    """All random decisions about M views of s x s pixels."""

    rows: Tensor
    """Weights of the image rows in each row of a view, (M, s, H)."""
    columns: Tensor
    """Weights of the image columns in each column of a view, (M, s, W); flipped if the view is."""
    factors: Tensor
    """Factors of brightness, contrast and saturation, and the shift of the hue, (M, 4). 1, 1, 1, 0 change nothing."""
    order: Tensor
    """Order of the four, (M, 4) int64."""
    gray: Tensor
    """Whether the view becomes gray, (M,) bool."""
    blur: Tensor
    """Weights of the blur along either axis, (M, s, s); the identity if the view is not blurred."""
    solarize: Tensor
    """Whether the view is solarized, (M,) bool."""


def render(images: Tensor, draws: Draws) -> Tensor:
    """Compute the views that were drawn.

    Args:
        images: Pixels, (N, 3, H, W) uint8.
        draws: Draws of M = V*N views: first one view of all images, then the next view of all images.

    Returns:
        Views in the order of the draws, normalized by mean and standard deviation of ImageNet, (M, 3, s, s) float32.
    """
    views = len(draws.rows) // len(images)
    pixels = (images.float() / 255).repeat(views, 1, 1, 1)
    x = _resample(draws.rows, pixels, draws.columns).clamp(0, 1)
    x = _jitter(x, draws.factors, draws.order)
    x = torch.where(draws.gray[:, None, None, None], _luma(x), x)
    x = _resample(draws.blur, x, draws.blur)
    x = torch.where(draws.solarize[:, None, None, None] & (x >= 0.5), 1 - x, x)
    mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


class DeviceMultiCrop:
    """Random crops of a batch: two global views, then the local ones.

    They depend on the images and the generator only. A generator that is seeded by the epoch makes a run resumable.

    Args:
        recipe: Its crop sizes, scales and probabilities are used.
        render: A compiled version of the function of this name.
    """

    def __init__(self, recipe: Recipe, render: Callable[[Tensor, Draws], Tensor] = render) -> None:
        self.recipe, self.render = recipe, render

    def __call__(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Draw and compute all views of a batch.

        Args:
            images: Pixels, (N, 3, H, W) uint8.
            generator: A generator on the device of the images.

        Returns:
            V normalized views, each (N, 3, s, s) float32 with its own size s.
        """
        recipe = self.recipe
        solarize = (0.0, _SOLARIZE if recipe.solarize else 0.0)
        views = self._views(images, recipe.global_crop, recipe.global_scale, (_BLUR, solarize), generator)
        if count := recipe.local_crops:
            views += self._views(images, recipe.local_crop, recipe.local_scale, ((_LOCAL_BLUR,) * count, (0.0,) * count), generator)
        return views

    def _views(
        self, images: Tensor, size: int, scale: tuple[float, float], chances: tuple[Sequence[float], ...], generator: torch.Generator
    ) -> list[Tensor]:
        """Views of one size. `chances` holds the probabilities of blur and of solarization, one per view."""
        blur, solarize = (torch.tensor(values, device=images.device).repeat_interleave(len(images)) for values in chances)
        source = (images.shape[2], images.shape[3])
        draws = draw(self.recipe, size, source, scale, blur=blur, solarize=solarize, generator=generator)
        return list(self.render(images, draws).split(len(images)))


def draw(
    recipe: Recipe,
    size: int,
    source: tuple[int, int],
    scale: tuple[float, float],
    *,
    blur: Tensor,
    solarize: Tensor,
    generator: torch.Generator,
) -> Draws:
    """Draw views of one size.

    Args:
        recipe: Its probabilities and its range of blur radii are used.
        size: Side of the views in pixels, s.
        source: Height and width of the images in pixels.
        scale: Range of the area of a crop, as a fraction of the image.
        blur: Probability of the blur of each view, (M,).
        solarize: Probability of solarization of each view, (M,).
        generator: A generator on the device of `blur`.

    Returns:
        The draws of M views.
    """
    count, device = len(blur), blur.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    boxes = crop_boxes(count, source, scale, generator)
    flipped = uniform(count) < (0.5 if recipe.flip else 0.0)
    columns = resampling_weights(boxes[:, 1], boxes[:, 3], source[1], size)
    jittered = uniform(count, 1) < recipe.jitter
    low, high = recipe.blur_radius
    radius = (low + (high - low) * uniform(count)) * (uniform(count) < blur)
    return Draws(
        rows=resampling_weights(boxes[:, 0], boxes[:, 2], source[0], size),
        columns=torch.where(flipped[:, None, None], columns.flip(1), columns),
        factors=torch.cat([(n != _HUE) + width * (2 * uniform(count, 1) - 1) * jittered for n, width in enumerate(_JITTER)], 1),
        order=uniform(count, 4).argsort(1),
        gray=uniform(count) < _GRAY,
        blur=blur_weights(radius, size, reach=math.ceil(4 * high)),
        solarize=uniform(count) < solarize,
    )


def crop_boxes(count: int, source: tuple[int, int], scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw boxes as RandomResizedCrop of torchvision does.

    Args:
        count: Number of boxes, M.
        source: Height and width of the images in pixels.
        scale: Range of the area, as a fraction of the image.
        generator: Its device is used.

    Returns:
        Top, left, height and width in whole pixels, (M, 4) float32: the first of ten tries that fits, else the largest
        central box with an allowed aspect ratio.
    """
    height, width = source
    device = generator.device

    def uniform() -> Tensor:
        return torch.rand((count, _TRIES), generator=generator, device=device)

    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform())
    aspect = (math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * uniform()).exp()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    fallback_width = min(width, round(height * ASPECT[1])) if width / height > ASPECT[1] else width
    fallback_height = min(height, round(width / ASPECT[0])) if width / height < ASPECT[0] else height
    found = fits.any(1, keepdim=True)
    w = torch.where(found, widths.gather(1, first), fallback_width)
    h = torch.where(found, heights.gather(1, first), fallback_height)
    places = torch.rand((count, 2), generator=generator, device=device)
    top, left = (places[:, :1] * (height - h + 1)).floor(), (places[:, 1:] * (width - w + 1)).floor()
    top = torch.where(found, top.minimum(height - h), (height - fallback_height) // 2)
    left = torch.where(found, left.minimum(width - w), (width - fallback_width) // 2)
    return torch.cat((top, left, h, w), 1)


def resampling_weights(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Compute the antialiased bicubic filter of PIL for a crop along one axis.

    Args:
        start: First pixel of each crop, (M,) float.
        length: Number of pixels of each crop, (M,) float.
        source: Pixels of the image along the axis.
        target: Pixels of the view along the axis.

    Returns:
        Weights of the image pixels in each pixel of the view, (M, target, source).
    """
    start, length = start[:, None, None], length[:, None, None]
    step = length / target
    stretch = step.clamp(min=1.0)  # The filter is as wide as a pixel of the view, if that is larger.
    pixels = torch.arange(source, device=start.device, dtype=start.dtype)
    centers = start + step * (torch.arange(target, device=start.device, dtype=start.dtype)[:, None] + 0.5)
    weights = _cubic((pixels + 0.5 - centers) / stretch)
    weights = weights * ((pixels >= start) & (pixels < start + length))  # Pixels outside the crop have no weight.
    return weights / weights.sum(2, keepdim=True)


def blur_weights(radius: Tensor, size: int, reach: int) -> Tensor:
    """Compute a Gaussian blur along one axis, with repeated border pixels.

    Args:
        radius: Standard deviation of each view in pixels, (M,) float; 0 gives the identity.
        size: Pixels along the axis, s.
        reach: How often a border pixel is repeated.

    Returns:
        Weights, (M, s, s).
    """
    pixels = torch.arange(-reach, size + reach, device=radius.device)
    distance = (pixels - torch.arange(size, device=radius.device)[:, None]).to(radius.dtype)
    weights = (-0.5 * (distance / radius.clamp(min=1e-3)[:, None, None]).square()).exp()
    inner = weights[:, :, reach : reach + size].clone()
    inner[:, :, 0] += weights[:, :, :reach].sum(2)
    inner[:, :, -1] += weights[:, :, reach + size :].sum(2)
    return inner / inner.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _CUBIC
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _resample(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """Weight the rows of x (M, 3, H, W) by (M, s, H) and its columns by (M, s, W)."""
    tall = torch.bmm(rows, x.transpose(1, 2).flatten(2))  # (M, s, 3*W): one product for all channels
    tall = tall.unflatten(2, (3, -1)).transpose(1, 2).flatten(1, 2)  # (M, 3*s, W)
    return torch.bmm(tall, columns.mT).unflatten(1, (3, -1))


def _luma(x: Tensor) -> Tensor:
    red, green, blue = _LUMA
    return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]


def _jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of each view (M, 3, s, s), in its own order.

    The first three are one operation: a mixture with black, with the mean gray, or with the gray view.
    """
    hue = factors[:, _HUE, None, None, None]
    for turn in range(4):
        which = order[:, turn, None, None, None]
        factor = factors.gather(1, order[:, turn : turn + 1])[:, :, None, None]
        luma = _luma(x)
        other = torch.where(which == _CONTRAST, luma.mean((2, 3), keepdim=True), luma)
        other = torch.where(which == _BRIGHTNESS, 0.0, other)
        mixed = (factor * x + (1 - factor) * other).clamp(0, 1)
        x = torch.where(which == _HUE, _shift_hue(x, hue), mixed)
    return x


def _shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of the circle, through HSV and back."""
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    turned = torch.where(
        value == red, (green - blue) / divisor, torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    )
    hue = turned + 6 * shift  # in sixths of the circle
    offsets = 5.0 - 2.0 * torch.arange(3, device=x.device).view(3, 1, 1)
    k = torch.remainder(offsets + hue, 6.0)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
