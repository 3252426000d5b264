"""The network: a Chameleon-architecture decoder that carries the action attention mask.

Shapes: B batch, L new tokens, S cached and new tokens, H hidden size, N query heads, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_worldvla import WorldVLAConfig
from .generation_worldvla import WorldVLAGenerationMixin
from .layers_worldvla import WorldVLADecoderLayer, WorldVLARMSNorm, rotary_embedding
from .loss_worldvla import role_losses
from .masking_worldvla import combine_masks, compute_action_block_ids


@dataclass
class WorldVLACausalLMOutput(ModelOutput):
    """What `WorldVLAForCausalLM.forward` returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): the loss to descend; with labels only.
        loss_action (`torch.FloatTensor` of shape `()`): mean cross-entropy of this batch's action labels, detached;
            0 where there are none.
        loss_world_model (`torch.FloatTensor` of shape `()`): the same for image labels, before alpha.
        logits (`torch.FloatTensor` of shape `(B, L, V)`): absent with labels unless `logits_to_keep` is given.
        past_key_values (`Cache`): keys and values, when caching.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(B, L, H)`): embeddings and every layer, on request.
        attentions (`tuple` of `torch.FloatTensor` of shape `(B, N, L, S)`): on request, eager attention only.
    """

    loss: torch.Tensor | None = None
    loss_action: torch.Tensor | None = None
    loss_world_model: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class WorldVLAPreTrainedModel(PreTrainedModel):
    """What the two models share: configuration, names, and what transformers may do with them."""

    config_class = WorldVLAConfig
    config: WorldVLAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["WorldVLADecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # it drops the action rule without a word
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class WorldVLAModel(WorldVLAPreTrainedModel):
    """The decoder without its head.

    Args:
        config (`WorldVLAConfig`): sizes and token ids.
    """

    def __init__(self, config: WorldVLAConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(WorldVLADecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = WorldVLARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        action_block_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): token ids.
            attention_mask (`torch.Tensor`, *optional*): `(B, S)`, non-zero at real tokens; or a finished mask of four
                axes broadcastable to `(B, N, L, S)` (bool: True = may attend; float: added), used as it is.
            position_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): by default counted over real tokens.
            past_key_values (`Cache`, *optional*): keys and values of earlier tokens; extended in place.
            inputs_embeds (`torch.FloatTensor` of shape `(B, L, H)`, *optional*): instead of `input_ids`.
            action_block_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): see masking_worldvla.py; computed from
                `input_ids` when these are the whole sequence.
            use_cache (`bool`, *optional*): return a cache; by default `config.use_cache` outside of training.
            output_hidden_states (`bool`, *optional*): return the output of every layer.
            output_attentions (`bool`, *optional*): return the attention weights; eager attention only.
            **kwargs: passed on to the attention function.

        Returns:
            `BaseModelOutputWithPast`: `last_hidden_state` of shape `(B, L, H)`, and what was asked for.

        Raises:
            ValueError: if the sequence is longer than the model's positions, or the action rule cannot be derived.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Exactly one of `input_ids` and `inputs_embeds` is needed, got both or neither. Give one."
            )
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                "Attention weights exist with eager attention only, got `attn_implementation` "
                f"{self.config._attn_implementation!r}. Call `model.set_attn_implementation('eager')`."
            )
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        self._check_length(hidden_states.shape[1])
        if position_ids is None:
            position_ids = _default_position_ids(hidden_states, attention_mask, past_key_values)
        mask = self._prepare_mask(hidden_states, input_ids, attention_mask, past_key_values, action_block_ids)
        position_embeddings = rotary_embedding(position_ids, self.config, hidden_states.dtype)

        all_states, all_weights = [hidden_states], []
        for layer in self.layers:
            hidden_states, weights = layer(
                hidden_states, position_embeddings, mask, past_key_values=past_key_values, **kwargs
            )
            if output_hidden_states:
                all_states.append(hidden_states)
            if output_attentions:
                all_weights.append(weights)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*all_states[:-1], hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
        )

    def _check_length(self, length: int) -> None:
        """Refuse more tokens than the model has positions."""
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"A sequence may have at most {self.config.max_position_embeddings} tokens "
                f"(`max_position_embeddings`), got {length}. Use fewer or smaller images, or a shorter instruction."
            )

    def _prepare_mask(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        action_block_ids: torch.Tensor | None,
    ) -> Any:
        """Build the one mask that all layers use: additive `(B or 1, 1, L, S)`, `None` (causal), or flex's own."""
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
            return _to_additive(attention_mask, hidden_states.dtype)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim != 2:
            raise ValueError(
                "`attention_mask` must have two axes (padding) or four (finished), got shape "
                f"{tuple(attention_mask.shape)}. Give a mask of `build_action_attention_mask` as `mask[:, None]`."
            )
        block_ids = self._block_ids(input_ids, past_key_values, action_block_ids)
        implementation = self.config._attn_implementation
        if implementation not in ("sdpa", "eager"):
            return _delegated_mask(self.config, hidden_states, attention_mask, past_key_values, block_ids)
        length = hidden_states.shape[1]
        offset, key_length = 0, length
        if past_key_values is not None:
            offset, key_length = past_key_values.get_seq_length(), past_key_values.get_mask_sizes(length, 0)[0]
        if implementation == "sdpa" and block_ids is None and attention_mask is None and key_length == length:
            return None
        mask = combine_masks(block_ids, attention_mask, length, key_length, offset, hidden_states.device)
        return _to_additive(mask[:, None], hidden_states.dtype)

    def _block_ids(
        self, input_ids: torch.Tensor | None, past_key_values: Cache | None, action_block_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Take, derive or refuse to guess the action block ids of all keys."""
        if not self.config.use_action_attention_mask:
            return None
        if action_block_ids is not None:
            return action_block_ids
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError(
                "The action attention mask needs to know which cached tokens are actions, but got a filled cache "
                "without `action_block_ids`. Pass `compute_action_block_ids(all_ids, config)` of all tokens, cached "
                "and new, or a mask of four axes."
            )
        if input_ids is None:
            raise ValueError(
                "The action attention mask is derived from token ids, but got `inputs_embeds` without "
                "`action_block_ids`. Pass them, or a mask of four axes."
            )
        return compute_action_block_ids(input_ids, self.config)


def _default_position_ids(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
) -> torch.Tensor:
    """Count positions over the real tokens, so that left padding does not move them."""
    length, device = hidden_states.shape[1], hidden_states.device
    if attention_mask is not None and attention_mask.ndim == 2:
        counted = (attention_mask.to(device) != 0).long().cumsum(dim=1) - 1
        return counted.clamp(min=0)[:, -length:]
    past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
    return (torch.arange(length, device=device) + past_length)[None]


def _to_additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a boolean mask into one that is added to the scores; leave a float one as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _delegated_mask(
    config: WorldVLAConfig,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    block_ids: torch.Tensor | None,
) -> Any:
    """Let transformers build the mask in the form that another attention backend (flex) wants."""
    action_rule = None
    if block_ids is not None:
        ids = block_ids

        def action_rule(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
            query_id, key_id = ids[batch_idx, q_idx], ids[batch_idx, kv_idx]
            return (key_id == query_id) | (key_id == 0) | (query_id <= 0)

    return create_causal_mask(
        config=config,
        inputs_embeds=hidden_states,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        and_mask_function=action_rule,
    )


class WorldVLAForCausalLM(WorldVLAPreTrainedModel, WorldVLAGenerationMixin):
    """The decoder with its head, its loss, and its ways to act and to imagine.

    Args:
        config (`WorldVLAConfig`): sizes and token ids.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: WorldVLAConfig) -> None:
        super().__init__(config)
        self.model = WorldVLAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        action_block_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> WorldVLACausalLMOutput:
        """Run the decoder and its head; with labels, compute the loss of both roles.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): token ids.
            attention_mask (`torch.Tensor`, *optional*): padding `(B, S)` or a finished mask of four axes.
            position_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): by default counted over real tokens.
            past_key_values (`Cache`, *optional*): keys and values of earlier tokens; extended in place.
            inputs_embeds (`torch.FloatTensor` of shape `(B, L, H)`, *optional*): instead of `input_ids`.
            action_block_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): needed with a filled cache and with
                `inputs_embeds`.
            use_cache (`bool`, *optional*): as in `WorldVLAModel.forward`; with labels nothing is cached by default.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*): token ids, -100 where there is no loss. A row is
                a world-model sample if one of its labels is `boi_token_id`, a policy sample otherwise.
            num_items_in_batch (`torch.Tensor` of shape `(2,)`, *optional*): `[N_action, N_world]` over the whole
                optimizer step, see `count_labels`; by default the counts of this batch.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*): the last so many positions, or these positions;
                0 keeps all. By default all, and none with labels.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and more for attention.

        Returns:
            `WorldVLACausalLMOutput`.

        Raises:
            ValueError: as in `WorldVLAModel.forward` and `role_losses`.

        References:
            WorldVLA (arXiv 2506.21539) sections 3.3 and 3.4.
        """
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            action_block_ids=action_block_ids,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        losses, logits = None, None
        if labels is not None:
            losses = role_losses(hidden_states, labels, self.lm_head, self.config, num_items_in_batch)
        if labels is None or logits_to_keep is not None:
            kept = logits_to_keep if torch.is_tensor(logits_to_keep) else slice(-(logits_to_keep or 0), None)
            logits = self.lm_head(hidden_states[:, kept])
        return WorldVLACausalLMOutput(
            loss=losses.loss if losses else None,
            loss_action=losses.loss_action if losses else None,
            loss_world_model=losses.loss_world_model if losses else None,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["WorldVLACausalLMOutput", "WorldVLAForCausalLM", "WorldVLAModel", "WorldVLAPreTrainedModel"]
