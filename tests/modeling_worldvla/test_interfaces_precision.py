"""Half precision and quantised weights: everything runs, nothing that needs float32 is done in less."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache

from modeling_worldvla import WorldVLAForCausalLM
from modeling_worldvla.masking_worldvla import compute_action_block_ids

from .sequences import Writer, pad_left, tiny_model, training_batch

HALVES = [torch.bfloat16, torch.float16]


def prompts(kind):
    writer = Writer(3)
    return pad_left([getattr(writer, kind)(text)[0] for text in (4, 7)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model whose matrices are large enough to be quantised."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model(hidden_size=64, intermediate_size=128, initializer_range=0.1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_forward_and_loss(saved, dtype, attention):
    model = WorldVLAForCausalLM.from_pretrained(saved, dtype=dtype, attn_implementation=attention)
    whole = WorldVLAForCausalLM.from_pretrained(saved, dtype=torch.float32)
    ids, mask, labels = training_batch()
    outputs = model(ids, attention_mask=mask, labels=labels, logits_to_keep=0)
    expected = whole(ids, attention_mask=mask, labels=labels, logits_to_keep=0)
    assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.02, atol=0.02)
    real = mask.bool()
    assert (outputs.logits[real].float() - expected.logits[real]).abs().mean() < 0.05
    outputs.loss.backward()
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_with_caches_and_masks(saved, dtype, static):
    model = WorldVLAForCausalLM.from_pretrained(saved, dtype=dtype)
    ids, mask, _ = training_batch()
    blocks = compute_action_block_ids(ids, model.config)
    cache = StaticCache(config=model.config, max_cache_len=70) if static else DynamicCache(config=model.config)
    whole = model(ids, attention_mask=mask).logits
    cut = ids.shape[1] - 6
    model(ids[:, :cut], attention_mask=mask[:, :cut], action_block_ids=blocks[:, :cut], past_key_values=cache)
    last = model(ids[:, cut:], attention_mask=mask, action_block_ids=blocks, past_key_values=cache).logits
    torch.testing.assert_close(last, whole[:, cut:], rtol=0.05, atol=0.05)
    wide = torch.ones(1, 1, *ids.shape[1:] * 2).tril().log()  # float32 zeros and minus infinity
    assert model(ids, attention_mask=wide).logits.dtype == dtype


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_decoding(saved, dtype):
    model = WorldVLAForCausalLM.from_pretrained(saved, dtype=dtype)
    ids, mask = prompts("policy")
    for options in ({}, {"do_sample": True, "top_p": 0.9}):
        chunk = model.predict_action_chunk(ids, mask, return_dict_in_generate=True, **options)
        assert chunk.action_ids.shape == (2, 4, 3) and chunk.log_probs.dtype == torch.float32
    assert ((chunk.action_ids >= 30) & (chunk.action_ids < 50)).all()
    ids, mask = prompts("world_model")
    assert model.predict_next_frame(ids, mask).shape == (2, 2, 2)
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert generated.shape[1] == ids.shape[1] + 5


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast(dtype):
    """Weights in float32, products in half precision."""
    model = tiny_model()
    ids, mask, labels = training_batch()
    expected = model(ids, attention_mask=mask, labels=labels).loss
    with torch.autocast("cpu", dtype=dtype):
        loss = model(ids, attention_mask=mask, labels=labels).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
    loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_norms_and_positions_are_computed_in_float32():
    """Large activations and far positions keep their accuracy in half precision."""
    from modeling_worldvla.layers_worldvla import WorldVLARMSNorm, rotary_embedding

    norm = WorldVLARMSNorm(64, 1e-5).half()
    large = torch.full((1, 1, 64), 300.0, dtype=torch.float16)  # its square is no float16 number
    torch.testing.assert_close(norm(large), torch.ones_like(large))
    config = tiny_model().config
    positions = torch.tensor([[4001]])  # is no bfloat16 number
    cos, _ = rotary_embedding(positions, config, torch.bfloat16)
    torch.testing.assert_close(cos[0, 0, 0, 0].float(), torch.tensor(4001.0).cos(), rtol=0, atol=4e-3)


def quantised(saved, kind):
    if kind == "torchao-int8":
        pytest.importorskip("torchao", reason="optional: quantises without a library of kernels")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return WorldVLAForCausalLM.from_pretrained(
            saved, dtype=torch.bfloat16, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
        )
    pytest.importorskip("bitsandbytes", reason="optional: 8-bit and 4-bit weights")
    from transformers import BitsAndBytesConfig

    options = {"load_in_8bit": True} if kind == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    if kind == "4bit":
        options["bnb_4bit_compute_dtype"] = torch.bfloat16
    return WorldVLAForCausalLM.from_pretrained(
        saved, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options)
    )


@pytest.mark.parametrize("kind", ["8bit", "4bit", "torchao-int8"])
def test_quantised_weights(saved, kind):
    model = quantised(saved, kind)
    plain = WorldVLAForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer.weight) is not torch.nn.Parameter or type(layer) is not torch.nn.Linear
    if kind != "torchao-int8":  # its tensors report the size of what they stand for
        assert model.get_memory_footprint() < plain.get_memory_footprint()
    ids, mask, labels = training_batch()
    real = mask.bool()
    with torch.no_grad():
        logits, expected = (m(ids, attention_mask=mask).logits[real].float() for m in (model, plain))
        assert torch.corrcoef(torch.stack([logits.flatten(), expected.flatten()]))[0, 1] > 0.95
        loss = model(ids, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(loss, plain(ids, attention_mask=mask, labels=labels).loss, rtol=0.1, atol=0.1)
    ids, mask = prompts("policy")
    chunk = model.predict_action_chunk(ids, mask, return_dict_in_generate=True)
    assert ((chunk.action_ids >= 30) & (chunk.action_ids < 50)).all() and torch.isfinite(chunk.log_probs).all()
    ids, mask = prompts("world_model")
    frame = model.predict_next_frame(ids, mask)
    assert frame.shape == (2, 2, 2) and ((frame >= 60) & (frame < 100)).all()
