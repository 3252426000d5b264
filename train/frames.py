"""Pictures that a VQ-GAN learns from, with the weight of each pixel and the regions that deserve attention.

Shapes: `F` pictures, `B` pictures of a batch, `N` regions of a batch, `H, W` pixels.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenization.regions import RegionTable, make_region_provider, precompute_regions
from train.frame_cache import LABELS, FrameSources, gather

MOVING_THRESHOLD = 20  # of 255; the renderer's noise is zero, shadows and JPEG-like noise stay below


@dataclass(frozen=True)
class RegionBatch:
    """Regions of one provider in one batch of pictures.

    Attributes:
        boxes (`torch.FloatTensor` of shape `(N, 4)`): top, left, bottom, right in pixels, half-open.
        picture (`torch.LongTensor` of shape `(N,)`): which picture of the batch each lies in.
        weights (`torch.FloatTensor` of shape `(N,)`): how much each counts beside the others of its picture.
        scale (`float`): weight of the provider.
    """

    boxes: Tensor
    picture: Tensor
    weights: Tensor
    scale: float

    def to(self, device: torch.device) -> "RegionBatch":
        """Move the tensors to a device."""
        return replace(
            self, boxes=self.boxes.to(device), picture=self.picture.to(device), weights=self.weights.to(device)
        )


@dataclass(frozen=True)
class FrameBatch:
    """What one training step reads.

    Attributes:
        frames (`torch.FloatTensor` of shape `(B, 3, H, W)`): in [−1, 1].
        moving (`torch.FloatTensor` of shape `(B, 1, H, W)`): 1 where a picture differs from its clip's median.
        attention (`torch.FloatTensor` of shape `(B, 1, H, W)`): largest weight of the regions over a pixel, 0 outside.
        regions (`dict[str, RegionBatch]`): by provider.
    """

    frames: Tensor
    moving: Tensor
    attention: Tensor
    regions: dict[str, RegionBatch]

    def to(self, device: torch.device) -> "FrameBatch":
        """Move everything to a device."""
        regions = {name: regions.to(device) for name, regions in self.regions.items()}
        return FrameBatch(self.frames.to(device), self.moving.to(device), self.attention.to(device), regions)


class FrameArray:
    """All pictures of a set of demonstrations and image folders, memory-mapped, so that any amount fits.

    Args:
        frames (`np.ndarray` of shape `(F, H, W, 3)`): uint8, upright.
        episode_index (`np.ndarray` of shape `(F,)`): which episode a picture belongs to.
        median_index (`np.ndarray` of shape `(F,)`): which median belongs to a picture, −1 for none.
        medians (`np.ndarray` of shape `(M, H, W, 3)`): uint8, median pictures of the clips whose camera stands still.
        regions (`dict[str, tuple[RegionTable, float]]`): regions of all pictures and weight, by provider.
    """

    def __init__(
        self,
        frames: np.ndarray,
        episode_index: np.ndarray,
        median_index: np.ndarray,
        medians: np.ndarray,
        regions: dict[str, tuple[RegionTable, float]] | None = None,
    ) -> None:
        self.frames = frames
        self.episode_index = episode_index
        self.median_index = median_index
        self.medians = medians
        self.regions = regions or {}
        self._first_region = {
            name: np.searchsorted(table.boxes[:, 0], np.arange(len(frames) + 1))
            for name, (table, _) in self.regions.items()
        }

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @classmethod
    def from_sources(cls, sources: FrameSources, cache: Path, regions: dict[str, float] | None = None) -> "FrameArray":
        """Gather pictures and find their regions, once: a finished cache of the same files is used again.

        Args:
            sources (`FrameSources`): where pictures come from.
            cache (`Path`): folder for the arrays.
            regions (`dict[str, float]`, *optional*): weight by name of region provider.

        Returns:
            `FrameArray`: memory-mapped.
        """
        folder = gather(sources, cache)
        frames, medians = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "medians"))
        with np.load(folder / "clips.npz", allow_pickle=False) as stored:
            clips = {name: stored[name] for name in stored.files}
        of_frame = clips["clip_of_frame"]
        labels = json.loads((folder / LABELS).read_text("utf-8"))
        masks = folder / "masks.npy"
        tables = {
            name: (
                precompute_regions(
                    folder / f"regions-{name}.npz",
                    make_region_provider(name),
                    frames,
                    np.load(masks, mmap_mode="r") if masks.exists() else None,
                    clips["label"][of_frame],
                    [names for names, _ in labels] if masks.exists() else (),
                    [interest for _, interest in labels] if masks.exists() else (),
                ),
                weight,
            )
            for name, weight in (regions or {}).items()
        }
        return cls(frames, clips["episode"][of_frame], clips["median"][of_frame], medians, tables)

    def split(self, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Divide the pictures by episode.

        Args:
            held_out (`float`): share of episodes that are not learned from; at least one if larger than 0.
            seed (`int`): chooses them.

        Returns:
            `tuple`: numbers of the pictures to learn from, and of those held out, each rising.

        Raises:
            ValueError: if nothing is left to learn from.
        """
        episodes = np.unique(self.episode_index)
        count = max(1, round(held_out * len(episodes))) if held_out else 0
        if count >= len(episodes):
            raise ValueError(
                f"`--held_out {held_out}` leaves none of {len(episodes)} episodes to learn from. Record more, or set "
                "`--held_out 0`."
            )
        chosen = np.random.default_rng([seed, len(episodes)]).permutation(episodes)[:count]
        out = np.isin(self.episode_index, chosen)
        return np.flatnonzero(~out), np.flatnonzero(out)

    def batch(self, indices: np.ndarray) -> FrameBatch:
        """Read pictures with what belongs to them.

        Args:
            indices (`np.ndarray` of shape `(B,)`): which pictures.

        Returns:
            `FrameBatch`: on the CPU.
        """
        indices = np.asarray(indices)
        frames = self.frames[indices]
        moving = np.zeros(frames.shape[:3], dtype=bool)
        known = np.flatnonzero(self.median_index[indices] >= 0)
        if len(known):
            still = self.medians[self.median_index[indices[known]]]
            moving[known] = np.abs(frames[known].astype(np.int16) - still).max(-1) > MOVING_THRESHOLD
        regions = {name: self._regions_of(name, indices) for name in self.regions}
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        attention = paint_regions(regions.values(), len(indices), self.size)
        return FrameBatch(pictures.contiguous(), torch.from_numpy(moving).float()[:, None], attention, regions)

    def _regions_of(self, name: str, indices: np.ndarray) -> RegionBatch:
        table, scale = self.regions[name]
        first = self._first_region[name]
        rows = [np.arange(first[index], first[index + 1]) for index in indices]
        picture = np.repeat(np.arange(len(indices)), [len(row) for row in rows])
        chosen = np.concatenate(rows)
        return RegionBatch(
            torch.from_numpy(table.boxes[chosen, 1:].astype(np.float32)),
            torch.from_numpy(picture),
            torch.from_numpy(table.weights[chosen].astype(np.float32)),
            scale,
        )


