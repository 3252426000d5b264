"""The stretches of held-out episodes that a world model is measured on.

Shapes: `N` imagined frames, `H, W` pixels, `D` action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.reconstruction import masks_of_parts
from evaluation.reconstruction_frames import Frame, folders_with_demonstrations
from evaluation.world_model import fit_frames
from tokenization.demonstrations import Demonstration, find_demonstration_files, read_demonstrations
from tokenization.regions import RegionProvider


@dataclass(frozen=True)
class Window:
    """One stretch of an episode.

    Attributes:
        demonstration (`Demonstration`): the episode.
        start (`int`): step of the frame that the model is given.
        episode (`int`): number of the episode among all that were given.
    """

    demonstration: Demonstration
    start: int
    episode: int

    @property
    def name(self) -> str:
        """File, episode and first step."""
        return f"{Path(self.demonstration.path).stem}/{self.demonstration.name}@{self.start}"

    def read(self, camera: str, num_frames: int, processor: Any) -> tuple[np.ndarray, np.ndarray]:
        """Read frames and actions.

        Args:
            camera (`str`): whose frames.
            num_frames (`int`): N.
            processor (`WorldVLAProcessor`): knows the size.

        Returns:
            `tuple`: frames `(N + 1, H, W, 3)` uint8 of the processor's image size, and actions `(N, D)`.
        """
        end = self.start + num_frames
        frames = self.demonstration.frames(camera, slice(self.start, end + 1))
        return fit_frames(processor, frames), self.demonstration.actions[self.start : end]

    def masks(self, camera: str, pictures: np.ndarray, providers: Sequence[RegionProvider]) -> dict[str, np.ndarray]:
        """Which pixels of the frames after the first belong to gripper, objects and so on.

        Args:
            camera (`str`): whose frames.
            pictures (`np.ndarray` of shape `(N + 1, H, W, 3)`): uint8, see `read`.
            providers (`Sequence[RegionProvider]`): find the regions.

        Returns:
            `dict[str, np.ndarray]`: kind -> bool `(N, H, W)`.
        """
        places = range(self.start + 1, self.start + len(pictures))
        frames = [Frame(self.demonstration, place, camera, self.episode) for place in places]
        return masks_of_parts(frames, pictures[1:], providers)


def choose_windows(
    paths: Sequence[str], camera: str, num_frames: int, per_episode: int = 1, episodes: int | None = None
) -> list[Window]:
    """Take windows from episodes, spread evenly over each.

    Args:
        paths (`Sequence[str]`): HDF5 files, LeRobot data sets, or folders of them, to any depth.
        camera (`str`): must have been recorded.
        num_frames (`int`): N; each of the N actions must have led to the next frame.
        per_episode (`int`): windows of an episode; fewer where it is too short for as many first steps.
        episodes (`int`, *optional*): only so many, spread over all that were given.

    Returns:
        `list[Window]`: in the order given; shorter episodes are left out.

    Raises:
        FileNotFoundError: if a path does not exist or holds nothing.
        ValueError: if the camera was not recorded, or no episode is long enough.
    """
    files = find_demonstration_files([deeper for path in paths for deeper in folders_with_demonstrations(Path(path))])
    demonstrations = [demonstration for file in files for demonstration in read_demonstrations(file)]
    for demonstration in demonstrations:
        demonstration.require_camera(camera)
    starts = [possible_starts(demonstration, num_frames) for demonstration in demonstrations]
    long_enough = [number for number, places in enumerate(starts) if len(places)]
    if not long_enough:
        longest = max(len(demonstration) for demonstration in demonstrations) - 1
        raise ValueError(
            f"None of the {len(demonstrations)} episodes goes on for {num_frames} frames without a gap; the longest "
            f"has {longest} after its first. Lower `--num_frames`, or give longer episodes."
        )
    if episodes is not None:
        long_enough = [long_enough[place] for place in _spread(len(long_enough), episodes)]
    return [
        Window(demonstrations[number], int(starts[number][place]), number)
        for number in long_enough
        for place in _spread(len(starts[number]), per_episode)
    ]


def possible_starts(demonstration: Demonstration, num_frames: int) -> np.ndarray:
    """Steps after which so many frames follow, each brought about by the action before it.

    Args:
        demonstration (`Demonstration`): the episode.
        num_frames (`int`): N.

    Returns:
        `np.ndarray` of int: steps, rising.
    """
    broken = np.concatenate([[0], np.cumsum(~demonstration.leads_to_next_frame)])
    return (
        np.flatnonzero(broken[num_frames:] == broken[:-num_frames]) if len(broken) > num_frames else np.empty(0, int)
    )


def _spread(available: int, wanted: int) -> list[int]:
    """At most `wanted` of 0 ... `available` - 1, evenly, first and last among them where there are several."""
    if wanted == 1:
        return [0]
    return np.unique(np.linspace(0, available - 1, min(wanted, available)).round().astype(int)).tolist()
