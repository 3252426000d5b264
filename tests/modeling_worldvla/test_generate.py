import re
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CompileConfig, GenerationConfig, LogitsProcessor

from modeling_worldvla import build_action_attention_mask
from modeling_worldvla.grammar_worldvla import WorldVLATokenGrammar

from .sequences import Writer, pad_left, tiny_model
from .test_generation import next_token

SEEDS = range(20)
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}
PAD, SEP, BOI, BOA = 1, 6, 3, 7


def two_actions_after_the_image(writer, height=2, width=2):
    """A world-model prompt whose mask changes with the begin of the next image."""
    return [0, *writer.text(4), *writer.image(height, width), *writer.action(), *writer.action(), SEP]


def actions_of(answers):
    """Bins of chunks of the tiny model: `(B, K * 5 + 1)` to `(B, K, 3)`."""
    assert (answers[:, -1] == SEP).all()
    blocks = answers[:, :-1].view(len(answers), -1, 5)
    assert (blocks[..., 0] == BOA).all() and (blocks[..., -1] == 8).all()
    return blocks[..., 1:-1]


def codes_of(answers, height, width):
    """Codes of images of one size: `(B, h * (w + 1) + 5)` to `(B, h, w)`."""
    assert answers[:, [0, -2, -1]].eq(torch.tensor([BOI, 4, SEP])).all()
    rows = answers[:, 3:-2].view(len(answers), height, width + 1)
    assert (rows[..., -1] == 5).all()
    return rows[..., :-1]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_greedy_chunk_equals_parallel_decoding(seed, cache):
    model, writer = tiny_model(seed), Writer(seed)
    history = [0, *writer.text(6), *writer.image(2, 2), *writer.action(), *writer.image(2, 4), SEP]
    ids, mask = pad_left([writer.policy(3)[0], history])
    out = model.generate(ids, attention_mask=mask, token_grammar="policy", chunk_size=3, **CACHES[cache])
    assert torch.equal(out[:, : ids.shape[1]], ids)
    assert torch.equal(actions_of(out[:, ids.shape[1] :]), model.predict_action_chunk(ids, mask, chunk_size=3))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("mask_actions", [True, False])
def test_a_chunk_of_medians_equals_parallel_decoding(cache, mask_actions):
    for seed in range(8):
        model, writer = tiny_model(seed, action_choice="median", use_action_attention_mask=mask_actions), Writer(seed)
        ids, mask = pad_left([writer.policy(3)[0], writer.policy(7)[0]])
        expected = model.predict_action_chunk(ids, mask, chunk_size=3)
        out = model.generate(ids, attention_mask=mask, token_grammar="policy", chunk_size=3, **CACHES[cache])
        assert torch.equal(actions_of(out[:, ids.shape[1] :]), expected)
        model.config.action_choice = "likeliest"
        assert not torch.equal(model.predict_action_chunk(ids, mask, chunk_size=3), expected)


@pytest.mark.parametrize("options", [{"do_sample": True, "top_k": 0}, {"num_beams": 3}])
def test_medians_stand_back_where_something_else_chooses(options):
    model, writer = tiny_model(1), Writer(1)
    ids = torch.tensor([writer.policy(3)[0]])
    answers = []
    for choice in ("likeliest", "median"):
        model.config.action_choice = choice
        torch.manual_seed(0)
        answers.append(model.generate(ids, token_grammar="policy", **options))
    assert torch.equal(*answers)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_greedy_frame_equals_predicting_it(seed, cache):
    model, writer = tiny_model(seed), Writer(seed)
    height, width = [(2, 2), (2, 4), (4, 2)][seed % 3]
    prompts = [writer.world_model(3, 2, height, width)[0], two_actions_after_the_image(writer, height, width)]
    ids, mask = pad_left(prompts)
    out = model.generate(ids, attention_mask=mask, token_grammar="world_model", **CACHES[cache])
    answers = out[:, ids.shape[1] :]
    assert torch.equal(codes_of(answers, height, width), model.predict_next_frame(ids, mask))


