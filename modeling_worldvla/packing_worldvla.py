"""Packing: several samples in one row, that do not see each other.

Shapes: B rows, L tokens of a row.
"""

from collections.abc import Mapping, Sequence

import torch

from .configuration_worldvla import WorldVLAConfig
from .loss_worldvla import IGNORED_LABEL
from .masking_worldvla import compute_action_block_ids, number_samples, sample_starts


def pack_samples(
    samples: Sequence[Mapping[str, Sequence[int]]], length: int, config: WorldVLAConfig
) -> dict[str, torch.Tensor]:
    """Fill rows with samples of both roles, longest first, each into the first row that has room for it.

    Args:
        samples (`Sequence[Mapping]`): each with `input_ids` and, unless there is no loss, `labels` of one length.
        length (`int`): L, most tokens of a row.
        config (`WorldVLAConfig`): for `pad_token_id`, and to find the action blocks.

    Returns:
        `dict` of LongTensors `(B, L)` for `forward`: `input_ids`, `labels` (-100 in padding; absent where no sample
        has them), `sequence_ids` (1, 2, … within a row, 0 in the padding at its end), `position_ids` (from 0 in
        each sample) and `action_block_ids`.

    Raises:
        ValueError: if there is no sample, one is longer than a row, or ids and labels differ in length.
    """
    with_labels = any("labels" in sample for sample in samples)
    rows = _assign(samples, length)
    shape = (len(rows), length)
    packed = {"input_ids": torch.full(shape, config.pad_token_id)}
    if with_labels:
        packed["labels"] = torch.full(shape, IGNORED_LABEL)
    packed["sequence_ids"] = torch.zeros(shape, dtype=torch.long)
    for row, members in enumerate(rows):
        start = 0
        for place, index in enumerate(members, start=1):
            part = slice(start, start + len(samples[index]["input_ids"]))
            packed["input_ids"][row, part] = torch.as_tensor(samples[index]["input_ids"])
            packed["sequence_ids"][row, part] = place
            if "labels" in samples[index]:
                packed["labels"][row, part] = torch.as_tensor(samples[index]["labels"])
            start = part.stop
    starts = sample_starts(number_samples(packed["sequence_ids"]))
    packed["position_ids"] = torch.arange(length) - starts
    packed["action_block_ids"] = compute_action_block_ids(packed["input_ids"], config, packed["sequence_ids"])
    return packed


def _assign(samples: Sequence[Mapping[str, Sequence[int]]], length: int) -> list[list[int]]:
    """Say which samples go into which row."""
    if not samples:
        raise ValueError("Nothing to pack: got no sample. Give at least one.")
    lengths = [len(sample["input_ids"]) for sample in samples]
    for index, sample in enumerate(samples):
        if not 1 <= lengths[index] <= length:
            raise ValueError(
                f"A sample must have 1 … {length} tokens to fit into a row, but sample {index} has {lengths[index]}. "
                "Leave it out, or give a larger `length`."
            )
        if len(sample.get("labels", sample["input_ids"])) != lengths[index]:
            raise ValueError(
                f"`labels` must have one entry per token, but sample {index} has {lengths[index]} tokens and "
                f"{len(sample['labels'])} labels. Give {IGNORED_LABEL} where there is no loss."
            )
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(samples)), key=lambda index: -lengths[index]):
        row = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


__all__ = ["pack_samples"]
