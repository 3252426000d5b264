"""Best of n: what the policy might do is imagined, and the chunk of actions with the best future is chosen.

Candidate 0 is the policy's own, greedy chunk; the others are drawn from its distribution. The world model imagines
what each leads to, all candidates in one batch, and a score rates the last imagined frame. Of equals the first is
chosen.

Shapes: `B` episodes, `n` candidates, `m` frames that the world model is shown, `K` actions of a chunk, `D` action
dimensions, `h, w` image tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.checkpoints import check_world_model
from evaluation.imagination_streams import stream_actions
from evaluation.policy_arguments import PolicyArguments
from evaluation.ranking_scores import GoalScore, ProgressScore, Score
from evaluation.sampling import seeded_generator


@dataclass(frozen=True)
class Situation:
    """An episode at the moment of a decision.

    Attributes:
        image_ids (`torch.LongTensor` of shape `(m, h, w)`): its last frames, as image token ids, oldest first.
        action_ids (`torch.LongTensor` of shape `(m - 1, D)`): token ids of the commands between them.
        instruction (`str`): what the robot shall do.
        name (`str`): of the decision; decides, with the seed, what is drawn.
    """

    image_ids: torch.Tensor
    action_ids: torch.Tensor
    instruction: str
    name: str


class Ranking(NamedTuple):
    """What was chosen, and from what.

    Attributes:
        action_ids (`torch.LongTensor` of shape `(B, K, D)`): the chunks with the best future.
        candidates (`torch.LongTensor` of shape `(B, n, K, D)`): all chunks.
        scores (`np.ndarray` of shape `(B, n)`): of the last frame that was imagined of each.
        chosen (`np.ndarray` of shape `(B,)`): numbers of the chosen candidates; 0 is the policy's own.
    """

    action_ids: torch.Tensor
    candidates: torch.Tensor
    scores: np.ndarray
    chosen: np.ndarray


class ChunkRanker:
    """Chooses among chunks by what the world model imagines of them.

    What is drawn for an episode depends on the seed and the decision's name alone, whatever else is in the batch.

    Args:
        model (`WorldVLAForCausalLM`): policy and world model.
        processor (`WorldVLAProcessor`): its processor.
        score (`Score`): rates the last imagined frame.
        num_candidates (`int`): n, at least 2.
        n_action_steps (`int`): actions of a chunk that will be carried out, and are imagined.
        temperature (`float`): divides the logits where candidates are drawn.
        seed (`int`): of what is drawn.

    Raises:
        ValueError: if there are fewer than 2 candidates.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        score: Score,
        num_candidates: int,
        n_action_steps: int,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        if num_candidates < 2:
            raise ValueError(f"`num_candidates` must be at least 2, got {num_candidates}: one leaves nothing to rank.")
        self.model, self.processor, self.score = model, processor, score
        self.num_candidates, self.n_action_steps = num_candidates, n_action_steps
        self.temperature, self.seed = temperature, seed

    @classmethod
    def from_arguments(
        cls, arguments: PolicyArguments, model: Any, processor: Any, camera: str, n_action_steps: int
    ) -> "ChunkRanker":
        """Make what `--best_of` asks for.

        Args:
            arguments (`PolicyArguments`): with `best_of` above 1, and `goal` or `progress`.
            model (`WorldVLAForCausalLM`): the loaded model.
            processor (`WorldVLAProcessor`): its processor.
            camera (`str`): the one that the world model imagines.
            n_action_steps (`int`): actions of a chunk that are carried out.

        Returns:
            `ChunkRanker`.

        Raises:
            FileNotFoundError: if there are no goals at a path.
            ValueError: if the checkpoint has no world model, or goals or score do not fit it.
        """
        check_world_model(str(arguments.checkpoint), model)
        score: Score
        if arguments.goal:
            score = GoalScore.from_paths(processor, arguments.goal, camera)
        else:
            score = ProgressScore.from_folder(str(arguments.progress), processor, camera)
        options = (arguments.best_of, n_action_steps, arguments.temperature, arguments.sampling_seed)
        return cls(model, processor, score, *options)

    def describe(self) -> dict[str, Any]:
        """What decides the choice.

        Returns:
            `dict`: JSON values.
        """
        return {
            "candidates": self.num_candidates,
            "temperature": self.temperature,
            "sampling_seed": self.seed,
            "score": self.score.describe(),
        }

    def choose(self, inputs: Any, greedy: torch.Tensor, situations: Sequence[Situation]) -> Ranking:
        """Draw candidates, imagine and rate them, and take the best.

        Args:
            inputs (`BatchFeature`): the policy's prompts, on the model's device.
            greedy (`torch.LongTensor` of shape `(B, K, D)`): what the policy would do.
            situations (`Sequence[Situation]`): B of them.

        Returns:
            `Ranking`: on the device of `greedy`.

        Raises:
            ValueError: if the score knows nothing of a task, or has other image sizes.
        """
        candidates = torch.cat([greedy[:, None], self._draw(inputs, greedy.shape[1], situations)], dim=1)
        frames = self._imagine(candidates[:, :, : self.n_action_steps], situations)
        scores = np.stack(
            [self.score.rate(row, situation.instruction) for row, situation in zip(frames, situations, strict=True)]
        )
        chosen = scores.argmax(axis=1)  # the first of equals
        best = candidates[torch.arange(len(chosen)), torch.from_numpy(chosen)]
        return Ranking(best, candidates, scores, chosen)

    def _draw(self, inputs: Any, chunk_size: int, situations: Sequence[Situation]) -> torch.Tensor:
        """Chunks `(B, n - 1, K, D)` from the policy's distribution."""
        count, device = self.num_candidates - 1, self.model.device
        generators = [
            seeded_generator(device, self.seed, situation.name, number)
            for situation in situations
            for number in range(1, self.num_candidates)
        ]
        drawn = self.model.predict_action_chunk(
            inputs["input_ids"].repeat_interleave(count, dim=0),
            inputs["attention_mask"].repeat_interleave(count, dim=0),
            chunk_size=chunk_size,
            do_sample=True,
            temperature=self.temperature,
            generator=generators,
        )
        return drawn.unflatten(0, (len(situations), count))

    def _imagine(self, candidates: torch.Tensor, situations: Sequence[Situation]) -> list[torch.Tensor]:
        """The last imagined frames, `(n, h, w)` of each of B episodes; those that show equally many go together."""
        history = self.model.config.world_model_history
        shown = [situation.image_ids[-history:] for situation in situations]
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, frames in enumerate(shown):
            alike.setdefault(tuple(frames.shape), []).append(place)
        last: dict[int, torch.Tensor] = {}
        for (given, *_), places in alike.items():
            images = torch.stack([shown[place] for place in places])
            past = torch.stack([_last_commands(situations[place], given - 1) for place in places])
            past = past.to(candidates.device).repeat_interleave(self.num_candidates, dim=0)
            *_, frame = stream_actions(
                self.model,
                self.processor,
                images.repeat_interleave(self.num_candidates, dim=0),
                torch.cat([past, candidates[places].flatten(0, 1)], dim=1),
            )
            last |= zip(places, frame.image_ids.unflatten(0, (len(places), -1)), strict=True)
        return [last[place] for place in range(len(situations))]


def _last_commands(situation: Situation, count: int) -> torch.Tensor:
    return situation.action_ids[len(situation.action_ids) - count :]