@pytest.mark.parametrize("changes", [{"use_action_attention_mask": False}, {"swin_norm": True}])
def test_the_grammar_with_other_models(changes):
    model, writer = tiny_model(3, **changes), Writer(3)
    ids = torch.tensor([writer.policy()[0]])
    out = model.generate(input_ids=ids, token_grammar="policy")
    assert torch.equal(actions_of(out[:, ids.shape[1] :]), model.predict_action_chunk(ids))
    ids = torch.tensor([two_actions_after_the_image(writer)])
    out = model.generate(input_ids=ids, token_grammar="world_model")
    assert torch.equal(codes_of(out[:, ids.shape[1] :], 2, 2), model.predict_next_frame(ids))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_frames_of_several_sizes_in_a_batch(options):
    model, writer = tiny_model(2), Writer(2)
    prompts = [writer.world_model(3, 1, height, width)[0] for height, width in [(2, 4), (4, 2), (2, 2), (4, 4)]]
    ids, mask = pad_left(prompts)
    out = model.generate(ids, attention_mask=mask, token_grammar="world_model", **options)[:, ids.shape[1] :]
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), token_grammar="world_model", **options)[0, len(prompt) :]
        assert torch.equal(out[row, : len(alone)], alone) and (out[row, len(alone) :] == PAD).all()


@torch.no_grad()
def score(model, tokens, prompt_length, first, count):
    """Log-probability of the free tokens of an answer among their range, by one forward under the whole mask."""
    ids = tokens[None]
    mask = build_action_attention_mask(ids, model.config)[:, None]
    log_probs = model(ids, attention_mask=mask).logits[0, :-1, first : first + count].log_softmax(-1)
    targets = ids[0, 1:] - first
    free = (targets >= 0) & (targets < count) & (torch.arange(1, len(tokens)) >= prompt_length)
    return log_probs[free].gather(1, targets[free, None]).sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("role", ["policy", "world_model"])
def test_beams_of_a_batch_equal_singles_and_count_free_tokens_only(role, seed):
    model, writer = tiny_model(seed), Writer(seed)
    prompts = [writer.policy(text)[0] for text in (3, 6)]
    if role == "world_model":
        prompts = [two_actions_after_the_image(writer), writer.world_model(7, 2)[0]]
    free = {"policy": (30, 20), "world_model": (60, 40)}[role]
    options = {"token_grammar": role, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0}
    options |= {"return_dict_in_generate": True, "output_scores": True, "chunk_size": 2 if role == "policy" else None}
    ids, mask = pad_left(prompts)
    both = model.generate(ids, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), **options)
        beams = both.sequences[2 * row : 2 * row + 2, ids.shape[1] - len(prompt) :]
        assert torch.equal(beams, alone.sequences)
        expected = torch.stack([score(model, beam, len(prompt), *free) for beam in beams])
        torch.testing.assert_close(both.sequences_scores[2 * row : 2 * row + 2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_enough_beams_find_the_likeliest_action(seed):
    model = tiny_model(seed, action_dim=2, num_action_tokens=4)
    prompt = Writer(seed).policy()[0]
    actions = [[*prompt, BOA, *bins, 8, SEP] for bins in product(range(30, 34), repeat=2)]
    scores = [float(score(model, torch.tensor(tokens), len(prompt), 30, 4)) for tokens in actions]
    out = model.generate(torch.tensor([prompt]), token_grammar="policy", chunk_size=1, num_beams=4)
    assert out[0].tolist() == actions[max(range(16), key=scores.__getitem__)]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "temperature": 2.0, "top_k": 0, "top_p": 0.9},
        {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "num_beams": 2},
        {"eos_token_id": None},
    ],
)
def test_whatever_chooses_the_answer_parses(processor, make_model, options):
    model = make_model()
    torch.manual_seed(0)
    pictures = [Image.new("RGB", (32, 32), color) for color in ("red", "green")]
    policy = processor(images=pictures, text="open the drawer", return_tensors="pt")
    world = processor(images=pictures[:1], actions=[[0.1] * 7], role="world_model", return_tensors="pt")
    prompt_parts = len(processor.parse(policy["input_ids"][0]))
    for tokens in model.generate(**policy, token_grammar="policy", chunk_size=2, **options):
        kinds = [type(part).__name__ for part in processor.parse(tokens)]
        assert kinds[prompt_parts:] == ["ActionPart", "ActionPart", "SeparatorPart"] and "MalformedPart" not in kinds
    for tokens in model.generate(**world, token_grammar="world_model", **options):
        parts = processor.parse(tokens)
        assert [type(part).__name__ for part in parts[-2:]] == ["ImagePart", "SeparatorPart"]
        assert parts[-2].size == parts[-5].size


