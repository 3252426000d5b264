"""Losses and scores of single tokens, without ever holding the logits of all of them.

Shapes: N labelled tokens, C tokens of a chunk, H hidden size, V vocabulary.

The logits of N tokens are N x V numbers, and a plain cross-entropy holds several copies of them. Here they are made,
used and dropped in chunks of C rows. As the weight of every token in the loss is known beforehand, a chunk's gradients
are computed while its logits are there: nothing is projected twice. See docs/loss.md.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 256 * 2**20  # of float32 logits


class TokenScores(NamedTuple):
    """What `score_tokens` gives back, each of shape `(N,)`: cross-entropy, likeliest id, likeliest id of a range."""

    cross_entropy: torch.Tensor
    best: torch.Tensor
    best_in_range: torch.Tensor


def split_rows(num_rows: int, vocab_size: int, chunk_size: int | None) -> list[slice]:
    """Cut rows into chunks of nearly equal size.

    Args:
        num_rows (`int`): N.
        vocab_size (`int`): V.
        chunk_size (`int` or `None`): most rows of a chunk; `None` takes as many as have 256 MiB of float32 logits.

    Returns:
        `list[slice]`: at least one, which is empty when there are no rows.
    """
    most = chunk_size or max(1, CHUNK_BYTES // (4 * vocab_size))
    count = max(1, -(-num_rows // most))
    edges = [num_rows * part // count for part in range(count + 1)]
    return [slice(start, end) for start, end in zip(edges, edges[1:], strict=False)]


def weighted_loss(
    hidden_states: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    z_weight: torch.Tensor,
    lm_head: nn.Module,
    label_smoothing: float,
    rows: list[slice],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `sum weights * cross_entropy + z_weight * sum logsumexp^2`, chunk by chunk.

    For a plain `nn.Linear` without bias the gradients are computed with the loss. Any other head (LoRA, quantised,
    tensor-parallel, offloaded, gathered by hooks) is called as the module it is, and each chunk is computed again in
    the backward.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(N, H)`): what predicts the targets.
        targets (`torch.LongTensor` of shape `(N,)`): token ids.
        weights (`torch.FloatTensor` of shape `(N,)`): weight of each token in the sum; no gradient flows to it.
        z_weight (`torch.FloatTensor` of shape `()`): weight of each squared log-partition; no gradient either.
        lm_head (`torch.nn.Module`): projection from H to V.
        label_smoothing (`float`): share of each target that is spread evenly over the vocabulary.
        rows (`list[slice]`): the chunks, see `split_rows`.

    Returns:
        `tuple`: the loss, a float32 scalar, and the cross-entropy of every token, `(N,)`, without smoothing, detached.
    """
    if is_plain_linear(lm_head):
        needs_gradients = torch.is_grad_enabled()
        return _ChunkedLoss.apply(
            hidden_states, lm_head.weight, targets, weights, z_weight, label_smoothing, rows, needs_gradients
        )
    losses, cross_entropies = [], []
    for part in rows:
        chunk = (hidden_states[part], targets[part], weights[part], z_weight, lm_head, label_smoothing)
        loss, cross_entropy = checkpoint(_loss_of_chunk, *chunk, use_reentrant=False)
        losses.append(loss)
        cross_entropies.append(cross_entropy)
    return torch.stack(losses).sum(), torch.cat(cross_entropies)


@torch.no_grad()
def score_tokens(
    hidden_states: torch.Tensor,
    targets: torch.Tensor,
    lm_head: nn.Module,
    id_range: tuple[int, int],
    rows: list[slice],
) -> TokenScores:
    """Say how well tokens are predicted, chunk by chunk, without gradients.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(N, H)`): what predicts the targets.
        targets (`torch.LongTensor` of shape `(N,)`): token ids.
        lm_head (`torch.nn.Module`): projection from H to V.
        id_range (`tuple[int, int]`): first id of a range, and the id after its last: the range of action bins, say.
        rows (`list[slice]`): the chunks, see `split_rows`.

    Returns:
        `TokenScores`: cross-entropies in float32, and token ids.
    """
    first, end = id_range
    scores = []
    for part in rows:
        logits = lm_head(hidden_states[part]).float()
        cross_entropy = F.cross_entropy(logits, targets[part], reduction="none")
        scores.append((cross_entropy, logits.argmax(-1), logits[:, first:end].argmax(-1) + first))
    return TokenScores(*(torch.cat(values) for values in zip(*scores, strict=True)))


def is_plain_linear(lm_head: nn.Module) -> bool:
    """Say whether `hidden @ weight.T` is all that a call of the head does.

    Args:
        lm_head (`torch.nn.Module`): projection from H to V.

    Returns:
        `bool`: `False` for a head that is adapted, quantised, sharded, offloaded or hooked: call it as a module.
    """
    hooks = (lm_head._forward_hooks, lm_head._forward_pre_hooks, lm_head._backward_hooks, lm_head._backward_pre_hooks)
    return (
        type(lm_head) is nn.Linear
        and lm_head.bias is None
        and type(lm_head.weight) in (nn.Parameter, torch.Tensor)  # no tensor that is quantised or spread over devices
        and not any(hooks)
        and "forward" not in vars(lm_head)  # accelerate replaces it to move weights
    )


