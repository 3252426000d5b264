"""Rollouts of the world model: frame after frame from actions, with one cache.

Shapes: B batch, n frame-action pairs of the prompt, H history, M actions that follow, N = M + 1 imagined frames, D
action dims, h x w image codes, T tokens of a pair. See docs/decoding.md for what of the cache is used again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils import ModelOutput

from .decoding_cache_worldvla import DecodingCache
from .generation_worldvla import WorldVLAFrameOutput
from .prompt_checks_worldvla import (
    CacheImplementation,
    Draft,
    check_cache,
    check_draft,
    check_length,
    check_prompt,
    last_image_blocks,
    pad_to_multiple,
)
from .rollout_prompts_worldvla import check_history, check_ids, split_world_prompt, write_pair
from .sampling_worldvla import SamplingOptions
from .scoring_worldvla import WorldVLAScoringMixin


@dataclass
class WorldVLAImaginationOutput(ModelOutput):
    """What `imagine` returns on request; see `WorldVLAFrameOutput` for what the numbers mean.

    Args:
        image_ids (`torch.LongTensor` of shape `(B, N, h, w)`): image token ids.
        log_probs (`torch.FloatTensor` of shape `(B, N, h, w)`): of the ids chosen.
        entropies (`torch.FloatTensor` of shape `(B, N, h, w)`): of the distributions they were chosen from.
        mean_log_prob (`torch.FloatTensor` of shape `(B, N)`): of each frame's codes.
        mean_entropy (`torch.FloatTensor` of shape `(B, N)`): of each frame's codes.
        num_forwards (`list` of N `int`): forwards of the model for each frame, the one over the prompt included.
        tokens_per_forward (`float`): tokens of all frames, markers included, over all forwards.
        acceptance_rate (`torch.FloatTensor` of shape `(B, N)`): share of a frame's codes that their draft had right;
            absent with `draft="none"`.
    """

    image_ids: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    mean_log_prob: torch.Tensor | None = None
    mean_entropy: torch.Tensor | None = None
    num_forwards: list[int] | None = None
    tokens_per_forward: float | None = None
    acceptance_rate: torch.Tensor | None = None


class WorldVLAImaginationMixin(WorldVLAScoringMixin):
    """`imagine` and `imagine_frames`, beside single predictions and scores."""

    @torch.no_grad()
    def imagine(
        self,
        input_ids: torch.Tensor,
        actions: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        return_dict_in_generate: bool = False,
        **options: Any,
    ) -> torch.Tensor | WorldVLAImaginationOutput:
        """Imagine the frame after a prompt, and then one after each further action.

        Every frame is what `predict_next_frame` answers to the prompt that shows the last `history` frames and their
        actions, imagined frames among them.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): world-model prompts of n frame-action pairs, as
                `predict_next_frame` takes them.
            actions (`torch.LongTensor` of shape `(B, M, D)`): action token ids; action i is the command given after
                imagined frame i. May be empty.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens.
            return_dict_in_generate (`bool`): return log-probabilities, entropies and counts too.
            **options: the other arguments of `imagine_frames`: `history`, `draft`, `do_sample` and so on.

        Returns:
            `torch.LongTensor` of shape `(B, M + 1, h, w)`: image token ids; or a `WorldVLAImaginationOutput`.

        Raises:
            ValueError: as `imagine_frames`.

        References:
            WorldVLA (arXiv 2506.21539) section 3.2.
        """
        options |= {"attention_mask": attention_mask, "return_dict_in_generate": return_dict_in_generate}
        frames = list(self.imagine_frames(input_ids, actions, **options))
        if not return_dict_in_generate:
            return torch.stack([frame["image_ids"] for frame in frames], dim=1)
        names = ("image_ids", "log_probs", "entropies", "mean_log_prob", "mean_entropy", "acceptance_rate")
        joined = {name: torch.stack([frame[name] for frame in frames], dim=1) for name in names if name in frames[0]}
        num_forwards = [frame["num_forwards"] for frame in frames]
        num_tokens = sum(frame["num_forwards"] * frame["tokens_per_forward"] for frame in frames)
        return WorldVLAImaginationOutput(
            **joined, num_forwards=num_forwards, tokens_per_forward=num_tokens / sum(num_forwards)
        )

    def imagine_frames(
        self,
        input_ids: torch.Tensor,
        actions: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        history: int | None = None,
        draft: Draft = "jacobi",
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict_in_generate: bool = False,
        cache_implementation: CacheImplementation = "dynamic",
        pad_to_multiple_of: int | None = None,
    ) -> Iterator[WorldVLAFrameOutput]:
        """Imagine as `imagine` does, and hand out every frame as soon as it is there.

        Memory does not grow with the number of frames.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): world-model prompts of n frame-action pairs, padded on
                the left. All frames have one size.
            actions (`torch.LongTensor` of shape `(B, M, D)`): action token ids; action i is the command given after
                imagined frame i. May be empty.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens; by default
                everything after leading padding tokens is real.
            history (`int`, *optional*): H, most pairs that are shown; by default `config.world_model_history`.
            draft (`str`): as in `predict_next_frame`.
            do_sample (`bool`): draw from the model's distribution instead of taking the likeliest codes.
            temperature (`float`): divides the logits, when drawing.
            top_k (`int`, *optional*): draw among so many likeliest ids only.
            top_p (`float`, *optional*): draw among the fewest likeliest ids that have this probability together.
            generator (`torch.Generator` or list of them, *optional*): where the chance comes from; on the model's
                device. Of a list each row has its own.
            return_dict_in_generate (`bool`): compute log-probabilities, entropies and counts too.
            cache_implementation (`str`): as in `predict_next_frame`.
            pad_to_multiple_of (`int`, *optional*): pad what stands before the first frame to a multiple of so many
                tokens.

        Returns:
            iterator over M + 1 `WorldVLAFrameOutput`, with `image_ids` of shape `(B, h, w)`.

        Raises:
            ValueError: as `predict_next_frame`; if a prompt is not made of frame-action pairs of one size, if the rows
                of a batch show different numbers of them, or more than `history`; if `actions` are no action ids; or
                if `history` pairs do not fit into the model's positions. Raised before anything is imagined.
        """
        config, options = self.config, SamplingOptions(do_sample, temperature, top_k, top_p, generator)
        check_draft(draft)
        fixed_shapes = check_cache(cache_implementation)
        input_ids, real = check_prompt(input_ids, attention_mask, config, config.boi_token_id, self.device)
        blocks, height, width = last_image_blocks(input_ids, real, config)
        head, pairs = split_world_prompt(input_ids, real, blocks.shape[1] + 1, config)
        bins = (config.action_token_id_start, config.num_action_tokens)
        actions = check_ids(actions, "actions", (len(input_ids), None, config.action_dim), *bins).to(self.device)
        shown = check_history(history, pairs.shape[1], config)
        shown = min(shown, pairs.shape[1] + actions.shape[1])
        check_length(real, (shown - pairs.shape[1]) * pairs.shape[2] + blocks.shape[1] + 1, config)
        head, real = pad_to_multiple(head, real[:, : head.shape[1]], pad_to_multiple_of, config)
        num_slots = head.shape[1] + shown * pairs.shape[2] + 2 + blocks.shape[1]
        cache = DecodingCache(config, num_slots, fixed_shapes)
        decode = partial(
            self._decode_frame,
            size=(height, width),
            draft=draft,
            options=options,
            with_scores=return_dict_in_generate,
            cache=cache,
        )
        return self._roll_out(head, real, list(pairs.unbind(dim=1)), actions, shown, blocks.shape[1], decode)

    @torch.no_grad()
    def _roll_out(
        self,
        head: torch.Tensor,
        real: torch.Tensor,
        window: list[torch.Tensor],
        actions: torch.Tensor,
        history: int,
        block_length: int,
        decode: Callable[..., WorldVLAFrameOutput],
    ) -> Iterator[WorldVLAFrameOutput]:
        """Imagine frame after frame; `window` holds the pairs `(B, T)` that the next prompt shows."""
        separator = torch.full_like(window[0][:, :1], self.config.sep_token_id)
        num_cached = 0
        for number in range(actions.shape[1] + 1):
            prompt = torch.cat([head, *window, separator], dim=1)
            known = torch.nn.functional.pad(real, (0, prompt.shape[1] - head.shape[1]), value=True)
            blocks = window[-1][:, :block_length]
            frame = decode(prompt, known, blocks, num_cached=num_cached)
            yield frame
            if number < actions.shape[1]:
                window.append(write_pair(blocks[:, :3], frame["image_ids"], actions[:, number], self.config))
                # Pairs stand where they stood while none is dropped; after that, only what precedes them does.
                kept = len(window) - 1 if len(window) <= history else 0
                num_cached = head.shape[1] + kept * window[0].shape[1]
                del window[:-history]


__all__ = ["WorldVLAImaginationMixin", "WorldVLAImaginationOutput"]
