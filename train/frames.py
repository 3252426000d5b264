"""Frames of demonstrations as one array on disk, with the weight of each pixel.

Shapes: `F` frames, `H, W` pixels.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tokenization.demonstrations import find_demonstration_files, read_demonstrations
from train.atomic_files import new_folder

MEDIAN_SAMPLES = 32  # frames of an episode that its median is taken over
MOVING_THRESHOLD = 20  # of 255; the renderer's noise is zero, shadows and JPEG-like noise stay below


class FrameArray:
    """All frames of a set of demonstrations, memory-mapped, so that any amount fits.

    Args:
        frames (`np.ndarray` of shape `(F, H, W, 3)`): uint8, upright.
        episode_index (`np.ndarray` of shape `(F,)`): which episode a frame belongs to.
        medians (`np.ndarray` of shape `(episodes, H, W, 3)`): median frame of each episode, uint8.
    """

    def __init__(self, frames: np.ndarray, episode_index: np.ndarray, medians: np.ndarray) -> None:
        self.frames = frames
        self.episode_index = episode_index
        self.medians = medians

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, indices: np.ndarray, moving_region_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Read frames and weigh their pixels.

        Args:
            indices (`np.ndarray` of shape `(B,)`): which frames.
            moving_region_weight (`float`): extra weight of pixels that differ from their episode's median frame.

        Returns:
            `tuple`: frames `(B, 3, H, W)` in [−1, 1] and pixel weights `(B, 1, H, W)`, both float32.
        """
        frames = self.frames[np.asarray(indices)]
        still = self.medians[self.episode_index[indices]]
        moving = np.abs(frames.astype(np.int16) - still).max(-1) > MOVING_THRESHOLD
        weights = 1.0 + moving_region_weight * torch.from_numpy(moving).float()
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1.0, weights[:, None]

    @classmethod
    def from_demonstrations(cls, paths: list[str], camera: str, cache: Path) -> "FrameArray":
        """Gather the frames, once: a finished cache of the same files is used again.

        Args:
            paths (`list[str]`): HDF5 files or folders.
            camera (`str`): whose frames.
            cache (`Path`): folder for the array.

        Returns:
            `FrameArray`: memory-mapped.

        Raises:
            ValueError: if demonstrations have frames of different sizes.
        """
        files = find_demonstration_files(paths)
        described = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files] + [[camera]]
        key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
        folder = cache / f"frames-{key}"
        if not folder.exists():
            _gather(files, camera, folder)
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "episodes", "medians")))


def _gather(files: list[Path], camera: str, folder: Path) -> None:
    """Write the three arrays; the folder appears when they are complete."""
    episodes = [demonstration for file in files for demonstration in read_demonstrations(file)]
    total = sum(len(episode.actions) for episode in episodes)
    size = episodes[0].frames(camera, slice(1)).shape[1:]
    medians, index, position = [], np.zeros(total, dtype=np.int32), 0
    with new_folder(folder) as temporary:
        frames = np.lib.format.open_memmap(temporary / "frames.npy", mode="w+", dtype=np.uint8, shape=(total, *size))
        for number, episode in enumerate(tqdm(episodes, desc="gather frames", unit="episode")):
            shown = episode.frames(camera)
            if shown.shape[1:] != size:
                raise ValueError(
                    f"Demonstration `{episode.name}` has frames of {shown.shape[1:]}, earlier ones of {size}. "
                    "Record all demonstrations at one image size."
                )
            frames[position : position + len(shown)] = shown
            index[position : position + len(shown)] = number
            position += len(shown)
            medians.append(np.median(shown[:: max(1, len(shown) // MEDIAN_SAMPLES)], axis=0).astype(np.uint8))
        frames.flush()
        np.save(temporary / "episodes.npy", index)
        np.save(temporary / "medians.npy", np.stack(medians))
