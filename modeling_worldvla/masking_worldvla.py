"""The action attention mask: pure functions on token ids.

Shapes: B batch, L tokens, Q query tokens, S key tokens (cached and new).

Every token gets an action block id: 0 outside of actions, +m inside the m-th action block when it begins after the
last image, -m when an image still follows. Query q may see key k when k is not later than q and one of these holds:
q's id is not positive, k's id is 0, both ids are equal. See docs/attention_mask.md for a picture.
"""

import torch

from .configuration_worldvla import WorldVLAConfig

# Which marker may follow which, without anything of the same kind between them. Rows: the marker itself; columns: the
# marker before it. Order: no marker, begin of image, end of image, begin of action, end of action. An end of image
# that closes nothing is read as an ordinary token: it cannot change which block a token belongs to.
_MAY_FOLLOW = (
    (True, True, True, True, True),
    (True, False, True, False, True),
    (True, True, True, False, True),
    (True, False, True, False, True),
    (False, False, False, True, False),
)


def compute_action_block_ids(
    input_ids: torch.Tensor, config: WorldVLAConfig, sequence_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Say of every token which action block it belongs to, without leaving the device.

    A block runs from its begin to its end marker, both inside; an unclosed block or image runs to the end of its
    sample. Blocks are numbered through the row.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, L)`): token ids.
        config (`WorldVLAConfig`): the marker ids.
        sequence_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): which sample of a packed row a token belongs
            to, see `number_samples`; by default a row is one sample.

    Returns:
        `torch.LongTensor` of shape `(B, L)`: 0, +m or -m as said at the top of this file.

    References:
        WorldVLA (arXiv 2506.21539) section 3.3, figure 4.
    """
    length = input_ids.shape[1]
    positions = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    samples = None if sequence_ids is None else number_samples(sequence_ids)
    begins = input_ids == config.boa_token_id
    last_begin = torch.where(begins, positions, -1).cummax(dim=1).values
    last_end = torch.where(input_ids == config.eoa_token_id, positions, -1).cummax(dim=1).values
    ended_before = torch.cat([torch.full_like(last_end[:, :1], -1), last_end[:, :-1]], dim=1)
    inside = last_begin > ended_before
    if samples is not None:
        inside = inside & (last_begin >= sample_starts(samples))

    last_image = _extreme(torch.where(input_ids == config.boi_token_id, positions, -1), samples, "amax")
    closes_it = (input_ids == config.eoi_token_id) & (positions > last_image)
    image_end = _extreme(torch.where(closes_it, positions, length), samples, "amin")
    image_end = torch.where(last_image >= 0, image_end, -1)

    sign = torch.where(last_begin > image_end, 1, -1)
    return begins.cumsum(dim=1) * inside * sign


def number_samples(sequence_ids: torch.Tensor) -> torch.Tensor:
    """Number the samples of packed rows: a sample is a run of equal ids.

    Args:
        sequence_ids (`torch.LongTensor` of shape `(B, L)`): any numbers; neighbours with equal numbers belong to one
            sample.

    Returns:
        `torch.LongTensor` of shape `(B, L)`: 0 in the first sample of a row, 1 in the second, and so on.
    """
    changes = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return torch.nn.functional.pad(changes.cumsum(dim=1), (1, 0))


def sample_starts(samples: torch.Tensor) -> torch.Tensor:
    """Say of every token where its sample begins.

    Args:
        samples (`torch.LongTensor` of shape `(B, L)`): from `number_samples`.

    Returns:
        `torch.LongTensor` of shape `(B, L)`: index of the first token of the sample.
    """
    positions = torch.arange(samples.shape[1], device=samples.device).expand_as(samples)
    begins = torch.nn.functional.pad(samples[:, 1:] != samples[:, :-1], (1, 0))
    return torch.where(begins, positions, 0).cummax(dim=1).values


def _extreme(values: torch.Tensor, samples: torch.Tensor | None, reduce: str) -> torch.Tensor:
    """Largest or smallest value of each token's sample: `(B, L)`, or `(B, 1)` where a row is one sample."""
    if samples is None:
        return getattr(values, reduce)(dim=1, keepdim=True)
    found = torch.zeros_like(values).scatter_reduce(1, samples, values, reduce, include_self=False)
    return found.gather(1, samples)


def combine_masks(
    block_ids: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    query_length: int,
    key_length: int,
    query_offset: int | torch.Tensor,
    device: torch.device,
    sequence_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Join the causal order, the action rule, the padding and the samples of packed rows into one boolean mask.

    Args:
        block_ids (`torch.LongTensor` of shape `(B, S')` or `None`): action block ids of the first S' keys, cached ones
            included; `None` leaves the action rule out.
        padding_mask (`torch.Tensor` of shape `(B, S')` or `None`): non-zero at real tokens.
        query_length (`int`): Q.
        key_length (`int`): S; keys past S' (the unused end of a static cache) count as real, outside of actions, and
            in a sample of their own.
        query_offset (`int` or 0-dim `torch.LongTensor`): index of the first query among the keys.
        device (`torch.device`): where to build it.
        sequence_ids (`torch.LongTensor` of shape `(B, S')`, *optional*): which sample of a packed row a token belongs
            to; tokens of different samples do not see each other.

    Returns:
        `torch.BoolTensor` of shape `(B, Q, S)`, or `(1, Q, S)` when neither ids nor padding are given: True = may
        attend. Every token may see itself, padding too, so that no row is empty.
    """
    # Each pass over (B, Q, S) counts: ids and positions are compared as int32, and the results joined in place.
    keys = torch.arange(key_length, device=device, dtype=torch.int32)
    queries = torch.arange(query_length, device=device) + query_offset
    visible_from = keys[None]
    if padding_mask is not None:
        real = _fit(padding_mask.to(device=device) != 0, key_length, value=True)
        visible_from = torch.where(real, visible_from, torch.iinfo(torch.int32).max)
    mask = visible_from[:, None, :] <= queries.to(torch.int32)[None, :, None]
    if block_ids is not None:
        key_ids = _fit(block_ids.to(device=device, dtype=torch.int32), key_length, value=0)
        query_ids = key_ids.index_select(1, queries).clamp(min=0)
        rule = key_ids[:, None, :] == query_ids[:, :, None]
        rule |= (key_ids == 0)[:, None, :]
        rule |= (query_ids == 0)[:, :, None]
        mask = _both(mask, rule)
    if sequence_ids is not None:
        samples = _fit(number_samples(sequence_ids.to(device)).to(torch.int32), key_length, value=-1)
        same = samples.index_select(1, queries)[:, :, None] == samples[:, None, :]
        mask = _both(mask, same)
    if padding_mask is not None:
        mask.scatter_(2, queries[None, :, None].expand(len(mask), -1, -1), True)
    return mask


def to_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a boolean mask into one that is added to the scores; leave a float one as it is.

    Args:
        mask (`torch.Tensor` of any shape): True = may attend, or floats.
        dtype (`torch.dtype`): of the result.

    Returns:
        `torch.FloatTensor` of the same shape: 0 or minus infinity.
    """
    if mask.dtype != torch.bool:
        return mask
    seen = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, seen, torch.full_like(seen, float("-inf")))


