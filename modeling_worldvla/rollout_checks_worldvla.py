"""What `imagine` asks of its prompts and actions, checked where they come in.

Shapes: B batch, P prompt tokens, n frame-action pairs of the prompt, M actions that follow, D action dims, T tokens of
a pair.
"""

import torch

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


def check_actions(actions: torch.Tensor, batch_size: int, config: WorldVLAConfig) -> torch.Tensor:
    """Check the actions that follow the prompts.

    Args:
        actions (`torch.LongTensor` of shape `(B, M, D)`): action token ids.
        batch_size (`int`): B.
        config (`WorldVLAConfig`): width and range of actions.

    Returns:
        the same as int64.

    Raises:
        ValueError: if shape or range differ.
    """
    actions = torch.as_tensor(actions)
    wanted = (batch_size, config.action_dim)
    if actions.ndim != 3 or (actions.shape[0], actions.shape[2]) != wanted or actions.is_floating_point():
        raise ValueError(
            f"`actions` must be whole numbers of shape (batch, frames, dims) = ({batch_size}, any, "
            f"{config.action_dim}), got {actions.dtype} of shape {tuple(actions.shape)}. Make them with "
            "`processor.encode_actions` and add the batch axis."
        )
    first, end = config.action_token_id_start, config.action_token_id_start + config.num_action_tokens
    outside = (actions < first) | (actions >= end)
    if bool(outside.any()):
        row, place, dim = (int(index) for index in outside.nonzero()[0])
        raise ValueError(
            f"Action token ids must lie in {first} … {end - 1}, got {int(actions[row, place, dim])} in action {place} "
            f"of row {row}. Make them with `processor.encode_actions`."
        )
    return actions.long()


__all__ = ["check_actions", "check_history", "split_world_prompt"]
