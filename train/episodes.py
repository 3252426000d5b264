"""Tokenized episodes on disk, and the windows of both roles that are cut from them.

One row is one episode: every frame is stored once, whichever samples show it.
Shapes: `T` steps, `h, w` image tokens, `M` observations, `K` actions of a chunk, `D` action dimensions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

DATA_CARD = "data_card.json"
EPISODES = "episodes"
PROCESSOR = "processor"


@dataclass(frozen=True)
class TokenizedEpisodes:
    """A pretokenized data set with the card that says how it was made.

    Attributes:
        splits (`datasets.DatasetDict`): `train` and, where present, `val_ind` and `val_ood`.
        card (`dict`): camera, grid, hash of the image tokenizer, sources and counts.
        folder (`Path`): where it lies; `folder/processor` made it.
    """

    splits: datasets.DatasetDict
    card: dict[str, Any]
    folder: Path

    @classmethod
    def load(cls, folder: str | Path) -> "TokenizedEpisodes":
        """Open a folder written by `train/pretokenize.py`.

        Args:
            folder (`str` or `Path`): the folder.

        Returns:
            `TokenizedEpisodes`: memory-mapped; nothing is read yet.

        Raises:
            FileNotFoundError: if the folder is not a complete data set.
        """
        folder = Path(folder)
        card = folder / DATA_CARD
        if not card.is_file():
            raise FileNotFoundError(
                f"`{folder}` holds no finished data set (no {DATA_CARD}). Run "
                f"`train/pretokenize.py --output_dir {folder}`; an interrupted run goes on where it stopped."
            )
        return cls(datasets.load_from_disk(str(folder / EPISODES)), json.loads(card.read_text("utf-8")), folder)


@dataclass(frozen=True)
class WindowOptions:
    """Which windows are cut: see `train.arguments.DataArguments` for the meaning of each field."""

    n_obs_steps: int
    chunk_size: int
    world_model_history: int = 1
    tail: str = "shorten"
    policy_samples: bool = True
    world_model_samples: bool = True
    world_model_ratio: float = 1.0


def list_windows(
    lengths: np.ndarray, options: WindowOptions, seed: int, leading: Sequence[np.ndarray] | None = None
) -> list[tuple[str, int, int]]:
    """Name every window of every episode.

    A policy window at step t shows frames t−M+1 … t (the first frame repeated before the start) and asks for actions
    t … t+K−1, as the expert wanted them. A world-model window at step t shows the last `world_model_history`
    frame-action pairs up to t (actions as carried out), fewer at the start, and asks for frame t+1. Where steps were
    left out after t, frame t+1 is not what action t led to: no world-model window ends there, and none reaches across.

    Args:
        lengths (`np.ndarray` of shape `(episodes,)`): steps of each episode.
        options (`WindowOptions`): which windows.
        seed (`int`): chooses the world-model windows where `world_model_ratio` asks for another number than there are.
        leading (`Sequence[np.ndarray]`, *optional*): for each episode and step, whether its action led to the next
            frame; by default all but the last of an episode do.

    Returns:
        `list[tuple[str, int, int]]`: (role, episode, step t).

    Raises:
        ValueError: if no episode is long enough for a role that is asked for.
    """
    policy, world = [], []
    for episode, length in enumerate(lengths):
        last_policy = length if options.tail == "shorten" else length - options.chunk_size + 1
        policy += [("policy", episode, step) for step in range(last_policy)]
        known = range(length - 1) if leading is None else np.flatnonzero(leading[episode]).tolist()
        world += [("world_model", episode, step) for step in known]
    for role, wanted, windows in (
        ("policy", options.policy_samples, policy),
        ("world_model", options.world_model_samples, world),
    ):
        if wanted and not windows:
            raise ValueError(
                f"No episode is long enough for a `{role}` sample: the longest has {max(lengths, default=0)} steps. "
                "Lower `--chunk_size`, or give longer demonstrations."
            )
    if not options.world_model_samples:
        return policy
    if not options.policy_samples:
        return world
    count = round(options.world_model_ratio * len(policy))
    order = np.random.default_rng(seed).permutation(len(world))
    return policy + [world[order[index % len(world)]] for index in range(count)]


class SampleDataset(Dataset):
    """Training samples of both roles over tokenized episodes.

    Args:
        episodes (`datasets.Dataset`): one split of `TokenizedEpisodes`.
        grid (`tuple[int, int]`): rows and columns of image tokens, `(h, w)`.
        processor (`tokenization.WorldVLAProcessor`): lays the samples out.
        options (`WindowOptions`): which windows are cut.
        dataset_name (`str`): which of the processor's action limits apply.
        seed (`int`): see `list_windows`.
    """

    def __init__(
        self,
        episodes: datasets.Dataset,
        grid: tuple[int, ...],
        processor: Any,
        options: WindowOptions,
        dataset_name: str,
        seed: int = 0,
    ) -> None:
        self.episodes = episodes.with_format("numpy")
        self.grid = grid
        self.processor = processor
        self.options = options
        self.dataset_name = dataset_name
        self.has_gaps = "leads_to_next_frame" in episodes.column_names  # data sets of before this was noted have none
        leading = self.episodes["leads_to_next_frame"][:] if self.has_gaps else None
        self.windows = list_windows(np.asarray(episodes["num_steps"]), options, seed, leading)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Build one sample.

        Args:
            index (`int`): position in `windows`.

        Returns:
            `dict`: `input_ids` and `labels`, lists of one length.
        """
        role, episode, step = self.windows[index]
        row = self.episodes[episode]
        frames = row["image_token_ids"].reshape(-1, *self.grid)
        actions = row["actions"].reshape(len(frames), -1)
        if role == "policy":
            shown = [frames[max(0, t)] for t in range(step - self.options.n_obs_steps + 1, step + 1)]
            wanted = row["expert_actions"].reshape(len(frames), -1)
            chunk = wanted[step : step + self.options.chunk_size]
            return self.processor.build_sample(shown, row["instruction"], chunk, role, dataset_name=self.dataset_name)
        first = max(0, step + 1 - self.options.world_model_history)
        if self.has_gaps:
            first += sum(1 + np.flatnonzero(~row["leads_to_next_frame"][first:step])[-1:])  # not across a gap
        known = actions[first : step + 1]
        shown = list(frames[first : step + 2])
        return self.processor.build_sample(shown, actions=known, role=role, dataset_name=self.dataset_name)
