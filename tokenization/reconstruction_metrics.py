"""How near pictures come to others: PSNR, SSIM, LPIPS, FID; whole pictures or parts of them. Stays in the checkout.

Every metric but FID gives one number a picture. With masks, only the pixels of the mask count.
Shapes: `B` pictures, `H, W` pixels.
"""

from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from .choices_worldvla import require_choice
from .region_boxes import fit_boxes
from .region_segmentation import boxes_around

LPIPS_CROP = 64  # pixels, height and width, that a region is resized to before LPIPS compares it


class PictureMetric(Protocol):
    """A distance or likeness of two pictures.

    Attributes:
        name (`str`): as users choose it.
        title (`str`): for tables, with the unit.
        digits (`int`): decimals that mean something.
    """

    name: str
    title: str
    digits: int

    def __call__(self, pictures: np.ndarray, reference: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Compare pictures.

        Args:
            pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
            reference (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
            masks (`np.ndarray` of shape `(B, H, W)`, *optional*): bool, the pixels that count.

        Returns:
            `np.ndarray` of float64, shape `(B,)`: NaN where a mask is empty.

        Raises:
            ValueError: if the shapes differ.
        """
        ...


class Psnr:
    """Peak signal-to-noise ratio: see `psnr`."""

    name, title, digits = "psnr", "PSNR (dB)", 2

    def __call__(self, pictures: np.ndarray, reference: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """See `PictureMetric`."""
        return psnr(pictures, reference, masks)


class Ssim:
    """Structural similarity: see `ssim`.

    Raises:
        ImportError: if torchmetrics is missing.
    """

    name, title, digits = "ssim", "SSIM", 4

    def __init__(self) -> None:
        _import_torchmetrics("ssim")

    def __call__(self, pictures: np.ndarray, reference: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """See `PictureMetric`."""
        return ssim(pictures, reference, masks)


class Lpips:
    """Learned perceptual distance, AlexNet features, by torchmetrics.

    A region is compared as the box around its mask, at least 32 x 32 pixels, resized to 64 x 64.

    Args:
        device (`str`): torch device of the network.

    Raises:
        ImportError: if torchmetrics or torchvision is missing.
        OSError: if the weights of AlexNet are neither on disk nor to be downloaded.

    References:
        Zhang et al., CVPR 2018 (arXiv 1801.03924).
    """

    name, title, digits = "lpips", "LPIPS", 4

    def __init__(self, device: str = "cpu") -> None:
        _import_torchmetrics("lpips")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self._network: Any = _build("lpips", LearnedPerceptualImagePatchSimilarity, net_type="alex").to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray, reference: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """See `PictureMetric`."""
        _check_shapes(pictures, reference, masks)
        found = np.full(len(pictures), np.nan)
        for number, pair in enumerate(zip(pictures, reference, strict=True)):
            if masks is not None and not masks[number].any():
                continue
            crops = pair if masks is None else tuple(_crop(picture, masks[number]) for picture in pair)
            # One call a picture: the network reduces a batch to its mean.
            colours = (_to_tensor(picture[None]).to(self._device) / 127.5 - 1 for picture in crops)
            found[number] = float(self._network(*colours))
        return found


class Fid:
    """Fréchet distance of Inception features between two sets of pictures (rFID when one set is reconstructed).

    It depends on the number of pictures: compare values of the same number only; it is made for tens of thousands.

    Args:
        device (`str`): torch device of the network.

    Raises:
        ImportError: if torchmetrics or torch-fidelity is missing.
        OSError: if the weights of Inception are neither on disk nor to be downloaded.

    References:
        Heusel et al., NeurIPS 2017 (arXiv 1706.08500).
    """

    name, title, digits = "rfid", "rFID", 2

    def __init__(self, device: str = "cpu") -> None:
        _import_torchmetrics("rfid")
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._distance: Any = _build("rfid", FrechetInceptionDistance, feature=2048).to(device)
        self._device = device

    def update(self, pictures: np.ndarray, reference: np.ndarray) -> None:
        """Add pictures to both sets.

        Args:
            pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
            reference (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
        """
        self._distance.update(_to_tensor(reference).to(self._device), real=True)
        self._distance.update(_to_tensor(pictures).to(self._device), real=False)

    def compute(self) -> float:
        """The distance of all pictures so far."""
        return float(self._distance.compute())


PICTURE_METRICS: dict[str, Any] = {"psnr": Psnr, "ssim": Ssim, "lpips": Lpips}
SET_METRICS: dict[str, Any] = {"rfid": Fid}
_NEEDS_NETWORK = ("lpips", "rfid")


def make_metric(name: str, device: str = "cpu") -> Any:
    """Make a metric by name, ready to measure.

    Args:
        name (`str`): one of `PICTURE_METRICS` or `SET_METRICS`.
        device (`str`): torch device of its network, where it has one.

    Returns:
        `PictureMetric` or `Fid`.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if what it needs is not installed.
        OSError: if its weights are not to be had.
    """
    choices = PICTURE_METRICS | SET_METRICS
    require_choice("metric", name, choices)
    return choices[name](device) if name in _NEEDS_NETWORK else choices[name]()


def psnr(pictures: np.ndarray, reference: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture.

    Args:
        pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
        reference (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
        masks (`np.ndarray` of shape `(B, H, W)`, *optional*): bool, the pixels that count.

    Returns:
        `np.ndarray` of float64, shape `(B,)`: decibels; infinite where the pictures are equal, NaN where a mask is
        empty.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_shapes(pictures, reference, masks)
    squared_error = np.square(pictures.astype(np.float64) - reference.astype(np.float64)).mean(axis=-1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / _mean(squared_error, masks))


def ssim(pictures: np.ndarray, reference: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """Structural similarity of each picture: Gaussian window of 11 pixels, sigma 1.5, mean over colours and pixels.

    Windows at the border see the picture mirrored, as in torchmetrics; those of a mask's pixels reach beyond the mask.

    Args:
        pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8, H and W at least 11.
        reference (`np.ndarray` of shape `(B, H, W, 3)`): uint8.
        masks (`np.ndarray` of shape `(B, H, W)`, *optional*): bool, the pixels that count.

    Returns:
        `np.ndarray` of float64, shape `(B,)`: at most 1; NaN where a mask is empty.

    Raises:
        ImportError: if torchmetrics is missing.
        ValueError: if the shapes differ.

    References:
        Wang et al., IEEE TIP 2004.
    """
    _check_shapes(pictures, reference, masks)
    _import_torchmetrics("ssim")
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        _to_tensor(pictures).float(),
        _to_tensor(reference).float(),
        data_range=255.0,
        reduction="none",
        return_full_image=True,
    )
    return _mean(similarity.mean(dim=1).double().numpy(), masks)


def codebook_perplexity(counts: np.ndarray) -> float:
    """Exponential of the entropy of code use: how many codes are used as if evenly.

    Args:
        counts (`np.ndarray` of shape `(codes,)`): how often each code was used.

    Returns:
        `float`: from 1 to the number of codes.
    """
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _mean(values: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """Mean of `(B, H, W)` over each picture, or over its masked pixels; NaN where there are none."""
    if masks is None:
        return values.mean(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return np.where(masks, values, 0.0).sum(axis=(1, 2)) / masks.sum(axis=(1, 2))


def _to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Bytes `(B, H, W, 3)` as a uint8 tensor `(B, 3, H, W)`."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def _crop(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The box around a mask, resized for LPIPS."""
    height, width = mask.shape
    top, left, bottom, right = fit_boxes(boxes_around(mask[None]), height, width, margin=0.0, minimum_size=32)[0]
    image = Image.fromarray(picture[top:bottom, left:right])
    return np.asarray(image.resize((LPIPS_CROP, LPIPS_CROP), Image.Resampling.BICUBIC))


def _check_shapes(pictures: np.ndarray, reference: np.ndarray, masks: np.ndarray | None) -> None:
    if pictures.shape != reference.shape:
        raise ValueError(f"Cannot compare frames of shape {pictures.shape} with frames of shape {reference.shape}.")
    if masks is not None and (masks.shape != pictures.shape[:3] or masks.dtype != bool):
        raise ValueError(
            f"Masks must be bool of shape {pictures.shape[:3]}, one a picture, got {masks.dtype} of shape "
            f"{masks.shape}."
        )


_INSTALL = {
    "ssim": "`pip install 'worldvla[eval]'`",
    "lpips": "`pip install 'worldvla[eval]'` and the `torchvision` that fits your torch",
    "rfid": "`pip install 'worldvla[eval]' torch-fidelity`, which brings torchvision",
}


def _import_torchmetrics(metric: str) -> None:
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ImportError(f"The metric `{metric}` needs torchmetrics ({error}): {_INSTALL[metric]}.") from error


def _build(metric: str, make: Any, **options: Any) -> Any:
    """Build a torchmetrics module that needs further packages and weights; say what is missing."""
    try:
        return make(**options)
    except ImportError as error:
        raise ImportError(
            f"The metric `{metric}` cannot run here ({error}). Install {_INSTALL[metric]}, or leave it out: the "
            "metrics `psnr` and `ssim` run anywhere."
        ) from error
    except OSError as error:  # urllib's errors are among these
        raise OSError(
            f"The metric `{metric}` lacks the weights of its network, and they cannot be downloaded ({error}). Put "
            f"them into `{torch.hub.get_dir()}/checkpoints`, or leave the metric out: `psnr` and `ssim` run anywhere."
        ) from error
