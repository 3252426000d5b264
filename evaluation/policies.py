"""Policies that act in the simulator: what they must offer, and where they are found by name.

Shapes: `K` actions of a chunk, `D` action dimensions.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

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


def make_batched_policy(arguments: PolicyArguments) -> BatchedPolicy:
    """Make the policy that a command line names.

    Args:
        arguments (`PolicyArguments`): name and options.

    Returns:
        `BatchedPolicy`: ready to begin episodes.

    Raises:
        ValueError: if an option does not fit the policy, its checkpoint not the simulator, or the policy acts in the
            simulator's process.
        PolicyError: if a server does not answer.
    """
    if arguments.policy == "worldvla":
        from evaluation.worldvla_policy import WorldVLAPolicy  # brings torch along

        return WorldVLAPolicy.from_arguments(arguments)
    if arguments.policy == "http":
        from evaluation.remote_policy import RemotePolicy

        return RemotePolicy.from_arguments(arguments)
    raise ValueError(
        f"Policy `{arguments.policy}` acts in the simulator's process. Make it with `make_simulator_policy`."
    )


class Policy(Protocol):
    """Anything that turns observations into commands, one step at a time."""

    def reset(self, instruction: str) -> None:
        """Forget the last episode and take the new instruction."""

    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """Give the next command for an observation of `LiberoEnv`, shape `(D,)`."""


class WorldVLAPolicy:
    """Runs a WorldVLA checkpoint open-loop over its chunks.

    Every frame is encoded once; the last `n_obs_steps` frames are kept as tokens. Before an episode has that many, its
    first frame is repeated, as in training.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        camera (`str`): the camera that the model was trained on.
        n_obs_steps (`int`, *optional*): M, frames that are shown; by default the checkpoint's.
        chunk_size (`int`, *optional*): K, actions that are asked for; by default the checkpoint's.
        n_action_steps (`int`, *optional*): actions of a chunk that are carried out; by default all.
        dataset_name (`str`, *optional*): whose action limits; may be left out when the processor has one data set.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        camera: str = "agentview",
        n_obs_steps: int | None = None,
        chunk_size: int | None = None,
        n_action_steps: int | None = None,
        dataset_name: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.camera = camera
        self.dataset_name = processor.action_tokenizer.choose_dataset(dataset_name)
        self.n_obs_steps = n_obs_steps or model.config.n_obs_steps
        self.chunk_size = chunk_size or model.config.chunk_size
        self.n_action_steps = self.chunk_size if n_action_steps is None else n_action_steps
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"`n_action_steps` must lie in 1 … {self.chunk_size}, got {self.n_action_steps}.")
        self.reset("")

    def reset(self, instruction: str) -> None:
        """Forget the last episode.

        Args:
            instruction (`str`): what the robot shall do.
        """
        self.instruction = instruction
        self.frames: deque[torch.Tensor] = deque(maxlen=self.n_obs_steps)
        self.queue: deque[np.ndarray] = deque()

    @torch.inference_mode()
    def select_action(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """Give the next command; a new chunk is predicted when the last one is used up.

        Args:
            observation (`dict`): `observation[camera]` is a uint8 frame `(H, W, 3)`, upright.

        Returns:
            `np.ndarray` of shape `(D,)`: a command in the data set's units.
        """
        # Without a chunk to predict soon, the frame is not needed: only those that a prompt will show are encoded.
        if len(self.queue) < self.n_obs_steps:
            frame = self.processor.encode_images([observation[self.camera]])[0]
            self.frames.extend([frame] * (1 if self.frames else self.n_obs_steps))
        if not self.queue:
            self.queue.extend(self.predict_chunk()[: self.n_action_steps])
        return self.queue.popleft()

    def predict_chunk(self) -> np.ndarray:
        """Predict the next chunk from the frames seen so far.

        Returns:
            `np.ndarray` of shape `(K, D)`: commands.
        """
        inputs = self.processor(images=list(self.frames), text=self.instruction, return_tensors="pt")
        chunk = self.model.predict_action_chunk(**inputs.to(self.model.device), chunk_size=self.chunk_size)
        return self.processor.decode_actions(chunk, self.dataset_name)[0]
