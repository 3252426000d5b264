"""What `predict_action_chunk` and `predict_next_frame` ask of a prompt, checked where it comes in.

Shapes: B batch, P prompt tokens.
"""

import difflib
from typing import Literal

import torch

from .configuration_worldvla import WorldVLAConfig
from .masking_worldvla import check_markers

Draft = Literal["last_frame", "jacobi", "none"]
DRAFTS: tuple[Draft, ...] = ("last_frame", "jacobi", "none")
CacheImplementation = Literal["dynamic", "static"]
CACHE_IMPLEMENTATIONS: tuple[CacheImplementation, ...] = ("dynamic", "static")


def check_chunk_size(chunk_size: int | None, config: WorldVLAConfig) -> int:
    """Take the chunk size given, or that of the configuration.

    Args:
        chunk_size (`int` or `None`): actions to predict.
        config (`WorldVLAConfig`): for the default.

    Returns:
        `int`: at least 1.

    Raises:
        ValueError: if it is below 1 or not a whole number.
    """
    if chunk_size is None:
        return config.chunk_size
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(
            f"`chunk_size` must be a whole number of at least 1, got {chunk_size!r}. Leave it out to predict "
            f"{config.chunk_size} actions (`config.chunk_size`)."
        )
    return chunk_size


def check_draft(draft: str) -> None:
    """Refuse a draft that does not exist.

    Args:
        draft (`str`): what was asked for.

    Raises:
        ValueError: if it is none of `DRAFTS`.
    """
    check_choice("draft", draft, DRAFTS)


def check_cache(cache_implementation: str) -> bool:
    """Refuse a cache that does not exist.

    Args:
        cache_implementation (`str`): what was asked for.

    Returns:
        `bool`: whether shapes are to be fixed.

    Raises:
        ValueError: if it is none of `CACHE_IMPLEMENTATIONS`.
    """
    check_choice("cache_implementation", cache_implementation, CACHE_IMPLEMENTATIONS)
    return cache_implementation == "static"


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices, and name the nearest.

    Args:
        name (`str`): what is chosen, for the message.
        value (`str`): what was asked for.
        choices (`tuple[str, ...]`): what there is.

    Raises:
        ValueError: if it is none of them.
    """
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        meant = f" Did you mean `{close[0]}`?" if close else ""
        listed = ", ".join(f"`{choice}`" for choice in choices)
        raise ValueError(f"Unknown {name.replace('_', ' ')} `{value}`. Choose one of: {listed}.{meant}")


def pad_to_multiple(
    input_ids: torch.Tensor, real: torch.Tensor, multiple: int | None, config: WorldVLAConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts on the left until their length is a multiple.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, P)`): checked prompts.
        real (`torch.BoolTensor` of shape `(B, P)`): which tokens are real.
        multiple (`int` or `None`): of what; `None` leaves them as they are.
        config (`WorldVLAConfig`): for the padding token.

    Returns:
        both, padded.

    Raises:
        ValueError: if `multiple` is not a whole number of at least 1.
    """
    if multiple is None:
        return input_ids, real
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(
            f"`pad_to_multiple_of` must be a whole number of at least 1, got {multiple!r}. Leave it out not to pad."
        )
    padding = (-input_ids.shape[1] % multiple, 0)
    pad = torch.nn.functional.pad
    return pad(input_ids, padding, value=config.pad_token_id), pad(real, padding, value=False)