def _loss_of_chunk(
    hidden_states: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    z_weight: torch.Tensor,
    lm_head: nn.Module,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the cross-entropies of one chunk, by autograd."""
    logits = lm_head(hidden_states).float()
    log_partition = logits.logsumexp(dim=-1)
    cross_entropy = log_partition - logits.gather(1, targets[:, None])[:, 0]
    smoothed = cross_entropy
    if label_smoothing:
        smoothed = (1 - label_smoothing) * cross_entropy + label_smoothing * (log_partition - logits.mean(dim=-1))
    loss = (weights * smoothed).sum() + z_weight * log_partition.square().sum()
    return loss, cross_entropy.detach()


class _ChunkedLoss(torch.autograd.Function):
    """`weighted_loss` of a plain linear head: one pass over the chunks computes the loss and its gradients.

    With p the probabilities of a row, t its target, c its weight, s the smoothing and z the weight of the z-loss, the
    gradient of the logits is `(c + 2 z logsumexp) p - c (1 - s) onehot(t) - c s / V`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        head_weight: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        z_weight: torch.Tensor,
        label_smoothing: float,
        rows: list[slice],
        needs_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = [needs_gradients and needed for needed in ctx.needs_input_grad[:2]]
        hidden_gradient = torch.empty_like(hidden_states) if wanted[0] else None
        head_gradient = torch.zeros_like(head_weight) if wanted[1] else None
        # Gradients are kept relative to the largest weight: in float16 small ones would vanish before a loss scale
        # could reach them.
        scale = torch.maximum(weights.amax(), z_weight).clamp(min=1e-30) if len(weights) else torch.ones_like(z_weight)
        loss, cross_entropies = torch.zeros_like(z_weight), []
        device_type = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        with torch.autocast(device_type, enabled=False):
            head = head_weight.to(dtype or head_weight.dtype)
            for part in rows:
                hidden = hidden_states[part].to(dtype or hidden_states.dtype)
                logits = F.linear(hidden, head).float()
                chunk_loss, cross_entropy = _loss_and_gradient(
                    logits, targets[part], weights[part], z_weight, scale, label_smoothing, any(wanted)
                )
                loss += chunk_loss
                cross_entropies.append(cross_entropy)
                if hidden_gradient is not None:
                    hidden_gradient[part] = logits.to(hidden.dtype) @ head
                if head_gradient is not None:
                    _add_product(head_gradient, logits.to(hidden.dtype), hidden)
        ctx.gradients = (hidden_gradient, head_gradient, scale)
        per_token = torch.cat(cross_entropies)
        ctx.mark_non_differentiable(per_token)
        return loss, per_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradients of this loss were already used, and they are not kept for a second backward. Compute "
                "the loss again."
            )
        # In place, and given away: a copy of the head's gradient would be as large as the head.
        (*gradients, scale), ctx.gradients = ctx.gradients, None
        factor = loss_gradient * scale
        return *(None if gradient is None else gradient.mul_(factor) for gradient in gradients), *[None] * 6


def _loss_and_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    z_weight: torch.Tensor,
    scale: torch.Tensor,
    label_smoothing: float,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and cross-entropies of a chunk; its float32 logits `(C, V)` become `gradient / scale`, in place."""
    targets, weights = targets[:, None], weights[:, None]
    chosen, maxima = logits.gather(1, targets), logits.amax(dim=1, keepdim=True)
    mean = logits.mean(dim=1, keepdim=True) if label_smoothing else chosen
    sums = logits.sub_(maxima).exp_().sum(dim=1, keepdim=True)
    log_partition = maxima + sums.log()
    cross_entropy = log_partition - chosen
    smoothed = (1 - label_smoothing) * cross_entropy + label_smoothing * (log_partition - mean)
    loss = (weights * smoothed).sum() + z_weight * log_partition.square().sum()
    if needs_gradient:
        relative = weights / scale
        logits.mul_((relative + 2 * z_weight / scale * log_partition) / sums)
        logits.scatter_add_(1, targets, -(1 - label_smoothing) * relative)
        if label_smoothing:
            logits.sub_(label_smoothing / logits.shape[1] * relative)
    return loss, cross_entropy[:, 0]


def _add_product(total: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add `gradient.T @ hidden` to `total`, without a copy of its size where the dtypes agree."""
    if total.dtype == hidden.dtype:
        total.addmm_(gradient.T, hidden)
    else:
        total.add_(gradient.T @ hidden)


__all__ = ["TokenScores", "is_plain_linear", "score_tokens", "split_rows", "weighted_loss"]
