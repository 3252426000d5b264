"""Lists of token ids to right-padded tensors.

Shapes: `B` samples, `L` tokens of the longest sample.
"""

from collections.abc import Sequence

import torch

from modeling_worldvla.loss_worldvla import IGNORED_LABEL


class WorldVLACollator:
    """Pads training samples of both roles to one length.

    Args:
        pad_token_id (`int`): id that fills `input_ids`.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Pad and stack.

        Args:
            samples (`Sequence[dict]`): each with `input_ids` and `labels` of one length.

        Returns:
            `dict`: `input_ids`, `labels` (−100 where nothing is learned) and `attention_mask`, LongTensors `(B, L)`.
        """
        length = max(len(sample["input_ids"]) for sample in samples)
        input_ids = torch.full((len(samples), length), self.pad_token_id, dtype=torch.long)
        labels = torch.full((len(samples), length), IGNORED_LABEL, dtype=torch.long)
        attention_mask = torch.zeros((len(samples), length), dtype=torch.long)
        for row, sample in enumerate(samples):
            count = len(sample["input_ids"])
            input_ids[row, :count] = torch.as_tensor(sample["input_ids"])
            labels[row, :count] = torch.as_tensor(sample["labels"])
            attention_mask[row, :count] = 1
        return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
