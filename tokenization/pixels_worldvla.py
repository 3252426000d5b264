"""Whatever people call an image -> RGB pixels of one size, and back.

Shapes: `H, W` pixels, `C` channels (1 grey, 3 RGB, 4 RGBA), `B` batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

_PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_ACCEPTED = (
    "Pass a PIL image, a NumPy array (H, W, C) or a tensor (C, H, W), uint8 or float in [0, 1], of 1, 3 or 4 channels."
)
# Value of a byte for the VQ-GAN, which sees colours in [-1, 1]; computed in float64 like the official code does.
_BYTE_TO_COLOUR = ((np.arange(256) / 255.0) * 2.0 - 1.0).astype(np.float32)


def check_image_size(image_size: Sequence[int]) -> tuple[int, int]:
    """Refuse an image size that is not two positive integers.

    Args:
        image_size (`tuple[int, int]`): height and width in pixels.

    Returns:
        `tuple[int, int]`: the same.

    Raises:
        ValueError: if it is something else.
    """
    values = list(image_size) if isinstance(image_size, Sequence) else [image_size]
    if len(values) != 2 or not all(isinstance(side, int) and side > 0 for side in values):
        raise ValueError(f"`image_size` must be (height, width) in pixels, got {image_size!r}.")
    return values[0], values[1]


def convert_to_rgb(image: Any) -> np.ndarray:
    """Read one image as RGB pixels. Transparent parts become white, grey is repeated.

    Args:
        image (image): `PIL.Image.Image`, `np.ndarray` of shape `(H, W)` or `(H, W, C)`, or `torch.Tensor` of shape
            `(H, W)` or `(C, H, W)`; arrays and tensors hold uint8, or floats in [0, 1].

    Returns:
        `np.ndarray` of uint8, shape `(H, W, 3)`: its pixels.

    Raises:
        ValueError: if it cannot be read as RGB; the message says what came.
    """
    if isinstance(image, Image.Image):
        return _convert_pil(image)
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        pixels = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        if pixels.ndim == 3 and pixels.shape[0] not in (1, 3, 4):
            raise ValueError(f"A tensor image must have shape (C, H, W), got {tuple(pixels.shape)}. {_ACCEPTED}")
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise ValueError(f"An image must be convertible to RGB, got {type(image).__name__}. {_ACCEPTED}")
    return _convert_array(pixels)


def resize_and_crop(
    pixels: np.ndarray, size: tuple[int, int], generator: np.random.Generator | None = None
) -> np.ndarray:
    """Bring pixels to a size: shrink or grow until they cover it, then cut a part of that size out.

    Args:
        pixels (`np.ndarray` of uint8, shape `(H, W, 3)`): the image.
        size (`tuple[int, int]`): wanted height and width.
        generator (`np.random.Generator`, *optional*): draws where to cut, for training; without it the centre is cut.

    Returns:
        `np.ndarray` of uint8, shape `(*size, 3)`: the image in that size.

    References:
        Filters and rounding of the official code, whose crop is always at a random place; ours is centred.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    covering = resize_to_cover(pixels, size)
    spare = (covering.shape[0] - size[0], covering.shape[1] - size[1])
    if generator is None:
        top, left = spare[0] // 2, spare[1] // 2
    else:
        top, left = (int(generator.integers(0, room, endpoint=True)) for room in spare)
    return np.ascontiguousarray(covering[top : top + size[0], left : left + size[1]])


