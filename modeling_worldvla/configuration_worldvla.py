"""Configuration of WorldVLA: the sizes of the network and every token id, as data."""

import math
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

AUTO_MAP = {
    "AutoConfig": "configuration_worldvla.WorldVLAConfig",
    "AutoModel": "modeling_worldvla.WorldVLAModel",
    "AutoModelForCausalLM": "modeling_worldvla.WorldVLAForCausalLM",
}
POSITIVE_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "model_parallel_size",
    "max_position_embeddings",
    "codes_per_grid_unit",
    "num_action_tokens",
    "num_image_tokens",
    "action_dim",
    "chunk_size",
    "n_obs_steps",
    "world_model_history",
)
SWITCHES = (
    "attention_bias",
    "mlp_bias",
    "use_qk_norm",
    "swin_norm",
    "tie_word_embeddings",
    "use_cache",
    "use_action_attention_mask",
)
LOSS_FORMS = ("paper", "official")
ACTION_CHOICES = ("likeliest", "median")
SINGLE_TOKENS = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "boi_token_id",
    "eoi_token_id",
    "eol_token_id",
    "sep_token_id",
    "boa_token_id",
    "eoa_token_id",
)


class WorldVLAConfig(PreTrainedConfig):
    """Sizes and token ids of a WorldVLA model; the defaults are those of the official 7B checkpoints.

    Args:
        vocab_size (`int`): entries of the one vocabulary of text, image and action tokens.
        hidden_size (`int`): width of the residual stream.
        intermediate_size (`int`): width of the SwiGLU layer.
        num_hidden_layers (`int`): decoder layers.
        num_attention_heads (`int`): query heads; must divide `hidden_size` into heads of even width.
        num_key_value_heads (`int`): key and value heads; must divide `num_attention_heads`.
        hidden_act (`str`): activation of the gate.
        max_position_embeddings (`int`): longest sequence, in tokens.
        initializer_range (`float`): standard deviation of freshly made weights.
        rms_norm_eps (`float`): epsilon of every RMSNorm.
        rope_parameters (`dict`): `{"rope_type": "default", "rope_theta": 10000.0}`; a plain `rope_theta=` works too.
        attention_bias, mlp_bias (`bool`): biases of the linear layers.
        attention_dropout (`float`): dropout of the attention weights.
        use_qk_norm (`bool`): LayerNorm of queries and keys, per head.
        swin_norm (`bool`): norms after attention and MLP (the 34B Chameleon form) instead of before.
        model_parallel_size (`int`): shards the q/k-norm weights were trained with; they are `[shards, head_dim]`.
        tie_word_embeddings (`bool`): one matrix for the embedding and the head.
        use_cache (`bool`): return a key/value cache by default.
        use_action_attention_mask (`bool`): actions of a chunk do not see each other (paper section 3.3).
        world_model_loss_weight (`float`): alpha of `L = L_action + alpha * L_world`.
        loss_form (`str`): "paper" (by role, over the whole optimizer step) or "official" (by class weights, over the
            micro-batch).
        loss_weight_ranges (`list` of `[first id, last id, weight]`): class weights of the official form; labels
            outside weigh 1. By default those of the official code, where image tokens are 4 … 8195: it is off by one.
        z_loss_weight (`float`): weight of the mean squared log-partition (official code: 1e-5).
        label_smoothing (`float`): share of a label that is spread evenly over the vocabulary.
        loss_chunk_size (`int`, *optional*): most labelled tokens whose logits exist at once; by default as many as
            have 256 MiB of them.
        bos_token_id, pad_token_id, eos_token_id (`int`): begin of a sequence, padding, end of a text.
        boi_token_id, eoi_token_id (`int`): begin and end of an image block.
        eol_token_id (`int`): end of a row of image codes.
        sep_token_id (`int`): end of a prompt, and of what the model answers.
        grid_token_id_start (`int`): the size `n` of an image side, in grid units, is written as this id + n.
        codes_per_grid_unit (`int`): image codes along one grid unit (official: 32 pixels / stride 16 = 2).
        boa_token_id, eoa_token_id (`int`): begin and end of an action block.
        action_token_id_start, num_action_tokens (`int`): the range of action bins.
        image_token_id_start, num_image_tokens (`int`): the range of image tokens.
        action_dim (`int`): bins per action (D).
        chunk_size (`int`): actions per prediction (K).
        n_obs_steps (`int`): frames in a policy prompt (M).
        world_model_history (`int`): frame-action pairs in a world-model prompt.
        action_choice (`str`): what decoding without chance takes of a bin's distribution: "likeliest" (paper) or
            "median", the bin with the least expected distance.
        derived_from (`str`, *optional*): Hub id of the weights that training began with; the model card names it and
            its licence.

    Raises:
        ValueError: if a size is not positive, a number or a switch is no such thing, the heads do not divide, the
            activation is unknown, token ids overlap or leave the vocabulary, or a loss cannot be computed.

    References:
        WorldVLA (arXiv 2506.21539) section 3; Chameleon (arXiv 2405.09818) section 2.2 for the network.
    """

    model_type = "worldvla"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "embed_tokens": "embedding_rowwise",
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: Any = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    rope_parameters: Any = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    use_qk_norm: bool = True
    swin_norm: bool = False
    model_parallel_size: int = 1
    tie_word_embeddings: bool = False
    use_cache: bool = True
    use_action_attention_mask: bool = True
    world_model_loss_weight: float = 0.04
    loss_form: str = "paper"
    loss_weight_ranges: Any = ((3, 8194, 0.04),)
    z_loss_weight: float = 0.0
    label_smoothing: float = 0.0
    loss_chunk_size: Any = None
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    boi_token_id: int = 8197
    eoi_token_id: int = 8196
    eol_token_id: int = 8803
    sep_token_id: int = 8710
    grid_token_id_start: int = 8804
    codes_per_grid_unit: int = 2
    boa_token_id: int = 10004
    eoa_token_id: int = 15004
    action_token_id_start: int = 10006
    num_action_tokens: int = 256
    image_token_id_start: int = 4
    num_image_tokens: int = 8192
    action_dim: int = 7
    chunk_size: int = 5
    n_obs_steps: int = 2
    world_model_history: int = 1
    action_choice: str = "likeliest"
    derived_from: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields, hand the rest to the base class, and check the whole.

        Args:
            **kwargs: arguments that are not fields of this class, for the base class.
        """
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)
        self.loss_weight_ranges = [list(entry) for entry in self.loss_weight_ranges]
        _check_sizes(self)
        _check_numbers(self)
        _check_token_ids(self)
        _check_losses(self)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def action_block_length(self) -> int:
        """Tokens of one action with its begin and end markers."""
        return self.action_dim + 2


def _check_sizes(config: WorldVLAConfig) -> None:
    """Refuse sizes that no network can have."""
    for name in POSITIVE_SIZES:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{name}` must be a whole number of at least 1, got {value!r}. Set `{name}` accordingly."
            )
    for parts, whole in (
        ("num_attention_heads", "hidden_size"),
        ("num_key_value_heads", "num_attention_heads"),
        ("model_parallel_size", "num_key_value_heads"),
    ):
        if getattr(config, whole) % getattr(config, parts):
            raise ValueError(
                f"`{parts}` must divide `{whole}`, got {getattr(config, parts)} and {getattr(config, whole)}. "
                f"Change one of the two."
            )
    if config.head_dim % 2:
        raise ValueError(
            f"Rotary embeddings need heads of even width, got {config.head_dim} = hidden_size {config.hidden_size} / "
            f"num_attention_heads {config.num_attention_heads}. Change one of the two."
        )


def _check_numbers(config: WorldVLAConfig) -> None:
    """Refuse numbers, switches and names that no network can be made from."""
    for name, low, high, span in (
        ("attention_dropout", 0.0, 1.0, "lie in [0, 1)"),
        ("initializer_range", 0.0, math.inf, "not be negative"),
        ("label_smoothing", 0.0, 1.0, "lie in [0, 1)"),
        ("world_model_loss_weight", 0.0, math.inf, "not be negative"),
        ("z_loss_weight", 0.0, math.inf, "not be negative"),
    ):
        if not _is_number(value := getattr(config, name)) or not low <= value < high:
            raise ValueError(f"`{name}` must be a number and {span}, got {value!r}. Use 0 to turn it off.")
    theta = config.rope_parameters.get("rope_theta")
    for name, value in (("rms_norm_eps", config.rms_norm_eps), ("rope_theta", theta)):
        if not _is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a number above 0, got {value!r}. Leave it out to take the default.")
    for name in SWITCHES:
        if not isinstance(value := getattr(config, name), bool):
            raise ValueError(f"`{name}` must be True or False, got {value!r}. Choose one of the two.")
    if config.action_choice not in ACTION_CHOICES:
        raise ValueError(
            f"`action_choice` must be one of {', '.join(ACTION_CHOICES)}, got {config.action_choice!r}. Choose one."
        )
    rope_type = config.rope_parameters.get("rope_type", "default")
    if rope_type != "default":
        raise ValueError(f"`rope_type` must be 'default', got {rope_type!r}. Leave it out of `rope_parameters`.")
    if config.hidden_act not in ACT2FN:
        near = get_close_matches(str(config.hidden_act), ACT2FN, n=1, cutoff=0)[0]
        raise ValueError(
            f"`hidden_act` must be an activation of transformers, got {config.hidden_act!r}. Choose one of: "
            f"{', '.join(sorted(ACT2FN))}. Did you mean {near!r}?"
        )


def _is_number(value: Any) -> bool:
    """Whether something is a number, and no switch."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_token_ids(config: WorldVLAConfig) -> None:
    """Refuse token ids that leave the vocabulary or mean two things."""
    spans = [(name, getattr(config, name), 1) for name in SINGLE_TOKENS]
    spans += [
        ("grid_token_id_start", config.grid_token_id_start, 1),
        ("action_token_id_start", config.action_token_id_start, config.num_action_tokens),
        ("image_token_id_start", config.image_token_id_start, config.num_image_tokens),
    ]
    for name, start, length in spans:
        if isinstance(start, bool) or not isinstance(start, int) or start < 0 or start + length > config.vocab_size:
            raise ValueError(
                f"`{name}` must lie inside the vocabulary of {config.vocab_size} entries, got "
                f"{start!r}{f' … {start + length - 1}' if length > 1 and isinstance(start, int) else ''}. "
                "Change it, or enlarge `vocab_size`."
            )
    spans.sort(key=lambda span: span[1])
    for (name, start, length), (next_name, next_start, _) in zip(spans, spans[1:], strict=False):
        if next_start < start + length:
            raise ValueError(
                f"Token ids must not overlap, but `{name}` takes {start} … {start + length - 1} and `{next_name}` "
                f"begins at {next_start}. Move one of the two."
            )


