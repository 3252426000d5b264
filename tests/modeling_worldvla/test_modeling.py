import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_worldvla import WorldVLAConfig, WorldVLAForCausalLM, WorldVLAModel, build_action_attention_mask
from modeling_worldvla.masking_worldvla import compute_action_block_ids

from .sequences import Writer, tiny_model, training_batch

FIXTURES = Path(__file__).parents[1] / "fixtures"
MASKS, FORWARD = np.load(FIXTURES / "recorded_masks.npz"), np.load(FIXTURES / "recorded_forward.npz")
CASES = sorted({name.split("/")[0] for name in FORWARD.files if name.endswith("/hidden")})
SPREAD = {"embed_tokens.weight": 0.5, "lm_head.weight": 0.25}


def recorded_parameter(name, shape):
    """Weights that depend on the name and the shape alone, as in the recording."""
    seed = np.random.SeedSequence([11, zlib.crc32(name.encode())])
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(size=tuple(shape), dtype=np.float32)
    if "norm" in name:
        mean, std = float(name.endswith("weight")), 0.1
    else:
        mean, std = 0.0, next((value for end, value in SPREAD.items() if name.endswith(end)), shape[-1] ** -0.5)
    return torch.from_numpy(noise * np.float32(std) + np.float32(mean))


@pytest.fixture(scope="module")
def recorded_model():
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = WorldVLAForCausalLM(WorldVLAConfig(**sizes)).eval()
    model.load_state_dict({name: recorded_parameter(name, value.shape) for name, value in model.state_dict().items()})
    return model


def recorded_tokens(case):
    return torch.from_numpy(np.atleast_2d(MASKS[f"{case}/tokens"]).astype(np.int64))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["mask", "nomask"])
@pytest.mark.parametrize("case", CASES)
def test_recorded_forward(recorded_model, monkeypatch, case, kind, attention):
    monkeypatch.setattr(recorded_model.config, "use_action_attention_mask", kind == "mask")
    recorded_model.set_attn_implementation(attention)
    tokens = recorded_tokens(case)
    hidden = recorded_model.model(tokens).last_hidden_state
    logits = recorded_model(tokens).logits
    nll = F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none").numpy()
    recorded_nll = FORWARD[f"{case}/{kind}/nll"][0, :-1]
    labelled = recorded_nll != 0
    assert np.abs(hidden.numpy() - FORWARD[f"{case}/{kind}/hidden"]).max() < 2e-4
    assert np.abs(logits.logsumexp(-1).numpy() - FORWARD[f"{case}/{kind}/lse"]).max() < 2e-4
    assert labelled.any() and np.abs(nll - recorded_nll)[labelled].max() < 2e-4


