"""Turn demonstrations into an on-disk data set of tokens: every frame is encoded once.

    python train/pretokenize.py --demonstrations demos/ --vq_model vqgan/ --output_dir tokens/

Demonstrations are HDF5 files in LIBERO's layout or LeRobot data sets: docs/data.md. Finished parts (a task, or 50
episodes of it) are kept in `shards/`, named by what they hold and by the tokenizer that made them, so an interrupted
run goes on where it stopped and nothing is encoded twice.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import datasets
import numpy as np
from tqdm.auto import tqdm

from tokenization import (
    VocabularyLayout,
    WorldVLAProcessor,
    list_prompts,
    load_vq_model,
    measure_action_limits,
    render_prompt,
    train_text_tokenizer,
)
from tokenization.choices_worldvla import require_choice
from tokenization.demonstrations import ACTION_DIM, Demonstration
from tokenization.vqgan_worldvla import stride_of
from train.argument_parsing import parse_arguments
from train.atomic_files import new_folder, write_json
from train.demonstration_tasks import DemonstrationTask, open_tasks
from train.episodes import DATA_CARD, EPISODES, PROCESSOR
from train.pretokenize_arguments import PretokenizeArguments

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
    for demonstration in tqdm(task.episodes, desc=f"tokenize {task.name}", unit="episode"):
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
    task: DemonstrationTask, shards: Path, arguments: PretokenizeArguments, processor: WorldVLAProcessor
) -> Path:
    """Tokenize a part of a task into a shard, unless a finished shard of the same content is there.

    Args:
        task (`DemonstrationTask`): the part.
        shards (`Path`): folder of the shards.
        arguments (`PretokenizeArguments`): camera and batch size.
        processor (`WorldVLAProcessor`): encodes the frames.

    Returns:
        `Path`: the shard's folder.
    """
    made_by = f"{processor.image_token_hash()}:{','.join(FEATURES)}"
    shard = shards / task.content_name(arguments.camera, made_by)
    if shard.exists():
        logger.info("%s: already tokenized", task.name)
        return shard
    rows = list(iterate_rows(task, arguments.camera, processor, arguments.batch_size))
    with new_folder(shard) as folder:
        datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(str(folder))
    return shard


def assign_splits(lengths: list[int], arguments: PretokenizeArguments) -> list[list[str]]:
    """Decide for every trajectory of every task which split it belongs to.

    Args:
        lengths (`list[int]`): trajectories of each task, tasks in order.
        arguments (`PretokenizeArguments`): kind of split, share and seed.

    Returns:
        `list[list[str]]`: `train`, `val_ind` or `val_ood` for each trajectory of each task.

    References:
        Official: the first 90 % of tasks x the first 90 % of trajectories train; the other trajectories of those tasks
        are `val_ind`; the last 10 % of tasks are `val_ood`.
    """
    generator = np.random.default_rng(arguments.seed)
    train_tasks = len(lengths)
    if arguments.split == "official":
        train_tasks = max(1, int(len(lengths) * 0.9))
    splits = []
    for task, length in enumerate(lengths):
        if task >= train_tasks:
            splits.append(["val_ood"] * length)
            continue
        fraction = 0.1 if arguments.split == "official" else arguments.validation_fraction
        held_out = min(max(round(length * fraction), int(fraction > 0)), length - 1)
        order = np.arange(length) if arguments.split == "official" else generator.permutation(length)
        names = np.array(["train"] * length, dtype=object)
        names[order[length - held_out :]] = "val_ind"
        splits.append(names.tolist())
    return splits


def build_processor(
    arguments: PretokenizeArguments, tasks: Sequence[Sequence[Demonstration]], splits: list[list[str]]
) -> WorldVLAProcessor:
    """Load the processor that was asked for, or build one around the VQ-GAN; its action limits come from `train`.

    Args:
        arguments (`PretokenizeArguments`): where the parts are.
        tasks (`Sequence[Sequence[Demonstration]]`): the demonstrations of each task.
        splits (`list[list[str]]`): see `assign_splits`.

    Returns:
        `WorldVLAProcessor`: complete, with limits under `arguments.dataset_name`.

    Raises:
        ValueError: if the processor that was asked for has no limits of that name, or crops to several sizes.
    """
    if arguments.processor is not None:
        processor = WorldVLAProcessor.from_pretrained(arguments.processor)
        limits = processor.action_tokenizer.limits  # type: ignore[union-attr]
        require_choice("data set", arguments.dataset_name, list(limits))
        if processor.crop != "fixed":
            raise ValueError(
                f"A data set of tokens holds images of one size, but the processor has `crop={processor.crop!r}`. "
                'Load it with `from_pretrained(folder, crop="fixed")` and save it for training.'
            )
        return processor
    vq_model = load_vq_model(str(arguments.vq_model))
    layout = VocabularyLayout.compact(vq_model.config.num_vq_embeddings, arguments.num_text_tokens)
    instructions = sorted({demonstration.instruction for task in tasks for demonstration in task})
    prompts = [render_prompt("policy", task=instruction) for instruction in instructions] + list_prompts("world_model")
    training = [
        np.concatenate([demonstration.actions, demonstration.expert_actions])
        for task, names in zip(tasks, splits, strict=True)
        for demonstration, name in zip(task, names, strict=True)
        if name == "train"
    ]
    return WorldVLAProcessor(
        # A corpus of prompts alone: every pair counts, so that an instruction becomes a few tokens.
        train_text_tokenizer(prompts, layout, min_frequency=1),
        vocabulary=layout,
        action_limits={
            arguments.dataset_name: measure_action_limits(np.concatenate(training), arguments.action_quantile)
        },
        binning=arguments.binning,
        image_size=tasks[0][0].frames(arguments.camera, slice(1)).shape[1:3],
        vq_model=vq_model,
    )


def pretokenize(arguments: PretokenizeArguments) -> Path:
    """Tokenize every demonstration, split, and write data set, processor and data card.

    Args:
        arguments (`PretokenizeArguments`): all options.

    Returns:
        `Path`: the finished folder.

    Raises:
        ValueError: if a demonstration file is damaged (names the file and what is wrong with it).
    """
    output = Path(arguments.output_dir)
    shards = output / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    tasks = open_tasks(arguments)
    splits = assign_splits([len(task.episodes) for task in tasks], arguments)
    processor = build_processor(arguments, [task.episodes for task in tasks], splits)
    parts = [tokenize_shard(part, shards, arguments, processor) for task in tasks for part in task.shards()]
    tokenized = datasets.concatenate_datasets([datasets.load_from_disk(str(part)) for part in parts])
    names = np.concatenate([np.array(task, dtype=object) for task in splits])
    chosen = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
    with new_folder(output / PROCESSOR) as folder:
        processor.save_pretrained(folder)
    with new_folder(output / EPISODES) as folder:
        datasets.DatasetDict({name: tokenized.select(rows) for name, rows in chosen.items()}).save_to_disk(str(folder))
    write_json(output / DATA_CARD, describe(arguments, tasks, processor, chosen))
    return output


def describe(
    arguments: PretokenizeArguments,
    tasks: Sequence[DemonstrationTask],
    processor: WorldVLAProcessor,
    chosen: dict[str, np.ndarray],
) -> dict[str, Any]:
    """What the data card says: how the tokens were made, and how many there are."""
    steps, clipped = 0, np.zeros(ACTION_DIM, dtype=int)
    for demonstration in (episode for task in tasks for episode in task.episodes):
        actions = demonstration.actions
        steps += len(actions)
        clipped += processor.action_tokenizer.count_clipped(actions, arguments.dataset_name)  # type: ignore[union-attr]
    stride = stride_of(processor.vq_model)
    return {
        "dataset_name": arguments.dataset_name,
        "camera": arguments.camera,
        "grid": [side // stride for side in processor.image_size],
        "image_token_hash": processor.image_token_hash(),
        "sources": list_sources(tasks),
        "splits": {name: len(rows) for name, rows in chosen.items()},
        "steps": steps,
        "dropped_noops": sum(task.dropped for task in tasks),
        "action_values": steps * ACTION_DIM,
        "clipped_action_values": int(clipped.sum()),
        "clipped_action_values_by_dimension": clipped.tolist(),
        "made_with": asdict(arguments),
    }


def list_sources(tasks: Sequence[DemonstrationTask]) -> list[dict[str, Any]]:
    """How many tasks and episodes each file or data set brings, in order."""
    sources: dict[str, dict[str, Any]] = {}
    for task in tasks:
        source = sources.setdefault(task.source, {"file": task.source, "tasks": 0, "episodes": 0})
        source["tasks"] += 1
        source["episodes"] += len(task.episodes)
    return list(sources.values())


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (arguments,) = parse_arguments([PretokenizeArguments], argv)
    folder = pretokenize(arguments)
    card = json.loads((folder / DATA_CARD).read_text("utf-8"))
    logger.info("%d steps, episodes per split %s, in %s", card["steps"], card["splits"], folder)
    clipped, values = card["clipped_action_values"], card["action_values"]
    logger.info("%d of %d action values (%.3g %%) lie outside the limits", clipped, values, 100 * clipped / values)


if __name__ == "__main__":
    main(sys.argv[1:])
