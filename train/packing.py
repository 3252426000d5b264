"""Batches without padding: the samples of a micro-batch share rows, and do not see each other.

Packing changes which tokens lie side by side and nothing else: a micro-batch holds the same samples as without it, in
whatever number of rows they fill, and the loss is normalised over the samples of the step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from modeling_worldvla import pack_samples
from modeling_worldvla.loss_worldvla import IGNORED_LABEL
from train.collation import WorldVLACollator


class PackingCollator:
    """Packs training samples of both roles into rows of one length.

    Args:
        config (`WorldVLAConfig`): for the padding, and to find the action blocks.
        packed_length (`int`): most tokens of a row. Rows are as short as their number allows: eight samples of 620
            tokens take two rows of 2480, not one of 4096 and a rest.

    References:
        `pack_samples`; docs/model.md#packed-rows.
    """

    def __init__(self, config: Any, packed_length: int) -> None:
        self.config = config
        self.packed_length = packed_length

    def __call__(self, samples: Sequence[dict[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Pack.

        Args:
            samples (`Sequence[dict]`): each with `input_ids` and `labels` of one length.

        Returns:
            `dict` of LongTensors `(B, L)`: `input_ids`, `labels`, `sequence_ids`, `position_ids`, `action_block_ids`.

        Raises:
            ValueError: if a sample is longer than a row.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        if max(lengths) > self.packed_length:
            raise ValueError(
                f"A sample has {max(lengths)} tokens, more than a packed row of {self.packed_length}. Raise "
                f"`--packed_length` to {max(lengths)} or more."
            )
        return pack_samples(samples, shortest_rows(lengths, self.packed_length), self.config)


def shortest_rows(lengths: Sequence[int], most: int) -> int:
    """Find the shortest rows that hold samples in no more rows than the longest allowed ones.

    Args:
        lengths (`Sequence[int]`): tokens of each sample, none above `most`.
        most (`int`): tokens of the longest allowed row.

    Returns:
        `int`: tokens of a row.
    """
    fewest, short, long = _count_rows(lengths, most), max(lengths), min(most, sum(lengths))
    while short < long:
        middle = (short + long) // 2
        if _count_rows(lengths, middle) <= fewest:
            long = middle
        else:
            short = middle + 1
    return long


def _count_rows(lengths: Sequence[int], row_length: int) -> int:
    """Rows that samples take, longest first, each in the first row with room, as `pack_samples` fills them."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        row = next((row for row, left in enumerate(room) if left >= length), None)
        if row is None:
            room.append(row_length - length)
        else:
            room[row] -= length
    return len(room)


def choose_collator(arguments: Any, config: Any) -> "PackingCollator | WorldVLACollator":
    """Pick how samples become batches.

    Args:
        arguments (`DataArguments`): `packing` and `packed_length`.
        config (`WorldVLAConfig`): token ids.

    Returns:
        a collator: with padding, or packing.
    """
    if arguments.packing:
        return PackingCollator(config, arguments.packed_length)
    return WorldVLACollator(config.pad_token_id)


class BlankPaddedDataset(Dataset):
    """A data set with samples at its end that nothing is learned from, so that its length divides evenly.

    Without them, several processes would fill their last batch with samples that were there already, and an evaluation
    would count those twice.

    Args:
        dataset (`Dataset`): of samples with `input_ids` and `labels`.
        multiple (`int`): what the length is rounded up to a multiple of.
        pad_token_id (`int`): the one token of a blank sample.
    """

    def __init__(self, dataset: Any, multiple: int, pad_token_id: int) -> None:
        self.dataset = dataset
        self.blank = {"input_ids": [pad_token_id], "labels": [IGNORED_LABEL]}
        self.length = -(-len(dataset) // multiple) * multiple

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give a sample, or a blank one."""
        return self.dataset[index] if index < len(self.dataset) else dict(self.blank)
