"""Keys and values while an answer is decoded: room taken once, and slots written to by number.

Shapes: B batch, G key/value heads, Q new tokens, S slots, E head width.

The longest that prompt and answer can become is known before decoding, so nothing is ever moved or joined: a forward
writes its Q tokens into slots that the decoder names, and what is not wanted any more is simply written over. Which
slots a token may see is the mask's affair.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .configuration_worldvla import WorldVLAConfig


class SlotWindow:
    """Where the next forward writes, and how many slots it reads; shared by the layers of a cache."""

    def __init__(self) -> None:
        self.start = 0
        self.slots: torch.Tensor | None = None  # instead of `start`, where rows differ or shapes are fixed
        self.end: int | None = None


class DecodingLayer(CacheLayerMixin):
    """Keys and values of one layer, each `(B, G, S, E)`.

    Args:
        num_slots (`int`): S.
        window (`SlotWindow`): shared with the other layers.
    """

    is_sliding = False
    is_compileable = True

    def __init__(self, num_slots: int, window: SlotWindow) -> None:
        super().__init__()
        self.num_slots, self.window = num_slots, window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the room; zeros, because what is hidden must still be a number."""
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.num_slots, width)
        self.values = value_states.new_zeros(batch, heads, self.num_slots, width)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `(B, G, Q, E)` where the window says; returns the slots to read, `(B, G, end, E)` each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, window = self.keys, self.values, self.window
        if keys is None or values is None:
            raise ValueError("A cache that was emptied cannot be written to, got no keys. Make a new `DecodingCache`.")
        if window.slots is None:
            written = slice(window.start, window.start + key_states.shape[2])
            keys[:, :, written] = key_states
            values[:, :, written] = value_states
        else:
            rows, slots = torch.arange(len(keys), device=keys.device)[:, None], window.slots.to(keys.device)
            keys[rows, :, slots] = key_states.transpose(1, 2)
            values[rows, :, slots] = value_states.transpose(1, 2)
        return keys[:, :, : window.end], values[:, :, : window.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a forward of `query_length` tokens reads, and the number of the first of them."""
        return self.num_slots if self.window.end is None else self.window.end, 0

    def get_seq_length(self) -> int:
        """Slots before those that are written next; 0 where rows differ, or shapes are fixed."""
        return self.window.start

    def get_max_length(self) -> int:
        """Slots altogether."""
        return self.num_slots


class DecodingCache(Cache):
    """The cache of one call that decodes.

    Args:
        config (`WorldVLAConfig`): for the number of layers.
        num_slots (`int`): S: tokens of the longest prompt and answer.
        fixed_shapes (`bool`): let every forward read all S slots, so that the shapes of a compiled model do not change
            from step to step.
    """

    def __init__(self, config: WorldVLAConfig, num_slots: int, fixed_shapes: bool = False) -> None:
        self.window, self.num_slots, self.fixed_shapes = SlotWindow(), num_slots, fixed_shapes
        super().__init__(layers=[DecodingLayer(num_slots, self.window) for _ in range(config.num_hidden_layers)])

    def seek(self, slots: torch.Tensor, start: int | None, end: int) -> int:
        """Say where the next forward writes.

        Args:
            slots (`torch.LongTensor` of shape `(B, Q)`): the slot of every new token.
            start (`int` or `None`): the first of them, if they stand side by side and are the same in all rows.
            end (`int`): one more than the last slot that may be seen.

        Returns:
            `int`: how many slots the forward reads; the mask must have as many keys.
        """
        in_step = start is not None and not self.fixed_shapes
        self.window.start = (start or 0) if in_step else 0
        self.window.slots = None if in_step else slots
        self.window.end = None if self.fixed_shapes else end
        return self.num_slots if self.fixed_shapes else end


__all__ = ["DecodingCache", "DecodingLayer"]
