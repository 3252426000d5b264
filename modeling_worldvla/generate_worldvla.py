"""What `generate` needs of WorldVLA: the action rule, derived from all tokens in every step.

Shapes: B batch, L new tokens, S tokens so far, H hidden size.
"""

from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from .masking_worldvla import combine_masks, compute_action_block_ids


class WorldVLAGenerateMixin(GenerationMixin):
    """`generate` under the action attention mask."""

    config: Any

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Tell `forward`, in each step of `generate`, which of all tokens so far are actions.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): all tokens so far.
            next_sequence_length (`int`, *optional*): how many of them are new; by default all.
            past_key_values (`Cache`, *optional*): keys and values of the others.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): non-zero at real tokens.
            inputs_embeds (`torch.Tensor` of shape `(B, L, H)`, *optional*): a prompt without ids; then
                `action_block_ids` must be among the arguments of `generate`.
            is_first_iteration (`bool`, *optional*): whether this is the prefill.
            **kwargs: what `generate` hands on.

        Returns:
            `dict`: arguments of `forward`.
        """
        block_ids = None
        if self.config.use_action_attention_mask and inputs_embeds is None:
            block_ids = compute_action_block_ids(input_ids, self.config)
            if isinstance(past_key_values, Cache) and past_key_values.is_compileable:
                new = next_sequence_length or input_ids.shape[1]
                keys, offset = past_key_values.get_mask_sizes(new, 0)[0], past_key_values.get_seq_length()
                attention_mask = combine_masks(block_ids, attention_mask, new, keys, offset, input_ids.device)[:, None]
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,  # type: ignore[arg-type]
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if block_ids is not None:
            inputs["action_block_ids"] = block_ids
        return inputs


__all__ = ["WorldVLAGenerateMixin"]
