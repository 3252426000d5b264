"""Prompts of rollouts: checked where they come in, taken apart, and put together again.

Shapes: B batch, P prompt tokens, n frame-action pairs of the prompt, M actions that follow, D action dims, T tokens of
a pair.
"""

import torch
from torch.nn.functional import pad

from .configuration_worldvla import WorldVLAConfig


def split_world_prompt(
    input_ids: torch.Tensor, real: torch.Tensor, image_length: int, config: WorldVLAConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split world-model prompts into what precedes the first frame, and pairs of a frame and its action.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, P)`): checked prompts.
        real (`torch.BoolTensor` of shape `(B, P)`): which tokens are real.
        image_length (`int`): tokens of the last image of every prompt.
        config (`WorldVLAConfig`): token ids.

    Returns:
        `tuple`: the tokens before the first frame, padding included, `(B, P - n * T - 1)`, and the pairs
        `(B, n, T)`.

    Raises:
        ValueError: if a prompt is laid out in another way, or rows show different numbers of frames.
    """
    counts = ((input_ids == config.boi_token_id) & real).sum(dim=1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"The prompts of a rollout must show equally many frames, got {', '.join(map(str, counts))}. Call once "
            "per number of frames."
        )
    pair_length = image_length + config.action_block_length
    bar = input_ids.shape[1] - 1 - counts[0] * pair_length
    markers = {0: config.boi_token_id, image_length - 1: config.eoi_token_id}
    markers |= {image_length: config.boa_token_id, pair_length - 1: config.eoa_token_id}
    fits = bar >= 0
    if fits:
        head, pairs = input_ids[:, :bar], input_ids[:, bar:-1].unflatten(1, (counts[0], pair_length))
        actions = pairs[:, :, image_length + 1 : -1] - config.action_token_id_start
        fits = all(bool((pairs[:, :, place] == token_id).all()) for place, token_id in markers.items())
        fits = fits and bool(((actions >= 0) & (actions < config.num_action_tokens)).all())
        fits = fits and bool((pairs[:, :, 1:3] == pairs[:, -1:, 1:3]).all())
        fits = fits and not bool(((head == config.boa_token_id) & real[:, :bar]).any())
    if not fits:
        raise ValueError(
            "A rollout goes on from frames of one size, each followed by one action of "
            f"{config.action_dim} bins, but the prompts of shape {tuple(input_ids.shape)} are laid out in another "
            'way. Build them with `processor(images=frames, actions=actions, role="world_model")`.'
        )
    return head, pairs


def check_history(history: int | None, num_pairs: int, config: WorldVLAConfig) -> int:
    """Take the history given, or that of the configuration.

    Args:
        history (`int` or `None`): most pairs that a prompt shows.
        num_pairs (`int`): those that the first prompt shows.
        config (`WorldVLAConfig`): for the default.

    Returns:
        `int`: at least `num_pairs`.

    Raises:
        ValueError: if it is no whole number, or the first prompt shows more.
    """
    if history is None:
        history = config.world_model_history
    if isinstance(history, bool) or not isinstance(history, int) or history < 1:
        raise ValueError(
            f"`history` must be a whole number of at least 1, got {history!r}. Leave it out to show "
            f"{config.world_model_history} (`config.world_model_history`)."
        )
    if num_pairs > history:
        raise ValueError(
            f"Prompts may show at most `history` = {history} frames, got {num_pairs}. Show the last {history} frames "
            f"only, or pass `history={num_pairs}`."
        )
    return history


def check_ids(ids: torch.Tensor, what: str, shape: tuple[int | None, ...], first: int, count: int) -> torch.Tensor:
    """Check token ids of one range.

    Args:
        ids (`torch.LongTensor`): token ids.
        what (`str`): name of the argument, for the message.
        shape (`tuple` of `int` or `None`): what their shape must be; `None` where any length will do.
        first (`int`): first id of the range.
        count (`int`): ids of the range.

    Returns:
        the same as int64.

    Raises:
        ValueError: if shape or range differ.
    """
    ids = torch.as_tensor(ids)
    fits = ids.ndim == len(shape) and all(side in (None, size) for side, size in zip(shape, ids.shape, strict=True))
    if not fits or ids.is_floating_point():
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(
            f"`{what}` must be whole numbers of shape ({wanted}), got {ids.dtype} of shape {tuple(ids.shape)}. Make "
            "them with the processor, and add the batch axis."
        )
    outside = (ids < first) | (ids >= first + count)
    if bool(outside.any()):
        place = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"`{what}` must lie in {first} … {first + count - 1}, got {int(ids[place])} at {place}. Make them with "
            "the processor that was saved with this model."
        )
    return ids.long()


def write_pair(
    opening: torch.Tensor, image_ids: torch.Tensor, action_ids: torch.Tensor, config: WorldVLAConfig
) -> torch.Tensor:
    """Write frames and the actions that follow them as tokens.

    Args:
        opening (`torch.LongTensor` of shape `(B, 3)`): begin and size of the frames.
        image_ids (`torch.LongTensor` of shape `(B, h, w)`): image token ids.
        action_ids (`torch.LongTensor` of shape `(B, D)`): action token ids.
        config (`WorldVLAConfig`): the markers.

    Returns:
        `torch.LongTensor` of shape `(B, T)`.
    """
    rows = pad(image_ids, (0, 1), value=config.eol_token_id).flatten(1)
    block = pad(torch.cat([opening, rows], dim=1), (0, 1), value=config.eoi_token_id)
    action = pad(pad(action_ids, (1, 0), value=config.boa_token_id), (0, 1), value=config.eoa_token_id)
    return torch.cat([block, action], dim=1)


__all__ = ["check_history", "check_ids", "split_world_prompt", "write_pair"]
