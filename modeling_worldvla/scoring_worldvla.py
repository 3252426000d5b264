"""How likely recorded answers are: the log-likelihood of a chunk of actions, or of a future.

Shapes: B batch, P prompt tokens, T answer tokens, H hidden size, K chunk, D action dims, N frames, h x w image codes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from .generation_worldvla import WorldVLAGenerationMixin
from .prompt_checks_worldvla import check_chunk_size, check_length, check_prompt, last_image_blocks
from .rollout_prompts_worldvla import check_history, check_ids, split_world_prompt, write_pair
from .sampling_worldvla import SamplingOptions, TokenChooser
from .token_losses_worldvla import score_tokens, split_rows


@dataclass
class WorldVLAScoreOutput(ModelOutput):
    """Scores of recorded tokens, in nats; `(B, ...)` is `(B, K, D)` for actions and `(B, N, h, w)` for frames.

    Args:
        log_probs (`torch.FloatTensor` of shape `(B, ...)`): among the tokens that the grammar allows there; what
            `predict_action_chunk` and `predict_next_frame` return for tokens they choose.
        entropies (`torch.FloatTensor` of shape `(B, ...)`): of the same distributions.
        vocabulary_log_probs (`torch.FloatTensor` of shape `(B, ...)`): among the whole vocabulary, as in the loss.
        total_log_probs (`torch.FloatTensor` of shape `(B, K)` or `(B, N)`): sum of `log_probs` over each action or
            frame.
    """

    log_probs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    vocabulary_log_probs: torch.Tensor | None = None
    total_log_probs: torch.Tensor | None = None


class WorldVLAScoringMixin(WorldVLAGenerationMixin):
    """`score_action_chunk` and `score_future`, beside the predictions."""

    @torch.no_grad()
    def score_action_chunk(
        self, input_ids: torch.Tensor, action_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> WorldVLAScoreOutput:
        """Say how likely recorded actions are, in one forward.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): policy prompts, padded on the left.
            action_ids (`torch.LongTensor` of shape `(B, K, D)`): action token ids.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens; by default
                everything after leading padding tokens is real.

        Returns:
            `WorldVLAScoreOutput`.

        Raises:
            ValueError: as `predict_action_chunk`, or if `action_ids` are none.
        """
        config = self.config
        input_ids, real = check_prompt(input_ids, attention_mask, config, config.boa_token_id, self.device)
        bins = (config.action_token_id_start, config.num_action_tokens)
        action_ids = check_ids(action_ids, "action_ids", (len(input_ids), None, config.action_dim), *bins)
        check_chunk_size(action_ids.shape[1], config)
        marked = pad(pad(action_ids, (1, 0), value=config.boa_token_id), (0, 1), value=config.eoa_token_id)
        check_length(real, marked[0].numel(), config)
        return self._score_answer(input_ids, real, marked.flatten(1).to(self.device), bins, action_ids.shape[1:])

    @torch.no_grad()
    def score_future(
        self,
        input_ids: torch.Tensor,
        image_ids: torch.Tensor,
        actions: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        history: int | None = None,
    ) -> WorldVLAScoreOutput:
        """Say how likely a recorded future is, frame after frame, with the true frames before each of them given.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, P)`): world-model prompts, as `imagine` takes them.
            image_ids (`torch.LongTensor` of shape `(B, N, h, w)`): the frames that followed.
            actions (`torch.LongTensor` of shape `(B, N - 1, D)`): action token ids; action i is the command given
                after frame i of `image_ids`.
            attention_mask (`torch.Tensor` of shape `(B, P)`, *optional*): non-zero at real tokens.
            history (`int`, *optional*): most frame-action pairs that are shown; by default
                `config.world_model_history`.

        Returns:
            `WorldVLAScoreOutput`.

        Raises:
            ValueError: as `imagine`, or if `image_ids` are no frames of the size of the prompts' frames.
        """
        config, batch = self.config, len(input_ids)
        input_ids, real = check_prompt(input_ids, attention_mask, config, config.boi_token_id, self.device)
        blocks, height, width = last_image_blocks(input_ids, real, config)
        head, pairs = split_world_prompt(input_ids, real, blocks.shape[1] + 1, config)
        codes = (config.image_token_id_start, config.num_image_tokens)
        image_ids = check_ids(image_ids, "image_ids", (batch, None, height, width), *codes).to(self.device)
        bins = (config.action_token_id_start, config.num_action_tokens)
        shape = (batch, image_ids.shape[1] - 1, config.action_dim)
        actions = check_ids(actions, "actions", shape, *bins).to(self.device)
        history, window, scores = check_history(history, pairs.shape[1], config), list(pairs.unbind(dim=1)), []
        for number, frame in enumerate(image_ids.unbind(dim=1)):
            prompt = pad(torch.cat([head, *window], dim=1), (0, 1), value=config.sep_token_id)
            known = pad(real[:, : head.shape[1]], (0, prompt.shape[1] - head.shape[1]), value=True)
            check_length(known, blocks.shape[1] + 1, config)
            rows = pad(frame, (0, 1), value=config.eol_token_id).flatten(1)
            answer = torch.cat([blocks[:, :3], rows], dim=1)
            scores.append(self._score_answer(prompt, known, answer, codes, (1, height, width)))
            if number < actions.shape[1]:
                window = [*window, write_pair(blocks[:, :3], frame, actions[:, number], config)][-history:]
        return WorldVLAScoreOutput(**{name: torch.cat([score[name] for score in scores], 1) for name in scores[0]})

    def _score_answer(
        self,
        input_ids: torch.Tensor,
        real: torch.Tensor,
        answer: torch.Tensor,
        id_range: tuple[int, int],
        shape: tuple[int, ...],
    ) -> WorldVLAScoreOutput:
        """Score the tokens of an answer `(B, T)` that lie in a range; there are as many in each row."""
        whole = torch.cat([input_ids, answer], dim=1)
        real = pad(real, (0, answer.shape[1]), value=True)
        model: Any = self.model
        hidden = model(whole, attention_mask=real, use_cache=False, return_dict=True).last_hidden_state
        first, count = id_range
        free = pad((answer >= first) & (answer < first + count), (input_ids.shape[1], 0))[:, 1:]
        hidden, targets = hidden[:, :-1][free], whole[:, 1:][free]
        parts = split_rows(len(targets), self.config.vocab_size, self.config.loss_chunk_size)
        scores = score_tokens(hidden, targets, self.lm_head, (first, first + count), parts)
        chooser = TokenChooser(self.lm_head, first, count, SamplingOptions(), with_scores=True)
        allowed = [chooser.score(hidden[part], targets[part]) for part in parts]
        log_probs = torch.cat([choice.log_probs for choice in allowed if choice.log_probs is not None])
        entropies = torch.cat([choice.entropies for choice in allowed if choice.entropies is not None])
        shape = (len(whole), *shape)
        return WorldVLAScoreOutput(
            log_probs=log_probs.view(shape),
            entropies=entropies.view(shape),
            vocabulary_log_probs=-scores.cross_entropy.view(shape),
            total_log_probs=log_probs.view(*shape[:2], -1).sum(dim=-1),
        )


__all__ = ["WorldVLAScoreOutput", "WorldVLAScoringMixin"]
