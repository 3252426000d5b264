"""Demonstrations that are tokenized while training reads them: the same samples, and nothing on disk.

Shapes: `T` steps, `C` cameras, `h, w` image tokens, `D` action dimensions.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenization import WorldVLAProcessor
from tokenization.demonstrations import Demonstration
from train.arguments import DataArguments
from train.data_cards import describe_data
from train.data_processor import Commands, build_processor, commands_of_episodes, measure_limits
from train.demonstration_tasks import open_tasks
from train.episodes import Episodes, EpisodeSplit, TokenizedEpisodes
from train.initialization import load_processor
from train.pretokenize_arguments import DATASET_NAME, DemonstrationArguments
from train.splits import assign_splits, number_splits

FRAMES_KEPT = 2**15  # tokens of so many frames stay in the memory of each process: 16 MiB at 256 tokens a frame


@functools.lru_cache(maxsize=256)
def _commands_of(episode: Demonstration) -> Commands:
    return Commands(episode.actions, episode.expert_actions)


class _LeadingFlags(Sequence[np.ndarray]):
    """`leads_to_next_frame` of every episode, computed where it is asked for."""

    def __init__(self, episodes: Sequence[Demonstration]) -> None:
        self._episodes = episodes

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: Any) -> Any:
        return self._episodes[index].leads_to_next_frame


class LiveSplit:
    """One split of demonstrations that are read and tokenized when a sample needs them; see `EpisodeSplit`.

    Args:
        episodes (`Sequence[Demonstration]`): the demonstrations.
        cameras (`Sequence[str]`): C of them, in the order of the sequence.
        processor (`WorldVLAProcessor`): encodes the frames, where its VQ-GAN is.
    """

    def __init__(
        self, episodes: Sequence[Demonstration], cameras: Sequence[str], processor: WorldVLAProcessor
    ) -> None:
        self._episodes, self._cameras, self._processor = episodes, list(cameras), processor
        self._kept: OrderedDict[tuple[int, str, int], np.ndarray] = OrderedDict()
        self.lengths = np.array([len(episode) for episode in episodes], dtype=np.int64)
        self.leading: Sequence[np.ndarray] | None = _LeadingFlags(episodes)

    def instruction(self, episode: int) -> str:
        """What the robot was told, as `EpisodeSplit.instruction`."""
        return self._episodes[episode].instruction

    def frames(self, episode: int, steps: slice, num_cameras: int | None = None) -> np.ndarray:
        """Image token ids, integers `(steps, C, h, w)`, as `EpisodeSplit.frames`."""
        chosen = range(*steps.indices(int(self.lengths[episode])))
        return np.stack([self._encode(episode, camera, chosen) for camera in self._cameras[:num_cameras]], axis=1)

    def actions(self, episode: int, steps: slice) -> np.ndarray:
        """Commands carried out, `float32 (steps, D)`."""
        return _commands_of(self._episodes[episode]).actions[steps]

    def expert_actions(self, episode: int, steps: slice) -> np.ndarray:
        """What the expert wanted to do, `float32 (steps, D)`."""
        return _commands_of(self._episodes[episode]).expert_actions[steps]

    def _encode(self, episode: int, camera: str, steps: range) -> np.ndarray:
        """Image tokens `(steps, h, w)`: those that were read lately from memory, the others from their pictures."""
        missing = [step for step in steps if (episode, camera, step) not in self._kept]
        if missing:
            span = slice(missing[0], missing[-1] + 1)
            pictures = self._episodes[episode].frames(camera, span)
            encoded = self._processor.encode_images([pictures[step - span.start] for step in missing])
            for step, tokens in zip(missing, encoded, strict=True):
                self._kept[episode, camera, step] = np.asarray(tokens, dtype=np.uint16)
        shown = np.stack([self._kept[episode, camera, step] for step in steps])
        for step in steps:
            self._kept.move_to_end((episode, camera, step))
        while len(self._kept) > FRAMES_KEPT:
            self._kept.popitem(last=False)
        return shown


@dataclass(frozen=True)
class LiveEpisodes:
    """Demonstrations with a card, as `TokenizedEpisodes` has them; there is no folder of tokens.

    Attributes:
        splits (`dict[str, list[Demonstration]]`): `train` and, where present, `val_ind` and `val_ood`.
        card (`dict`): the data card.
        folder (`Path`): the demonstrations that were named first, for messages.
        processor (`WorldVLAProcessor`): encodes the frames.
    """

    splits: dict[str, list[Demonstration]]
    card: dict[str, Any]
    folder: Path
    processor: WorldVLAProcessor

    @classmethod
    def open(cls, arguments: DemonstrationArguments, dataset_name: str) -> "LiveEpisodes":
        """Open and check demonstrations; measure the action limits of the training split.

        Args:
            arguments (`DemonstrationArguments`): the demonstrations, and how they are read.
            dataset_name (`str`): name of the action limits.

        Returns:
            `LiveEpisodes`: every command has been read once, no picture but the first.

        Raises:
            ValueError: if something is damaged, or the processor that was asked for does not fit.
        """
        tasks = open_tasks(arguments)
        episodes = [episode for task in tasks for episode in task.episodes]
        numbers = number_splits(assign_splits([len(task.episodes) for task in tasks], arguments))
        splits = {name: [episodes[number] for number in rows] for name, rows in numbers.items()}
        commands = {name: [*commands_of_episodes(chosen)] for name, chosen in splits.items()}
        limits = None
        if arguments.processor is None:
            limits = measure_limits(commands["train"], arguments.action_quantile)
        processor = build_processor(arguments, tasks, dataset_name, limits)
        card = describe_data(arguments, tasks, processor, dataset_name, splits, commands)
        return cls(splits, card, Path(arguments.demonstrations[0]), processor)

    def open_splits(self) -> dict[str, EpisodeSplit]:
        """Open every split for samples.

        Returns:
            `dict[str, EpisodeSplit]`: by name.
        """
        cameras = self.card["cameras"]
        return {name: LiveSplit(chosen, cameras, self.processor) for name, chosen in self.splits.items()}


def open_data(
    data: DataArguments, demonstrations: DemonstrationArguments, device: torch.device | str = "cpu"
) -> tuple[Episodes, WorldVLAProcessor]:
    """Open what is trained on: tokens that were made before, or demonstrations that are tokenized on the fly.

    Args:
        data (`DataArguments`): the folder of tokens, or none.
        demonstrations (`DemonstrationArguments`): the demonstrations, or none.
        device (`torch.device`): where frames are encoded on the fly.

    Returns:
        `tuple`: the episodes, and their processor.

    Raises:
        ValueError: if both or neither are given, or options of demonstrations that are not read.
    """
    if (data.tokens is None) == (not demonstrations.demonstrations):
        raise ValueError(
            "Give exactly one of `--tokens` (a folder of train/pretokenize.py) and `--demonstrations` (tokenized on "
            "the fly)."
        )
    if data.tokens is not None:
        if changed := demonstrations.changed():
            raise ValueError(
                f"`--{changed[0]}` says how demonstrations are read, but `--tokens` were read before. Give it to "
                "train/pretokenize.py, or leave it out."
            )
        episodes = TokenizedEpisodes.load(data.tokens)
        return episodes, load_processor(episodes)
    live = LiveEpisodes.open(demonstrations, data.dataset_name or DATASET_NAME)
    live.processor.to(device)
    return live, live.processor