def check_prompt(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    config: WorldVLAConfig,
    next_token_id: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check a batch of prompts and bring it to the model's device.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, P)`): prompts, padded on the left.
        attention_mask (`torch.Tensor` of shape `(B, P)` or `None`): non-zero at real tokens; `None` takes leading
            padding tokens for padding.
        config (`WorldVLAConfig`): token ids.
        next_token_id (`int`): the marker that will follow the prompt.
        device (`torch.device`): where the model is.

    Returns:
        `input_ids` on the device, and a `torch.BoolTensor` of shape `(B, P)`: which tokens are real.

    Raises:
        ValueError: if something is not as said.
    """
    opened = torch.nn.functional.pad(input_ids, (0, 1), value=next_token_id)
    if attention_mask is None:
        real = (input_ids != config.pad_token_id).long().cumsum(dim=-1) > 0
    else:
        real = attention_mask != 0
    if real.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids` {tuple(input_ids.shape)}, got {tuple(real.shape)}. "
            "Use both as the processor returns them."
        )
    check_markers(opened, config, torch.nn.functional.pad(real, (0, 1), value=True))
    if input_ids.numel() == 0:
        raise ValueError(f"A prompt needs at least one token, got {tuple(input_ids.shape)}. Use the processor.")
    outside = (input_ids < 0) | (input_ids >= config.vocab_size)
    if bool(outside.any()):
        row, position = (int(index) for index in outside.nonzero()[0])
        raise ValueError(
            f"Token ids must lie in 0 … {config.vocab_size - 1}, got {int(input_ids[row, position])} at position "
            f"{position} of row {row}. Use the processor that was saved with this model."
        )
    if bool((real[:, :-1] & ~real[:, 1:]).any()) or not bool(real[:, -1].all()):
        raise ValueError(
            "Prompts must be padded on the left, got padding after real tokens. Use the processor, or a tokenizer "
            "with `padding_side='left'`."
        )
    ending = input_ids[:, -1] != config.sep_token_id
    if bool(ending.any()):
        row = int(ending.nonzero()[0])
        raise ValueError(
            f"A prompt must end in the separator (`sep_token_id` {config.sep_token_id}), but row {row} ends in "
            f"{int(input_ids[row, -1])}. Build prompts with the processor."
        )
    return input_ids.to(device), real.to(device)


def count_positions(real: torch.Tensor) -> torch.Tensor:
    """Number the real tokens of every row, so that left padding does not move them.

    Args:
        real (`torch.BoolTensor` of shape `(B, P)`): which tokens are real.

    Returns:
        `torch.LongTensor` of shape `(B, P)`: positions; 0 for padding before the first token.
    """
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)


def check_length(real: torch.Tensor, num_new_tokens: int, config: WorldVLAConfig) -> None:
    """Refuse prompts that leave no room for the answer.

    Args:
        real (`torch.BoolTensor` of shape `(B, P)`): which prompt tokens are real.
        num_new_tokens (`int`): tokens of the answer.
        config (`WorldVLAConfig`): for `max_position_embeddings`.

    Raises:
        ValueError: if prompt and answer together have more tokens than the model has positions.
    """
    longest = int(real.sum(dim=1).max())
    if longest + num_new_tokens > config.max_position_embeddings:
        raise ValueError(
            f"Prompt and answer may have at most {config.max_position_embeddings} tokens together "
            f"(`max_position_embeddings`), got {longest} + {num_new_tokens}. Use fewer or smaller images, a shorter "
            "instruction or a smaller chunk."
        )


def last_image_blocks(
    input_ids: torch.Tensor, real: torch.Tensor, config: WorldVLAConfig
) -> tuple[torch.Tensor, int, int]:
    """Read the last image of every prompt; all must have one size.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, P)`): checked prompts.
        real (`torch.BoolTensor` of shape `(B, P)`): which tokens are real.
        config (`WorldVLAConfig`): token ids.

    Returns:
        the image blocks without their end, `torch.LongTensor` of shape `(B, 3 + h * (w + 1))`, and height and width in
        codes.

    Raises:
        ValueError: if a prompt holds no image, its last image is not laid out as its size says, or sizes differ.
    """
    images = _last_images(input_ids, real, config)
    sizes = [size for _, size in images]
    if len(set(sizes)) > 1:
        raise ValueError(
            "The last images of a batch must have one size, got (height x width in codes) "
            f"{', '.join(f'{height} x {width}' for height, width in sizes)}. Call once per size."
        )
    return input_ids.new_tensor([block for block, _ in images]), *sizes[0]


def last_image_sizes(input_ids: torch.Tensor, real: torch.Tensor, config: WorldVLAConfig) -> list[tuple[int, int]]:
    """Read the size of the last image of every prompt.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, P)`): checked prompts.
        real (`torch.BoolTensor` of shape `(B, P)`): which tokens are real.
        config (`WorldVLAConfig`): token ids.

    Returns:
        `list` of B pairs: height and width in codes.

    Raises:
        ValueError: if a prompt holds no image, or its last image is not laid out as its size says.
    """
    return [size for _, size in _last_images(input_ids, real, config)]


def _last_images(
    input_ids: torch.Tensor, real: torch.Tensor, config: WorldVLAConfig
) -> list[tuple[list[int], tuple[int, int]]]:
    """The last image block of every prompt, without its end, and its size."""
    return [_last_image_of_row(row, tokens[real[row]].tolist(), config) for row, tokens in enumerate(input_ids)]


def _last_image_of_row(row: int, tokens: list[int], config: WorldVLAConfig) -> tuple[list[int], tuple[int, int]]:
    """Find the last image block of one prompt and check its layout; returns it without its end, and its size."""
    begin = len(tokens) - 1 - tokens[::-1].index(config.boi_token_id) if config.boi_token_id in tokens else None
    if begin is None:
        raise ValueError(
            f"The next frame takes its size from the last image of the prompt, but row {row} holds no image "
            f"(`boi_token_id` {config.boi_token_id}). Give the processor at least one image."
        )
    end = tokens.index(config.eoi_token_id, begin)
    grid = [token - config.grid_token_id_start for token in tokens[begin + 1 : begin + 3]]
    height, width = (size * config.codes_per_grid_unit for size in grid) if len(grid) == 2 else (0, 0)
    if min(height, width) < 1 or end != begin + 3 + height * (width + 1):
        raise ValueError(
            f"An image block must be begin, two grid sizes, rows of codes and end, but the one at real token {begin} "
            f"of row {row} has grid sizes {grid} and {end - begin + 1} tokens. Build prompts with the processor."
        )
    return tokens[begin:end], (height, width)


__all__ = [
    "CACHE_IMPLEMENTATIONS",
    "CacheImplementation",
    "DRAFTS",
    "Draft",
    "check_cache",
    "check_choice",
    "check_chunk_size",
    "check_draft",
    "check_length",
    "check_prompt",
    "count_positions",
    "last_image_blocks",
    "last_image_sizes",
    "pad_to_multiple",
]
