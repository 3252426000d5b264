"""Regions around what catches the eye, by the saliency maps of OpenCV's contributed modules.

Shapes: `H, W` pixels, `N` boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .choices_worldvla import require_choice
from .region_boxes import Region, check_pictures, fit_boxes, make_regions
from .region_faces import import_opencv

METHODS = {
    "spectral_residual": "StaticSaliencySpectralResidual_create",
    "fine_grained": "StaticSaliencyFineGrained_create",
}


@dataclass(frozen=True)
class SaliencyRegions:
    """Boxes around the most salient spots of a picture.

    The saliency map is smoothed and cut at a threshold; connected spots become boxes, the most salient ones first.

    Args:
        method (`str`): `spectral_residual` or `fine_grained`; docs/regions.md compares them on frames of LIBERO.
        threshold (`float`): a pixel is salient when its saliency lies this many standard deviations above the mean.
        smoothing (`float`): width of the Gaussian that smooths the map, as a share of the picture's shorter side.
        minimum_area (`float`): least area of a spot, as a share of the picture.
        maximum_number (`int`): most regions of a picture.
        margin (`float`): added on every side, as a share of the box's height and width.
        minimum_size (`int`): least height and width of a box in pixels.
        weight (`float`): weight of every region.

    References:
        Hou and Zhang, CVPR 2007 (`spectral_residual`); Montabone and Soto, Image and Vision Computing 2010
        (`fine_grained`).
    """

    name = "saliency"
    method: str = "spectral_residual"
    threshold: float = 2.0
    smoothing: float = 0.04
    minimum_area: float = 0.002
    maximum_number: int = 4
    margin: float = 0.1
    minimum_size: int = 24
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the method."""
        require_choice("saliency method", self.method, METHODS)

    def find(
        self,
        pictures: np.ndarray,
        masks: np.ndarray | None = None,
        names: Sequence[str] = (),
        interest: Sequence[str] = (),
    ) -> list[list[Region]]:
        """See `RegionProvider.find`; masks and names are not looked at.

        Raises:
            ImportError: if OpenCV's saliency module is missing.
        """
        check_pictures(pictures)
        cv2 = import_saliency()
        detector = getattr(cv2.saliency, METHODS[self.method])()
        return [self._find_in(cv2, detector, picture) for picture in pictures]

    def _find_in(self, cv2: Any, detector: Any, picture: np.ndarray) -> list[Region]:
        height, width = picture.shape[:2]
        if not np.ptp(picture, axis=(0, 1)).any():  # of one colour: the map is rounding noise
            return []
        boxes = self.boxes_of(cv2, saliency_map(cv2, detector, picture))
        fitted = fit_boxes(boxes, height, width, self.margin, self.minimum_size)
        return make_regions(fitted, "salient", self.weight)

    def boxes_of(self, cv2: Any, saliency: np.ndarray) -> np.ndarray:
        """Cut a saliency map into boxes.

        Args:
            cv2 (module): OpenCV.
            saliency (`np.ndarray` of shape `(H, W)`): float32.

        Returns:
            `np.ndarray` of shape `(N, 4)`: top, left, bottom, right, by saliency in all, at most `maximum_number`.
        """
        smooth = cv2.GaussianBlur(saliency, (0, 0), max(0.5, self.smoothing * min(saliency.shape)))
        salient = smooth > smooth.mean() + self.threshold * smooth.std()
        count, labels, statistics, _ = cv2.connectedComponentsWithStats(salient.astype(np.uint8), connectivity=8)
        mass = np.bincount(labels.reshape(-1), smooth.reshape(-1), minlength=count)
        large = statistics[:, cv2.CC_STAT_AREA] >= self.minimum_area * saliency.size
        order = [label for label in np.argsort(-mass, kind="stable") if label > 0 and large[label]]  # 0: background
        left, top, wide, high = statistics[order[: self.maximum_number], :4].T
        return np.stack([top, left, top + high, left + wide], axis=1)


def import_saliency() -> Any:
    """Import OpenCV with its saliency module.

    Returns:
        The module `cv2`.

    Raises:
        ImportError: says what to install.
    """
    cv2 = import_opencv()
    if not hasattr(cv2, "saliency"):
        version = cv2.__version__
        raise ImportError(
            f"OpenCV {version} comes without its saliency module: `opencv-python` lies over "
            "`opencv-contrib-python`, or the latter is missing. Both fill the folder `cv2`, the contributed one holds "
            f"all of the other: `pip install --force-reinstall --no-deps 'opencv-contrib-python=={version}.*'`, or "
            "choose the regions `segmentation` or `faces`."
        )
    return cv2


def saliency_map(cv2: Any, detector: Any, picture: np.ndarray) -> np.ndarray:
    """How much each pixel catches the eye.

    Args:
        cv2 (module): OpenCV.
        detector (`cv2.saliency.StaticSaliency`): computes the map.
        picture (`np.ndarray` of shape `(H, W, 3)`): uint8, RGB.

    Returns:
        `np.ndarray` of float32, shape `(H, W)`: from 0.

    Raises:
        RuntimeError: if OpenCV cannot compute the map.
    """
    done, saliency = detector.computeSaliency(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV found no saliency map of a picture of shape {picture.shape}.")
    return np.asarray(saliency, np.float32)
