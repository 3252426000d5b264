"""Loading a checkpoint for evaluation: model and processor from one folder."""

import hashlib
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoProcessor

import modeling_worldvla  # noqa: F401  registers the model with the Auto classes
import tokenization  # noqa: F401  registers the processor with the Auto classes

# What a training run writes beside a checkpoint that says nothing about how it acts.
LOGS = ("trainer_state.json", "training_log.json")


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


def fingerprint_checkpoint(folder_or_id: str, model: Any) -> str:
    """Name the weights, so that results of different weights are never mixed.

    Args:
        folder_or_id (`str`): what the model was loaded from.
        model (`WorldVLAForCausalLM`): the loaded model, which knows its commit on the Hub.

    Returns:
        `str`: SHA-256 over weights and configs of a local folder; the commit of a Hub repository.
    """
    folder = Path(folder_or_id)
    if not folder.is_dir():
        return str(model.config._commit_hash)
    digest = hashlib.sha256()
    for path in sorted(
        [*folder.glob("*.safetensors"), *folder.glob("vq_model/*.safetensors"), *folder.glob("*.json")]
    ):
        if path.name in LOGS:
            continue
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
