"""Decoding an answer whose layout is known: forced tokens cost no forward of their own, drafted ones are verified.

Shapes: B batch, P prompt tokens, T tokens of the answer, Q tokens fed in one forward, S keys (cached and new).
A *place* counts the tokens of the answer from 0. See docs/decoding.md for why the result does not depend on the draft.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .decoding_cache_worldvla import DecodingCache
from .masking_worldvla import combine_masks, compute_action_block_ids
from .prompt_checks_worldvla import Draft, count_positions
from .sampling_worldvla import Choice, TokenChooser

# What one more token in a forward costs, in forwards of one token, and how many drafted tokens a forward may carry.
EXTRA_TOKEN_COST = 0.05
LONGEST_BLOCK = 32
# How fast older forwards are forgotten in the estimate of how often drafts are right, and what it begins with.
MEMORY, PRIOR_RIGHT, PRIOR_SEEN = 0.8, 3.0, 4.0


class DecodedStream(NamedTuple):
    """What `StreamDecoder.decode` gives back.

    Fields: `token_ids` `(B, N)` of the N chosen tokens; `log_probs` and `entropies` `(B, N)` or `None`;
    `num_forwards`; `acceptance_rate` `(B,)`, the share of chosen tokens that their draft had right, or `None` without
    a draft.
    """

    token_ids: torch.Tensor
    log_probs: torch.Tensor | None
    entropies: torch.Tensor | None
    num_forwards: int
    acceptance_rate: torch.Tensor | None


class StreamDecoder:
    """Decodes the answers of a batch, every row at its own pace.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        input_ids (`torch.LongTensor` of shape `(B, P)`): prompts, padded on the left.
        real (`torch.BoolTensor` of shape `(B, P)`): which of their tokens are real.
        stream (`torch.LongTensor` of shape `(B, T)`): the answer: forced tokens and, at free places, their draft (any
            id without one). The first token is forced.
        free (`torch.BoolTensor` of shape `(T,)`): which places are to be chosen. Tokens after the last of them are
            never fed.
        chooser (`TokenChooser`): chooses tokens.
        uniforms (`torch.FloatTensor` of shape `(B, N)` or `None`): chance for the N free places.
        draft (`str`): `"none"` feeds only what is decided; `"last_frame"` feeds drafted tokens too and keeps those
            that turn out right; `"jacobi"` also replaces the others by what the model chose in their place.
        cache (`DecodingCache`): room for at least P + T + 1 tokens.
        num_cached (`int`): tokens at the begin of the prompts that are in the cache already.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        real: torch.Tensor,
        stream: torch.Tensor,
        free: torch.Tensor,
        chooser: TokenChooser,
        uniforms: torch.Tensor | None,
        draft: Draft,
        cache: DecodingCache,
        num_cached: int = 0,
    ) -> None:
        self.model, self.input_ids, self.chooser, self.draft = model, input_ids, chooser, draft
        self.cache, self.num_cached = cache, num_cached
        self.free_places = free.nonzero()[:, 0].tolist()
        self.last = self.free_places[-1]
        # One more column takes what lies past the end of a row.
        self.stream = F.pad(stream[:, : self.last + 1], (0, 1))
        self.free = F.pad(free[: self.last + 1], (0, 1))
        counts = self.free.cumsum(dim=0)
        self.ordinal, self.num_decided = (counts - 1).clamp(min=0), counts.tolist()
        self.uniforms = uniforms
        self.scores = [torch.zeros(self.stream.shape, device=input_ids.device) for _ in range(2)]
        self.real, self.num_prompt_tokens = real, real.sum(dim=1, keepdim=True)
        # Place i of the answer has slot P + i; the last slot takes what lies past the end of a row.
        self.num_slots = input_ids.shape[1] + self.last + 2
        self.visible = F.pad(real, (0, cache.num_slots - input_ids.shape[1]), value=True)[:, None]
        self.starts = input_ids.new_zeros(len(input_ids))  # per row, the place of the first token not in the cache
        self.num_forwards = 0

    def decode(self) -> DecodedStream:
        """Feed prompt and answer until every free place is decided.

        Returns:
            `DecodedStream`.
        """
        rate_right, rate_seen = PRIOR_RIGHT, PRIOR_SEEN
        num_right, starts = [0] * len(self.input_ids), [0] * len(self.input_ids)
        while min(starts) < self.last:
            length = best_draft_length(rate_right / rate_seen) if self.draft != "none" else 0
            before = starts
            starts, gained_right = self._advance(starts, self._num_to_feed(starts, length))
            seen = sum(self.num_decided[new] - self.num_decided[old] for old, new in zip(before, starts, strict=True))
            rate_right, rate_seen = MEMORY * rate_right + sum(gained_right), MEMORY * rate_seen + seen
            num_right = [total + new for total, new in zip(num_right, gained_right, strict=True)]
        places = self.stream.new_tensor(self.free_places)
        log_probs, entropies = self.scores if self.chooser.with_scores else (None, None)
        return DecodedStream(
            token_ids=self.stream[:, places],
            log_probs=None if log_probs is None else log_probs[:, places],
            entropies=None if entropies is None else entropies[:, places],
            num_forwards=self.num_forwards,
            acceptance_rate=None if self.draft == "none" else torch.tensor(num_right) / len(self.free_places),
        )

    def _num_to_feed(self, starts: list[int], length: int) -> int:
        """Tokens that verify `length` drafts and choose one token more, in the row that needs most of them."""
        count = max(
            self.free_places[min(self.num_decided[start] + length, len(self.free_places) - 1)] - start
            for start in starts
            if start < self.last
        )
        # Few shapes where they are to be fixed: what is fed beyond the need is verified like any draft.
        return min(1 << (count - 1).bit_length(), self.last + 1) if self.cache.fixed_shapes else count

    def _advance(self, starts: list[int], count: int) -> tuple[list[int], list[int]]:
        """Feed `count` tokens of every row; keep those that are right, and the choice that follows them.

        Returns where the rows then are, and how many drafts each of them had right.
        """
        places = self.starts[:, None] + torch.arange(count, device=self.starts.device)
        targets = (places + 1).clamp(max=self.last + 1)
        hidden_states = self._feed(starts, places.clamp(max=self.last + 1))
        uniforms = None if self.uniforms is None else self.uniforms.gather(1, self.ordinal[targets])
        choice = self.chooser.choose(hidden_states, uniforms)
        drafted, free = self.stream.gather(1, targets), self.free[targets]
        right = (choice.token_ids == drafted) | ~free
        kept = (right.long().cumprod(dim=1).sum(dim=1) + 1).clamp(max=count)
        kept = torch.minimum(kept, (self.last - self.starts).clamp(min=0))
        is_kept = torch.arange(count, device=kept.device) < kept[:, None]
        self._write(targets, choice, drafted, free, free & is_kept)
        self.starts = self.starts + kept
        summary = [self.starts, (right & free & is_kept).sum(dim=1)]
        new_starts, num_right = torch.stack(summary).tolist()  # the only wait for the device
        return new_starts, num_right

    def _feed(self, starts: list[int], places: torch.Tensor) -> torch.Tensor:
        """Run the tokens at places `(B, Q)` on top of the cache, the first time after the prompt; returns `(B, Q, H)`.

        What was fed and not kept stays in its slot, hidden by the mask, until the slot is written again.
        """
        count, length = places.shape[1], self.input_ids.shape[1]
        tokens, slots = self.stream.gather(1, places), length + places
        positions = self.num_prompt_tokens + places.clamp(max=self.last)
        end = min(length + max(starts) + count, self.num_slots)
        self.num_forwards += 1
        if self.num_forwards > 1:
            start = length + starts[0] if min(starts) == max(starts) else None
            num_keys = self.cache.seek(slots, start, end)
            order = torch.arange(num_keys, device=slots.device) <= slots[:, :, None]
            return self.model._extend(tokens, order & self.visible[:, :, :num_keys], positions, self.cache)
        # The rule applies to prompt and begin of the answer as a whole: after the begin of an image, as in training,
        # earlier actions are plainly causal.
        tokens, slots = torch.cat([self.input_ids, tokens], dim=1), torch.arange(length + count, device=slots.device)
        block_ids = None
        if self.model.config.use_action_attention_mask:
            block_ids = compute_action_block_ids(tokens, self.model.config)
        new, cached = slice(self.num_cached, None), self.num_cached
        num_keys = self.cache.seek(slots[new].expand(len(tokens), -1), cached, end)
        real = self.visible[:, 0, : length + count]
        mask = combine_masks(block_ids, real, length + count - cached, length + count, cached, slots.device)
        mask = F.pad(mask, (0, num_keys - mask.shape[2]))
        positions = torch.cat([count_positions(self.real), positions], dim=1)
        return self.model._extend(tokens[:, new], mask, positions[:, new], self.cache)[:, -count:]

    def _write(
        self, targets: torch.Tensor, choice: Choice, drafted: torch.Tensor, free: torch.Tensor, decided: torch.Tensor
    ) -> None:
        """Write what was decided; the Jacobi draft takes over every other choice as well."""
        written = free if self.draft == "jacobi" else decided
        self.stream = self.stream.scatter(1, targets, torch.where(written, choice.token_ids, drafted))
        if choice.log_probs is not None and choice.entropies is not None:
            for index, values in enumerate((choice.log_probs, choice.entropies)):
                kept = torch.where(decided, values, self.scores[index].gather(1, targets))
                self.scores[index] = self.scores[index].scatter(1, targets, kept)


def best_draft_length(rate: float, cost: float = EXTRA_TOKEN_COST, longest: int = LONGEST_BLOCK) -> int:
    """Say how many drafted tokens to verify at once, so that a chosen token costs the least time.

    If every draft is right with probability `rate`, a forward that verifies n of them decides 1 + rate + … + rate^n
    tokens, and takes 1 + n * cost.

    Args:
        rate (`float`): how often drafts are right.
        cost (`float`): of one more token, in forwards of one token.
        longest (`int`): upper limit.

    Returns:
        `int`: 0 … `longest`; 0 where a draft is not worth its cost.

    References:
        Leviathan et al. (arXiv 2211.17192) section 3.4, with a draft that costs nothing.
    """
    best, best_value, expected = 0, 1.0, 1.0
    for length in range(1, longest + 1):
        expected += rate**length
        if expected / (1 + length * cost) > best_value:
            best, best_value = length, expected / (1 + length * cost)
    return best


__all__ = ["DecodedStream", "StreamDecoder", "best_draft_length"]
