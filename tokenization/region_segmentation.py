"""Regions from the simulator's own segmentation masks: the gripper and what the task is about.

Shapes: `B` pictures, `H, W` pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from .region_boxes import Region, check_pictures, fit_boxes, make_regions


@dataclass(frozen=True)
class SegmentationRegions:
    """A box around the gripper and around each object of interest, one region per instance that can be seen.

    Args:
        margin (`float`): added on every side, as a share of the box's height and width.
        minimum_size (`int`): least height and width of a box in pixels.
        minimum_pixels (`int`): instances that show fewer pixels have no region.
        always (`tuple[str, ...]`): instances that count in every task.
        weights (`Mapping[str, float]`): weight by name pattern (`alphabet_*`); the first pattern that fits a name
            counts, names that none fits weigh 1, weight 0 leaves an instance out.
    """

    name = "segmentation"
    margin: float = 0.15
    minimum_size: int = 24
    minimum_pixels: int = 12
    always: tuple[str, ...] = ("gripper",)
    weights: Mapping[str, float] = field(default_factory=dict)

    def find(
        self,
        pictures: np.ndarray,
        masks: np.ndarray | None = None,
        names: Sequence[str] = (),
        interest: Sequence[str] = (),
    ) -> list[list[Region]]:
        """See `RegionProvider.find`.

        Raises:
            ValueError: if there are no masks, or they do not fit pictures or names.
        """
        check_pictures(pictures)
        masks = check_masks(masks, pictures, names)
        height, width = masks.shape[1:]
        found: list[list[Region]] = [[] for _ in pictures]
        for instance in self.instances(names, interest):
            weight = self._weight_of(instance)
            if weight == 0:
                continue
            shown = np.asarray(masks == names.index(instance))
            numbers = np.flatnonzero(shown.sum((1, 2)) >= self.minimum_pixels)
            boxes = fit_boxes(boxes_around(shown[numbers]), height, width, self.margin, self.minimum_size)
            for number, region in zip(numbers.tolist(), make_regions(boxes, instance, weight), strict=True):
                found[number].append(region)
        return found

    def instances(self, names: Sequence[str], interest: Sequence[str]) -> list[str]:
        """The recorded instances that are looked for.

        A task may be about a part of an instance, which has no mask of its own: `wine_rack_1_top_region` means the
        instance `wine_rack_1`. A place that belongs to no instance, such as one on the table, is left out.

        Args:
            names (`Sequence[str]`): what the values of the masks stand for.
            interest (`Sequence[str]`): the names that the task is about.

        Returns:
            `list[str]`: a part of `names`, each once.
        """
        wanted: dict[str, None] = {}
        for name in (*self.always, *interest):
            owners = [known for known in names if name == known or name.startswith(f"{known}_")]
            if owners:
                wanted[max(owners, key=len)] = None
        return list(wanted)

    def _weight_of(self, instance: str) -> float:
        return next((weight for pattern, weight in self.weights.items() if fnmatchcase(instance, pattern)), 1.0)


def check_masks(masks: np.ndarray | None, pictures: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Refuse masks that do not belong to the pictures or to the names.

    Args:
        masks (`np.ndarray`): should be of shape `(B, H, W)`.
        pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
        names (`Sequence[str]`): what the values of `masks` stand for.

    Returns:
        `np.ndarray`: the masks.

    Raises:
        ValueError: if there are none, or shape or values do not fit.
    """
    if masks is None or not len(names):
        raise ValueError(
            "Regions from segmentation need the masks that were recorded with the pictures, and their names; none "
            "came. Record the demonstrations with segmentation, or choose the regions `saliency` or `faces`."
        )
    if masks.shape != pictures.shape[:3]:
        raise ValueError(f"Masks must have the shape of the pictures, {pictures.shape[:3]}, got {masks.shape}.")
    if masks.size and masks.max() >= len(names):
        raise ValueError(f"A mask holds the value {masks.max()}, but only {len(names)} names were recorded.")
    return masks


def boxes_around(shown: np.ndarray) -> np.ndarray:
    """The smallest box around the true pixels of each picture.

    Args:
        shown (`np.ndarray` of shape `(B, H, W)`): bool, at least one true pixel in each picture.

    Returns:
        `np.ndarray` of int64, shape `(B, 4)`: top, left, bottom, right, half-open.
    """
    rows, columns = np.any(shown, axis=2), np.any(shown, axis=1)
    height, width = shown.shape[1:]
    top, left = rows.argmax(1), columns.argmax(1)
    bottom, right = height - rows[:, ::-1].argmax(1), width - columns[:, ::-1].argmax(1)
    return np.stack([top, left, bottom, right], axis=1)
