"""What the model reads and writes: text, images and actions as tokens of one vocabulary."""

from transformers import AutoProcessor

from .action_tokenization_worldvla import (
    BINNINGS,
    LIBERO_ACTION_LIMITS,
    WorldVLAActionTokenizer,
    measure_action_limits,
)
from .bpe_worldvla import train_text_tokenizer, wrap_text_tokenizer
from .image_processing_worldvla import WorldVLAImageTokenizer
from .parsing_worldvla import (
    ActionPart,
    ImagePart,
    MalformedPart,
    Part,
    SeparatorPart,
    SpecialPart,
    TextPart,
)
from .processing_worldvla import WorldVLAProcessor
from .prompt_worldvla import PROMPTS, ROLES, Role, list_prompts, render_prompt
from .vocabulary_worldvla import VocabularyLayout
from .vqgan_worldvla import VQ_MODEL_PRESETS, load_vq_model, vq_model_config

# A checkpoint's processor_config.json names its class; AutoProcessor finds a registered class by that name. The key is
# not used for that, and may not be the model's config: this folder does not know the model.
AutoProcessor.register(WorldVLAProcessor, WorldVLAProcessor, exist_ok=True)
WorldVLAProcessor.register_for_auto_class()

__all__ = [
    "ActionPart",
    "BINNINGS",
    "ImagePart",
    "LIBERO_ACTION_LIMITS",
    "MalformedPart",
    "PROMPTS",
    "Part",
    "ROLES",
    "Role",
    "SeparatorPart",
    "SpecialPart",
    "TextPart",
    "VQ_MODEL_PRESETS",
    "VocabularyLayout",
    "WorldVLAActionTokenizer",
    "WorldVLAImageTokenizer",
    "WorldVLAProcessor",
    "list_prompts",
    "load_vq_model",
    "measure_action_limits",
    "render_prompt",
    "train_text_tokenizer",
    "vq_model_config",
    "wrap_text_tokenizer",
]
