"""A simulator that only takes time, for the benchmark of the evaluation; its processes import it, so no torch."""

import time
from typing import Any

import numpy as np

# Seconds on one free core of a machine without GPU, see docs/libero.md.
OPEN_SECONDS, RESET_SECONDS, STEP_SECONDS, FRAME_SECONDS = 2.0, 1.0, 0.011, 0.07


class SleepingEnv:
    """Takes as long as LIBERO does, and uses no processor meanwhile; no episode succeeds.

    Args:
        suite (`str`): not looked at, like the other arguments that `LiberoEnv` has.
        task_id (`int`): likewise.
        cameras (`tuple[str, ...]`): likewise.
        image_size (`int`): height and width of the frames.
        settling_steps (`int`): still steps after each reset.
        pace (`float`): factor on all times.
    """

    def __init__(
        self,
        suite: str,
        task_id: int,
        cameras: tuple[str, ...],
        image_size: int,
        settling_steps: int,
        pace: float = 1.0,
    ) -> None:
        self.image_size, self.settling_steps, self.pace = image_size, settling_steps, pace
        time.sleep(OPEN_SECONDS * pace)

    def reset(self, initial_state: int, seed: int) -> dict[str, np.ndarray]:
        """Take the time of a reset."""
        time.sleep((RESET_SECONDS + self.settling_steps * STEP_SECONDS) * self.pace)
        return {"state": np.zeros(8, np.float32)}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], bool, dict[str, Any]]:
        """Take the time of a step."""
        time.sleep(STEP_SECONDS * self.pace)
        return {"state": np.zeros(8, np.float32)}, False, {}

    def render(self, camera: str) -> np.ndarray:
        """Take the time of a frame."""
        time.sleep(FRAME_SECONDS * self.pace)
        return np.zeros((self.image_size, self.image_size, 3), np.uint8)

    def simulator_state(self) -> np.ndarray:
        """Nothing that anyone needs."""
        return np.zeros(1)

    def close(self) -> None:
        """Nothing to free."""
