"""One result, whichever attention, cache, padding, batch or input form it was computed with."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, StaticCache

from modeling_worldvla import WorldVLAForCausalLM, WorldVLAModel
from modeling_worldvla.masking_worldvla import compute_action_block_ids

from .sequences import Writer, pad_left, tiny_config, tiny_model, training_batch

SEEDS = range(20)


def assert_same(got, expected, where=...):
    torch.testing.assert_close(got[where], expected[where], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS)
def test_eager_equals_sdpa_equals_flex(uncompiled_flex, seed):
    model = tiny_model(seed, hidden_size=64, model_parallel_size=1 + seed % 2, swin_norm=seed % 5 == 4)
    ids, mask, _ = training_batch(seed)
    expected = model(ids, attention_mask=mask).logits
    for attention in ("eager", "flex_attention"):
        model.set_attn_implementation(attention)
        assert_same(model(ids, attention_mask=mask, use_cache=False).logits, expected, mask.bool())


@torch.no_grad()
def test_flex_attention_refuses_to_decode_on_a_cpu():
    """PyTorch would end the process."""
    model = tiny_model(0, hidden_size=64)
    model.set_attn_implementation("flex_attention")
    ids = torch.tensor([Writer(0).policy(3, 0)[0]])
    with pytest.raises(ValueError, match=r"set_attn_implementation\('sdpa'\)"):
        model.predict_action_chunk(ids, chunk_size=2)
    with pytest.raises(ValueError, match="masks of four axes"):
        model(ids, attention_mask=torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril())


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", SEEDS)
def test_cached_equals_uncached(seed, attention):
    """In pieces of random length, with a cache that grows and with one that is as large as it will be."""
    model = tiny_model(seed)
    model.set_attn_implementation(attention)
    ids, mask, _ = training_batch(seed)
    whole = model(ids, attention_mask=mask).logits
    block_ids = compute_action_block_ids(ids, model.config)
    length = ids.shape[1]
    generator = torch.Generator().manual_seed(seed)
    cuts = [0, *sorted(torch.randperm(length - 1, generator=generator)[:4].add(1).tolist()), length]
    caches = [DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=length + seed)]
    for cache in caches:
        pieces = []
        for start, end in zip(cuts, cuts[1:], strict=False):
            known = {"attention_mask": mask[:, :end], "action_block_ids": block_ids[:, :end]}
            pieces.append(model(ids[:, start:end], past_key_values=cache, **known).logits)
        assert_same(torch.cat(pieces, dim=1), whole, mask.bool())


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS)
def test_padded_equals_unpadded_equals_single(seed):
    model = tiny_model(seed)
    writer = Writer(seed)
    rows = [sum(writer.policy(3 + seed, 2), []), sum(writer.world_model(9, 2), []), sum(writer.policy(1, 4), [])]
    ids, mask = pad_left(rows)
    padded = model(ids, attention_mask=mask).logits
    right = torch.stack([torch.cat([row[keep], row[~keep]]) for row, keep in zip(ids, mask.bool(), strict=True)])
    right_padded = model(right, attention_mask=mask.flip(1)).logits
    for row, tokens in enumerate(rows):
        alone = model(torch.tensor([tokens])).logits[0]
        assert_same(padded[row, -len(tokens) :], alone)
        assert_same(right_padded[row, : len(tokens)], alone)


@torch.no_grad()
def test_no_padding_value_reaches_a_real_token():
    model = tiny_model()
    ids, mask, _ = training_batch()
    other = ids.masked_fill(~mask.bool(), 150)
    real = mask.bool()
    assert_same(model(other, attention_mask=mask).logits, model(ids, attention_mask=mask).logits, real)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_embeddings_instead_of_ids(attention):
    """With padding, a cache, labels, and in generation."""
    model = tiny_model()
    model.set_attn_implementation(attention)
    ids, mask, labels = training_batch()
    embeds, blocks = model.get_input_embeddings()(ids), compute_action_block_ids(ids, model.config)
    by_ids = model(ids, attention_mask=mask, labels=labels, logits_to_keep=0)
    by_embeds = model(
        inputs_embeds=embeds, attention_mask=mask, action_block_ids=blocks, labels=labels, logits_to_keep=0
    )
    assert_same(by_embeds.logits, by_ids.logits, mask.bool())
    torch.testing.assert_close(by_embeds.loss, by_ids.loss)
    cache = DynamicCache(config=model.config)
    known = {"attention_mask": mask[:, :-5], "action_block_ids": blocks[:, :-5]}
    model(inputs_embeds=embeds[:, :-5], past_key_values=cache, **known)
    last = model(
        inputs_embeds=embeds[:, -5:], attention_mask=mask, action_block_ids=blocks, past_key_values=cache
    ).logits
    assert_same(last, by_ids.logits[:, -5:])


@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "paged|sdpa"]
)
def test_flash_attention_is_refused(tmp_path, name):
    message = rf"cannot use `attn_implementation` '{name.replace('|', '.')}': .* take no mask .* Choose 'sdpa'"
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation(name)
    assert model.config._attn_implementation == "sdpa"
    for loader in (WorldVLAForCausalLM, WorldVLAModel, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=message):
            loader.from_pretrained(tmp_path, attn_implementation=name)
    with pytest.raises(ValueError, match=message):
        WorldVLAForCausalLM._from_config(tiny_config(), attn_implementation=name)


@torch.no_grad()
def test_other_attention_functions_get_the_rule():
    """Whatever is registered with transformers is handed the finished mask."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        seen.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("of_this_test", attention)
    model = tiny_model()
    ids, mask, _ = training_batch()
    expected = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("of_this_test")
    assert_same(model(ids, attention_mask=mask).logits, expected, mask.bool())
    assert seen[0].shape == (4, 1, ids.shape[1], ids.shape[1])


