"""A tiny processor and a tiny model with random weights, shared by the tests of training and evaluation.

`recorded_behaviour` is the folder of recorded outputs of the official code; a small part of them lies in `fixtures/`.
"""

import os
from pathlib import Path

import pytest
import torch
from diffusers import VQModel

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM
from tokenization import VocabularyLayout, WorldVLAProcessor, list_prompts, train_text_tokenizer, vq_model_config

GRID = (2, 2)
DATASET = "made_up"
RECORDED_BEHAVIOUR = "WORLDVLA_RECORDED_BEHAVIOUR"


@pytest.fixture(scope="session")
def recorded_behaviour():
    """The folder that holds the whole recorded files, for tests that the parts in `fixtures/` do not suffice for."""
    folder = os.environ.get(RECORDED_BEHAVIOUR)
    if not folder:
        pytest.skip(f"needs the whole recorded behaviour; set {RECORDED_BEHAVIOUR} to its folder")
    if not Path(folder).is_dir():
        pytest.fail(f"{RECORDED_BEHAVIOUR} must name the folder of the recorded behaviour, got {folder!r}")
    return Path(folder)


@pytest.fixture(scope="session")
def processor():
    torch.manual_seed(0)
    vq_model = VQModel(**vq_model_config("tiny-128", block_out_channels=(8, 8, 8, 8, 8), num_vq_embeddings=16))
    layout = VocabularyLayout.compact(num_image_tokens=16, num_text_tokens=300, num_action_tokens=16, max_grid_size=4)
    limits = {DATASET: {"low": [-1.0] * 7, "high": [1.0] * 7}}
    return WorldVLAProcessor(
        train_text_tokenizer(list_prompts(), layout, min_frequency=1),
        vocabulary=layout,
        action_limits=limits,
        image_size=(32, 32),
        vq_model=vq_model,
    )


@pytest.fixture
def make_model(processor):
    """A function that makes the same tiny model every time."""

    def make(**changes):
        torch.manual_seed(1)
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "world_model_loss_weight": 0.3,
        }
        return WorldVLAForCausalLM(WorldVLAConfig(**(processor.model_config() | sizes | changes)))

    return make
