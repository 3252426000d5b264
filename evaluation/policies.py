"""Policies that act in the simulator: what they must offer, and where they are found by name.

Loads no torch before a policy that needs it is made. Shapes: `n` actions to carry out, `D` action dimensions.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evaluation.policy_arguments import PolicyArguments


class PolicyError(RuntimeError):
    """A policy could not answer: the episodes that asked count as errors, not as failures.

    Args:
        message (`str`): what happened.
        episode_ids (`Sequence[str]`, *optional*): the episodes that are concerned; all that asked when left out.
    """

    def __init__(self, message: str, episode_ids: Sequence[str] | None = None) -> None:
        super().__init__(message)
        self.episode_ids = None if episode_ids is None else tuple(episode_ids)


@dataclass(frozen=True)
class ChunkRequest:
    """An episode asks what to do next.

    Attributes:
        episode_id (`str`): unique among the episodes under way.
        observations (`list[dict]`): the observations of `LiberoEnv` since the last request, oldest first; of more than
            the policy's `n_obs_steps` only the last ones count.
    """

    episode_id: str
    observations: list[dict[str, np.ndarray]]


class BatchedPolicy(Protocol):
    """Decides for many episodes at once; lives in the main process.

    Attributes:
        cameras (`tuple[str, ...]`): cameras that it looks at.
        n_obs_steps (`int`): how many of the latest observations it needs at each request.
    """

    cameras: tuple[str, ...]
    n_obs_steps: int

    def begin(self, episode_id: str, instruction: str) -> None:
        """Take up an episode; one of the same id is forgotten."""

    def predict_chunks(self, requests: Sequence[ChunkRequest]) -> list[np.ndarray]:
        """Give each request the commands `(n, D)` to carry out before the next one."""

    def end(self, episode_id: str) -> None:
        """Forget an episode."""

    def describe(self) -> dict[str, Any]:
        """What decides the answers, as JSON values; part of the settings of a run."""


def check_requests(requests: Sequence[ChunkRequest], known: Collection[str], cameras: Sequence[str]) -> None:
    """Refuse requests that cannot be answered.

    Args:
        requests (`Sequence[ChunkRequest]`): one batch.
        known (`Collection[str]`): the episodes that have begun.
        cameras (`Sequence[str]`): cameras that every observation must show.

    Raises:
        ValueError: names the episode, and what is wrong with its request.
    """
    seen: set[str] = set()
    for request in requests:
        name = request.episode_id
        if name not in known:
            raise ValueError(f"Episode `{name}` asks for actions but has not begun. Call `begin` first.")
        if name in seen:
            raise ValueError(f"Episode `{name}` asks twice in one batch. Send one request per episode.")
        seen.add(name)
        if not request.observations:
            raise ValueError(f"Episode `{name}` asks without a new observation. Send at least the latest one.")
        for observation in request.observations:
            missing = [camera for camera in cameras if camera not in observation]
            if missing:
                raise ValueError(
                    f"Episode `{name}` shows no camera `{missing[0]}`, only: {', '.join(observation)}. Open the "
                    f"simulator with `cameras={tuple(cameras)}`."
                )


def make_batched_policy(arguments: PolicyArguments, instructions: Sequence[str] = ()) -> BatchedPolicy:
    """Make the policy that a command line names.

    Args:
        arguments (`PolicyArguments`): name and options.
        instructions (`Sequence[str]`): of the tasks that it will get, as far as they are known.

    Returns:
        `BatchedPolicy`: ready to begin episodes.

    Raises:
        ValueError: if an option does not fit the policy or a task, its checkpoint not the simulator, or the policy
            acts in the simulator's process.
        PolicyError: if a server does not answer.
    """
    if arguments.policy == "worldvla":
        from evaluation.worldvla_policy import WorldVLAPolicy  # brings torch along

        return WorldVLAPolicy.from_arguments(arguments, instructions)
    if arguments.policy == "http":
        from evaluation.remote_policy import RemotePolicy

        return RemotePolicy.from_arguments(arguments)
    raise ValueError(
        f"Policy `{arguments.policy}` acts in the simulator's process. Make it with `make_simulator_policy`."
    )
