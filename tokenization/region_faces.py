"""Regions around faces, by OpenCV's cascades, whose weights ship in the package."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .region_boxes import Region, check_pictures, fit_boxes, make_regions

# Frontal faces, and faces that look to the left; mirrored pictures show those that look to the right.
Box = tuple[int, int, int, int]  # top, left, bottom, right
FRONTAL, PROFILE = "haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml"


@dataclass(frozen=True)
class FaceRegions:
    """Boxes around the faces of people, frontal and in profile.

    Args:
        margin (`float`): added on every side, as a share of the box: a cascade marks eyes to mouth.
        minimum_size (`int`): least height and width of a box in pixels.
        smallest_face (`int`): faces smaller than this many pixels are not looked for; the cascades know 20 x 20.
        scale_factor (`float`): step between the sizes that are looked for; nearer to 1 finds more and takes longer.
        min_neighbors (`int`): overlapping hits that make a face; higher finds fewer false ones.
        weight (`float`): weight of every face.
    """

    name = "faces"
    margin: float = 0.15
    minimum_size: int = 24
    smallest_face: int = 20
    scale_factor: float = 1.1
    min_neighbors: int = 5
    weight: float = 1.0

    def find(
        self,
        pictures: np.ndarray,
        masks: np.ndarray | None = None,
        names: Sequence[str] = (),
        interest: Sequence[str] = (),
    ) -> list[list[Region]]:
        """See `RegionProvider.find`; masks and names are not looked at.

        Raises:
            ImportError: if OpenCV is missing or without its cascades.
        """
        check_pictures(pictures)
        cv2 = import_opencv()
        cascades = [load_cascade(cv2, FRONTAL), load_cascade(cv2, PROFILE)]
        return [self._find_in(cv2, cascades, picture) for picture in pictures]

    def _find_in(self, cv2: Any, cascades: list[Any], picture: np.ndarray) -> list[Region]:
        height, width = picture.shape[:2]
        grey = cv2.equalizeHist(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
        frontal, profile = cascades
        boxes = self._detect(frontal, grey) + self._detect(profile, grey)
        mirrored = self._detect(profile, np.ascontiguousarray(grey[:, ::-1]))
        boxes += [(top, width - right, bottom, width - left) for top, left, bottom, right in mirrored]
        kept = fit_boxes(np.array(drop_overlapping(boxes)), height, width, self.margin, self.minimum_size)
        return make_regions(kept, "face", self.weight)

    def _detect(self, cascade: Any, grey: np.ndarray) -> list[Box]:
        size = (self.smallest_face, self.smallest_face)
        found = cascade.detectMultiScale(
            grey, scaleFactor=self.scale_factor, minNeighbors=self.min_neighbors, minSize=size
        )
        return [(int(y), int(x), int(y + h), int(x + w)) for x, y, w, h in found]


def import_opencv() -> Any:
    """Import OpenCV where it is needed.

    Returns:
        The module `cv2`.

    Raises:
        ImportError: says what to install.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"Regions from faces and saliency need OpenCV, which cannot be imported ({error}). "
            "`pip install 'worldvla[regions]'`, or choose the regions `segmentation`."
        ) from error
    return cv2


def load_cascade(cv2: Any, file_name: str) -> Any:
    """Load one of the cascades that ship with OpenCV.

    Args:
        cv2 (module): OpenCV.
        file_name (`str`): file in its folder of cascades.

    Returns:
        `cv2.CascadeClassifier`.

    Raises:
        ImportError: if this OpenCV has no such cascade; OpenCV 5 ships none.
    """
    folder = getattr(getattr(cv2, "data", None), "haarcascades", None)
    cascade = cv2.CascadeClassifier(folder + file_name) if folder and hasattr(cv2, "CascadeClassifier") else None
    if cascade is None or cascade.empty():
        raise ImportError(
            f"OpenCV {cv2.__version__} comes without its face cascade `{file_name}`; releases before 5 have it. "
            "`pip install 'worldvla[regions]'`, or choose the regions `saliency` or `segmentation`."
        )
    return cascade


def drop_overlapping(boxes: Sequence[tuple[int, int, int, int]], limit: float = 0.3) -> list[Box]:
    """Keep the first of boxes that mark the same thing.

    Args:
        boxes (sequence of top, left, bottom, right): in pixels.
        limit (`float`): intersection over union from which two boxes are one.

    Returns:
        `list`: the boxes kept, in their order.
    """
    kept: list[Box] = []
    for box in boxes:
        if all(overlap(box, other) < limit for other in kept):
            kept.append(box)
    return kept


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (top, left, bottom, right)."""
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, height) * max(0, width)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)
