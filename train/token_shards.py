"""Tokens of a part of a task, from one camera: what a rank makes at a time, and what is never made twice.

Finished shards are kept under names that say what they hold and by which tokenizer.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from tokenization import WorldVLAProcessor
from train.atomic_files import new_folder
from train.demonstration_tasks import DemonstrationTask
from train.episodes import image_columns

logger = logging.getLogger("worldvla.pretokenize")

FEATURES = datasets.Features(
    {
        "task": datasets.Value("string"),
        "episode": datasets.Value("string"),
        "instruction": datasets.Value("string"),
        "num_steps": datasets.Value("int32"),
        "image_token_ids": datasets.Sequence(datasets.Value("uint16")),
        "actions": datasets.Sequence(datasets.Value("float32")),
        "expert_actions": datasets.Sequence(datasets.Value("float32")),
        "leads_to_next_frame": datasets.Sequence(datasets.Value("bool")),
    }
)
FRAMES_READ_AT_ONCE = 256  # bounds the memory, however long an episode is


def iterate_rows(
    task: DemonstrationTask, camera: str, processor: WorldVLAProcessor, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Tokenize the demonstrations of a task, episode by episode.

    Args:
        task (`DemonstrationTask`): the demonstrations.
        camera (`str`): whose frames.
        processor (`WorldVLAProcessor`): encodes the frames.
        batch_size (`int`): frames per call of the encoder; bounds the memory.

    Yields:
        `dict`: one row of `FEATURES`.
    """
    for demonstration in tqdm(task.episodes, desc=f"tokenize {task.name}, {camera}", unit="episode"):
        token_ids = [
            np.asarray(processor.encode_images(list(frames[first : first + batch_size])))
            for start in range(0, len(demonstration), FRAMES_READ_AT_ONCE)
            for frames in [demonstration.frames(camera, slice(start, start + FRAMES_READ_AT_ONCE))]
            for first in range(0, len(frames), batch_size)
        ]
        yield {
            "task": task.name,
            "episode": demonstration.name,
            "instruction": demonstration.instruction,
            "num_steps": len(demonstration),
            "image_token_ids": np.concatenate(token_ids).astype(np.uint16).reshape(-1),
            "actions": demonstration.actions.reshape(-1),
            "expert_actions": demonstration.expert_actions.reshape(-1),
            "leads_to_next_frame": demonstration.leads_to_next_frame,
        }


def tokenize_shard(
    task: DemonstrationTask, camera: str, folder: Path, processor: WorldVLAProcessor, batch_size: int
) -> str:
    """Tokenize a part of a task into a shard, unless a finished shard of the same content is there.

    Args:
        task (`DemonstrationTask`): the part.
        camera (`str`): whose frames.
        folder (`Path`): folder of the shards.
        processor (`WorldVLAProcessor`): encodes the frames.
        batch_size (`int`): frames per call of the encoder.

    Returns:
        `str`: the shard's name.
    """
    name = task.content_name(camera, f"{processor.image_token_hash()}:{','.join(FEATURES)}")
    if (folder / name).exists():
        logger.info("%s, %s: already tokenized", task.name, camera)
        return name
    rows = list(iterate_rows(task, camera, processor, batch_size))
    with new_folder(folder / name) as shard:
        datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(str(shard))
    return name


def join_shards(shards: Sequence[Sequence[Path]]) -> datasets.Dataset:
    """Put the shards of all parts below one another, and those of several cameras side by side.

    Args:
        shards (`Sequence[Sequence[Path]]`): for each part of a task, the shard of each camera.

    Returns:
        `datasets.Dataset`: memory-mapped; the images of each camera are a column (`train.episodes.image_columns`).
    """
    parts = []
    for part in shards:
        columns = image_columns(len(part))
        first, *others = (datasets.load_from_disk(str(shard)) for shard in part)
        renamed = [
            shard.select_columns(columns[0]).rename_column(columns[0], column)
            for shard, column in zip(others, columns[1:], strict=True)
        ]
        parts.append(datasets.concatenate_datasets([first, *renamed], axis=1) if renamed else first)
    return datasets.concatenate_datasets(parts)
