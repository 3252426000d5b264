"""Variation of demonstrations, so that a policy trained on them sees its own mistakes and what mends them.

An expert that never errs shows no way back. Here the hand starts elsewhere, works at another pace, trembles and is
pushed; the expert sees the state that results and corrects it. What is recorded as `actions` is what moved the robot;
`expert_actions` is what the expert wanted in that state, which is what a policy should learn.

References: noise injection into demonstrations, Laskey et al. (arXiv 1703.09327).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from evaluation.expert_motion import OPEN, POSITION_GAIN

TREMBLE_MEMORY = 0.8  # how much of the last step's tremble stays in the next: a hand drifts, it does not flicker
ROTATION_SHARE = 0.3  # of tremble and push, on the rotation actions
LONGEST_PUSH = 6  # steps
START_STEPS = 25  # at most, to reach the start
LOWEST_START = -0.02  # metres by which the start may lie below where the hand was: the table is near
LIMITS = {"action_noise": (0, 1), "push_probability": (0, 1), "start_offset": (0, 0.2), "slowest_speed": (0.2, 1)}
STREAM = 7919  # keeps these numbers apart from others that are drawn with an episode's seed


@dataclass(frozen=True)
class Variation:
    """How much demonstrations vary; the defaults change nothing.

    Attributes:
        action_noise (`float`): standard deviation of a tremble of the six motion actions (of [-1, 1]).
        push_probability (`float`): of a push beginning in a step: a constant action for up to six steps.
        start_offset (`float`): how far, along each axis, the hand may start from its usual start, metres.
        slowest_speed (`float`): the pace of an episode is drawn between this share of full speed and full speed.
    """

    action_noise: float = 0.0
    push_probability: float = 0.0
    start_offset: float = 0.0
    slowest_speed: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"`{name}` must lie in {low:g} … {high:g}, got {value}. Choose a value in between.")


class EpisodeVariation:
    """The variation of one episode, decided by its seed.

    Args:
        variation (`Variation`): how much.
        seed (`int`): the episode's seed.
    """

    def __init__(self, variation: Variation, seed: int) -> None:
        self.variation = variation
        self._random = np.random.default_rng([STREAM, seed])
        self.speed = float(self._random.uniform(variation.slowest_speed, 1.0))
        self._offset = self._random.uniform(-1, 1, 3) * variation.start_offset
        self._offset[2] = max(self._offset[2], LOWEST_START)
        self._tremble = np.zeros(6)
        self._push, self._push_left = np.zeros(6), 0

    def start_actions(self, grip_position: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
        """Actions that bring the hand to where the episode starts; they are not recorded.

        Args:
            grip_position (`Callable`): where the hand is now, `(3,)` metres.

        Yields:
            `np.ndarray` of shape `(7,)`: actions; each must be applied before the next is asked for.
        """
        target = grip_position() + self._offset
        for _ in range(START_STEPS if self.variation.start_offset else 0):
            error = target - grip_position()
            if np.linalg.norm(error) < 0.01:
                return
            yield np.r_[np.clip(error * POSITION_GAIN, -1, 1), np.zeros(3), OPEN]

    def disturb(self, action: np.ndarray) -> np.ndarray:
        """What the robot does when the expert wants this.

        Args:
            action (`np.ndarray` of shape `(7,)`): the wanted action, in [-1, 1].

        Returns:
            `np.ndarray` of shape `(7,)`: the action to carry out, in [-1, 1]; the gripper is never disturbed.
        """
        scale = np.r_[np.ones(3), np.full(3, ROTATION_SHARE)]
        fresh = self._random.normal(size=6) * self.variation.action_noise * scale
        self._tremble = TREMBLE_MEMORY * self._tremble + np.sqrt(1 - TREMBLE_MEMORY**2) * fresh
        if self._push_left == 0 and self._random.random() < self.variation.push_probability:
            self._push = self._random.uniform(-1, 1, 6) * scale
            self._push_left = int(self._random.integers(2, LONGEST_PUSH + 1))
        pushed = self._push if self._push_left else np.zeros(6)
        self._push_left = max(0, self._push_left - 1)
        return np.r_[np.clip(action[:6] + self._tremble + pushed, -1, 1), action[6:]]
