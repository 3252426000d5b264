"""A tiny processor with random weights, and the behaviour recorded from the official code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel

from tokenization import (
    LIBERO_ACTION_LIMITS,
    VocabularyLayout,
    WorldVLAProcessor,
    list_prompts,
    train_text_tokenizer,
    vq_model_config,
)

torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring
FIXTURES = Path(__file__).parents[1] / "fixtures"
CORPUS = ["pick up the alphabet soup and place it in the basket", "put the bowl on the stove", *list_prompts()] * 3


@pytest.fixture(scope="session")
def recorded():
    """Load one of the recorded files by name."""
    return lambda name: np.load(FIXTURES / f"recorded_{name}.npz")


@pytest.fixture(scope="session")
def layout():
    return VocabularyLayout.compact(num_image_tokens=64, num_text_tokens=400)


@pytest.fixture(scope="session")
def tokenizer(layout):
    return train_text_tokenizer(CORPUS, layout)


def make_vq_model(seed=0, **overrides):
    torch.manual_seed(seed)
    sizes = {"block_out_channels": (8,) * 5, "norm_num_groups": 4, "latent_channels": 8, "vq_embed_dim": 8}
    vq_model = VQModel(**vq_model_config("tiny-128", **{**sizes, "num_vq_embeddings": 64, **overrides}))
    torch.nn.init.normal_(vq_model.quantize.embedding.weight, std=0.3)  # spread out, so that many codes occur
    return vq_model.eval()


@pytest.fixture(scope="session")
def vq_model():
    return make_vq_model()


@pytest.fixture
def processor(layout, vq_model):
    return WorldVLAProcessor(
        train_text_tokenizer(CORPUS, layout),
        layout,
        action_limits={"libero": LIBERO_ACTION_LIMITS},
        image_size=(64, 32),
        vq_model=vq_model,
    )


@pytest.fixture(scope="session")
def frames():
    return np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def official_tokenizer():
    """Stand-in for the official text tokenizer: one token per byte, at 16384 + byte."""
    return train_text_tokenizer(["-"], VocabularyLayout.official(), min_frequency=10**6)
