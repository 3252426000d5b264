"""The processor of a data set: the one that was asked for, or one built around a VQ-GAN with measured action limits.

Shapes: `n` commands of a batch, `D` action dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import datasets
import numpy as np

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
from train.demonstration_tasks import DemonstrationTask
from train.episodes import EPISODES_READ_AT_ONCE
from train.pretokenize_arguments import DemonstrationArguments


class Commands(NamedTuple):
    """Some commands, `(n, D)` each: as carried out, and as the expert wanted them."""

    actions: np.ndarray
    expert_actions: np.ndarray


def commands_of_rows(episodes: datasets.Dataset) -> Iterator[Commands]:
    """Read the commands of a tokenized split, many episodes at a time.

    Args:
        episodes (`datasets.Dataset`): the rows.

    Yields:
        `Commands`: of some episodes.
    """
    columns = episodes.select_columns(list(Commands._fields)).with_format("arrow")
    for first in range(0, len(columns), EPISODES_READ_AT_ONCE):
        batch = columns[first : first + EPISODES_READ_AT_ONCE]
        flat = (batch[name].combine_chunks().flatten().to_numpy() for name in Commands._fields)
        yield Commands(*(values.reshape(-1, ACTION_DIM) for values in flat))


def commands_of_episodes(episodes: Iterable[Demonstration]) -> Iterator[Commands]:
    """Read the commands of demonstrations, one at a time.

    Args:
        episodes (`Iterable[Demonstration]`): the demonstrations.

    Yields:
        `Commands`: of an episode.
    """
    for episode in episodes:
        yield Commands(episode.actions, episode.expert_actions)


def measure_limits(batches: Iterable[Commands], quantile: float) -> dict[str, list[float]]:
    """Find the action limits of the training split.

    Args:
        batches (`Iterable[Commands]`): its commands. With a quantile all are held at once: 8 D bytes for each.
        quantile (`float`): see `measure_action_limits`.

    Returns:
        `dict`: `low` and `high`, each a list of D numbers.
    """
    if quantile:
        return measure_action_limits(np.concatenate([values for batch in batches for values in batch]), quantile)
    extremes = [limit for batch in batches for values in batch for limit in measure_action_limits(values).values()]
    return measure_action_limits(np.array(extremes))


class Clipped(NamedTuple):
    """How many commands there were, and how many values of each dimension are clipped, `(D,)`."""

    steps: int
    actions: np.ndarray
    expert_actions: np.ndarray


def count_clipped(batches: Iterable[Commands], processor: WorldVLAProcessor, dataset_name: str) -> Clipped:
    """Count the values that lie outside the limits.

    Args:
        batches (`Iterable[Commands]`): the commands.
        processor (`WorldVLAProcessor`): has the limits.
        dataset_name (`str`): which of them.

    Returns:
        `Clipped`: of all batches.
    """
    steps, clipped = 0, np.zeros((2, ACTION_DIM), dtype=np.int64)
    for batch in batches:
        steps += len(batch.actions)
        clipped += [processor.action_tokenizer.count_clipped(values, dataset_name) for values in batch]  # type: ignore[union-attr]
    return Clipped(steps, *clipped)


def build_processor(
    arguments: DemonstrationArguments,
    tasks: Sequence[DemonstrationTask],
    dataset_name: str,
    limits: dict[str, list[float]] | None = None,
) -> WorldVLAProcessor:
    """Load the processor that was asked for, or build one around the VQ-GAN.

    Args:
        arguments (`DemonstrationArguments`): where the parts are.
        tasks (`Sequence[DemonstrationTask]`): gives the instructions and the size of the images.
        dataset_name (`str`): name of the action limits.
        limits (`dict`, *optional*): those that were measured; without them a processor that is built reads images
            alone.

    Returns:
        `WorldVLAProcessor`: with limits under `dataset_name` where they were given or the processor was loaded.

    Raises:
        ValueError: if the processor that was asked for has no limits of that name, or crops to several sizes.
    """
    if arguments.processor is not None:
        return _load_processor(arguments.processor, dataset_name)
    vq_model = load_vq_model(str(arguments.vq_model))
    layout = VocabularyLayout.compact(
        vq_model.config.num_vq_embeddings, arguments.num_text_tokens, arguments.num_action_bins
    )
    instructions = sorted({demonstration.instruction for task in tasks for demonstration in task.episodes})
    prompts = [render_prompt("policy", task=instruction) for instruction in instructions] + list_prompts("world_model")
    return WorldVLAProcessor(
        # A corpus of prompts alone: every pair counts, so that an instruction becomes a few tokens.
        train_text_tokenizer(prompts, layout, min_frequency=1),
        vocabulary=layout,
        action_limits={dataset_name: limits} if limits else None,
        binning=arguments.binning,
        image_size=tasks[0].episodes[0].frames(arguments.cameras[0], slice(1)).shape[1:3],
        vq_model=vq_model,
    )


def _load_processor(path: str, dataset_name: str) -> WorldVLAProcessor:
    """A complete processor that brings images to one size and has the limits of the data set."""
    processor = WorldVLAProcessor.from_pretrained(path)
    require_choice("data set", dataset_name, list(processor.action_limits or {}))
    if processor.crop != "fixed":
        raise ValueError(
            f"A data set of tokens holds images of one size, but the processor has `crop={processor.crop!r}`. "
            'Load it with `from_pretrained(folder, crop="fixed")` and save it for training.'
        )
    return processor