def test_scores_are_those_of_predict_action_chunk():
    model, ids = tiny_model(4), torch.tensor([Writer(4).policy()[0]])
    out = model.generate(ids, token_grammar="policy", chunk_size=3, return_dict_in_generate=True, output_scores=True)
    log_probs = model.compute_transition_scores(out.sequences, out.scores)
    expected = model.predict_action_chunk(ids, chunk_size=3, return_dict_in_generate=True).log_probs
    # The first marker was fed with the prompt.
    log_probs = torch.nn.functional.pad(log_probs, (1, 0))[0, :-1].view(3, 5)
    torch.testing.assert_close(log_probs[:, 1:-1], expected[0], rtol=1e-4, atol=1e-4)
    assert (log_probs[:, [0, -1]] == 0).all()


def test_the_grammar_is_a_function_of_the_ids():
    """Rows in another order, repeated, or asked for twice, give the same scores."""
    model, writer = tiny_model(), Writer()
    ids, mask = pad_left([writer.world_model(3, 1, 2, 4)[0], writer.world_model(3, 1, 4, 2)[0]])
    grammar = WorldVLATokenGrammar("world_model", model.config, ids.shape[1])
    sequences = model.generate(ids, attention_mask=mask, token_grammar="world_model")
    order = torch.tensor([1, 0, 1])
    for length in range(ids.shape[1], sequences.shape[1]):
        scores = torch.randn(2, 200)
        first = grammar(sequences[:, :length], scores)
        assert torch.equal(grammar(sequences[order, :length], scores[order]), first[order])
        torch.testing.assert_close(first.exp().sum(dim=-1), torch.ones(2))
        assert (first.gather(1, sequences[:, length : length + 1]) > -torch.inf).all()


def test_a_limit_that_leaves_room_and_processors_of_the_user():
    class Likes30(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, [30, 120]] += 1e4
            return scores

    model, ids = tiny_model(), torch.tensor([Writer().policy()[0]])
    config = GenerationConfig(max_length=300, eos_token_id=2)
    out = model.generate(ids, config, [Likes30()], token_grammar="policy", max_new_tokens=100)
    assert (actions_of(out[:, ids.shape[1] :]) == 30).all()


