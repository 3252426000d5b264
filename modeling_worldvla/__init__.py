"""What the model is: configuration, action attention mask, network, losses and decoding of WorldVLA.

Importing this package registers the classes with `AutoConfig`, `AutoModel` and `AutoModelForCausalLM`. The folder also
travels with every checkpoint, so that `trust_remote_code=True` works where the package is not installed.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_worldvla import WorldVLAConfig
from .generation_worldvla import WorldVLAActionChunkOutput, WorldVLAFrameOutput
from .imagination_worldvla import WorldVLAImaginationOutput
from .loss_worldvla import count_labels
from .masking_worldvla import build_action_attention_mask
from .modeling_worldvla import (
    WorldVLACausalLMOutput,
    WorldVLAForCausalLM,
    WorldVLAModel,
    WorldVLAPreTrainedModel,
)
from .packing_worldvla import pack_samples
from .scoring_worldvla import WorldVLAScoreOutput

WorldVLAConfig.register_for_auto_class()
WorldVLAModel.register_for_auto_class("AutoModel")
WorldVLAForCausalLM.register_for_auto_class("AutoModelForCausalLM")
AutoConfig.register(WorldVLAConfig.model_type, WorldVLAConfig, exist_ok=True)
AutoModel.register(WorldVLAConfig, WorldVLAModel, exist_ok=True)
AutoModelForCausalLM.register(WorldVLAConfig, WorldVLAForCausalLM, exist_ok=True)

__all__ = [
    "WorldVLAActionChunkOutput",
    "WorldVLACausalLMOutput",
    "WorldVLAConfig",
    "WorldVLAForCausalLM",
    "WorldVLAFrameOutput",
    "WorldVLAImaginationOutput",
    "WorldVLAModel",
    "WorldVLAPreTrainedModel",
    "WorldVLAScoreOutput",
    "build_action_attention_mask",
    "count_labels",
    "pack_samples",
]
