"""A WorldVLA checkpoint as a policy for many episodes at once.

Shapes: `B` requests, `M` frames that are shown, `K` actions of a chunk, `D` action dimensions, `h, w` rows and columns
of image tokens.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluation.checkpoints import check_simulator_fit, choose_cameras, fingerprint_checkpoint, load_checkpoint
from evaluation.libero_env import OPEN_HAND_STILL
from evaluation.policies import ChunkRequest, check_requests
from evaluation.policy_arguments import PolicyArguments
from evaluation.ranking import ChunkRanker, Situation


@dataclass
class _Episode:
    """What is remembered of an episode under way."""

    instruction: str
    frames: deque[list[torch.Tensor]]  # of the last M steps, one per camera, as image token ids (h, w)
    commands: deque[np.ndarray]  # the last M - 1 commands, those between the frames
    num_seen: int = 0  # of these frames, those that are no repetition of the first
    num_decisions: int = 0
    start: str = ""  # fingerprint of the first picture: names the episode, whatever its id


class WorldVLAPolicy:
    """Runs a WorldVLA checkpoint open-loop over its chunks, all episodes in one batch.

    Every frame is encoded once, all frames of a batch together; the last M of an episode are kept as tokens. Before an
    episode has that many, its first frame is repeated, as in training.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        cameras (`Sequence[str]`): those that the model was trained on; each step shows all of them, in this order.
        n_obs_steps (`int`, *optional*): M; by default the checkpoint's.
        chunk_size (`int`, *optional*): K, actions that are asked for; by default the checkpoint's.
        n_action_steps (`int`, *optional*): actions of a chunk that are carried out; by default all.
        dataset_name (`str`, *optional*): whose action limits; may be left out when the processor has one data set.
        history_actions (`bool`): show the commands between the frames, too. Before the first command they are the
            protocol's settling steps: an open hand that keeps still.
        fingerprint (`str`, *optional*): see `fingerprint_checkpoint`; goes into `describe`.
        ranker (`ChunkRanker`, *optional*): draws several chunks and chooses among them by what the world model
            imagines. It is shown the first camera, which the world model imagines.

    Raises:
        ValueError: if the data set is unknown, more actions shall be carried out than are predicted, or commands
            shall be shown beside several cameras.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        cameras: Sequence[str] = ("agentview",),
        n_obs_steps: int | None = None,
        chunk_size: int | None = None,
        n_action_steps: int | None = None,
        dataset_name: str | None = None,
        history_actions: bool = False,
        fingerprint: str | None = None,
        ranker: ChunkRanker | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.cameras: tuple[str, ...] = tuple(cameras)
        self.dataset_name = processor.action_tokenizer.choose_dataset(dataset_name)
        self.n_obs_steps = n_obs_steps or model.config.n_obs_steps
        self.chunk_size = chunk_size or model.config.chunk_size
        self.n_action_steps = self.chunk_size if n_action_steps is None else n_action_steps
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"`n_action_steps` must lie in 1 … {self.chunk_size}, got {self.n_action_steps}.")
        if history_actions and len(self.cameras) > 1:
            raise ValueError(
                f"`history_actions` with cameras {', '.join(self.cameras)}: a prompt with commands between its frames "
                "shows one camera. Leave `--history_actions` out."
            )
        self.history_actions = history_actions
        self.fingerprint = fingerprint
        self.ranker = ranker
        self._episodes: dict[str, _Episode] = {}

    @classmethod
    def from_arguments(cls, arguments: PolicyArguments, instructions: Sequence[str] = ()) -> "WorldVLAPolicy":
        """Load a checkpoint.

        Args:
            arguments (`PolicyArguments`): which, and how it shall act.
            instructions (`Sequence[str]`): of the tasks that it will get, as far as they are known.

        Returns:
            `WorldVLAPolicy`: with the checkpoint's fingerprint.

        Raises:
            FileNotFoundError: if there are no goals at a path of `--goal`.
            ValueError: if the checkpoint, its camera, its commands or an option does not fit.
        """
        checkpoint = str(arguments.checkpoint)
        cameras = choose_cameras(checkpoint, arguments.camera)
        model, processor = load_checkpoint(checkpoint, arguments.device)
        check_simulator_fit(model, processor, arguments.dataset_name)
        policy = cls(
            model,
            processor,
            cameras=cameras,
            n_obs_steps=arguments.n_obs_steps,
            chunk_size=arguments.chunk_size,
            n_action_steps=arguments.n_action_steps,
            dataset_name=arguments.dataset_name,
            history_actions=arguments.history_actions,
            fingerprint=fingerprint_checkpoint(checkpoint, model),
        )
        if arguments.best_of > 1:
            policy.ranker = ChunkRanker.from_arguments(
                arguments, model, processor, policy.cameras[0], policy.n_action_steps
            )
            for instruction in instructions:
                policy.ranker.score.check_instruction(instruction)
        return policy

    def describe(self) -> dict[str, Any]:
        """What decides the answers.

        Returns:
            `dict`: JSON values; `best_of` only where chunks are ranked.
        """
        description = {
            "policy": "worldvla",
            "checkpoint_fingerprint": self.fingerprint,
            "cameras": list(self.cameras),
            "n_obs_steps": self.n_obs_steps,
            "chunk_size": self.chunk_size,
            "n_action_steps": self.n_action_steps,
            "dataset_name": self.dataset_name,
            "history_actions": self.history_actions,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
        return description if self.ranker is None else {**description, "best_of": self.ranker.describe()}

    def begin(self, episode_id: str, instruction: str) -> None:
        """Take up an episode; one of the same id is forgotten.

        Args:
            episode_id (`str`): its name.
            instruction (`str`): what the robot shall do.

        Raises:
            ValueError: if chunks are ranked and the score knows nothing of the task.
        """
        if self.ranker is not None:
            self.ranker.score.check_instruction(instruction)
        commands = deque([OPEN_HAND_STILL] * (self.n_obs_steps - 1), maxlen=self.n_obs_steps - 1)
        self._episodes[episode_id] = _Episode(instruction, deque(maxlen=self.n_obs_steps), commands)

    def end(self, episode_id: str) -> None:
        """Forget an episode, if it is known.

        Args:
            episode_id (`str`): its name.
        """
        self._episodes.pop(episode_id, None)

    @torch.inference_mode()
    def predict_chunks(self, requests: Sequence[ChunkRequest]) -> list[np.ndarray]:
        """Predict the next actions of every episode that asks, in one batch.

        Args:
            requests (`Sequence[ChunkRequest]`): B of them, with uint8 frames `(H, W, 3)` under the cameras' names.

        Returns:
            `list[np.ndarray]`: B arrays `(n_action_steps, D)`: commands in the data set's units.

        Raises:
            ValueError: if an episode is unknown, asks twice, or lacks a camera.
        """
        if not requests:
            return []
        check_requests(requests, self._episodes, self.cameras)
        self._see(requests)
        episodes = [self._episodes[request.episode_id] for request in requests]
        inputs = self.processor(
            images=[[frame for step in episode.frames for frame in step] for episode in episodes],
            text=[episode.instruction for episode in episodes],
            history_actions=[np.array(episode.commands) for episode in episodes] if self.history_actions else None,
            dataset_name=self.dataset_name,
            return_tensors="pt",
        )
        ids = self.model.predict_action_chunk(**inputs.to(self.model.device), chunk_size=self.chunk_size)
        if self.ranker is not None:
            ids = self.ranker.choose(
                inputs, ids, [self._describe_situation(episode) for episode in episodes]
            ).action_ids
        chunks = self.processor.decode_actions(ids, self.dataset_name)[:, : self.n_action_steps]
        for episode, chunk in zip(episodes, chunks, strict=True):
            episode.commands.extend(chunk)
            episode.num_decisions += 1
        return list(chunks)

    def _see(self, requests: Sequence[ChunkRequest]) -> None:
        """Encode the new frames of all requests at once; those that no prompt will show are left out."""
        shown = [request.observations[-self.n_obs_steps :] for request in requests]
        images = [observation[name] for observations in shown for observation in observations for name in self.cameras]
        tokens = iter(self.processor.encode_images(images))
        for request, observations in zip(requests, shown, strict=True):
            episode = self._episodes[request.episode_id]
            if not episode.frames:
                episode.start = hashlib.sha256(observations[0][self.cameras[0]].tobytes()).hexdigest()
            for _ in observations:
                step = [next(tokens) for _ in self.cameras]
                episode.frames.extend([step] * (1 if episode.frames else self.n_obs_steps))
            episode.num_seen = min(episode.num_seen + len(observations), self.n_obs_steps)

    def _describe_situation(self, episode: _Episode) -> Situation:
        """What the world model may be shown of an episode: frames that were really seen, and the commands between."""
        frames = [step[0] for step in episode.frames][-episode.num_seen :]
        commands = np.array(episode.commands)[len(episode.commands) - len(frames) + 1 :]
        width = self.model.config.action_dim
        ids = self.processor.encode_actions(commands.reshape(-1, width), self.dataset_name)
        name = f"{episode.instruction}\n{episode.start}\n{episode.num_decisions}"
        return Situation(torch.stack(frames), torch.as_tensor(ids), episode.instruction, name)