def paint_regions(regions: Any, count: int, size: tuple[int, int]) -> Tensor:
    """Draw regions into their pictures.

    Args:
        regions (iterable of `RegionBatch`): on the CPU.
        count (`int`): B.
        size (`tuple[int, int]`): height and width in pixels.

    Returns:
        `torch.FloatTensor` of shape `(B, 1, H, W)`: for each pixel the largest weight (region times provider) of the
        regions that cover it, 0 where there is none.
    """
    painted = np.zeros((count, 1, *size), dtype=np.float32)
    for one in regions:
        for (top, left, bottom, right), picture, weight in zip(
            one.boxes.int().tolist(), one.picture.tolist(), (one.weights * one.scale).tolist(), strict=True
        ):
            area = painted[picture, 0, top:bottom, left:right]
            np.maximum(area, weight, out=area)
    return torch.from_numpy(painted)


def draw_batches(num_frames: int, batch_size: int, seed: int, first_step: int) -> Iterator[np.ndarray]:
    """Shuffled frame numbers, epoch after epoch; step s is the same whether the run was interrupted or not.

    Args:
        num_frames (`int`): frames to draw from.
        batch_size (`int`): frames per step, all processes together.
        seed (`int`): seed of the order.
        first_step (`int`): steps to skip.

    Yields:
        `np.ndarray` of shape `(batch_size,)`: frame numbers.
    """
    orders: dict[int, np.ndarray] = {}
    position = first_step * batch_size
    while True:
        places = [divmod(place, num_frames) for place in range(position, position + batch_size)]
        epochs = {epoch for epoch, _ in places}
        orders = {
            epoch: orders[epoch] if epoch in orders else np.random.default_rng([seed, epoch]).permutation(num_frames)
            for epoch in epochs
        }
        yield np.array([orders[epoch][index] for epoch, index in places])
        position += batch_size
