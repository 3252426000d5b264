"""The parts of the network: norms, rotary positions, attention, MLP, decoder layer.

Shapes: B batch, L new tokens, S cached and new tokens, H hidden size, N query heads, G key/value heads, E head width.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_worldvla import WorldVLAConfig


class WorldVLARMSNorm(nn.Module):
    """Root-mean-square norm whose statistics are taken in float32."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise `(..., H)` over the last axis, in the dtype it came in."""
        scaled = F.rms_norm(hidden_states.float(), hidden_states.shape[-1:], eps=self.eps)
        return self.weight * scaled.to(hidden_states.dtype)


class WorldVLAHeadLayerNorm(nn.Module):
    """LayerNorm of each head; the heads of one tensor-parallel training shard share their weights.

    The weights are `[model_parallel_size, head_dim]`, as in the official checkpoints.
    """

    def __init__(self, num_shards: int, num_heads: int, head_dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_shards, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_shards, head_dim))
        self.num_heads = num_heads
        self.eps = eps

    def forward(self, heads: torch.Tensor, first_head: int = 0) -> torch.Tensor:
        """Normalise `(B, L, N, E)` over the last axis; `first_head` says which of all heads the first of these is."""
        num_shards, head_dim = self.weight.shape
        if num_shards == 1:
            return F.layer_norm(heads, (head_dim,), self.weight[0], self.bias[0], self.eps)
        here = slice(first_head, first_head + heads.shape[2])
        weight, bias = (
            values.repeat_interleave(self.num_heads // num_shards, 0)[here] for values in (self.weight, self.bias)
        )
        return F.layer_norm(heads, (head_dim,), eps=self.eps) * weight + bias


def rotary_embedding(
    position_ids: torch.Tensor, config: WorldVLAConfig, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cosines and signed sines that turn heads by their position.

    They are made anew in each forward (two small tables), so nothing of them is stored, cast or lost on loading.

    Args:
        position_ids (`torch.LongTensor` of shape `(B, L)`): positions.
        config (`WorldVLAConfig`): for `head_dim` and `rope_parameters`.
        dtype (`torch.dtype`): of the result; computed in float32.

    Returns:
        two `torch.FloatTensor` of shape `(B, L, 1, E)`; the first half of the sines is negated.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=position_ids.device, dtype=torch.float32) / config.head_dim
    angles = position_ids[:, :, None, None].float() * config.rope_parameters["rope_theta"] ** -exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def apply_rotary(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Turn heads `(B, L, N, E)` by their position (first half against second half)."""
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat([second, first], dim=-1), signed_sin)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend step by step, so that the weights can be looked at.

    Args:
        module (`WorldVLAAttention`): for the training flag.
        query (`torch.FloatTensor` of shape `(B, N, L, E)`): queries.
        key (`torch.FloatTensor` of shape `(B, G, S, E)`): keys.
        value (`torch.FloatTensor` of shape `(B, G, S, E)`): values.
        attention_mask (`torch.FloatTensor` broadcastable to `(B, N, L, S)`): added to the scores.
        scaling (`float`): factor of the scores.
        dropout (`float`): dropout of the weights.
        **kwargs: ignored.

    Returns:
        `(B, L, N, E)` attended values and `(B, N, L, S)` weights.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _first_head(projection: nn.Module, count: int, num_heads: int) -> int:
    """Say which of all heads is the first of `count` heads that this tensor-parallel rank has."""
    if count == num_heads:
        return 0
    weight: Any = projection.weight
    return weight.device_mesh.get_local_rank() * count


class WorldVLAAttention(nn.Module):
    """Multi-head attention with q/k-norm and rotary positions."""

    is_causal = True

    def __init__(self, config: WorldVLAConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        query_size, key_size = config.hidden_size, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        if config.use_qk_norm:
            shards = config.model_parallel_size
            self.q_norm = WorldVLAHeadLayerNorm(shards, config.num_attention_heads, self.head_dim)
            self.k_norm = WorldVLAHeadLayerNorm(shards, config.num_key_value_heads, self.head_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from `(B, L, H)` to the cache and itself; returns `(B, L, H)` and the weights, if there are any."""
        batch_and_length = hidden_states.shape[:2]
        per_head = (*batch_and_length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(per_head)
        key = self.k_proj(hidden_states).view(per_head)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)
        if self.config.use_qk_norm:
            query = self.q_norm(query, _first_head(self.q_proj, query.shape[2], self.q_norm.num_heads))
            key = self.k_norm(key, _first_head(self.k_proj, key.shape[2], self.k_norm.num_heads))
        query = apply_rotary(query, *position_embeddings).transpose(1, 2)
        key = apply_rotary(key, *position_embeddings).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(attended.reshape(*batch_and_length, -1)), weights


class WorldVLAMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: WorldVLAConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(B, L, H)` to `(B, L, H)`."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class WorldVLADecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP with residuals; norms come before them, or after them with `swin_norm`."""

    def __init__(self, config: WorldVLAConfig, layer_idx: int) -> None:
        super().__init__()
        self.swin_norm = config.swin_norm
        self.self_attn = WorldVLAAttention(config, layer_idx)
        self.mlp = WorldVLAMLP(config)
        self.input_layernorm = WorldVLARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = WorldVLARMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Map `(B, L, H)` to `(B, L, H)`."""
        branch = hidden_states if self.swin_norm else self.input_layernorm(hidden_states)
        branch, _ = self.self_attn(branch, position_embeddings, attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + (self.input_layernorm(branch) if self.swin_norm else branch)
        branch = hidden_states if self.swin_norm else self.post_attention_layernorm(hidden_states)
        branch = self.mlp(branch)
        return hidden_states + (self.post_attention_layernorm(branch) if self.swin_norm else branch)


__all__ = ["WorldVLAAttention", "WorldVLADecoderLayer", "WorldVLAMLP", "WorldVLARMSNorm", "rotary_embedding"]
