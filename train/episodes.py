"""Tokenized episodes on disk, and the training samples that are cut from episodes.

One row is one episode: every frame is stored once, whichever samples show it.
Shapes: `E` episodes, `T` steps, `C` cameras, `h, w` image tokens, `M` observations, `K` actions of a chunk, `D` action
dimensions, `N` rounds of the world model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
from torch.utils.data import Dataset

from modeling_worldvla.loss_worldvla import IGNORED_LABEL
from train.windows import WindowOptions, Windows

DATA_CARD = "data_card.json"
EPISODES = "episodes"
PROCESSOR = "processor"
EPISODES_READ_AT_ONCE = 1000  # of small columns


class EpisodeSplit(Protocol):
    """Episodes of one split that samples are cut from, wherever they lie.

    Attributes:
        lengths (`np.ndarray` of shape `(E,)`): steps of each episode.
        leading (sequence of `np.ndarray` of shape `(T,)` or `None`): for each episode and step, whether frame t + 1 is
            what action t alone led to; None: all but the last of an episode.
    """

    lengths: np.ndarray
    leading: Sequence[np.ndarray] | None

    def instruction(self, episode: int) -> str:
        """What the robot was told."""

    def frames(self, episode: int, steps: slice, num_cameras: int | None = None) -> np.ndarray:
        """Image token ids, integers `(steps, C, h, w)`, of the first cameras or of all."""

    def actions(self, episode: int, steps: slice) -> np.ndarray:
        """Commands carried out, `float32 (steps, D)`."""

    def expert_actions(self, episode: int, steps: slice) -> np.ndarray:
        """What the expert wanted to do, `float32 (steps, D)`."""


def image_columns(num_cameras: int) -> list[str]:
    """Name the columns that hold image tokens, in the order of the cameras.

    Args:
        num_cameras (`int`): C.

    Returns:
        `list[str]`: C names; the first one does not depend on C.
    """
    return ["image_token_ids", *(f"image_token_ids_{number}" for number in range(1, num_cameras))]


class _LeadingFlags(Sequence[np.ndarray]):
    """The column `leads_to_next_frame`, read where it is asked for."""

    def __init__(self, episodes: datasets.Dataset) -> None:
        self._column = episodes.select_columns("leads_to_next_frame").with_format("numpy")

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        return self._column[index]["leads_to_next_frame"]

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self), EPISODES_READ_AT_ONCE):
            yield from self[first : first + EPISODES_READ_AT_ONCE]


class TokenizedSplit:
    """One split of a pretokenized data set; see `EpisodeSplit`. Memory-mapped: only what is asked for is read.

    Args:
        episodes (`datasets.Dataset`): the rows.
        grid (`tuple[int, int]`): rows and columns of image tokens, `(h, w)`.
        num_cameras (`int`): C.

    Raises:
        ValueError: if columns of a camera are missing.
    """

    def __init__(self, episodes: datasets.Dataset, grid: Sequence[int], num_cameras: int = 1) -> None:
        self._columns = image_columns(num_cameras)
        missing = [name for name in self._columns if name not in episodes.column_names]
        if missing:
            raise ValueError(
                f"The data card names {num_cameras} cameras, but the rows lack `{missing[0]}`. Run "
                "train/pretokenize.py again into a new folder."
            )
        self._rows = episodes.with_format("arrow")
        self._grid = tuple(grid)
        self.lengths = episodes.select_columns("num_steps").with_format("numpy")[:]["num_steps"]
        self.leading: Sequence[np.ndarray] | None = None
        if "leads_to_next_frame" in episodes.column_names:  # data sets of before this was noted have none
            self.leading = _LeadingFlags(episodes)

    def instruction(self, episode: int) -> str:
        """What the robot was told, as `EpisodeSplit.instruction`."""
        return str(self._rows[episode]["instruction"][0].as_py())

    def frames(self, episode: int, steps: slice, num_cameras: int | None = None) -> np.ndarray:
        """Image token ids, `uint16 (steps, C, h, w)`, as `EpisodeSplit.frames`."""
        columns = self._columns[:num_cameras]
        shown = [self._read(episode, name, steps).reshape(-1, *self._grid) for name in columns]
        return np.stack(shown, axis=1)

    def actions(self, episode: int, steps: slice) -> np.ndarray:
        """Commands carried out, `float32 (steps, D)`."""
        return self._read(episode, "actions", steps)

    def expert_actions(self, episode: int, steps: slice) -> np.ndarray:
        """What the expert wanted to do, `float32 (steps, D)`."""
        return self._read(episode, "expert_actions", steps)

    def _read(self, episode: int, column: str, steps: slice) -> np.ndarray:
        """Some steps of a column, `(steps, numbers per step)`, without reading the others."""
        length = int(self.lengths[episode])
        values = self._rows[episode][column].combine_chunks().flatten()
        width = len(values) // length
        first, stop, _ = steps.indices(length)
        return values.slice(first * width, (stop - first) * width).to_numpy().reshape(-1, width)


class Episodes(Protocol):
    """A data set: its card, where it comes from, and its splits."""

    @property
    def card(self) -> dict[str, Any]:
        """The data card."""

    @property
    def folder(self) -> Path:
        """Where it lies, for messages."""

    def open_splits(self) -> dict[str, EpisodeSplit]:
        """Open every split for samples, by name."""


@dataclass(frozen=True)
class TokenizedEpisodes:
    """A pretokenized data set with the card that says how it was made.

    Attributes:
        splits (mapping of `datasets.Dataset`): `train` and, where present, `val_ind` and `val_ood`.
        card (`dict`): cameras, grid, hash of the image tokenizer, sources and counts.
        folder (`Path`): where it lies; `folder/processor` made it.
    """

    splits: Mapping[str, datasets.Dataset]
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

    def open_splits(self) -> dict[str, EpisodeSplit]:
        """Open every split for samples.

        Returns:
            `dict[str, EpisodeSplit]`: by name.
        """
        num_cameras = len(self.card.get("cameras", ())) or 1  # older cards name one camera, and hold no list
        return {name: TokenizedSplit(rows, self.card["grid"], num_cameras) for name, rows in self.splits.items()}


class SampleDataset(Dataset):
    """Training samples of both roles over episodes; see `Windows` for which there are.

    A policy sample shows the frames of all cameras, step by step, within a step in the order of the cameras. A
    world-model sample has room for one image per action: it shows and asks for those of the first camera. With N
    rounds, the N−1 frames before the last one are learned where they stand among the known ones: all but the token
    that begins them, for what follows an action there is the prompt's business.

    Args:
        episodes (`EpisodeSplit`): the episodes.
        processor (`tokenization.WorldVLAProcessor`): lays the samples out.
        options (`WindowOptions`): which windows are cut.
        dataset_name (`str`): which of the processor's action limits apply.
        seed (`int`): see `Windows`.

    Raises:
        ValueError: if no episode is long enough, or the dead band has another width than the actions.
    """

    def __init__(
        self, episodes: EpisodeSplit, processor: Any, options: WindowOptions, dataset_name: str, seed: int = 0
    ) -> None:
        band = options.action_dead_band
        if band and len(band) != (width := processor.action_tokenizer.action_dim):
            raise ValueError(
                f"`--action_dead_band` needs {width} numbers, one per action dimension, got {len(band)}: {list(band)}."
            )
        self.episodes = episodes
        self.processor = processor
        self.options = options
        self.dataset_name = dataset_name
        self.windows = Windows(episodes.lengths, options, seed, episodes.leading)

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
        return self._policy_sample(episode, step) if role == "policy" else self._world_model_sample(episode, step)

    def _policy_sample(self, episode: int, step: int) -> dict[str, list[int]]:
        options = self.options
        wanted = range(step - options.n_obs_steps + 1, step + 1)
        first = max(0, wanted.start)
        frames = self.episodes.frames(episode, slice(first, step + 1))
        shown = [image for t in wanted for image in frames[max(0, t) - first]]
        chunk = self.episodes.expert_actions(episode, slice(step, step + options.chunk_size))
        padding = options.chunk_size - len(chunk) if options.tail == "pad" else 0
        chunk = np.concatenate([chunk, np.repeat(chunk[-1:], padding, axis=0)])
        if options.action_dead_band:
            chunk = np.where(np.abs(chunk) < options.action_dead_band, 0, chunk)
        text = self.episodes.instruction(episode)
        sample = self.processor.build_sample(shown, text, chunk, "policy", dataset_name=self.dataset_name)
        tokens = padding * (chunk.shape[1] + 2)  # the separator comes after them
        sample["labels"][-1 - tokens : -1] = [IGNORED_LABEL] * tokens
        return sample

    def _world_model_sample(self, episode: int, step: int) -> dict[str, list[int]]:
        first, rounds = max(0, step + 1 - self.options.world_model_history), self.options.world_model_rounds
        if self.episodes.leading is not None and first < step:
            first += sum(1 + np.flatnonzero(~self.episodes.leading[episode][first:step])[-1:])  # not across a gap
        shown = list(self.episodes.frames(episode, slice(first, step + rounds + 1), num_cameras=1)[:, 0])
        actions = self.episodes.actions(episode, slice(first, step + rounds))
        sample = self.processor.build_sample(
            shown, actions=actions, role="world_model", dataset_name=self.dataset_name
        )
        if rounds > 1:
            ids, layout = np.array(sample["input_ids"]), self.processor.vocabulary
            marks = [np.flatnonzero(ids == mark) for mark in (layout.boi_token_id, layout.eoi_token_id)]
            for begin, end in list(zip(*marks, strict=True))[step + 1 - first : -1]:
                sample["labels"][begin + 1 : end + 1] = sample["input_ids"][begin + 1 : end + 1]
        return sample