def _both(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Join two masks of `(B or 1, Q, S)` in the memory of one of them."""
    return first.logical_and_(second) if len(first) >= len(second) else second.logical_and_(first)


def _fit(tensor: torch.Tensor, length: int, value: float) -> torch.Tensor:
    """Lengthen `(B, S')` to `(B, S)` with a constant."""
    missing = length - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, missing), value=value) if missing > 0 else tensor


def build_action_attention_mask(
    input_ids: torch.Tensor, config: WorldVLAConfig, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Build the action attention mask of whole sequences, after checking that their markers make sense.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, L)`): token ids.
        config (`WorldVLAConfig`): the marker ids.
        attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): non-zero at real tokens. Padding is seen by no
            other token and sees only itself.

    Returns:
        `torch.BoolTensor` of shape `(B, L, L)`: True = query (second axis) may attend to key (third axis). Pass
        `mask[:, None]` to `forward` to use it there.

    Raises:
        ValueError: if the markers of a row are malformed; the message names row, position and reason.

    References:
        WorldVLA (arXiv 2506.21539) section 3.3; docs/attention_mask.md.
    """
    check_markers(input_ids, config, attention_mask)
    block_ids = compute_action_block_ids(input_ids, config)
    length = input_ids.shape[1]
    return combine_masks(block_ids, attention_mask, length, length, 0, input_ids.device)


def check_markers(input_ids: torch.Tensor, config: WorldVLAConfig, attention_mask: torch.Tensor | None = None) -> None:
    """Refuse sequences whose image and action markers do not pair up.

    A block that is still open at the end of a row is fine (a sequence cut short). An end of image without an open
    image is read as an ordinary token.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, L)`): token ids.
        config (`WorldVLAConfig`): the marker ids.
        attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): non-zero at real tokens; the rest is not read.

    Raises:
        ValueError: if `input_ids` is not `(B, L)` whole numbers, or a marker is out of place.
    """
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(
            f"`input_ids` must be whole numbers of shape (batch, tokens), got {input_ids.dtype} of shape "
            f"{tuple(input_ids.shape)}. Add the batch axis with `input_ids[None]`."
        )
    kind = torch.zeros_like(input_ids)
    markers = (config.boi_token_id, config.eoi_token_id, config.boa_token_id, config.eoa_token_id)
    for number, token_id in enumerate(markers, start=1):
        kind = torch.where(input_ids == token_id, number, kind)
    if attention_mask is not None:
        kind = kind * (attention_mask != 0)
    positions = torch.arange(kind.shape[1], device=kind.device).expand_as(kind)
    marked = torch.where(kind > 0, positions, -1).cummax(dim=1).values
    before = torch.cat([torch.full_like(marked[:, :1], -1), marked[:, :-1]], dim=1)
    kind_before = torch.where(before >= 0, kind.gather(1, before.clamp(min=0)), 0)
    wrong = ~torch.tensor(_MAY_FOLLOW, device=kind.device)[kind, kind_before]
    if bool(wrong.any()):
        row, position = (int(index) for index in wrong.nonzero()[0])
        _raise_malformed(row, position, int(kind[row, position]), int(kind_before[row, position]), before, config)


def _raise_malformed(
    row: int, position: int, kind: int, kind_before: int, before: torch.Tensor, config: WorldVLAConfig
) -> None:
    """Say what is wrong with the marker at `position` of `row`."""
    names = ("", "a begin of image", "an end of image", "a begin of action", "an end of action")
    fields = ("", "boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id")
    if kind_before in (1, 3):
        reason = (
            f"the {names[kind_before].split()[-1]} block begun at position {int(before[row, position])} is not closed"
        )
    else:
        reason = "no action block is open"
    raise ValueError(
        f"Image and action markers must pair up, but row {row} has {names[kind]} (`{fields[kind]}` "
        f"{getattr(config, fields[kind])}) at position {position} where {reason}. Build sequences with the processor, "
        "or repair this one."
    )


__all__ = [
    "build_action_attention_mask",
    "check_markers",
    "combine_masks",
    "compute_action_block_ids",
    "number_samples",
    "sample_starts",
    "to_additive",
]
