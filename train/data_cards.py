"""The data card: what a data set holds and how it was made. It travels with every checkpoint that learns from it."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tokenization import WorldVLAProcessor
from tokenization.demonstrations import ACTION_DIM
from tokenization.vqgan_worldvla import stride_of
from train.data_processor import Commands, count_clipped
from train.demonstration_tasks import DemonstrationTask
from train.pretokenize_arguments import DemonstrationArguments

SOFTWARE = ("torch", "diffusers", "datasets", "numpy")


def describe_data(
    arguments: DemonstrationArguments,
    tasks: Sequence[DemonstrationTask],
    processor: WorldVLAProcessor,
    dataset_name: str,
    splits: Mapping[str, Sized],
    commands: Mapping[str, Iterable[Commands]],
) -> dict[str, Any]:
    """Fill the data card.

    Args:
        arguments (`DemonstrationArguments`): the options.
        tasks (`Sequence[DemonstrationTask]`): the demonstrations.
        processor (`WorldVLAProcessor`): complete.
        dataset_name (`str`): name of the action limits.
        splits (mapping of `Sized`): the episodes of each split.
        commands (mapping of `Commands`): those of each split.

    Returns:
        `dict`: JSON values.
    """
    clipped = {name: count_clipped(batches, processor, dataset_name) for name, batches in commands.items()}
    steps, by_dimension = sum(split.steps for split in clipped.values()), sum(s.actions for s in clipped.values())
    return {
        "dataset_name": dataset_name,
        "camera": "+".join(arguments.cameras),
        "cameras": list(arguments.cameras),
        "world_model_camera": arguments.cameras[0],
        "grid": [side // stride_of(processor.vq_model) for side in processor.image_size],
        "image_token_hash": processor.image_token_hash(),
        "sources": list_sources(tasks),
        "splits": {name: len(episodes) for name, episodes in splits.items()},
        "steps": steps,
        "dropped_noops": sum(task.dropped for task in tasks),
        "action_limits": (processor.action_limits or {})[dataset_name],
        "action_values": steps * ACTION_DIM,
        "clipped_action_values": int(np.sum(by_dimension)),
        "clipped_action_values_by_dimension": np.asarray(by_dimension).tolist(),
        "clipped_by_split": {name: (s.expert_actions / s.steps).tolist() for name, s in clipped.items()},
        "made_with": describe_options(arguments),
    }


def list_software() -> dict[str, str]:
    """Which versions of which libraries made the tokens."""
    return {name: version(name) for name in SOFTWARE}


def describe_options(arguments: DemonstrationArguments) -> dict[str, Any]:
    """Write the options down without the folders of this machine: names alone; ids of the Hub stay whole."""
    options = asdict(arguments)
    options.pop("output_dir", None)
    options["demonstrations"] = [_name_of(path) for path in arguments.demonstrations]
    return options | {
        name: _name_of(path) for name in ("vq_model", "processor") if (path := options[name]) is not None
    }


def _name_of(path: str) -> str:
    return Path(path).resolve().name if Path(path).exists() else path


def list_sources(tasks: Sequence[DemonstrationTask]) -> list[dict[str, Any]]:
    """How many tasks and episodes each file or data set brings, in order."""
    sources: dict[str, dict[str, Any]] = {}
    for task in tasks:
        source = sources.setdefault(task.source, {"file": task.source, "tasks": 0, "episodes": 0})
        source["tasks"] += 1
        source["episodes"] += len(task.episodes)
    return list(sources.values())
