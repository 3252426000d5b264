"""Encode and decode pictures with a VQ-GAN, and compare what comes back: whole pictures and regions of them.

Shapes: `B` pictures, `H, W` pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.reconstruction_frames import Frame, read_pictures
from tokenization.reconstruction_metrics import PictureMetric
from tokenization.region_boxes import fit_mask
from tokenization.regions import Region, RegionProvider

WHOLE = "whole picture"
OBJECTS = "objects of interest"
KINDS = {"gripper": "gripper", "face": "faces", "salient": "salient spots"}
# Regions that are equal to the last bit have no finite PSNR; 8-bit rounding alone gives 58.9 dB.
LARGEST = 100.0


@dataclass
class Measured:
    """What was measured of a set of frames.

    Attributes:
        frames (`list[Frame]`): N frames.
        scores (`dict`): part of the picture -> metric -> N numbers, NaN where a frame lacks the part.
        code_counts (`np.ndarray` of shape `(codes,)`): how often each code was used.
        set_scores (`dict[str, float]`): metrics of the whole set.
    """

    frames: list[Frame]
    scores: dict[str, dict[str, np.ndarray]]
    code_counts: np.ndarray
    set_scores: dict[str, float] = field(default_factory=dict)


def measure_frames(
    tokenizer: Any,
    frames: Sequence[Frame],
    picture_metrics: Sequence[PictureMetric],
    set_metrics: Sequence[Any] = (),
    providers: Sequence[RegionProvider] = (),
    batch_size: int = 16,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Reconstruct frames, batch after batch, and measure.

    Args:
        tokenizer (`WorldVLAImageTokenizer`): holds the VQ-GAN; its `image_size` is that of the comparison.
        frames (`Sequence[Frame]`): which.
        picture_metrics (`Sequence[PictureMetric]`): compared picture by picture, and inside the regions.
        set_metrics (`Sequence`): such as `Fid`.
        providers (`Sequence[RegionProvider]`): find the regions.
        batch_size (`int`): frames at once.
        on_batch (`Callable[[int], None]`): called after every batch with its size, for progress.

    Returns:
        `Measured`.
    """
    counts = np.zeros(tokenizer.num_image_tokens, np.int64)
    parts: list[dict[str, dict[str, np.ndarray]]] = []
    for batch in _batches(frames, batch_size):
        pictures = read_pictures(batch, tokenizer.image_size)
        masks = masks_of_parts(batch, pictures, providers)
        reconstructed, codes = reconstruct_pictures(tokenizer, pictures)
        counts += np.bincount(codes.reshape(-1), minlength=len(counts))
        parts.append({WHOLE: {metric.name: metric(reconstructed, pictures) for metric in picture_metrics}})
        for part, inside in masks.items():
            parts[-1][part] = {metric.name: metric(reconstructed, pictures, inside) for metric in picture_metrics}
        for set_metric in set_metrics:
            set_metric.update(reconstructed, pictures)
        on_batch(len(batch))
    set_scores = {metric.name: metric.compute() for metric in set_metrics}
    return Measured(list(frames), _join(parts, picture_metrics), counts, set_scores)


def reconstruct_pictures(tokenizer: Any, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode and decode pictures.

    Args:
        tokenizer (`WorldVLAImageTokenizer`): holds the VQ-GAN.
        pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8, of the tokenizer's size.

    Returns:
        `tuple`: pictures `(B, H, W, 3)` uint8, and their codes `(B, h, w)`.
    """
    codes = tokenizer.encode(list(pictures)).numpy()
    return np.stack([np.asarray(picture) for picture in tokenizer.decode(codes)]), codes


def find_regions(provider: RegionProvider, frame: Frame, picture: np.ndarray) -> tuple[list[Region], Any]:
    """Regions of one frame, and the mask that they were found in.

    Args:
        provider (`RegionProvider`): finds them.
        frame (`Frame`): knows its mask.
        picture (`np.ndarray` of shape `(H, W, 3)`): uint8, the frame's picture at the size of the comparison.

    Returns:
        `tuple`: regions, and the mask `(H, W)` at that size or `None` where none was recorded.
    """
    if not frame.names:
        return provider.find(picture[None])[0], None
    mask = fit_mask(frame.mask(), picture.shape[:2])
    return provider.find(picture[None], mask[None], frame.names, frame.interest)[0], mask


def masks_of_parts(
    frames: Sequence[Frame], pictures: np.ndarray, providers: Sequence[RegionProvider]
) -> dict[str, np.ndarray]:
    """Which pixels belong to the regions of each kind.

    A region that has a name in the frame's segmentation means the pixels of that instance inside its box; another
    means its whole box. All regions of a kind count together.

    Args:
        frames (`Sequence[Frame]`): B frames.
        pictures (`np.ndarray` of shape `(B, H, W, 3)`): uint8, of the frames.
        providers (`Sequence[RegionProvider]`): find the regions.

    Returns:
        `dict[str, np.ndarray]`: kind (`gripper`, `objects of interest`, ...) -> bool `(B, H, W)`.
    """
    parts: dict[str, np.ndarray] = {}
    for number, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        for provider in providers:
            regions, mask = find_regions(provider, frame, picture)
            for region in regions:
                part = parts.setdefault(KINDS.get(region.name, OBJECTS), np.zeros(pictures.shape[:3], bool))
                box = slice(region.top, region.bottom), slice(region.left, region.right)
                instance = mask is not None and region.name in frame.names
                part[number][box] |= mask[box] == frame.names.index(region.name) if instance else True
    return parts


def _batches(frames: Sequence[Frame], batch_size: int) -> Iterator[Sequence[Frame]]:
    return (frames[start : start + batch_size] for start in range(0, len(frames), batch_size))


def _join(
    parts: Sequence[dict[str, dict[str, np.ndarray]]], metrics: Sequence[PictureMetric]
) -> dict[str, dict[str, np.ndarray]]:
    """Batches of scores as one array a part and metric; batches that lack a part give NaN."""
    names = dict.fromkeys(name for batch in parts for name in batch)
    sizes = [len(next(iter(batch[WHOLE].values()))) for batch in parts]
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        scores[name] = {}
        for metric in metrics:
            rows = [
                batch[name][metric.name] if name in batch else np.full(size, np.nan)
                for batch, size in zip(parts, sizes, strict=True)
            ]
            scores[name][metric.name] = np.minimum(np.concatenate(rows), LARGEST)
    return scores
