"""One episode in the simulator.

Shapes: `T` steps, `H, W` pixels, `D` action dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.policies import Policy


@dataclass
class Episode:
    """What happened in one episode.

    Attributes:
        success (`bool`): whether the simulator's goal test held within the step limit.
        num_steps (`int`): steps that the policy took.
        frames (`list[np.ndarray]`): `num_steps + 1` uint8 frames `(H, W, 3)`; the first shows the initial state.
        actions (`np.ndarray` of shape `(T, D)`): commands as sent.
    """

    success: bool
    num_steps: int
    frames: list[np.ndarray] = field(repr=False)
    actions: np.ndarray = field(repr=False)


def run_episode(
    env: Any,
    policy: Policy,
    initial_state: int | None,
    seed: int,
    step_limit: int,
    camera: str = "agentview",
    on_step: Callable[[int], None] = lambda step: None,
) -> Episode:
    """Run a policy from one initial state until success or the step limit.

    Args:
        env (`LiberoEnv`): the simulator.
        policy (`Policy`): gives the commands.
        initial_state (`int`, *optional*): benchmark state 0 … 49; None: a random placement.
        seed (`int`): seed of the reset; fixtures move with it.
        step_limit (`int`): most steps.
        camera (`str`): whose frames are kept.
        on_step (`Callable[[int], None]`): called after every step with its number, for progress.

    Returns:
        `Episode`: the record.
    """
    observation = env.reset(initial_state=initial_state, seed=seed)
    policy.reset(env.instruction)
    frames = [observation[camera]]
    actions: list[np.ndarray] = []
    success = False
    while not success and len(actions) < step_limit:
        action = np.asarray(policy.select_action(observation))
        observation, success, _ = env.step(action)
        frames.append(observation[camera])
        actions.append(action)
        on_step(len(actions))
    return Episode(success, len(actions), frames, np.array(actions))