def resize_to_cover(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize pixels, in proportion, to the smallest size that covers another.

    Args:
        pixels (`np.ndarray` of uint8, shape `(H, W, 3)`): the image.
        size (`tuple[int, int]`): height and width to cover.

    Returns:
        `np.ndarray` of uint8, shape `(>= height, >= width, 3)`: the resized image.
    """
    height, width = size
    image = Image.fromarray(pixels)
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    return np.asarray(image)


def list_crop_sizes(image_size: tuple[int, int], unit: int, max_aspect: float = 4.0) -> list[tuple[int, int]]:
    """Sizes that images of any shape may be cut to, all of nearly the same area.

    Args:
        image_size (`tuple[int, int]`): height and width in pixels; only their product counts.
        unit (`int`): sides are multiples of it, in pixels.
        max_aspect (`float`): longer side over shorter side.

    Returns:
        `list[tuple[int, int]]`: heights and widths, from the widest to the tallest: for every width the heights that
        fit into the area and not into that of the next larger width.

    References:
        The list of the official code, docs/fidelity.md.
    """
    area = (image_size[0] // unit) * (image_size[1] // unit)
    return [
        (unit * height, unit * width)
        for width in range(area, 0, -1)
        for height in range(max(1, area // (width + 1)), area // width + 1)
        if max(width, height) <= max_aspect * min(width, height)
    ]


def choose_crop_size(size: tuple[int, int], crop_sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The crop size that loses least of an image; among equals, the widest.

    Args:
        size (`tuple[int, int]`): height and width of the image.
        crop_sizes (list of `tuple[int, int]`): heights and widths to choose from.

    Returns:
        `tuple[int, int]`: one of them.

    References:
        The rule of the official code: the smaller over the larger of the two scales, docs/fidelity.md.
    """

    def kept(crop_size: tuple[int, int]) -> tuple[float, int, int]:
        scales = crop_size[1] / size[1], crop_size[0] / size[0]
        return min(scales) / max(scales), crop_size[1], crop_size[0]

    return max(crop_sizes, key=kept)


def convert_to_colours(pixels: np.ndarray) -> torch.Tensor:
    """Bytes to the values that the VQ-GAN sees.

    Args:
        pixels (`np.ndarray` of uint8, shape `(B, H, W, 3)`): images.

    Returns:
        `torch.FloatTensor` of shape `(B, 3, H, W)`: colours in [-1, 1]. Channels first in memory too: with channels
        last the CPU is a tenth faster, but its group norm is a thousand times less exact, which changes codes.
    """
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return torch.from_numpy(np.take(_BYTE_TO_COLOUR, channels_first))


def convert_to_images(colours: torch.Tensor) -> list[Image.Image]:
    """Colours that the VQ-GAN made to pictures.

    Args:
        colours (`torch.Tensor` of shape `(B, 3, H, W)`): colours, clipped to [-1, 1].

    Returns:
        `list[PIL.Image.Image]`: B pictures in RGB.
    """
    bytes_ = ((colours.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in bytes_.permute(0, 2, 3, 1).cpu().numpy()]


def _convert_pil(image: Image.Image) -> np.ndarray:
    """RGB pixels of a PIL image."""
    if image.mode not in _PIL_MODES:
        raise ValueError(f"A PIL image must be convertible to RGB, got mode {image.mode!r}. {_ACCEPTED}")
    if image.width == 0 or image.height == 0:
        raise ValueError(f"An image must have pixels, got size {image.size}. {_ACCEPTED}")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _whiten(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _convert_array(pixels: np.ndarray) -> np.ndarray:
    """RGB pixels of an array (H, W) or (H, W, C)."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"An image array must have shape (H, W, C), got {pixels.shape}. {_ACCEPTED}")
    if pixels.size == 0:
        raise ValueError(f"An image must have pixels, got shape {pixels.shape}. {_ACCEPTED}")
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"Float images must lie in [0, 1], got values from {pixels.min()} to {pixels.max()}. Divide by 255 "
                "or pass uint8."
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ValueError(f"Image arrays must hold uint8 or floats, got {pixels.dtype}. {_ACCEPTED}")
    if pixels.shape[-1] == 4:
        return _whiten(pixels)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _whiten(pixels: np.ndarray) -> np.ndarray:
    """Lay RGBA pixels over white."""
    if (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    alpha = pixels[..., 3:] / 255.0
    return ((1 - alpha) * 255 + alpha * pixels[..., :3]).astype(np.uint8)
