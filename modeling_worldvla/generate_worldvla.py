"""What `generate` needs of WorldVLA: the grammar of answers, and the action rule, read from all tokens in every step.

Shapes: B batch, P prompt tokens, T tokens of the answer, L new tokens, S tokens so far, H hidden size.
"""

from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from .grammar_worldvla import TOKEN_GRAMMARS, TokenGrammar, WorldVLATokenGrammar
from .masking_worldvla import combine_masks, compute_action_block_ids
from .prompt_checks_worldvla import check_choice, check_chunk_size, check_length, check_prompt, last_image_sizes


class WorldVLAGenerateMixin(GenerationMixin):
    """`generate` under the action attention mask and, on request, under the grammar of a role."""

    config: Any
    device: Any

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *args: Any,
        token_grammar: TokenGrammar | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | ModelOutput:
        """Generate as every transformers model does or, with a grammar, answer a prompt in the form that a role asks.

        With a grammar the answer is always whole, ends in the separator, and generation stops there. Its first marker
        is fed with the prompt: that is what tells the mask, in the world model's case, that the actions of the prompt
        are history, as in training. All ways of choosing are possible (greedy, sampled, beams), and all caches.

        Args:
            inputs (`torch.LongTensor` of shape `(B, P)`, *optional*): prompts, padded on the left; `input_ids` is
                another name.
            generation_config (`GenerationConfig`, *optional*): as in transformers.
            logits_processor (`LogitsProcessorList`, *optional*): as in transformers; they come before the grammar.
            *args: as in transformers.
            token_grammar (`str`, *optional*): `"policy"` for K actions, `"world_model"` for an image of the size of
                the last one of its prompt; by default anything may follow.
            chunk_size (`int`, *optional*): K; by default `config.chunk_size`.
            **kwargs: as in transformers. `max_new_tokens` and `max_length` follow from the grammar.

        Returns:
            `torch.LongTensor` of shape `(B, P + T)`, prompts and answers, shorter ones padded on the right; or what
            transformers returns with `return_dict_in_generate=True`. Scores are log-probabilities among the tokens
            that the grammar allows, and begin with the second token of the answer, because the first is fed.

        Raises:
            ValueError: if the grammar is unknown, a prompt cannot be answered in it (see `predict_action_chunk` and
                `predict_next_frame`), the answer does not fit into `max_new_tokens` or `max_length`, or something was
                asked for that does not go with a grammar.

        References:
            WorldVLA (arXiv 2506.21539) section 3; docs/generate.md.
        """
        if token_grammar is None:
            if chunk_size is not None:
                raise ValueError(
                    f"`chunk_size` belongs to a token grammar, got {chunk_size!r} without one. Pass "
                    '`token_grammar="policy"` too.'
                )
            return super().generate(inputs, generation_config, logits_processor, *args, **kwargs)  # type: ignore[misc]
        check_choice("token grammar", token_grammar, TOKEN_GRAMMARS)
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        _check_goes_with_grammar(token_grammar, input_ids, chunk_size, generation_config, kwargs)
        input_ids, real, num_tokens = self._check_question(
            token_grammar, input_ids, kwargs.pop("attention_mask", None), chunk_size
        )
        _check_room(num_tokens, input_ids.shape[1], generation_config, kwargs)
        grammar = WorldVLATokenGrammar(
            token_grammar,
            self.config,
            input_ids.shape[1],
            chunk_size,
            median=self._takes_medians(token_grammar, generation_config, kwargs),
        )
        kwargs.setdefault("eos_token_id", self.config.sep_token_id)
        kwargs.setdefault("pad_token_id", self.config.pad_token_id)
        return super().generate(  # type: ignore[misc]
            F.pad(input_ids, (0, 1), value=grammar.first_token_id),
            generation_config,
            LogitsProcessorList([*(logits_processor or []), grammar]),
            *args,
            attention_mask=F.pad(real.long(), (0, 1), value=1),
            **kwargs | {"max_new_tokens": num_tokens - 1, "max_length": None},
        )

    def _takes_medians(
        self, token_grammar: TokenGrammar, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> bool:
        """Whether `config.action_choice` says what to take; by chance or among beams something else does."""
        if token_grammar != "policy" or self.config.action_choice != "median":
            return False
        own = generation_config or self.generation_config
        return not _option("do_sample", own, kwargs) and (_option("num_beams", own, kwargs) or 1) == 1

    def _check_question(
        self,
        token_grammar: TokenGrammar,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        chunk_size: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Check prompts; returns them, which of their tokens are real, and the tokens of the longest answer."""
        config, policy = self.config, token_grammar == "policy"
        first_marker = config.boa_token_id if policy else config.boi_token_id
        input_ids, real = check_prompt(input_ids, attention_mask, config, first_marker, self.device)
        if policy:
            num_tokens = check_chunk_size(chunk_size, config) * config.action_block_length + 1
        else:
            sizes = last_image_sizes(input_ids, real, config)
            num_tokens = max(height * (width + 1) for height, width in sizes) + 5
        check_length(real, num_tokens - 1, config)  # the separator is not fed
        return input_ids, real, num_tokens

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
            inputs_embeds (`torch.Tensor` of shape `(B, P, H)`, *optional*): fed in place of the prompt's ids.
            is_first_iteration (`bool`, *optional*): whether this is the prefill.
            **kwargs: what `generate` hands on.

        Returns:
            `dict`: arguments of `forward`.

        Raises:
            ValueError: if the ids of tokens are not known that have been fed, or are to be.
        """
        block_ids = None
        if self.config.use_action_attention_mask:
            _check_ids_are_whole(input_ids, next_sequence_length, past_key_values, inputs_embeds)
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


def _check_ids_are_whole(
    input_ids: torch.Tensor, new: int | None, cache: Cache | None, inputs_embeds: torch.Tensor | None
) -> None:
    """Refuse to guess which tokens are actions where their ids did not come along."""
    missing = ""
    if inputs_embeds is not None and input_ids.shape[1] < inputs_embeds.shape[1]:
        missing = f"`inputs_embeds` of {inputs_embeds.shape[1]} tokens and ids of {input_ids.shape[1]}"
    elif new is None and isinstance(cache, Cache) and cache.get_seq_length() > 0:
        missing = f"a cache of {int(cache.get_seq_length())} tokens and the ids of {input_ids.shape[1]} new ones"
    if missing:
        raise ValueError(
            "The action attention mask is derived from the ids of all tokens in every step, but got "
            f"{missing}. Pass the `input_ids` of the whole sequence to `generate`, and no `prefill_chunk_size`."
        )


def _check_goes_with_grammar(
    token_grammar: TokenGrammar,
    input_ids: torch.Tensor | None,
    chunk_size: int | None,
    generation_config: GenerationConfig | None,
    kwargs: dict[str, Any],
) -> None:
    """Refuse what `generate` can do without a grammar, but not with one."""
    if token_grammar != "policy" and chunk_size is not None:
        raise ValueError(
            f'`chunk_size` counts actions, got {chunk_size!r} with `token_grammar="{token_grammar}"`. Leave it out.'
        )
    if input_ids is None or kwargs.get("inputs_embeds") is not None:
        raise ValueError(
            "A token grammar reads the ids of the prompt, got "
            f"{'neither `inputs` nor `input_ids`' if input_ids is None else '`inputs_embeds`'}. Pass `input_ids`."
        )
    cache = kwargs.get("past_key_values")
    if token_grammar == "world_model" and isinstance(cache, Cache) and cache.get_seq_length() > 0:
        raise ValueError(
            "The begin of the next image changes what the actions of the prompt may see, but got a cache that already "
            f"holds {int(cache.get_seq_length())} tokens. Leave `past_key_values` out."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens"):
        if _option(name, generation_config, kwargs) is not None:
            raise ValueError(
                f"A token grammar does not go with assisted generation, got `{name}`. Use `predict_action_chunk` or "
                "`predict_next_frame`: they verify several tokens at once."
            )


def _option(name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> Any:
    """What was said in the call, or else in the configuration that came with it."""
    return kwargs[name] if kwargs.get(name) is not None else getattr(generation_config, name, None)


def _check_room(
    num_tokens: int, prompt_length: int, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> None:
    """Refuse limits that would cut the answer."""
    for name, taken in (("max_new_tokens", 0), ("max_length", prompt_length)):
        limit = _option(name, generation_config, kwargs)
        if limit is not None and limit < num_tokens + taken:
            raise ValueError(
                f"The answer has {num_tokens} tokens{f' after a prompt of {taken}' if taken else ''}, got `{name}` "
                f"{limit}. Leave it out: it follows from the grammar."
            )


__all__ = ["WorldVLAGenerateMixin"]