@torch.no_grad()
@pytest.mark.parametrize("how", ["argument", "config"])
def test_recorded_outputs(how):
    model = tiny_model()
    model.set_attn_implementation("eager")
    ids, _, labels = training_batch()
    asked = {"output_hidden_states": True, "output_attentions": True}
    if how == "config":
        for name in asked:
            setattr(model.config, name, True)
        asked = {}
    for recorded in (model(ids, **asked), model(ids, labels=labels, **asked), model.model(ids, **asked)):
        assert len(recorded.hidden_states) == 3 and len(recorded.attentions) == 2
        torch.testing.assert_close(recorded.hidden_states[0], model.model.embed_tokens(ids))
        assert recorded.attentions[1].shape == (4, 4, ids.shape[1], ids.shape[1])
        torch.testing.assert_close(recorded.attentions[1].sum(-1), torch.ones(4, 4, ids.shape[1]))
    torch.testing.assert_close(recorded.hidden_states[-1], recorded.last_hidden_state)
    as_tuple = model(ids, return_dict=False, output_hidden_states=True)
    torch.testing.assert_close(as_tuple[-1 if how == "argument" else -2][0], model.model.embed_tokens(ids))
    plain = tiny_model()(ids)
    assert plain.hidden_states is None and plain.attentions is None


@torch.no_grad()
def test_caches_that_cannot_hold_the_tokens_are_refused():
    model = tiny_model(max_position_embeddings=64)
    ids = torch.tensor([sum(Writer().policy(5, 1), [])])
    blocks = compute_action_block_ids(ids, model.config)
    length = ids.shape[1]
    with pytest.raises(ValueError, match=f"cache has room for 20 tokens, got {length} .* larger `max_cache_len`"):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=20))
    static = StaticCache(config=model.config, max_cache_len=length)
    model(ids, past_key_values=static)
    more = torch.nn.functional.pad(blocks, (0, 1))
    with pytest.raises(ValueError, match=f"cache has room for {length} tokens, got {length + 1} with the cached ones"):
        model(ids[:, :1], past_key_values=static, action_block_ids=more)
    growing = model(ids, use_cache=True).past_key_values
    growing = model(
        ids[:, :1].expand(1, 64 - length), past_key_values=growing, action_block_ids=torch.zeros(1, 64).long()
    ).past_key_values
    with pytest.raises(ValueError, match="at most 64 tokens .* got 65"):
        model(ids[:, :1], past_key_values=growing, action_block_ids=torch.zeros(1, 65).long())


@torch.no_grad()
def test_what_does_not_cover_all_tokens_is_refused():
    model = tiny_model()
    ids, mask, _ = training_batch()
    length = ids.shape[1]
    blocks = compute_action_block_ids(ids, model.config)
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    for name, given in (
        ("attention_mask", {"attention_mask": mask[:, -1:], "action_block_ids": blocks}),
        ("action_block_ids", {"action_block_ids": blocks[:, -1:]}),
        ("sequence_ids", {"sequence_ids": mask[:, -1:], "action_block_ids": blocks}),
    ):
        with pytest.raises(
            ValueError, match=rf"`{name}` must cover all tokens.*: {length} of them, got shape \(4, 1\)"
        ):
            model(ids[:, -1:], past_key_values=cache, **given)
    with pytest.raises(ValueError, match=r"must be boolean .* got torch.int64. Call `.bool\(\)`"):
        model(ids, attention_mask=torch.ones(4, 1, length, length, dtype=torch.long))


def test_checkpointing_and_caches(caplog):
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    ids, mask, labels = training_batch()
    outputs = model(ids, attention_mask=mask, use_cache=True)
    assert outputs.past_key_values is None
    with pytest.raises(ValueError, match="would fill the cache twice, got `past_key_values`. Leave them out"):
        model(ids, past_key_values=DynamicCache(config=model.config))
    model.eval()
    assert model(ids, use_cache=True).past_key_values is not None
    assert tiny_model().train()(ids).past_key_values is None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(use_reentrant):
    ids, mask, labels = training_batch()
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(attention_dropout=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.manual_seed(3)
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_tied_embeddings(tmp_path):
    """One matrix: in the file, after loading, and after the vocabulary has grown."""
    from safetensors import safe_open

    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()
    loaded = WorldVLAForCausalLM.from_pretrained(tmp_path)
    ids, mask, labels = training_batch()
    expected = model(ids).logits
    loaded.resize_token_embeddings(210)
    assert loaded.config.vocab_size == 210
    for tied in (model, loaded):
        assert tied.lm_head.weight is tied.model.embed_tokens.weight
        torch.testing.assert_close(tied(ids).logits[..., :200], expected)
    loaded(ids, attention_mask=mask, labels=labels).loss.backward()
    assert loaded.lm_head.weight.grad[60:100].abs().amax(dim=1).gt(0).all()
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    torch.testing.assert_close(WorldVLAForCausalLM.from_pretrained(again)(ids).logits, loaded(ids).logits)
