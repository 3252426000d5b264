"""The training loss: two roles, labelled positions only.

Shapes: B batch, L tokens, N labelled tokens, H hidden size, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import nn

from .configuration_worldvla import WorldVLAConfig
from .masking_worldvla import number_samples
from .token_losses_worldvla import split_rows, weighted_loss

IGNORED_LABEL = -100


class RoleLosses(NamedTuple):
    """What `role_losses` gives back: the loss to descend, and the mean of each role, detached."""

    loss: torch.Tensor
    loss_action: torch.Tensor
    loss_world_model: torch.Tensor


def world_model_labels(
    labels: torch.Tensor, config: WorldVLAConfig, sequence_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Say which tokens belong to world-model samples: those that must write an image.

    Args:
        labels (`torch.LongTensor` of shape `(B, L)`): label ids, -100 where there is none.
        config (`WorldVLAConfig`): for `boi_token_id`.
        sequence_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): samples of packed rows; by default a row is
            one sample.

    Returns:
        `torch.BoolTensor` of shape `(B, L)`.
    """
    begins = labels == config.boi_token_id
    if sequence_ids is None:
        return begins.any(dim=1, keepdim=True).expand_as(labels)
    samples = number_samples(sequence_ids.to(labels.device))
    return torch.zeros_like(labels).scatter_reduce(1, samples, begins.long(), "amax").gather(1, samples) > 0


def predicted_labels(labels: torch.Tensor, sequence_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Say which labels carry loss: those that are given and that a token of the same sample comes before.

    Args:
        labels (`torch.LongTensor` of shape `(B, L)`): label ids, -100 where there is none.
        sequence_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): samples of packed rows.

    Returns:
        `torch.BoolTensor` of shape `(B, L - 1)`: of the labels but the first of each row.
    """
    labelled = labels[:, 1:] != IGNORED_LABEL
    if sequence_ids is not None:
        sequence_ids = sequence_ids.to(labels.device)
        labelled = labelled & (sequence_ids[:, 1:] == sequence_ids[:, :-1])
    return labelled


def count_labels(
    labels: torch.Tensor, config: WorldVLAConfig, sequence_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Count the labels that carry loss, per role.

    Sum the counts of all micro-batches of an optimizer step (accumulation steps and ranks) and hand the sum to
    `forward(num_items_in_batch=…)`: then the losses of the micro-batches add up to the loss of the whole batch.

    Args:
        labels (`torch.LongTensor` of shape `(B, L)`): label ids, -100 where there is none. The first token of a sample
            is predicted by nothing and is not counted.
        config (`WorldVLAConfig`): for `boi_token_id`.
        sequence_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): samples of packed rows.

    Returns:
        `torch.LongTensor` of shape `(2,)`: `[N_action, N_world]`.
    """
    labelled = predicted_labels(labels, sequence_ids)
    is_world = world_model_labels(labels, config, sequence_ids)[:, 1:]
    return torch.stack([(labelled & ~is_world).sum(), (labelled & is_world).sum()])


