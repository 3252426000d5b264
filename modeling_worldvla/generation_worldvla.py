"""Decoding: action chunks in parallel, frames under their grammar.

Shapes: B batch, P prompt tokens, K chunk, D action dims, h x w image codes, S keys (cached and new). See
docs/decoding.md for why the chunk may be decoded in parallel, and frames by draft.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from .decoding_cache_worldvla import DecodingCache
from .generate_worldvla import WorldVLAGenerateMixin
from .masking_worldvla import combine_masks, compute_action_block_ids
from .prompt_checks_worldvla import (
    CacheImplementation,
    Draft,
    check_cache,
    check_chunk_size,
    check_draft,
    check_length,
    check_prompt,
    count_positions,
    last_image_blocks,
    pad_to_multiple,
)
from .sampling_worldvla import Choice, SamplingOptions, TokenChooser
from .stream_decoding_worldvla import DecodedStream, StreamDecoder


@dataclass
class WorldVLAActionChunkOutput(ModelOutput):
    """What `predict_action_chunk` returns on request.

    Log-probabilities and entropies (nats) are the model's own among the action tokens, before temperature, top-k and
    top-p.

    Args:
        action_ids (`torch.LongTensor` of shape `(B, K, D)`): action token ids.
        log_probs (`torch.FloatTensor` of shape `(B, K, D)`): of the ids chosen.
        entropies (`torch.FloatTensor` of shape `(B, K, D)`): of the distributions they were chosen from.
        num_forwards (`int`): forwards of the model, the one over the prompt included.
        tokens_per_forward (`float`): tokens of a chunk, markers included, over `num_forwards`.
    """

    action_ids: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    num_forwards: int | None = None
    tokens_per_forward: float | None = None


@dataclass
class WorldVLAFrameOutput(ModelOutput):
    """What `predict_next_frame` returns on request.

    Log-probabilities and entropies (nats) are the model's own among the image tokens, before temperature, top-k and
    top-p.

    Args:
        image_ids (`torch.LongTensor` of shape `(B, h, w)`): image token ids.
        log_probs (`torch.FloatTensor` of shape `(B, h, w)`): of the ids chosen.
        entropies (`torch.FloatTensor` of shape `(B, h, w)`): of the distributions they were chosen from.
        mean_log_prob (`torch.FloatTensor` of shape `(B,)`): of a frame's codes.
        mean_entropy (`torch.FloatTensor` of shape `(B,)`): of a frame's codes.
        num_forwards (`int`): forwards of the model, the one over the prompt included.
        tokens_per_forward (`float`): tokens of a frame, markers included, over `num_forwards`.
        acceptance_rate (`torch.FloatTensor` of shape `(B,)`): share of the codes that their draft had right; absent
            with `draft="none"`.
    """

    image_ids: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    mean_log_prob: torch.Tensor | None = None
    mean_entropy: torch.Tensor | None = None
    num_forwards: int | None = None
    tokens_per_forward: float | None = None
    acceptance_rate: torch.Tensor | None = None


class WorldVLAGenerationMixin(WorldVLAGenerateMixin):
    """`predict_action_chunk` and `predict_next_frame`, beside `generate`."""

    config: Any
    model: Any
    lm_head: Any
    device: Any

    @torch.no_grad()
    def predict_action_chunk(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        chunk_size: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict_in_generate: bool = False,
        cache_implementation: CacheImplementation = "dynamic",
        pad_to_multiple_of: int | None = None,
    ) -> torch.Tensor | WorldVLAActionChunkOutput:
        """Predict the next K actions, without chance (what `config.action_choice` says) or by chance.

        With the action attention mask the actions of a chunk do not depend on each other, so all K are decoded at
        once, in D forwards; the result is that of decoding token by token. Without the mask they do, and are decoded
        one after the other.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): policy prompts, padded on the left.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens; by default
                everything after leading padding tokens is real.
            chunk_size (`int`, *optional*): K; by default `config.chunk_size`.
            do_sample (`bool`): draw from the model's distribution instead of taking the likeliest or median bins.
            temperature (`float`): divides the logits, when drawing.
            top_k (`int`, *optional*): draw among so many likeliest ids only.
            top_p (`float`, *optional*): draw among the fewest likeliest ids that have this probability together.
            generator (`torch.Generator` or list of them, *optional*): where the chance comes from; on the model's
                device. Of a list each row has its own.
            return_dict_in_generate (`bool`): return log-probabilities and counts too.
            cache_implementation (`str`): `"dynamic"` reads only the part of the cache that is filled; `"static"` keeps
                all shapes fixed, for a compiled model.
            pad_to_multiple_of (`int`, *optional*): pad prompts on the left to a multiple of so many tokens, so that
                prompts of different lengths share their shapes.

        Returns:
            `torch.LongTensor` of shape `(B, K, D)`: action token ids; or a `WorldVLAActionChunkOutput`.

        Raises:
            ValueError: if a prompt is malformed, does not end in the separator, is padded on the right or leaves no
                room for the chunk, if `chunk_size` is below 1, or as `SamplingOptions`.

        References:
            WorldVLA (arXiv 2506.21539) section 3.3. The official code decodes one token at a time, greedily.
        """
        config, median = self.config, self.config.action_choice == "median"
        options = SamplingOptions(do_sample, temperature, top_k, top_p, generator, median=median)
        chunk_size, fixed_shapes = check_chunk_size(chunk_size, config), check_cache(cache_implementation)
        input_ids, real = check_prompt(input_ids, attention_mask, config, config.boa_token_id, self.device)
        num_tokens = chunk_size * config.action_block_length
        check_length(real, num_tokens, config)
        input_ids, real = pad_to_multiple(input_ids, real, pad_to_multiple_of, config)
        actions = (config.action_token_id_start, config.num_action_tokens)
        chooser = TokenChooser(self.lm_head, *actions, options, with_scores=return_dict_in_generate)
        uniforms = options.draw(len(input_ids), chunk_size * config.action_dim, self.device)
        decode = self._decode_chunk_in_parallel if config.use_action_attention_mask else self._decode_chunk_in_sequence
        decoded = decode(input_ids, real, chunk_size, chooser, uniforms, fixed_shapes)
        shape = (len(input_ids), chunk_size, config.action_dim)
        if not return_dict_in_generate or decoded.log_probs is None or decoded.entropies is None:
            return decoded.token_ids.view(shape)
        return WorldVLAActionChunkOutput(
            action_ids=decoded.token_ids.view(shape),
            log_probs=decoded.log_probs.view(shape),
            entropies=decoded.entropies.view(shape),
            num_forwards=decoded.num_forwards,
            tokens_per_forward=num_tokens / decoded.num_forwards,
        )

    def _decode_chunk_in_parallel(
        self,
        input_ids: torch.Tensor,
        real: torch.Tensor,
        chunk_size: int,
        chooser: TokenChooser,
        uniforms: torch.Tensor | None,
        fixed_shapes: bool,
    ) -> DecodedStream:
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
        positions = torch.cat([count_positions(real), block_starts], dim=1)
        tokens = torch.full((batch, chunk_size), config.boa_token_id, device=device)
        tokens, start = torch.cat([input_ids, tokens], dim=1), 0
        cache = DecodingCache(config, length + chunk_size * config.action_dim, fixed_shapes)
        choices: list[Choice] = []
        for step in range(config.action_dim):
            if step:
                mask = torch.cat([visible, itself.repeat(1, 1, step + 1)], dim=2)
                tokens, positions = choices[-1].token_ids, block_starts + step
            end = start + tokens.shape[1]
            num_keys = cache.seek(torch.arange(start, end, device=device).expand(batch, -1), start, end)
            mask = F.pad(mask, (0, num_keys - end))
            hidden_states = self._extend(tokens, mask, positions, cache)[:, -chunk_size:]
            step_uniforms = None if uniforms is None else uniforms.view(batch, chunk_size, -1)[:, :, step]
            choices.append(chooser.choose(hidden_states, step_uniforms))
            start = end
        log_probs = _side_by_side([choice.log_probs for choice in choices])
        entropies = _side_by_side([choice.entropies for choice in choices])
        token_ids = torch.stack([choice.token_ids for choice in choices], dim=2).flatten(1)
        return DecodedStream(token_ids, log_probs, entropies, config.action_dim, None)

    def _decode_chunk_in_sequence(
        self,
        input_ids: torch.Tensor,
        real: torch.Tensor,
        chunk_size: int,
        chooser: TokenChooser,
        uniforms: torch.Tensor | None,
        fixed_shapes: bool,
    ) -> DecodedStream:
        """Decode K action blocks one after the other; the markers between two are fed with the next token."""
        config = self.config
        block = [config.boa_token_id, *[config.action_token_id_start] * config.action_dim, config.eoa_token_id]
        stream = input_ids.new_tensor(block * chunk_size)
        free = stream == config.action_token_id_start
        stream = stream.expand(len(input_ids), -1)
        cache = DecodingCache(config, input_ids.shape[1] + stream.shape[1] + 1, fixed_shapes)
        return StreamDecoder(self, input_ids, real, stream, free, chooser, uniforms, "none", cache).decode()

    @torch.no_grad()
    def predict_next_frame(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        draft: Draft = "jacobi",
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict_in_generate: bool = False,
        cache_implementation: CacheImplementation = "dynamic",
        pad_to_multiple_of: int | None = None,
    ) -> torch.Tensor | WorldVLAFrameOutput:
        """Imagine the frame that follows, in the size of the last frame of the prompt.

        Only image tokens are chosen from. The begin of the image and its size are fed with the prompt, the end of a
        row with the code before it, so that none of them costs a forward of its own. The last frame of the prompt is
        the draft of the next: several of its codes are verified in one forward. The result does not depend on the
        draft, whether greedy or drawn with the same generator.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): world-model prompts, padded on the left.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens; by default
                everything after leading padding tokens is real.
            draft (`str`): `"last_frame"` drafts with the codes of the last frame; `"jacobi"` begins with them and goes
                on with what the model itself chose, from unfinished context, in an earlier forward; `"none"` decodes
                one code per forward.
            do_sample (`bool`): draw from the model's distribution instead of taking the likeliest codes.
            temperature (`float`): divides the logits, when drawing.
            top_k (`int`, *optional*): draw among so many likeliest ids only.
            top_p (`float`, *optional*): draw among the fewest likeliest ids that have this probability together.
            generator (`torch.Generator` or list of them, *optional*): where the chance comes from; on the model's
                device. Of a list each row has its own.
            return_dict_in_generate (`bool`): return log-probabilities, entropies and counts too.
            cache_implementation (`str`): `"dynamic"` reads only the part of the cache that is filled; `"static"` keeps
                all shapes fixed, for a compiled model.
            pad_to_multiple_of (`int`, *optional*): pad prompts on the left to a multiple of so many tokens, so that
                prompts of different lengths share their shapes.

        Returns:
            `torch.LongTensor` of shape `(B, h, w)`: image token ids; or a `WorldVLAFrameOutput`.

        Raises:
            ValueError: if a prompt is malformed, holds no image, does not end in the separator, is padded on the right
                or leaves no room for the frame, if the last images of the batch differ in size, if `draft` is
                unknown, or as `SamplingOptions`.

        References:
            WorldVLA (arXiv 2506.21539) section 3.2; speculative decoding, Leviathan et al. (arXiv 2211.17192); Jacobi
            decoding, Santilli et al. (arXiv 2305.10427).
        """
        config, options = self.config, SamplingOptions(do_sample, temperature, top_k, top_p, generator)
        check_draft(draft)
        fixed_shapes = check_cache(cache_implementation)
        input_ids, real = check_prompt(input_ids, attention_mask, config, config.boi_token_id, self.device)
        blocks, height, width = last_image_blocks(input_ids, real, config)
        check_length(real, blocks.shape[1] + 1, config)
        input_ids, real = pad_to_multiple(input_ids, real, pad_to_multiple_of, config)
        cache = DecodingCache(config, input_ids.shape[1] + blocks.shape[1] + 1, fixed_shapes)
        frame = self._decode_frame(
            input_ids, real, blocks, (height, width), draft, options, return_dict_in_generate, cache
        )
        return frame if return_dict_in_generate else frame["image_ids"]

    def _decode_frame(
        self,
        input_ids: torch.Tensor,
        real: torch.Tensor,
        blocks: torch.Tensor,
        size: tuple[int, int],
        draft: Draft,
        options: SamplingOptions,
        with_scores: bool,
        cache: DecodingCache,
        num_cached: int = 0,
    ) -> WorldVLAFrameOutput:
        """Imagine the frame after checked prompts; `blocks` `(B, 3 + h * (w + 1))` holds its begin and its draft.

        The first `num_cached` tokens of the prompts are in the cache already.
        """
        config, (height, width) = self.config, size
        codes = (config.image_token_id_start, config.num_image_tokens)
        chooser = TokenChooser(self.lm_head, *codes, options, with_scores)
        uniforms = options.draw(len(input_ids), height * width, self.device)
        free = torch.arange(blocks.shape[1], device=self.device) - 2
        free = (free > 0) & (free % (width + 1) != 0)
        stream = torch.where(free | (free.cumsum(dim=0) == 0), blocks, config.eol_token_id)
        decoder = StreamDecoder(self, input_ids, real, stream, free, chooser, uniforms, draft, cache, num_cached)
        decoded, shape = decoder.decode(), (len(input_ids), height, width)
        frame = WorldVLAFrameOutput(image_ids=decoded.token_ids.view(shape))
        if decoded.log_probs is not None and decoded.entropies is not None:
            frame.log_probs, frame.entropies = decoded.log_probs.view(shape), decoded.entropies.view(shape)
            frame.mean_log_prob = decoded.log_probs.mean(dim=1)
            frame.mean_entropy = decoded.entropies.mean(dim=1)
            frame.num_forwards = decoded.num_forwards
            frame.tokens_per_forward = (blocks.shape[1] + 1) / decoded.num_forwards
            frame.acceptance_rate = decoded.acceptance_rate
        return frame

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


def _side_by_side(steps: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Join what each step gave, D times `(B, K)`, to `(B, K * D)`; `None` where nothing was asked for."""
    given = [step for step in steps if step is not None]
    return torch.stack(given, dim=2).flatten(1) if given else None


__all__ = ["WorldVLAActionChunkOutput", "WorldVLAFrameOutput", "WorldVLAGenerationMixin"]
