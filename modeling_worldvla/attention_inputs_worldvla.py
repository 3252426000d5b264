"""What all layers attend with: the one mask of a forward, and the positions of its tokens.

Shapes: B batch, L new tokens, S cached and new tokens, H hidden size, N query heads.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from .configuration_worldvla import WorldVLAConfig
from .masking_worldvla import combine_masks, compute_action_block_ids, number_samples, sample_starts, to_additive


def check_length(length: int, past_key_values: Cache | None, config: WorldVLAConfig) -> None:
    """Refuse more tokens than the model has positions.

    Args:
        length (`int`): new tokens.
        past_key_values (`Cache` or `None`): the tokens before them.
        config (`WorldVLAConfig`): for `max_position_embeddings`.

    Raises:
        ValueError: if there are too many; where it would have to wait for the device, only the new ones are counted.
    """
    total = length + _known_length(past_key_values)
    if total > config.max_position_embeddings:
        raise ValueError(
            f"A sequence may have at most {config.max_position_embeddings} tokens (`max_position_embeddings`), got "
            f"{total}. Use fewer or smaller images, or a shorter instruction."
        )


def default_position_ids(
    length: int,
    device: torch.device,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    sequence_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Count positions over the real tokens of each sample, so that padding and packing do not move them.

    Args:
        length (`int`): L.
        device (`torch.device`): of the tokens.
        attention_mask (`torch.Tensor` or `None`): as in `WorldVLAModel.forward`.
        past_key_values (`Cache` or `None`): as in `WorldVLAModel.forward`.
        sequence_ids (`torch.LongTensor` of shape `(B, S)` or `None`): as in `WorldVLAModel.forward`.

    Returns:
        `torch.LongTensor` of shape `(B, L)`, or `(1, L)` where all rows agree.
    """
    if sequence_ids is not None:
        starts = sample_starts(number_samples(sequence_ids.to(device)))
        return (torch.arange(starts.shape[1], device=device) - starts)[:, -length:]
    if attention_mask is not None and attention_mask.ndim == 2:
        counted = (attention_mask.to(device) != 0).long().cumsum(dim=1) - 1
        return counted.clamp(min=0)[:, -length:]
    past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
    return (torch.arange(length, device=device) + past_length)[None]


def prepare_mask(
    config: WorldVLAConfig,
    hidden_states: torch.Tensor,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    action_block_ids: torch.Tensor | None,
    sequence_ids: torch.Tensor | None,
) -> Any:
    """Build the one mask that all layers use, in the form that the attention implementation wants.

    Args:
        config (`WorldVLAConfig`): marker ids, and the attention implementation.
        hidden_states (`torch.FloatTensor` of shape `(B, L, H)`): for dtype, device and L.
        input_ids (`torch.LongTensor` of shape `(B, L)` or `None`): new tokens.
        attention_mask (`torch.Tensor` or `None`): padding `(B, S)`, or a finished mask of four axes.
        past_key_values (`Cache` or `None`): the tokens before them.
        action_block_ids (`torch.LongTensor` of shape `(B, S)` or `None`): by default computed from `input_ids`.
        sequence_ids (`torch.LongTensor` of shape `(B, S)` or `None`): samples of packed rows.

    Returns:
        additive `torch.FloatTensor` of shape `(B or 1, 1, L, S)`, `None` (plainly causal) or a `BlockMask` (flex).

    Raises:
        ValueError: if a mask has the wrong form or length, the cache is full, or the action rule cannot be derived.
    """
    finished = attention_mask is not None and attention_mask.ndim == 4
    if config._attn_implementation == "flex_attention" and hidden_states.device.type == "cpu":
        _check_flex_on_cpu(finished, past_key_values)
    if attention_mask is not None and finished:
        return _checked_finished_mask(attention_mask, hidden_states.dtype)
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            "`attention_mask` must have two axes (padding) or four (finished), got shape "
            f"{tuple(attention_mask.shape)}. Give a mask of `build_action_attention_mask` as `mask[:, None]`."
        )
    length, device = hidden_states.shape[1], hidden_states.device
    offset, key_length = 0, length
    if past_key_values is not None:
        offset, key_length = past_key_values.get_seq_length(), past_key_values.get_mask_sizes(length, 0)[0]
        _check_room(length + _known_length(past_key_values), key_length)
    block_ids = _block_ids(config, input_ids, past_key_values, action_block_ids, sequence_ids)
    total = None if torch.is_tensor(offset) else offset + length
    named = (("attention_mask", attention_mask), ("action_block_ids", block_ids), ("sequence_ids", sequence_ids))
    for name, given in named:
        _check_width(name, given, total, key_length)
    if config._attn_implementation == "flex_attention":
        ids = (block_ids, None if sequence_ids is None else number_samples(sequence_ids.to(device)))
        return _flex_mask(config, hidden_states, attention_mask, past_key_values, key_length, *ids)
    is_causal = block_ids is None and attention_mask is None and sequence_ids is None and key_length == length
    if is_causal and config._attn_implementation == "sdpa":
        return None
    mask = combine_masks(block_ids, attention_mask, length, key_length, offset, device, sequence_ids)
    return to_additive(mask[:, None], hidden_states.dtype)


