"""LoRA by PEFT: training through the project's loss, saving, loading, merging, acting and imagining."""

import pytest
import torch

from modeling_worldvla import WorldVLAForCausalLM

from .sequences import Writer, tiny_model, training_batch

peft = pytest.importorskip("peft", reason="optional: adapters")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {
    "all-linear": "all-linear",
    "attention": ATTENTION,
    "with the head": [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head"],
}
POLICY, WORLD = (torch.tensor([getattr(Writer(1), kind)()[0]]) for kind in ("policy", "world_model"))


def options(targets="all-linear", **changes):
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[targets], task_type="CAUSAL_LM", **changes)


def train(model, steps=3, autocast=False):
    """A few steps; returns the losses."""
    ids, mask, labels = training_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model.train()(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits_of(model):
    ids, mask, _ = training_batch()
    return model(input_ids=ids, attention_mask=mask).logits[mask.bool()]


@pytest.mark.parametrize("targets", TARGETS)
def test_training_acting_and_merging(targets):
    base = tiny_model()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    expected = logits_of(base)
    model = peft.get_peft_model(base, options(targets))
    torch.testing.assert_close(logits_of(model), expected)  # an adapter begins as nothing
    losses = train(model)
    assert losses[-1] < losses[0]
    trained = logits_of(model)
    assert (trained - expected).abs().max() > 0.1
    for name, value in model.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(value, before[plain]), name
    chunk, frame = model.predict_action_chunk(POLICY), model.predict_next_frame(WORLD)
    assert chunk.shape == (1, 4, 3) and frame.shape == (1, 2, 2)
    assert model.generate(input_ids=POLICY, max_new_tokens=2).shape[1] == POLICY.shape[1] + 2
    merged = model.merge_and_unload()
    assert type(merged) is WorldVLAForCausalLM and type(merged.lm_head) is torch.nn.Linear
    torch.testing.assert_close(logits_of(merged), trained, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.predict_action_chunk(POLICY), chunk)
    assert torch.equal(merged.predict_next_frame(WORLD), frame)


def test_all_linear_is_the_decoder_without_the_head():
    model = peft.get_peft_model(tiny_model(), options())
    adapted = {name.rsplit(".", 1)[-1] for name in model.targeted_module_names}
    assert adapted == {*ATTENTION, "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny_model(), options(init_lora_weights=False)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        ids, mask, labels = training_batch()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 28
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_adapters_are_saved_and_loaded(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_model().save_pretrained(base)
    model = peft.get_peft_model(WorldVLAForCausalLM.from_pretrained(base), options())
    train(model)
    model.save_pretrained(adapter)
    assert (adapter / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size
    trained = logits_of(model)
    loaded = peft.PeftModel.from_pretrained(WorldVLAForCausalLM.from_pretrained(base), adapter)
    torch.testing.assert_close(logits_of(loaded), trained)
    by_auto_class = peft.AutoPeftModelForCausalLM.from_pretrained(adapter)
    torch.testing.assert_close(logits_of(by_auto_class), trained)
    by_transformers = WorldVLAForCausalLM.from_pretrained(base)
    by_transformers.load_adapter(str(adapter))
    torch.testing.assert_close(logits_of(by_transformers), trained)


def test_adapters_of_transformers():
    """`add_adapter`, on the model itself; switched off, the model is as before."""
    model = tiny_model()
    expected = logits_of(model)
    model.add_adapter(options(), "arm")
    train(model)
    assert (logits_of(model) - expected).abs().max() > 0.1
    assert model.predict_action_chunk(POLICY).shape == (1, 4, 3)
    model.disable_adapters()
    torch.testing.assert_close(logits_of(model), expected)


def test_half_precision_weights_under_an_adapter():
    """As in training on one card: frozen bfloat16, adapters in float32, autocast."""
    model = peft.get_peft_model(tiny_model().to(torch.bfloat16), options())
    losses = train(model, autocast=True)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.predict_action_chunk(POLICY).shape == (1, 4, 3)


def test_an_adapter_on_quantised_weights(tmp_path):
    """QLoRA."""
    pytest.importorskip("bitsandbytes", reason="optional: 8-bit and 4-bit weights")
    from transformers import BitsAndBytesConfig

    tiny_model(hidden_size=64, intermediate_size=128, initializer_range=0.1).save_pretrained(tmp_path)
    quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = WorldVLAForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=quantisation)
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(model), options())
    losses = train(model)
    assert losses[-1] < losses[0]
    assert model.predict_action_chunk(POLICY).shape == (1, 4, 3)
