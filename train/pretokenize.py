"""Turn demonstrations into an on-disk data set of tokens: every frame is encoded once.

    python train/pretokenize.py --demonstrations demos/ --vq_model vqgan/ --output_dir tokens/
    accelerate launch train/pretokenize.py --demonstrations demos/ --vq_model vqgan/ --output_dir tokens/

Demonstrations are HDF5 files in LIBERO's layout or LeRobot data sets: docs/data.md. Finished parts (a task, or 50
episodes of it, seen by one camera) are kept in `shards/`, named by what they hold and by the tokenizer that made them,
so an interrupted run goes on where it stopped, with however many processes, and nothing is encoded twice. With several
processes each takes its share of the parts, on its own device; the first joins them.
"""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from tokenization import WorldVLAProcessor
from train.argument_parsing import parse_arguments
from train.atomic_files import new_folder, write_json
from train.data_cards import describe_data, list_software
from train.data_processor import build_processor, commands_of_rows, measure_limits
from train.demonstration_tasks import DemonstrationTask, open_tasks
from train.episodes import DATA_CARD, EPISODES, PROCESSOR
from train.pretokenize_arguments import PretokenizeArguments
from train.splits import assign_splits, number_splits
from train.token_shards import join_shards, tokenize_shard

logger = logging.getLogger("worldvla.pretokenize")

LONGEST_WAIT = timedelta(days=30)  # for the slowest process; one that dies ends the others through its launcher


def tokenize_parts(
    arguments: PretokenizeArguments, tasks: Sequence[DemonstrationTask], state: PartialState
) -> list[list[Path]]:
    """Tokenize this process's share of the parts, and wait for the others.

    Args:
        arguments (`PretokenizeArguments`): all options.
        tasks (`Sequence[DemonstrationTask]`): the demonstrations.
        state (`PartialState`): which of how many processes this is, and its device.

    Returns:
        `list[list[Path]]`: for each part of a task, the shard of each camera.
    """
    shards = Path(arguments.output_dir) / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    processor = build_processor(arguments, tasks, arguments.dataset_name).to(state.device)
    jobs = [(part, camera) for task in tasks for part in task.shards() for camera in arguments.cameras]
    names = [
        (number, tokenize_shard(*jobs[number], shards, processor, arguments.batch_size))
        for number in range(state.process_index, len(jobs), state.num_processes)
    ]
    found = dict(gather_object(names))
    width = len(arguments.cameras)
    return [[shards / found[first + camera] for camera in range(width)] for first in range(0, len(jobs), width)]


def save_tokens(
    arguments: PretokenizeArguments, tasks: Sequence[DemonstrationTask], shards: Sequence[Sequence[Path]]
) -> None:
    """Split what was tokenized, and write data set, processor and, last of all, the data card.

    Args:
        arguments (`PretokenizeArguments`): all options.
        tasks (`Sequence[DemonstrationTask]`): the demonstrations.
        shards (`Sequence[Sequence[Path]]`): see `tokenize_parts`.
    """
    output = Path(arguments.output_dir)
    (output / DATA_CARD).unlink(missing_ok=True)  # from here on an older data set is no longer complete
    tokenized = join_shards(shards)
    numbers = number_splits(assign_splits([len(task.episodes) for task in tasks], arguments))
    splits = datasets.DatasetDict({name: tokenized.select(rows) for name, rows in numbers.items()})
    processor = finish_processor(arguments, tasks, splits["train"])
    with new_folder(output / PROCESSOR) as folder:
        processor.save_pretrained(folder)
    with new_folder(output / EPISODES) as folder:
        splits.save_to_disk(str(folder))
    for leftover in (output / "shards").glob(".*"):  # of processes that were killed
        shutil.rmtree(leftover)
    commands = {name: commands_of_rows(rows) for name, rows in splits.items()}
    card = describe_data(arguments, tasks, processor, arguments.dataset_name, splits, commands)
    write_json(output / DATA_CARD, card | {"software": list_software()})


def finish_processor(
    arguments: PretokenizeArguments, tasks: Sequence[DemonstrationTask], training: datasets.Dataset
) -> WorldVLAProcessor:
    """Build or load the processor that is saved; its action limits come from the training split alone.

    Args:
        arguments (`PretokenizeArguments`): all options.
        tasks (`Sequence[DemonstrationTask]`): the demonstrations.
        training (`datasets.Dataset`): rows of the training split.

    Returns:
        `WorldVLAProcessor`: complete.
    """
    limits = None
    if arguments.processor is None:
        limits = measure_limits(commands_of_rows(training), arguments.action_quantile)
    return build_processor(arguments, tasks, arguments.dataset_name, limits)


def pretokenize(arguments: PretokenizeArguments) -> Path:
    """Tokenize every demonstration, split, and write data set, processor and data card.

    Args:
        arguments (`PretokenizeArguments`): all options.

    Returns:
        `Path`: the finished folder.

    Raises:
        ValueError: if a demonstration file is damaged (names the file and what is wrong with it).
    """
    # Without an accelerator, processes find each other only when they are told that they compute on the CPU.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    tasks = open_tasks(arguments)
    shards = tokenize_parts(arguments, tasks, state)
    if state.is_main_process:
        save_tokens(arguments, tasks, shards)
    state.wait_for_everyone()
    return Path(arguments.output_dir)


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (arguments,) = parse_arguments([PretokenizeArguments], argv)
    folder = pretokenize(arguments)
    if not PartialState().is_main_process:
        return
    card = json.loads((folder / DATA_CARD).read_text("utf-8"))
    logger.info("%d steps, episodes per split %s, in %s", card["steps"], card["splits"], folder)
    clipped, values = card["clipped_action_values"], card["action_values"]
    logger.info("%d of %d action values (%.3g %%) lie outside the limits", clipped, values, 100 * clipped / values)


if __name__ == "__main__":
    main(sys.argv[1:])
