"""Leaves out the steps in which nothing was commanded, by the field's rule. Does not travel to the Hub.

Shape legend: `T` steps, `N` steps that are kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .demonstrations import Demonstration

STILL = 1e-4  # norm of the six motion commands below which nothing moves


def find_noops(actions: np.ndarray) -> np.ndarray:
    """Say which commands do nothing: no motion, and the gripper is told what it was told before.

    Args:
        actions (`np.ndarray` of shape `(T, 7)`): commands; the last of the seven is the gripper's.

    Returns:
        `np.ndarray` of shape `(T,)`: `bool`. The gripper is compared with the last command that is not a no-op; before
        the first of these, only the motion counts.

    References:
        OpenVLA (arXiv 2406.09246), `regenerate_libero_dataset.py`: same threshold, same rule.
    """
    noops = np.linalg.norm(actions[:, :-1], axis=1) < STILL
    gripper = None
    for step in range(len(actions)):
        if gripper is not None and actions[step, -1] != gripper:
            noops[step] = False
        if not noops[step]:
            gripper = actions[step, -1]
    return noops


@dataclass(frozen=True)
class ChosenSteps(Demonstration):
    """Some steps of an episode; see `Demonstration` for what it offers.

    Attributes:
        source (`Demonstration`): the whole episode.
        kept (`tuple[int, ...]`): N of its steps, rising.
    """

    source: Demonstration
    kept: tuple[int, ...]

    @property
    def actions(self) -> np.ndarray:
        """Commands carried out in the steps that are kept, `float32 (N, 7)`."""
        return self.source.actions[list(self.kept)]

    @property
    def expert_actions(self) -> np.ndarray:
        """What the expert wanted to do in these steps, `float32 (N, 7)`."""
        return self.source.expert_actions[list(self.kept)]

    @property
    def states(self) -> np.ndarray:
        """The simulator's flattened states before these actions, `float64 (N, S)`."""
        return self.source.states[list(self.kept)]

    @property
    def proprioception(self) -> np.ndarray:
        """What the robot felt before these actions, `float32 (N, 8)`."""
        return self.source.proprioception[list(self.kept)]

    @property
    def segmentation_names(self) -> tuple[str, ...]:
        """What the numbers of the masks stand for."""
        return self.source.segmentation_names

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """Which of `segmentation_names` the task is about."""
        return self.source.objects_of_interest

    def frames(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """Images of one camera before these actions, as `Demonstration.frames`."""
        span, chosen = self._span(steps)
        return self.source.frames(camera, span)[chosen]

    def segmentation(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """What is seen in each of these pictures, as `Demonstration.segmentation`."""
        span, chosen = self._span(steps)
        return self.source.segmentation(camera, span)[chosen]

    def _span(self, steps: slice) -> tuple[slice, np.ndarray]:
        """The stretch of the source to read, and which of its entries are wanted."""
        kept = np.array(self.kept[steps], dtype=int)
        if not len(kept):
            return slice(0, 0), kept
        return slice(int(kept.min()), int(kept.max()) + 1), kept - kept.min()

    @property
    def leads_to_next_frame(self) -> np.ndarray:
        """Whether the next step that is kept is the next step of the episode, `bool (N,)`."""
        return np.append(np.diff(self.kept) == 1, False)

    def files(self, camera: str) -> tuple[Path, ...]:
        """The files that decide what is read."""
        return self.source.files(camera)

    def identity(self) -> dict[str, Any]:
        """What decides, with the bytes of `files`, everything that is read."""
        return {**self.source.identity(), "kept": self.kept}


def drop_noops(demonstration: Demonstration) -> Demonstration:
    """Leave the steps out in which nothing was commanded.

    Every frame stays the real frame before its action. Where steps are missing in between, the next frame is what the
    action and the no-ops after it led to: `leads_to_next_frame` is false there, and no world-model sample is cut.

    Args:
        demonstration (`Demonstration`): an episode.

    Returns:
        `Demonstration`: its other steps; the episode itself where it has no no-ops.

    Raises:
        ValueError: if it holds nothing but no-ops, or pictures of every n-th step only.
    """
    if demonstration.picture_stride > 1:
        raise ValueError(
            f"`{demonstration.path}` holds pictures of one in {demonstration.picture_stride} steps: single steps "
            "cannot be left out of it. Read it without dropping no-ops."
        )
    noops = find_noops(demonstration.actions)
    if not noops.any():
        return demonstration
    kept = tuple(np.flatnonzero(~noops).tolist())
    if not kept:
        raise ValueError(
            f"`{demonstration.path}`: `{demonstration.name}` holds nothing but no-ops (motion below {STILL}). Are its "
            "commands in the right units? Remove the episode, or do not drop no-ops."
        )
    return ChosenSteps(
        demonstration.path, demonstration.name, demonstration.instruction, len(kept), demonstration.cameras,
        source=demonstration, kept=kept,
    )  # fmt: skip
