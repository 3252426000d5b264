"""The network: a Chameleon-architecture decoder that carries the action attention mask.

Shapes: B batch, L new tokens, S cached and new tokens, H hidden size, N query heads, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple, logging
from transformers.utils.output_capturing import capture_outputs

from .attention_inputs_worldvla import check_length, default_position_ids, prepare_mask
from .configuration_worldvla import WorldVLAConfig
from .hub_worldvla import WorldVLAHubModel
from .imagination_worldvla import WorldVLAImaginationMixin
from .layers_worldvla import WorldVLAAttention, WorldVLADecoderLayer, WorldVLARMSNorm, rotary_embedding
from .loss_worldvla import role_losses

logger = logging.get_logger(__name__)


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


class WorldVLAPreTrainedModel(WorldVLAHubModel):
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
    _can_record_outputs = {"hidden_states": WorldVLADecoderLayer, "attentions": WorldVLAAttention}

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """Refuse attention that cannot carry the action mask, on loading and in `set_attn_implementation`."""
        name = attn_implementation or ""
        if "flash" in name or "/" in name or name.startswith("paged|"):
            raise ValueError(
                f"{type(self).__name__} cannot use `attn_implementation` {name!r}: FlashAttention, kernels from the "
                "Hub and paged attention take no mask of their own, and would drop the action attention mask without "
                "a word. Choose 'sdpa' (the default), 'flex_attention' or 'eager'."
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)


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

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        action_block_ids: torch.Tensor | None = None,
        sequence_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): token ids.
            attention_mask (`torch.Tensor`, *optional*): `(B, S)`, non-zero at real tokens; or a finished mask of four
                axes broadcastable to `(B, N, L, S)` (bool: True = may attend; float: added), used as it is.
            position_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): by default counted over the real tokens of
                each sample.
            past_key_values (`Cache`, *optional*): keys and values of earlier tokens; extended in place.
            inputs_embeds (`torch.FloatTensor` of shape `(B, L, H)`, *optional*): instead of `input_ids`.
            action_block_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): see masking_worldvla.py; computed from
                `input_ids` when these are the whole sequence.
            sequence_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): samples of packed rows: neighbours with
                equal numbers belong together, and no token sees another sample. See `pack_samples`.
            use_cache (`bool`, *optional*): return a cache; by default `config.use_cache` outside of training.
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention only), `return_dict`; the rest is
                passed on to the attention function.

        Returns:
            `BaseModelOutputWithPast`: `last_hidden_state` of shape `(B, L, H)`, and what was asked for.

        Raises:
            ValueError: if the sequence is longer than the model's positions, a mask does not fit, or the action rule
                cannot be derived.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Exactly one of `input_ids` and `inputs_embeds` is needed, got both or neither. Give one."
            )
        self._check_recording(kwargs.get("output_attentions", self.config.output_attentions))
        use_cache = self._decide_cache(use_cache, past_key_values)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            length = hidden_states.shape[1]
            if sequence_ids is None:
                check_length(length, past_key_values, self.config)
            position_ids = default_position_ids(
                length, hidden_states.device, attention_mask, past_key_values, sequence_ids
            )
        mask = prepare_mask(
            self.config, hidden_states, input_ids, attention_mask, past_key_values, action_block_ids, sequence_ids
        )
        position_embeddings = rotary_embedding(position_ids, self.config, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings, mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _check_recording(self, output_attentions: bool | None) -> None:
        """Refuse to promise attention weights that are never made."""
        if output_attentions and self.config._attn_implementation in ("sdpa", "flex_attention"):
            raise ValueError(
                "Attention weights exist with eager attention only, got `attn_implementation` "
                f"{self.config._attn_implementation!r}. Call `model.set_attn_implementation('eager')`."
            )

    def _decide_cache(self, use_cache: bool | None, past_key_values: Cache | None) -> bool:
        """Say whether to cache; layers that are computed twice cannot."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            if past_key_values is not None:
                raise ValueError(
                    "Gradient checkpointing computes layers twice and would fill the cache twice, got "
                    "`past_key_values`. Leave them out, or call `model.gradient_checkpointing_disable()`."
                )
            if use_cache:
                logger.warning_once("No cache is returned: gradient checkpointing computes the layers twice.")
                use_cache = False
        return use_cache


class WorldVLAForCausalLM(WorldVLAPreTrainedModel, WorldVLAImaginationMixin, GenerationMixin):
    """The decoder with its head, its loss, and its ways to act and to imagine.

    Args:
        config (`WorldVLAConfig`): sizes and token ids.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

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
        sequence_ids: torch.Tensor | None = None,
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
            sequence_ids (`torch.LongTensor` of shape `(B, S)`, *optional*): samples of packed rows, as in
                `WorldVLAModel.forward`.
            use_cache (`bool`, *optional*): as in `WorldVLAModel.forward`; with labels nothing is cached by default.
            labels (`torch.LongTensor` of shape `(B, L)`, *optional*): token ids, -100 where there is no loss. A
                sample (a row, without `sequence_ids`) is one of the world model if one of its labels is
                `boi_token_id`, one of the policy otherwise.
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
        if kwargs.get("shift_labels") is not None:
            raise ValueError(
                "The role of a sample is read from the labels of its whole row, but got `shift_labels`, which belong "
                "to a part of it. Train without context or sequence parallelism."
            )
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            action_block_ids=action_block_ids,
            sequence_ids=sequence_ids,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        losses, logits = None, None
        if labels is not None:
            losses = role_losses(hidden_states, labels, self.lm_head, self.config, num_items_in_batch, sequence_ids)
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