def test_recorded_gradients(recorded_model):
    """The official loss of one padded batch, rebuilt from our logits, gives the recorded gradients."""
    recorded_model.set_attn_implementation("sdpa")
    tokens = recorded_tokens("batch_pad_mixed")
    labels = torch.full_like(tokens, -100)
    for row, (start, end) in enumerate([(34, 80), (30, 41), (24, 43)]):
        labels[row, start:end] = tokens[row, start:end]
    weights = torch.ones(recorded_model.config.vocab_size)
    weights[3:8195] = 0.04
    logits, targets = recorded_model(tokens).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    z_loss = logits[targets >= 0].logsumexp(-1).square().mean()
    loss = F.cross_entropy(logits, targets, weight=weights) + 1e-5 * z_loss
    assert loss.item() == pytest.approx(12.47290325164795, abs=2e-5)
    recorded_model.zero_grad()
    loss.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in recorded_model.named_parameters()}
    names = FORWARD["grad_norms/names"].tolist()
    assert set(names) == set(norms)
    np.testing.assert_allclose([norms[name] for name in names], FORWARD["grad_norms/values"], rtol=1e-4)
    for name in FORWARD.files:
        if name.startswith("grad/"):
            gradient = recorded_model.get_parameter(name.removeprefix("grad/")).grad
            np.testing.assert_allclose(gradient.numpy(), FORWARD[name], atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"swin_norm": True}, {"use_qk_norm": False}, {"use_action_attention_mask": False}]
)
def test_eager_equals_sdpa(changes):
    model = tiny_model(**changes)
    ids, mask, _ = training_batch()
    outputs = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        outputs.append(model(ids, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_heads_of_a_shard_share_their_norm():
    """`[2, head_dim]` weights equal `[1, head_dim]` weights where both shards agree, and differ where they do not."""
    one, two = tiny_model(model_parallel_size=1), tiny_model(model_parallel_size=2)
    state = one.state_dict()
    for name, value in two.state_dict().items():
        state[name] = state[name].expand_as(value).clone()
    two.load_state_dict(state)
    ids = torch.tensor([Writer().policy()[0]])
    torch.testing.assert_close(two(ids).logits, one(ids).logits)
    with torch.no_grad():
        two.model.layers[0].self_attn.q_norm.weight[1] *= 3
    assert (two(ids).logits - one(ids).logits).abs().max() > 1e-3


@torch.no_grad()
def test_a_finished_mask_is_used_as_it_is():
    model = tiny_model()
    ids = torch.tensor([sum(Writer().policy(3, 3), [])])
    mask = build_action_attention_mask(ids, model.config)[:, None]
    additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    causal = torch.ones_like(mask).tril()
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        expected = model(ids).logits
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(ids, attention_mask=additive).logits, expected, rtol=1e-4, atol=1e-4)
        assert (model(ids, attention_mask=causal).logits - expected).abs().max() > 1e-2


@torch.no_grad()
def test_without_the_rule_attention_is_causal():
    model = tiny_model(use_action_attention_mask=False)
    ids = torch.tensor([sum(Writer().policy(3, 3), [])])
    causal = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=causal).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_inputs_embeds_with_block_ids():
    model = tiny_model()
    ids = torch.tensor([sum(Writer().policy(3, 3), [])])
    embeds, block_ids = model.get_input_embeddings()(ids), compute_action_block_ids(ids, model.config)
    torch.testing.assert_close(model(inputs_embeds=embeds, action_block_ids=block_ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="`inputs_embeds` without `action_block_ids`"):
        model(inputs_embeds=embeds)


@torch.no_grad()
def test_bad_arguments_are_refused():
    model = tiny_model()
    ids = torch.tensor([Writer().policy()[0]])
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="filled cache without `action_block_ids`"):
        model(torch.tensor([[7]]), past_key_values=cache)
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model()
    with pytest.raises(ValueError, match=r"at most 400 tokens .* got 401. Use fewer or smaller images"):
        model(torch.zeros(1, 401, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Give a mask of `build_action_attention_mask` as `mask\[:, None\]`"):
        model(ids, attention_mask=build_action_attention_mask(ids, model.config))
    with pytest.raises(ValueError, match="The role of a sample .* got `shift_labels`.* without context"):
        model(ids, shift_labels=ids)
    with pytest.raises(ValueError, match="eager attention only, got `attn_implementation` 'sdpa'"):
        model(ids, output_attentions=True)


@torch.no_grad()
def test_logits_to_keep():
    model = tiny_model()
    ids = torch.tensor([Writer().policy()[0]])
    outputs = model(ids, output_hidden_states=True)
    torch.testing.assert_close(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, outputs.logits[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, outputs.logits[:, [0, 3]])
    torch.testing.assert_close(model(ids, return_dict=False)[0], outputs.logits)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
def test_save_and_load(tmp_path, changes):
    model = tiny_model(**changes)
    model.save_pretrained(tmp_path)
    loaded, report = WorldVLAForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.tensor([Writer().policy()[0]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    decoder = WorldVLAModel.from_pretrained(tmp_path)
    assert torch.equal(decoder(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_fresh_weights_follow_the_configuration():
    model = tiny_model(initializer_range=0.05)
    assert model.lm_head.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert not model.model.embed_tokens.weight[model.config.pad_token_id].any()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name