POLICY, WORLD = Writer(1).policy()[0], Writer(1).world_model()[0]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (POLICY, {"token_grammar": "polciy"}, "Unknown token grammar `polciy`. .* Did you mean `policy`"),
        (POLICY, {"token_grammar": "frame"}, "Choose one of: `policy`, `world_model`"),
        (POLICY, {"chunk_size": 3}, "`chunk_size` belongs to a token grammar, got 3 without one"),
        (WORLD, {"token_grammar": "world_model", "chunk_size": 3}, "`chunk_size` counts actions, got 3"),
        (POLICY, {"token_grammar": "policy", "chunk_size": 0}, "at least 1, got 0"),
        (POLICY[:-1], {"token_grammar": "policy"}, "must end in the separator"),
        ([0, 110, 6], {"token_grammar": "world_model"}, "row 0 holds no image"),
        (POLICY, {"token_grammar": "policy", "chunk_size": 80}, r"at most 400 tokens together .* got 31 \+ 400"),
        (POLICY, {"token_grammar": "policy", "max_new_tokens": 20}, "answer has 21 tokens, got `max_new_tokens` 20"),
        (
            POLICY,
            {"token_grammar": "policy", "generation_config": GenerationConfig(max_length=51)},
            "answer has 21 tokens after a prompt of 31, got `max_length` 51. Leave it out",
        ),
        (POLICY, {"token_grammar": "policy", "prompt_lookup_num_tokens": 2}, "not go with assisted generation"),
        (
            POLICY,
            {"token_grammar": "policy", "generation_config": GenerationConfig(prompt_lookup_num_tokens=2)},
            "got `prompt_lookup_num_tokens`",
        ),
        (POLICY, {"token_grammar": "policy", "inputs_embeds": torch.zeros(1, 2, 32)}, "got `inputs_embeds`"),
    ],
)
def test_what_cannot_be_answered_is_refused(ids, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(torch.tensor([ids]), **options)


def test_no_ids_and_a_filled_cache_are_refused():
    model, ids = tiny_model(), torch.tensor([WORLD])
    with pytest.raises(ValueError, match="got neither `inputs` nor `input_ids`"):
        model.generate(token_grammar="policy")
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match=f"a cache that already holds {len(WORLD)} tokens"):
        model.generate(ids, token_grammar="world_model", past_key_values=cache)


def test_the_policy_goes_on_from_a_cached_prompt():
    model, (ids, mask) = tiny_model(1), pad_left([Writer(1).policy(text)[0] for text in (3, 8)])
    expected = model.generate(ids, attention_mask=mask, token_grammar="policy")
    cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
    out = model.generate(ids, attention_mask=mask, token_grammar="policy", past_key_values=cache)
    assert torch.equal(out, expected)


@pytest.mark.slow  # compiles
@pytest.mark.timeout(900)
def test_steps_with_a_static_cache_compile_into_one_graph():
    model, compile_config = tiny_model(1), CompileConfig(fullgraph=True, dynamic=False)
    compile_config._compile_all_devices = True  # elsewhere transformers compiles on accelerators only
    options = {"token_grammar": "policy", "cache_implementation": "static", "compile_config": compile_config}
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for seed in (1, 2):
        ids, mask = pad_left([Writer(seed).policy(text)[0] for text in (3, 8)])
        out = model.generate(ids, attention_mask=mask, **options)
        assert torch.equal(actions_of(out[:, ids.shape[1] :]), model.predict_action_chunk(ids, mask))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@torch.no_grad()
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("seed", range(4))
def test_generate_applies_the_mask(seed, cache):
    """`generate` without a grammar, under every cache, equals a full masked forward per token."""
    model, writer = tiny_model(seed), Writer(seed)
    prompts = [writer.policy(3)[0] + writer.action() + [7], writer.policy(6)[0] + writer.action() * 2 + [7]]
    ids, mask = pad_left(prompts)
    options = {"suppress_tokens": list(range(10)), **CACHES[cache]}
    out = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)
    for row, prompt in enumerate(prompts):
        tokens = list(prompt)
        for _ in range(6):
            tokens.append(next_token(model, tokens, 10, model.config.vocab_size - 10))
        assert out[row, -6:].tolist() == tokens[-6:]


def without_grammar(seed=5, actions=2):
    """A model, a policy prompt with the first actions of its answer, and options that keep markers out."""
    writer = Writer(seed)
    prompt = writer.policy(3)[0] + sum((writer.action() for _ in range(actions)), []) + [BOA]
    return tiny_model(seed), torch.tensor([prompt]), {"suppress_tokens": list(range(10)), "do_sample": False}


