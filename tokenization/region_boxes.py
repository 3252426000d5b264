"""A region of a picture, and the geometry of boxes. Does not travel to the Hub.

Shapes: `B` pictures, `H, W` pixels, `N` boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class Region:
    """One rectangle of one picture that deserves attention.

    Attributes:
        top (`int`): first row, in pixels.
        left (`int`): first column.
        bottom (`int`): one past the last row.
        right (`int`): one past the last column.
        name (`str`): what it shows: `face`, `salient`, or the object's name such as `gripper`, `alphabet_soup_1`.
        weight (`float`): how much it counts beside other regions.
    """

    top: int
    left: int
    bottom: int
    right: int
    name: str
    weight: float = 1.0


class RegionProvider(Protocol):
    """What finds regions. Any class with this attribute and this method will do.

    Attributes:
        name (`str`): the provider's name, as users choose it.
    """

    name: str

    def find(
        self,
        pictures: np.ndarray,
        masks: np.ndarray | None = None,
        names: Sequence[str] = (),
        interest: Sequence[str] = (),
    ) -> list[list[Region]]:
        """Find the regions of some pictures.

        Args:
            pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8, upright.
            masks (`np.ndarray` of shape `(B, H, W)`, *optional*): uint8, for each pixel an index into `names`.
            names (`Sequence[str]`): what the values of `masks` stand for.
            interest (`Sequence[str]`): the names that the task is about.

        Returns:
            `list[list[Region]]`: B lists, empty where a picture has no region.
        """
        ...


def check_pictures(pictures: np.ndarray) -> None:
    """Refuse what is no batch of RGB pictures.

    Args:
        pictures (`np.ndarray`): should be uint8 of shape `(B, H, W, 3)`.

    Raises:
        ValueError: names shape and type of what came.
    """
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise ValueError(
            f"Regions are found in uint8 pictures of shape (B, H, W, 3), got {pictures.dtype} of shape "
            f"{pictures.shape}. Add the batch dimension to a single picture: `picture[None]`."
        )


def fit_boxes(boxes: np.ndarray, height: int, width: int, margin: float, minimum_size: int) -> np.ndarray:
    """Give boxes a margin and a minimum size, and keep them inside the picture.

    A box that would leave the picture is moved inside when it grew to the minimum size, and cut where its margin ends
    outside.

    Args:
        boxes (`np.ndarray` of shape `(N, 4)`): top, left, bottom, right in pixels, half-open.
        height (`int`): H.
        width (`int`): W.
        margin (`float`): added on every side, as a share of the box's own height and width.
        minimum_size (`int`): least height and width in pixels; a smaller picture is taken whole.

    Returns:
        `np.ndarray` of int32, shape `(N, 4)`: boxes inside the picture.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    fitted = np.empty(boxes.shape, np.int32)
    for axis, limit in ((0, height), (1, width)):
        start, end = boxes[:, axis], boxes[:, axis + 2]
        grown = margin * (end - start)
        start, end = np.floor(start - grown).clip(0), np.ceil(end + grown).clip(max=limit)
        side = np.maximum(end - start, min(minimum_size, limit))
        start = np.floor((start + end - side) / 2).clip(0, limit - side)
        fitted[:, axis], fitted[:, axis + 2] = start, start + side
    return fitted


def make_regions(boxes: np.ndarray, name: str, weight: float) -> list[Region]:
    """Boxes as regions of one name and weight.

    Args:
        boxes (`np.ndarray` of shape `(N, 4)`): top, left, bottom, right.
        name (`str`): what they show.
        weight (`float`): how much each counts.

    Returns:
        `list[Region]`: N regions.
    """
    return [Region(top, left, bottom, right, name, weight) for top, left, bottom, right in boxes.tolist()]


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a mask to the size of a picture that `resize_and_crop` fitted: the nearest pixel's value, no mixture.

    Args:
        mask (`np.ndarray` of shape `(H, W)`): uint8.
        size (`tuple[int, int]`): height and width.

    Returns:
        `np.ndarray` of shape `size`: uint8.
    """
    if mask.shape == tuple(size):
        return mask
    scale = max(size[0] / mask.shape[0], size[1] / mask.shape[1])
    covering = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    resized = np.asarray(Image.fromarray(mask).resize(covering, Image.Resampling.NEAREST))
    top, left = (resized.shape[0] - size[0]) // 2, (resized.shape[1] - size[1]) // 2
    return resized[top : top + size[0], left : left + size[1]]
