"""A random Chameleon as transformers saves it becomes a starting point: the same numbers, but no image rows."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, ChameleonConfig, ChameleonForConditionalGeneration

from modeling_worldvla import convert_chameleon_base

from .official_checkpoint import write_tokenizers

VQ_SIZES = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "resolution": 32}


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    """Two layers, the full vocabulary, as `save_pretrained` of transformers writes it (with a part of a VQ-GAN)."""
    folder = tmp_path_factory.mktemp("chameleon") / "chameleon-7b"
    torch.manual_seed(0)
    config = ChameleonConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.2,
        vq_config={"num_embeddings": 16, "embed_dim": 8, "latent_channels": 8, **VQ_SIZES},
        vocabulary_map={"<image>": 8711},
    )
    model = ChameleonForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def base(chameleon, tmp_path_factory):
    """What the documented command makes of it."""
    tokenizers = write_tokenizers(tmp_path_factory.mktemp("release") / "chameleon" / "tokenizer")
    output = tmp_path_factory.mktemp("out") / "base"
    command = ["convert_chameleon_base", "--checkpoint", chameleon[0], "--output", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*map(str, command), "--tokenizer", str(tokenizers), "--vqgan", str(tokenizers)])
        convert_chameleon_base.main()
    return output


def test_the_starting_point_is_chameleon_without_its_image_rows(chameleon, base):
    expected, model = chameleon[1], AutoModelForCausalLM.from_pretrained(base).eval()
    config, head = model.config, model.lm_head.weight
    images = slice(config.image_token_id_start, config.image_token_id_start + config.num_image_tokens)
    assert (head[images] == 0).all() and (images.start, images.stop) == (4, 8196)
    kept = torch.ones(len(head), dtype=torch.bool)
    kept[images] = False
    assert torch.equal(head[kept], expected.lm_head.weight[kept])
    ids = torch.randint(16384, 65536, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model(ids).logits[..., kept], expected(ids).logits[..., kept]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.1


def test_it_says_where_it_comes_from_and_brings_its_processor(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.config.derived_from == "facebook/chameleon-7b"
    assert "base_model: facebook/chameleon-7b" in (base / "README.md").read_text()
    assert AutoProcessor.from_pretrained(base).vocabulary.vocab_size == model.config.vocab_size