def test_beam_search_of_a_batch_equals_singles():
    model, writer = tiny_model(5), Writer(5)
    prompts = [writer.policy(3)[0] + writer.action() + [7], writer.policy(6)[0] + writer.action() + [7]]
    ids, mask = pad_left(prompts)
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "suppress_tokens": list(range(10))}
    both = model.generate(ids, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        assert torch.equal(both[row, -5:], model.generate(torch.tensor([prompt]), **options)[0, -5:])


def test_going_on_from_the_cache_equals_going_through():
    model, ids, options = without_grammar()
    whole = model.generate(ids, max_new_tokens=6, **options)
    first = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, **options)
    rest = {"past_key_values": first.past_key_values, "max_new_tokens": 3}
    assert torch.equal(model.generate(first.sequences, **rest, **options), whole)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": 6},
        {"position_ids": torch.arange(45)[None]},
        {"cache_implementation": "static", "position_ids": torch.arange(45)[None]},
        {"attn_implementation": "eager"},
    ],
)
def test_other_ways_to_the_same_answer(options):
    model, ids, others = without_grammar()
    ids = torch.cat([ids[:, :-1], ids[:, -6:]], dim=1)  # a repetition to look up
    expected = model.generate(ids, max_new_tokens=8, **others)
    if "attn_implementation" in options:
        model.set_attn_implementation(options["attn_implementation"])
        options = {}
    if "assistant_model" in options:
        options = {"assistant_model": tiny_model(options["assistant_model"])}
    assert torch.equal(model.generate(ids, max_new_tokens=8, **options, **others), expected)


def test_without_a_prompt_it_begins_with_bos():
    model = tiny_model()
    out = model.generate(max_new_tokens=5, do_sample=False)
    assert out.shape[1] <= 6 and torch.equal(out, model.generate(torch.tensor([[0]]), max_new_tokens=5))


def test_embeddings_need_their_ids():
    model, ids, options = without_grammar()
    embeds = model.get_input_embeddings()(ids)
    expected = model.generate(ids, max_new_tokens=4, **options)
    for cache in ("dynamic", "static"):
        other = {"inputs_embeds": embeds, "max_new_tokens": 4, **CACHES[cache], **options}
        assert torch.equal(model.generate(ids, **other), expected)
    with pytest.raises(ValueError, match=r"`inputs_embeds` of 40 tokens and ids of 0. Pass the `input_ids`"):
        model.generate(inputs_embeds=embeds, max_new_tokens=4, **options)
    with pytest.raises(ValueError, match="a cache of 20 tokens and the ids of 20 new ones"):
        model.generate(ids, max_new_tokens=4, prefill_chunk_size=20, **options)
    causal = tiny_model(5, use_action_attention_mask=False)
    out = causal.generate(inputs_embeds=causal.get_input_embeddings()(ids), max_new_tokens=4, **options)
    assert torch.equal(out, causal.generate(ids, max_new_tokens=4, **options)[:, ids.shape[1] :])


def test_recorded_outputs_of_every_step():
    model, ids, options = without_grammar()
    model.set_attn_implementation("eager")
    recorded = {"output_attentions": True, "output_hidden_states": True, "output_scores": True, "output_logits": True}
    out = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, **recorded, **options)
    length = ids.shape[1]
    assert [len(steps) for steps in (out.scores, out.logits, out.attentions, out.hidden_states)] == [3] * 4
    assert [layers[0].shape for layers in out.attentions] == [
        (1, 4, length, length),
        (1, 4, 1, length + 1),
        (1, 4, 1, length + 2),
    ]
    assert [layers[-1].shape for layers in out.hidden_states] == [(1, length, 32), (1, 1, 32), (1, 1, 32)]


def test_the_snippets_of_the_docs_run(processor, make_model, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "outputs" / "demo-train" / "checkpoint"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    names = {name: Image.new("RGB", (32, 32), color) for name, color in (("previous", "red"), ("current", "green"))}
    monkeypatch.setattr("builtins.print", lambda *_: None)
    for snippet in snippets:
        exec(compile(snippet, "generate.md", "exec"), names)
    assert names["actions"].shape == (4, 5, 7) and names["picture"].size == (32, 32)
