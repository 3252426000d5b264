"""Which trajectory trains and which is held out."""

import numpy as np

from train.pretokenize_arguments import DemonstrationArguments


def assign_splits(lengths: list[int], arguments: DemonstrationArguments) -> list[list[str]]:
    """Decide for every trajectory of every task which split it belongs to.

    Args:
        lengths (`list[int]`): trajectories of each task, tasks in order.
        arguments (`DemonstrationArguments`): kind of split, share and seed.

    Returns:
        `list[list[str]]`: `train`, `val_ind` or `val_ood` for each trajectory of each task.

    References:
        Official: the first 90 % of tasks x the first 90 % of trajectories train; the other trajectories of those tasks
        are `val_ind`; the last 10 % of tasks are `val_ood`.
    """
    generator = np.random.default_rng(arguments.split_seed)
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


def number_splits(splits: list[list[str]]) -> dict[str, np.ndarray]:
    """Turn the splits of each task into numbers of episodes.

    Args:
        splits (`list[list[str]]`): see `assign_splits`.

    Returns:
        `dict[str, np.ndarray]`: for each split that has episodes, their places among the episodes of all tasks.
    """
    names = np.array([name for task in splits for name in task], dtype=object)
    return {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
