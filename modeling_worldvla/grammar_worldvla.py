"""What an answer may look like, token by token, for `generate`.

    policy:       boa  D bins  eoa, K times                     sep
    world_model:  boi  grid(h)  grid(w)  (w codes  eol) x h  eoi sep

Shapes: B rows (prompts, or prompts x beams), P prompt tokens, S tokens so far, V vocabulary, K chunk, D action dims,
h x w image codes. A *place* counts the tokens of the answer from 0.
"""

from typing import Literal

import torch
from transformers import LogitsProcessor

from .configuration_worldvla import WorldVLAConfig
from .prompt_checks_worldvla import check_choice
from .sampling_worldvla import invert_cumulative

TokenGrammar = Literal["policy", "world_model"]
TOKEN_GRAMMARS: tuple[TokenGrammar, ...] = ("policy", "world_model")
# In a table of forced tokens: the token of this place is not forced.
FREE = -1


class WorldVLATokenGrammar(LogitsProcessor):
    """Lets only those tokens follow that the answer of a role may have in this place.

    It is a function of the ids so far: nothing is kept between calls, rows may be reordered or repeated (beams), and
    nothing waits for the device. Where one token is forced its log-probability is 0; elsewhere scores become the
    log-probabilities among the allowed tokens, so that the score of a beam is that of its bins or codes.

    Args:
        role (`str`): `"policy"` answers with K actions, `"world_model"` with an image of the size of the prompt's
            last one.
        config (`WorldVLAConfig`): token ids.
        prompt_length (`int`): P, padding included.
        chunk_size (`int`, *optional*): K of the policy.
        median (`bool`): of the bins of an action, let only the median follow.

    Raises:
        ValueError: if the role is unknown.
    """

    def __init__(
        self,
        role: TokenGrammar,
        config: WorldVLAConfig,
        prompt_length: int,
        chunk_size: int | None = None,
        median: bool = False,
    ) -> None:
        check_choice("token grammar", role, TOKEN_GRAMMARS)
        self.role, self.config, self.prompt_length = role, config, prompt_length
        self.chunk_size = config.chunk_size if chunk_size is None else chunk_size
        self.median = median
        self.first_token_id = config.boa_token_id if role == "policy" else config.boi_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Rule out what may not follow.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): prompts, and of their answers what there is.
            scores (`torch.FloatTensor` of shape `(B, V)`): logits or log-probabilities.

        Returns:
            `torch.FloatTensor` of shape `(B, V)`: log-probabilities among what may follow, minus infinity elsewhere.
        """
        if self.role == "policy":
            first_id, num_ids = self.config.action_token_id_start, self.config.num_action_tokens
            forced = self._next_of_actions(input_ids)
        else:
            first_id, num_ids = self.config.image_token_id_start, self.config.num_image_tokens
            forced = self._next_of_image(input_ids)
        free, rows = (forced == FREE)[:, None], slice(first_id, first_id + num_ids)
        among = scores[:, rows].log_softmax(dim=-1)
        if self.median:
            median = invert_cumulative(
                scores[:, rows].float(), among.new_full(among.shape[:1], 0.5, dtype=torch.float)
            )
            among = torch.full_like(among, -torch.inf).scatter(1, median[:, None], among.gather(1, median[:, None]))
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, rows] = torch.where(free, among, -torch.inf)
        forced = forced.clamp(min=0)[:, None]
        return allowed.scatter(1, forced, torch.where(free, allowed.gather(1, forced), 0.0))  # type: ignore[return-value]

    def _next_of_actions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The forced token of every row, or `FREE`: `(B,)`."""
        config, place = self.config, input_ids.shape[1] - self.prompt_length
        block, position = divmod(place, config.action_block_length)
        if block >= self.chunk_size:
            token = config.pad_token_id if block > self.chunk_size or position else config.sep_token_id
        elif position == 0:
            token = self.first_token_id
        else:
            token = config.eoa_token_id if position == config.action_block_length - 1 else FREE
        return input_ids.new_full((len(input_ids),), token)

    def _next_of_image(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The forced token of every row, or `FREE`: `(B,)`. Rows differ where their images differ in size."""
        config, place = self.config, input_ids.shape[1] - self.prompt_length
        if place == 0:
            return input_ids.new_full((len(input_ids),), self.first_token_id)
        sizes = last_grid_tokens(input_ids[:, : self.prompt_length], config)
        if place < 3:
            return sizes[:, place - 1]
        height, width = ((sizes - config.grid_token_id_start) * config.codes_per_grid_unit).unbind(dim=1)
        row_length, place = width + 1, place - 3
        past = place - height * row_length  # 0 at the end of the image, 1 at the separator
        forced = torch.where(place % row_length == width, config.eol_token_id, FREE)
        forced = torch.where(past == 0, config.eoi_token_id, forced)
        forced = torch.where(past == 1, config.sep_token_id, forced)
        return torch.where(past > 1, config.pad_token_id, forced)


def last_grid_tokens(input_ids: torch.Tensor, config: WorldVLAConfig) -> torch.Tensor:
    """Find the two tokens that tell the size of each row's last image, without leaving the device.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, P)`): prompts, each with an image.
        config (`WorldVLAConfig`): token ids.

    Returns:
        `torch.LongTensor` of shape `(B, 2)`: grid tokens of height and width.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    begins = torch.where(input_ids == config.boi_token_id, positions, 0).amax(dim=1, keepdim=True)
    return input_ids.gather(1, begins + torch.arange(1, 3, device=input_ids.device))


__all__ = ["TOKEN_GRAMMARS", "TokenGrammar", "WorldVLATokenGrammar", "last_grid_tokens"]
