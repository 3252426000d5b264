"""Choosing tokens: greedily or by chance, among the ids that the grammar allows.

Shapes: B batch, Q positions, H hidden size, A ids that are allowed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .token_losses_worldvla import is_plain_linear


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; the names are those of `generate`.

    Args:
        do_sample (`bool`): draw from the model's distribution; `False` takes the likeliest token.
        temperature (`float`): divides the logits.
        top_k (`int`, *optional*): draw among so many likeliest tokens only.
        top_p (`float`, *optional*): draw among the fewest likeliest tokens that have this probability together.
        generator (`torch.Generator` or list of them, *optional*): where the chance comes from; on the model's device.
            Of a list each row of the batch has its own, and does not depend on the others.
        median (`bool`): without chance, take the median of the ids instead of the likeliest: for ids in an order, such
            as those of action bins.

    Raises:
        ValueError: if an option is out of range, or given without `do_sample`.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    median: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.do_sample:
            given = {"temperature": self.temperature != 1.0, "top_k": self.top_k is not None}
            given |= {"top_p": self.top_p is not None, "generator": self.generator is not None}
            names = ", ".join(f"`{name}`" for name, is_given in given.items() if is_given)
            if names:
                raise ValueError(
                    f"Greedy decoding leaves nothing to chance, got {names} without `do_sample`. Add "
                    "`do_sample=True`, or leave them out."
                )
        if not (0 < self.temperature < math.inf):
            raise ValueError(
                f"`temperature` must be a number above 0, got {self.temperature!r}. For the likeliest token, leave "
                "out `do_sample`."
            )
        if self.top_k is not None and (
            isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1
        ):
            raise ValueError(
                f"`top_k` must be a whole number of at least 1, got {self.top_k!r}. Leave it out to draw among all."
            )
        if self.top_p is not None and not (0 < self.top_p <= 1):
            raise ValueError(
                f"`top_p` must lie above 0 and at most at 1, got {self.top_p!r}. Leave it out to draw among all."
            )

    def draw(self, batch_size: int, count: int, device: torch.device) -> torch.Tensor | None:
        """Draw all the chance that an answer needs, one number per token that is to be chosen.

        Token i of a row depends on number i of that row and on the tokens before it, so that an answer does not depend
        on how many of its tokens are computed at once.

        Args:
            batch_size (`int`): B.
            count (`int`): tokens to choose in each row.
            device (`torch.device`): where the model is.

        Returns:
            `torch.FloatTensor` of shape `(B, count)` in [0, 1), all 0.5 for medians, or `None` for the likeliest.

        Raises:
            ValueError: if a generator is on another kind of device, or a list has not one for each row.
        """
        if not self.do_sample:
            return torch.full((batch_size, count), 0.5, device=device) if self.median else None
        if self.generator is None or isinstance(self.generator, torch.Generator):
            _check_device(self.generator, device)
            return torch.rand(batch_size, count, generator=self.generator, device=device)
        if len(self.generator) != batch_size:
            raise ValueError(
                f"A list of generators has one for each row, got {len(self.generator)} for a batch of {batch_size}. "
                "Give one for each row, or a single one."
            )
        for generator in self.generator:
            _check_device(generator, device)
        return torch.stack([torch.rand(count, generator=generator, device=device) for generator in self.generator])


def _check_device(generator: torch.Generator | None, device: torch.device) -> None:
    """Refuse a generator that cannot draw where the model is."""
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"`generator` must be on the model's device {device}, got one on {generator.device}. Make it "
            f"with `torch.Generator('{device}')`."
        )


class Choice(NamedTuple):
    """Chosen ids and, on request, how sure the model was: three tensors `(B, Q)`."""

    token_ids: torch.Tensor
    log_probs: torch.Tensor | None
    entropies: torch.Tensor | None


class TokenChooser:
    """Chooses ids of one range, projecting hidden states on its rows of the head alone.

    Args:
        lm_head (`torch.nn.Module`): projection from H to the vocabulary.
        first_id (`int`): the first id that is allowed.
        num_ids (`int`): A.
        options (`SamplingOptions`): how to choose.
        with_scores (`bool`): whether log-probabilities and entropies are wanted. They are those of the model among
            the ids that are allowed, before temperature, top-k and top-p.
    """

    def __init__(
        self, lm_head: Any, first_id: int, num_ids: int, options: SamplingOptions, with_scores: bool = False
    ) -> None:
        self.lm_head, self.first_id, self.num_ids = lm_head, first_id, num_ids
        self.options, self.with_scores = options, with_scores

    def choose(self, hidden_states: torch.Tensor, uniforms: torch.Tensor | None) -> Choice:
        """Choose the token that follows each hidden state.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(B, Q, H)`): output of the decoder.
            uniforms (`torch.FloatTensor` of shape `(B, Q)` or `None`): chance, see `SamplingOptions.draw`.

        Returns:
            `Choice`.
        """
        logits = self._project(hidden_states)
        index = logits.argmax(dim=-1) if uniforms is None else self._draw(logits.float(), uniforms)
        return self._score(logits, index) if self.with_scores else Choice(index + self.first_id, None, None)

    def score(self, hidden_states: torch.Tensor, token_ids: torch.Tensor) -> Choice:
        """Score the token that did follow each hidden state, as if it had been chosen.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(..., H)`): output of the decoder.
            token_ids (`torch.LongTensor` of shape `(...)`): ids that are allowed.

        Returns:
            `Choice`.
        """
        return self._score(self._project(hidden_states), token_ids - self.first_id)

    def _project(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the allowed ids: `(..., H)` to `(..., A)`."""
        rows = slice(self.first_id, self.first_id + self.num_ids)
        if is_plain_linear(self.lm_head):
            return F.linear(hidden_states, self.lm_head.weight[rows])
        # An adapter, a quantised or a spread layer, whose rows cannot be taken apart.
        return self.lm_head(hidden_states)[..., rows]

    def _score(self, logits: torch.Tensor, index: torch.Tensor) -> Choice:
        """Log-probabilities of what was chosen, and entropies: `(..., A)` and `(...)` to `(...)`."""
        log_probs = logits.float().log_softmax(dim=-1)
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
        return Choice(index + self.first_id, log_probs.gather(-1, index[..., None])[..., 0], entropies)

    def _draw(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Draw by the inverse of the cumulative distribution: `(B, Q, A)` and `(B, Q)` to `(B, Q)`."""
        logits = logits / self.options.temperature
        if self.options.top_k is not None and self.options.top_k < self.num_ids:
            least = logits.topk(self.options.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.options.top_p is not None:
            ordered, order = logits.sort(dim=-1, descending=True)
            probs = ordered.softmax(dim=-1)
            ordered = ordered.masked_fill(probs.cumsum(dim=-1) - probs >= self.options.top_p, -math.inf)
            logits = torch.empty_like(logits).scatter_(-1, order, ordered)
        return invert_cumulative(logits, uniforms)


def invert_cumulative(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Find where a distribution's cumulative probability passes given places.

    Args:
        logits (`torch.FloatTensor` of shape `(..., A)`): of the distribution, in float32.
        places (`torch.FloatTensor` of shape `(...)`): in [0, 1); 0.5 finds the median.

    Returns:
        `torch.LongTensor` of shape `(...)`: indices of ids with some probability.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    # Rounding must not carry the number to the total: past the last id that has any probability.
    place = torch.minimum(places[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, place, right=True)[..., 0]


def describe_sampling(temperature: float, top_p: float | None = None) -> str:
    """Say how tokens were drawn, for reports and cards.

    Args:
        temperature (`float`): see `SamplingOptions`.
        top_p (`float`, *optional*): likewise.

    Returns:
        `str`: such as `drawn at temperature 0.7, top_p 0.9`.
    """
    return f"drawn at temperature {temperature:g}" + ("" if top_p is None else f", top_p {top_p:g}")


__all__ = ["Choice", "SamplingOptions", "TokenChooser", "describe_sampling", "invert_cumulative"]
