"""Loading a checkpoint for evaluation: model and processor from one folder."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoProcessor

import modeling_worldvla  # noqa: F401  registers the model with the Auto classes
import tokenization  # noqa: F401  registers the processor with the Auto classes


def load_checkpoint(folder_or_id: str, device: str) -> tuple[Any, Any]:
    """Load what acts and imagines.

    Args:
        folder_or_id (`str`): folder or Hub id that holds model and processor.
        device (`str`): torch device of the model.

    Returns:
        `tuple`: the model in evaluation mode, and its processor.
    """
    processor = AutoProcessor.from_pretrained(folder_or_id)
    model: Any = AutoModelForCausalLM.from_pretrained(folder_or_id)
    return model.to(device).eval(), processor