@torch.compiler.disable(reason="how many tokens are labelled depends on the data: compile the decoder, not its loss")
def role_losses(
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    lm_head: nn.Module,
    config: WorldVLAConfig,
    num_items_in_batch: torch.Tensor | None = None,
    sequence_ids: torch.Tensor | None = None,
) -> RoleLosses:
    """Compute the loss of both roles in the form that `config.loss_form` names, plus the z-loss when it is on.

    `"paper"`: `sum ce_action / N_action + alpha * sum ce_world / N_world`, with counts over the whole optimizer step.
    `"official"`: `sum w ce / sum w`, where w depends on the label alone (`config.loss_weight_ranges`) and the sums run
    over this batch. Where `num_items_in_batch` says that the step has more labels than this batch, the batch counts by
    its share of them, so that the batches of a step add up to their mean.

    Only labelled positions are projected onto the vocabulary, in chunks (`config.loss_chunk_size`). The z-loss is
    `z_loss_weight` times the mean of the squared log-partition over all labelled tokens of both roles.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(B, L, H)`): output of the decoder.
        labels (`torch.LongTensor` of shape `(B, L)`): not shifted; position i predicts label i + 1.
        lm_head (`torch.nn.Module`): projection from H to V.
        config (`WorldVLAConfig`): form and weights of the loss, and `boi_token_id`.
        num_items_in_batch (`torch.Tensor` of shape `(2,)`, *optional*): `[N_action, N_world]` over the whole optimizer
            step; by default the counts of this batch.
        sequence_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): samples of packed rows.

    Returns:
        `RoleLosses`: three float32 scalars. A role without labels here counts 0. The means of the roles are plain
        cross-entropies, whatever the form.

    Raises:
        ValueError: if `labels` or `num_items_in_batch` has the wrong shape.

    References:
        WorldVLA (arXiv 2506.21539) section 3.4. The official code normalises per micro-batch by the sum of class
        weights, which ties the share of the world model to the batch; the paper's formula does not.
    """
    labels = _checked_labels(labels, hidden_states)
    local_counts = count_labels(labels, config, sequence_ids)
    counts = _whole_step_counts(num_items_in_batch, local_counts)
    labelled = predicted_labels(labels, sequence_ids)
    is_world = world_model_labels(labels, config, sequence_ids)[:, 1:][labelled]
    targets = labels[:, 1:][labelled]
    if config.loss_form == "official":
        weights = class_weights(targets, config)
        weights = weights / weights.sum() * (local_counts.sum() / counts.sum().clamp(min=1))
    else:
        alpha = config.world_model_loss_weight
        weights = torch.where(is_world, alpha / counts[1].clamp(min=1), 1 / counts[0].clamp(min=1))
    loss, per_token = weighted_loss(
        hidden_states[:, :-1][labelled],
        targets,
        weights,
        config.z_loss_weight / counts.sum().clamp(min=1),
        lm_head,
        config.label_smoothing,
        split_rows(len(targets), config.vocab_size, config.loss_chunk_size),
    )
    sums = torch.stack([per_token.masked_fill(is_world, 0).sum(), per_token.masked_fill(~is_world, 0).sum()])
    local_means = sums / local_counts.clamp(min=1)
    return RoleLosses(loss, local_means[0], local_means[1])


def class_weights(targets: torch.Tensor, config: WorldVLAConfig) -> torch.Tensor:
    """Look up the weight that the official form gives to a label.

    Args:
        targets (`torch.LongTensor` of any shape): token ids.
        config (`WorldVLAConfig`): for `loss_weight_ranges`.

    Returns:
        `torch.FloatTensor` of the same shape: 1 outside of all ranges.

    References:
        docs/fidelity.md#loss: the official range is off by one.
    """
    weights = torch.ones(targets.shape, device=targets.device)
    for first, last, weight in config.loss_weight_ranges:
        weights = weights.masked_fill((targets >= first) & (targets <= last), weight)
    return weights


def _checked_labels(labels: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """Refuse labels that do not fit the tokens; bring the others to their device."""
    if labels.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"`labels` must have the shape of the tokens {tuple(hidden_states.shape[:2])}, got {tuple(labels.shape)}. "
            f"Give one label per token, {IGNORED_LABEL} where there is none."
        )
    return labels.to(hidden_states.device)


def _whole_step_counts(num_items_in_batch: torch.Tensor | None, local_counts: torch.Tensor) -> torch.Tensor:
    """Check the counts of the optimizer step, or fall back on those of this batch."""
    if num_items_in_batch is None:
        return local_counts
    if not isinstance(num_items_in_batch, torch.Tensor) or num_items_in_batch.shape != (2,):
        shape = tuple(num_items_in_batch.shape) if isinstance(num_items_in_batch, torch.Tensor) else num_items_in_batch
        raise ValueError(
            f"`num_items_in_batch` must be a tensor of two counts [N_action, N_world], got {shape}. Sum "
            "`count_labels(labels, config)` over the micro-batches of the optimizer step."
        )
    return num_items_in_batch.to(local_counts.device)


__all__ = ["RoleLosses", "class_weights", "count_labels", "predicted_labels", "role_losses", "world_model_labels"]
