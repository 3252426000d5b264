"""`torch.compile` of the forward: one graph, the same numbers, no new graph for every length."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers.cache_utils import DynamicCache, StaticCache

from modeling_worldvla import pack_samples
from modeling_worldvla.masking_worldvla import compute_action_block_ids

from .sequences import Writer, tiny_model, training_batch


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def one_layer():
    """Compiling takes its time by the layer, and all are alike."""
    return tiny_model(num_hidden_layers=1)


def graphs():
    return counters["stats"]["unique_graphs"]


def compiled(model, backend="eager"):
    """`fullgraph=True` raises where a graph would break."""
    return torch.compile(model, fullgraph=True, backend=backend)


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_compiled_equals_eager_over_twenty_seeds():
    """Ids, padding, and lengths that change: one graph for the first length, one for all others."""
    model = one_layer()
    run = compiled(model)
    for seed in range(20):
        ids, mask, _ = training_batch(seed)
        ids, mask = ids[:, seed % 7 :], mask[:, seed % 7 :]
        real = mask.bool()
        assert_same(run(ids, attention_mask=mask).logits[real], model(ids, attention_mask=mask).logits[real])
    assert graphs() <= 2


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("packed", "sdpa"),
        pytest.param("ids", "eager", marks=pytest.mark.slow),
        pytest.param("embeddings", "sdpa", marks=pytest.mark.slow),
        pytest.param("finished mask", "sdpa", marks=pytest.mark.slow),
    ],
)
def test_inputs_without_a_graph_break(kind, attention):
    model = one_layer()
    model.set_attn_implementation(attention)
    ids, _, _ = training_batch()
    inputs = {"input_ids": ids}
    if kind == "packed":
        writer = Writer()
        samples = [{"input_ids": sum(writer.policy(text, 1), [])} for text in (3, 5, 8)]
        inputs = pack_samples(samples, 90, model.config)
    elif kind == "embeddings":
        blocks = compute_action_block_ids(ids, model.config)
        inputs = {"inputs_embeds": model.model.embed_tokens(ids), "action_block_ids": blocks}
    elif kind == "finished mask":
        inputs["attention_mask"] = torch.ones(1, 1, *ids.shape[1:] * 2, dtype=torch.bool).tril()
    assert_same(compiled(model)(**inputs).logits, model(**inputs).logits)
    assert graphs() == 1


@torch.no_grad()
@pytest.mark.parametrize("static", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_steps_on_a_cache(static):
    """Eight steps of one token: one graph on a static cache, a few on a growing one."""
    model = one_layer()
    run = compiled(model)
    ids, mask, _ = training_batch()
    length, cut = ids.shape[1], ids.shape[1] - 8
    whole = model(ids, attention_mask=mask).logits
    blocks = compute_action_block_ids(ids, model.config)
    cache = StaticCache(config=model.config, max_cache_len=80) if static else DynamicCache(config=model.config)
    model(ids[:, :cut], attention_mask=mask[:, :cut], action_block_ids=blocks[:, :cut], past_key_values=cache)
    wide = (
        torch.nn.functional.pad(mask, (0, 80 - length), value=1),
        torch.nn.functional.pad(blocks, (0, 80 - length)),
    )
    positions = mask.cumsum(1) - 1
    for step in range(cut, length):
        known = wide if static else (mask[:, : step + 1], blocks[:, : step + 1])
        logits = run(
            ids[:, step : step + 1],
            attention_mask=known[0],
            action_block_ids=known[1],
            position_ids=positions[:, step : step + 1],
            past_key_values=cache,
        ).logits
        assert_same(logits[:, 0], whole[:, step])
    assert graphs() <= (1 if static else 3)


@pytest.mark.slow
@torch.no_grad()
def test_a_prompt_on_a_static_cache():
    model = one_layer()
    ids, mask, _ = training_batch()
    known = {"attention_mask": mask, "action_block_ids": compute_action_block_ids(ids, model.config)}
    cache = StaticCache(config=model.config, max_cache_len=80)
    logits = compiled(model)(ids, past_key_values=cache, **known).logits
    assert_same(logits[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()])


@pytest.mark.slow
@torch.no_grad()
def test_recording_after_a_first_time():
    """Recording installs its hooks when it is first asked for, which no graph can hold."""
    model = one_layer()
    ids, _, _ = training_batch()
    expected = model(ids, output_hidden_states=True).hidden_states
    got = compiled(model)(ids, output_hidden_states=True).hidden_states
    for one, other in zip(got, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training(checkpointing):
    """The decoder is one graph with its backward; the loss, whose sizes depend on the data, stays outside."""
    ids, mask, labels = training_batch()
    gradients = []
    for compile_it in (False, True):
        model = one_layer().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        if compile_it:
            model.model.compile(fullgraph=True, backend="aot_eager")
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_whole_model_with_labels():
    """As the Trainer does with `torch_compile`: the one break is the loss."""
    model = one_layer()
    ids, mask, labels = training_batch()
    expected = model(ids, attention_mask=mask, labels=labels)
    got = torch.compile(model, backend="aot_eager")(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.loss_world_model, expected.loss_world_model)
    assert counters["graph_break"] and all("role_losses" in reason for reason in counters["graph_break"])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile the decoder, not its loss"):
        compiled(model)(ids, attention_mask=mask, labels=labels)


@pytest.mark.slow  # the C++ compiler takes most of a minute
@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_inductor(attention):
    model = tiny_model(hidden_size=64)
    model.set_attn_implementation(attention)
    expected_model = tiny_model(hidden_size=64)
    run = compiled(model, backend="inductor")
    for seed in range(3):
        ids, mask, _ = training_batch(seed)
        real = mask.bool()
        got = run(ids, attention_mask=mask, use_cache=False).logits[real]
        assert_same(got, expected_model(ids, attention_mask=mask).logits[real])
    assert graphs() <= 2


@pytest.mark.slow  # flex attention compiles
@torch.no_grad()
def test_compiled_flex_attention():
    model = tiny_model(hidden_size=64)
    ids, mask, _ = training_batch()
    expected = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("flex_attention")
    got = model(ids, attention_mask=mask, use_cache=False).logits
    assert_same(got[mask.bool()], expected[mask.bool()])