def _check_losses(config: WorldVLAConfig) -> None:
    """Refuse losses that cannot be computed."""
    if config.loss_form not in LOSS_FORMS:
        raise ValueError(f"`loss_form` must be one of {', '.join(LOSS_FORMS)}, got {config.loss_form!r}. Choose one.")
    chunk_size = config.loss_chunk_size
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(
            f"`loss_chunk_size` must be a whole number of at least 1, got {chunk_size!r}. Leave it out to bound the "
            "memory instead."
        )
    for entry in config.loss_weight_ranges if config.loss_form == "official" else ():
        if not _is_weight_range(entry, config.vocab_size):
            start, end = config.image_token_id_start, config.image_token_id_start + config.num_image_tokens - 1
            raise ValueError(
                "`loss_weight_ranges` must hold [first id, last id, weight] inside the vocabulary of "
                f"{config.vocab_size} entries with positive weights, got {entry}. [[{start}, {end}, 0.04]] are this "
                "vocabulary's image tokens."
            )


def _is_weight_range(entry: list[Any], vocab_size: int) -> bool:
    """Whether an entry is `[first id, last id, weight]` of this vocabulary."""
    if len(entry) != 3 or not all(_is_number(value) for value in entry):
        return False
    first, last, weight = entry
    return first == int(first) and last == int(last) and 0 <= first <= last < vocab_size and weight > 0


__all__ = ["WorldVLAConfig"]