def _check_flex_on_cpu(finished_mask: bool, past_key_values: Cache | None) -> None:
    """Refuse what PyTorch's flex attention ends the process with on a CPU."""
    if finished_mask or (past_key_values is not None and _may_be_filled(past_key_values)):
        raise ValueError(
            "Flex attention runs whole sequences on a CPU; cached steps (all of decoding) and masks of four axes "
            "crash in it there. Call `model.set_attn_implementation('sdpa')`, or move the model to a GPU."
        )


def _known_length(past_key_values: Cache | None) -> int:
    """Tokens in a cache; 0 where counting them would break a graph or wait for the device."""
    length = past_key_values.get_seq_length() if past_key_values is not None else 0
    if not torch.is_tensor(length):
        return length
    return 0 if torch.compiler.is_compiling() or length.device.type != "cpu" else int(length)


def _checked_finished_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Take a mask of four axes as it is, in the dtype of the scores."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            "An `attention_mask` of four axes must be boolean (True = may attend) or floats that are added to the "
            f"scores, got {mask.dtype}. Call `.bool()` on a mask of zeros and ones."
        )
    return to_additive(mask, dtype).to(dtype)


def _check_room(total: int, key_length: int) -> None:
    """Refuse tokens that a static cache has no room for."""
    if total > key_length:
        raise ValueError(
            f"The cache has room for {key_length} tokens, got {total} with the cached ones. Make it with a larger "
            "`max_cache_len`, or take a `DynamicCache`."
        )


def _check_width(name: str, given: torch.Tensor | None, total: int | None, key_length: int) -> None:
    """Refuse what does not say something of every token, cached and new."""
    if given is None or (total or 0) <= given.shape[1] <= key_length:
        return
    raise ValueError(
        f"`{name}` must cover all tokens, cached and new: {key_length if total is None else total} of them, got shape "
        f"{tuple(given.shape)}. Keep what was given for the cached tokens and append that of the new ones."
    )


def _block_ids(
    config: WorldVLAConfig,
    input_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    action_block_ids: torch.Tensor | None,
    sequence_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """Take, derive or refuse to guess the action block ids of all keys."""
    if not config.use_action_attention_mask:
        return None
    if action_block_ids is not None:
        return action_block_ids
    if past_key_values is not None and _may_be_filled(past_key_values):
        raise ValueError(
            "The action attention mask needs to know which cached tokens are actions, but got a filled cache without "
            "`action_block_ids`. Pass `compute_action_block_ids(all_ids, config)` of all tokens, cached and new, or a "
            "mask of four axes."
        )
    if input_ids is None:
        raise ValueError(
            "The action attention mask is derived from token ids, but got `inputs_embeds` without `action_block_ids`. "
            "Pass them, or a mask of four axes."
        )
    return compute_action_block_ids(
        input_ids, config, None if sequence_ids is None else sequence_ids.to(input_ids.device)
    )


def _may_be_filled(past_key_values: Cache) -> bool:
    """Whether a cache holds tokens; a static one in a compiled graph may."""
    length = past_key_values.get_seq_length()
    if torch.is_tensor(length) and torch.compiler.is_compiling():
        return True
    return bool(length > 0)


def _flex_mask(
    config: WorldVLAConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    key_length: int,
    block_ids: torch.Tensor | None,
    samples: torch.Tensor | None,
) -> Any:
    """Let transformers build flex attention's mask, with action rule, packed samples and padding."""
    device = hidden_states.device
    width = (len(hidden_states), key_length)
    blocks = torch.zeros(width, dtype=torch.long, device=device)
    if block_ids is not None:
        blocks[:, : block_ids.shape[1]] = block_ids.to(device)
    parts = torch.full(width, -1, device=device)
    parts[:, : key_length if samples is None else samples.shape[1]] = 0 if samples is None else samples
    real = torch.ones(width, dtype=torch.bool, device=device)
    if attention_mask is not None:
        real[:, : attention_mask.shape[1]] = attention_mask.to(device) != 0

    def rule(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
        query_id, key_id = blocks[batch_idx, q_idx], blocks[batch_idx, kv_idx]
        seen = (key_id == query_id) | (key_id == 0) | (query_id <= 0)
        seen = seen & (parts[batch_idx, q_idx] == parts[batch_idx, kv_idx])
        return seen & (real[batch_idx, kv_idx] | (q_idx == kv_idx))

    return create_causal_mask(
        config=config,
        inputs_embeds=hidden_states,
        attention_mask=None,  # padding is part of the rule: transformers would look at the values, and break a graph
        past_key_values=past_key_values,
        and_mask_function=rule,
    )


__all__ = ["check_length", "default_position_ids", "prepare_mask"]
