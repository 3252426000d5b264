"""Decoding: action chunks in parallel, frames under their grammar, and what `generate` needs.

Shapes: B batch, P prompt tokens, K chunk, D action dims, h x w image codes, S keys (cached and new). See
docs/decoding.md for why the chunk may be decoded in parallel.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache

from .masking_worldvla import combine_masks, compute_action_block_ids
from .prompt_checks_worldvla import check_chunk_size, check_length, check_prompt, last_image_size


class WorldVLAGenerationMixin(GenerationMixin):
    """`predict_action_chunk` and `predict_next_frame`, and the action rule for `generate`."""

    config: Any
    model: Any
    lm_head: Any
    device: Any

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

    @torch.no_grad()
    def predict_action_chunk(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, chunk_size: int | None = None
    ) -> torch.Tensor:
        """Predict the next K actions, greedily.

        With the action attention mask the actions of a chunk do not depend on each other, so all K are decoded at
        once, in D forwards; the result is that of decoding token by token. Without the mask they do, and are decoded
        one after the other.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): policy prompts, padded on the left.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens; by default
                everything after leading padding tokens is real.
            chunk_size (`int`, *optional*): K; by default `config.chunk_size`.

        Returns:
            `torch.LongTensor` of shape `(B, K, D)`: action token ids.

        Raises:
            ValueError: if a prompt is malformed, does not end in the separator, is padded on the right or leaves no
                room for the chunk, or if `chunk_size` is below 1.

        References:
            WorldVLA (arXiv 2506.21539) section 3.3. The official code decodes one token at a time.
        """
        chunk_size = check_chunk_size(chunk_size, self.config)
        input_ids, real = check_prompt(input_ids, attention_mask, self.config, self.config.boa_token_id, self.device)
        check_length(real, chunk_size * self.config.action_block_length, self.config)
        if self.config.use_action_attention_mask:
            return self._decode_chunk_in_parallel(input_ids, real, chunk_size)
        return self._decode_chunk_in_sequence(input_ids, real, chunk_size)

    def _decode_chunk_in_parallel(self, input_ids: torch.Tensor, real: torch.Tensor, chunk_size: int) -> torch.Tensor:
        """Decode K independent action blocks side by side; step j feeds the j-th token of all of them."""
        batch, length = input_ids.shape
        config, device = self.config, input_ids.device
        block_ids = compute_action_block_ids(input_ids, config)
        visible = (real & (block_ids == 0))[:, None].expand(-1, chunk_size, -1)
        itself = torch.eye(chunk_size, dtype=torch.bool, device=device)[None].expand(batch, -1, -1)
        prompt_mask = F.pad(combine_masks(block_ids, real, length, length, 0, device), (0, chunk_size))
        mask = torch.cat([prompt_mask, torch.cat([visible, itself], dim=2)], dim=1)

        block_starts = torch.arange(chunk_size, device=device) * config.action_block_length
        block_starts = real.sum(dim=1, keepdim=True) + block_starts
        positions = torch.cat([_positions(real), block_starts], dim=1)
        tokens = torch.full((batch, chunk_size), config.boa_token_id, device=device)
        cache = DynamicCache(config=config)
        chosen: list[torch.Tensor] = []
        hidden_states = self._extend(torch.cat([input_ids, tokens], dim=1), mask, positions, cache)[:, length:]
        for step in range(1, config.action_dim + 1):
            tokens = self._best_token(hidden_states, config.action_token_id_start, config.num_action_tokens)
            chosen.append(tokens)
            if step < config.action_dim:
                mask = torch.cat([visible, itself.repeat(1, 1, step + 1)], dim=2)
                hidden_states = self._extend(tokens, mask, block_starts + step, cache)
        return torch.stack(chosen, dim=2)

    def _decode_chunk_in_sequence(self, input_ids: torch.Tensor, real: torch.Tensor, chunk_size: int) -> torch.Tensor:
        """Decode K action blocks one after the other; the markers between two are fed with the next token."""
        config = self.config
        markers = input_ids.new_tensor([config.eoa_token_id, config.boa_token_id]).expand(len(input_ids), 2)
        decoder = _CausalDecoder(self, input_ids, real, markers[:, 1:])
        chosen: list[torch.Tensor] = []
        for index in range(chunk_size * config.action_dim):
            if index:
                tokens = chosen[-1] if index % config.action_dim else torch.cat([chosen[-1], markers], dim=1)
                decoder.feed(tokens)
            chosen.append(
                self._best_token(decoder.hidden_states, config.action_token_id_start, config.num_action_tokens)
            )
        return torch.cat(chosen, dim=1).view(-1, chunk_size, config.action_dim)

    @torch.no_grad()
    def predict_next_frame(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Imagine the frame that follows, greedily, in the size of the last frame of the prompt.

        Only image tokens are chosen from. The begin of the image and its size are fed with the prompt, the end of a
        row with the code before it, so that none of them costs a forward of its own.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): world-model prompts, padded on the left.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens; by default
                everything after leading padding tokens is real.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`: image token ids.

        Raises:
            ValueError: if a prompt is malformed, holds no image, does not end in the separator, is padded on the right
                or leaves no room for the frame, or if the last images of the batch differ in size.

        References:
            WorldVLA (arXiv 2506.21539) section 3.2.
        """
        config = self.config
        input_ids, real = check_prompt(input_ids, attention_mask, config, config.boi_token_id, self.device)
        height, width = last_image_size(input_ids, real, config)
        check_length(real, 4 + height * (width + 1), config)
        opening = input_ids.new_tensor(
            [
                config.boi_token_id,
                config.grid_token_id_start + height // config.codes_per_grid_unit,
                config.grid_token_id_start + width // config.codes_per_grid_unit,
            ]
        )
        row_end = input_ids.new_tensor([config.eol_token_id]).expand(len(input_ids), 1)
        decoder = _CausalDecoder(self, input_ids, real, opening.expand(len(input_ids), 3))
        chosen: list[torch.Tensor] = []
        for index in range(height * width):
            if index:
                decoder.feed(chosen[-1] if index % width else torch.cat([chosen[-1], row_end], dim=1))
            chosen.append(
                self._best_token(decoder.hidden_states, config.image_token_id_start, config.num_image_tokens)
            )
        return torch.cat(chosen, dim=1).view(-1, height, width)

    def _extend(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Run tokens `(B, Q)` on top of the cache under a boolean mask `(B, Q, S)`; returns `(B, Q, H)`."""
        outputs = self.model(
            tokens,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        return outputs.last_hidden_state

    def _best_token(self, hidden_states: torch.Tensor, first_id: int, num_ids: int) -> torch.Tensor:
        """Choose the likeliest id of one range, projecting on its rows of the head alone: `(B, Q, H)` to `(B, Q)`."""
        if type(self.lm_head) is nn.Linear:
            logits = F.linear(hidden_states, self.lm_head.weight[first_id : first_id + num_ids])
        else:  # an adapter or a quantised layer, whose rows cannot be taken apart
            logits = self.lm_head(hidden_states)[..., first_id : first_id + num_ids]
        return logits.argmax(dim=-1) + first_id


class _CausalDecoder:
    """Feeds tokens to a model whose new tokens see every real token before them.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        input_ids (`torch.LongTensor` of shape `(B, P)`): prompts, padded on the left.
        real (`torch.BoolTensor` of shape `(B, P)`): which of them are real.
        opening (`torch.LongTensor` of shape `(B, O)`): forced tokens, run together with the prompt. The action rule is
            applied to prompt and opening as a whole: after the begin of an image, as in training, earlier actions are
            plainly causal.
    """

    def __init__(
        self, model: WorldVLAGenerationMixin, input_ids: torch.Tensor, real: torch.Tensor, opening: torch.Tensor
    ) -> None:
        self.model, self.cache = model, DynamicCache(config=model.config)
        self.real = F.pad(real, (0, opening.shape[1]), value=True)
        tokens = torch.cat([input_ids, opening], dim=1)
        block_ids = compute_action_block_ids(tokens, model.config) if model.config.use_action_attention_mask else None
        length = tokens.shape[1]
        mask = combine_masks(block_ids, self.real, length, length, 0, tokens.device)
        positions = _positions(self.real)
        self.position = positions[:, -1:]
        self.hidden_states = model._extend(tokens, mask, positions, self.cache)[:, -1:]

    def feed(self, tokens: torch.Tensor) -> None:
        """Run tokens `(B, Q)`; `hidden_states` is then the output `(B, 1, H)` at the last of them."""
        count = tokens.shape[1]
        past_length = self.real.shape[1]
        self.real = F.pad(self.real, (0, count), value=True)
        if count == 1:
            mask = self.real[:, None]
        else:
            mask = combine_masks(None, self.real, count, past_length + count, past_length, tokens.device)
        positions = self.position + torch.arange(1, count + 1, device=tokens.device)
        self.position = positions[:, -1:]
        self.hidden_states = self.model._extend(tokens, mask, positions, self.cache)[:, -1:]


def _positions(real: torch.Tensor) -> torch.Tensor:
    """Count positions over real tokens: `(B, P)` booleans to `(B, P)` positions."""
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)


__all__ = ["WorldVLAGenerationMixin"]
