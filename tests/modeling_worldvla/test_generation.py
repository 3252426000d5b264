import pytest
import torch

from modeling_worldvla import build_action_attention_mask

from .sequences import Writer, pad_left, tiny_model

SEEDS = range(20)
VARIANTS = {
    "plain": {},
    "swin": {"swin_norm": True, "num_key_value_heads": 4, "model_parallel_size": 2},
    "causal": {"use_action_attention_mask": False},
    "median": {"action_choice": "median"},
}


def next_token(model, tokens, first, count):
    """Likeliest id of a range, by a full forward under the mask of the whole sequence."""
    ids = torch.tensor([tokens])
    mask = build_action_attention_mask(ids, model.config)[:, None]
    if not model.config.use_action_attention_mask:
        mask = torch.ones_like(mask).tril()
    logits = model(ids, attention_mask=mask).logits[0, -1, first : first + count]
    if model.config.action_choice == "median" and first == model.config.action_token_id_start:
        return int((logits.softmax(0).cumsum(0) <= 0.5).sum()) + first
    return int(logits.argmax()) + first


def chunk_token_by_token(model, prompt, chunk_size):
    config, tokens, actions = model.config, list(prompt), []
    for _ in range(chunk_size):
        tokens.append(config.boa_token_id)
        for _ in range(config.action_dim):
            tokens.append(next_token(model, tokens, config.action_token_id_start, config.num_action_tokens))
        actions.append(tokens[-config.action_dim :])
        tokens.append(config.eoa_token_id)
    return actions


def frame_token_by_token(model, prompt, height, width):
    config, rows = model.config, []
    tokens = [*prompt, config.boi_token_id]
    tokens += [config.grid_token_id_start + size // config.codes_per_grid_unit for size in (height, width)]
    for _ in range(height):
        for _ in range(width):
            tokens.append(next_token(model, tokens, config.image_token_id_start, config.num_image_tokens))
        rows.append(tokens[-width:])
        tokens.append(config.eol_token_id)
    return rows


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_chunk_decoded_at_once_equals_token_by_token(seed, variant):
    model, writer = tiny_model(seed, **VARIANTS[variant]), Writer(seed)
    short, _ = writer.policy(3)
    history = [0, *writer.text(6), *writer.image(2, 2), *writer.action(), *writer.image(2, 4), *writer.action(), 6]
    ids, mask = pad_left([short, history])
    for chunk_size in (1, 5, 10):
        chunk = model.predict_action_chunk(ids, mask, chunk_size=chunk_size)
        assert chunk.tolist() == [chunk_token_by_token(model, prompt, chunk_size) for prompt in (short, history)]


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_frame_decoded_folded_equals_token_by_token(seed, variant):
    model, writer = tiny_model(seed, **VARIANTS[variant]), Writer(seed)
    height, width = [(2, 2), (2, 4), (4, 2)][seed % 3]
    short, _ = writer.world_model(3, 1, height, width)
    two_actions = [0, *writer.text(4), *writer.image(2, 2), *writer.action(), *writer.action()]
    two_actions += [*writer.image(height, width), *writer.action(), *writer.action(), 6]
    ids, mask = pad_left([short, two_actions])
    expected = [frame_token_by_token(model, prompt, height, width) for prompt in (short, two_actions)]
    for draft in ("none", "last_frame", "jacobi"):
        assert model.predict_next_frame(ids, mask, draft=draft).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_eager_attention_decodes_alike(seed):
    model, writer = tiny_model(seed), Writer(seed)
    chunk = pad_left([writer.policy(3)[0], writer.policy(8)[0]])
    frame = pad_left([writer.world_model(text, 1, 2, 4)[0] for text in (3, 5, 9)])
    expected = model.predict_action_chunk(*chunk), model.predict_next_frame(*frame)
    model.set_attn_implementation("eager")
    assert torch.equal(model.predict_action_chunk(*chunk), expected[0])
    assert torch.equal(model.predict_next_frame(*frame), expected[1])


def test_forwards_are_folded():
    model = tiny_model()
    calls = []
    model.model.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
    ids = torch.tensor([Writer().policy()[0]])
    model.predict_action_chunk(ids, chunk_size=5)
    assert calls == [ids.shape[1] + 5, 5, 5]
    calls.clear()
    ids = torch.tensor([Writer().world_model(height=2, width=4)[0]])
    model.predict_next_frame(ids, draft="none")
    assert calls == [ids.shape[1] + 3, 1, 1, 1, 2, 1, 1, 1]


def test_defaults_padding_without_mask_and_ranges():
    model, writer = tiny_model(), Writer()
    ids, mask = pad_left([writer.policy(3)[0], writer.policy(8)[0]])
    chunk = model.predict_action_chunk(ids)
    assert chunk.shape == (2, 4, 3) and chunk.dtype == torch.long
    assert ((chunk >= 30) & (chunk < 50)).all()
    assert torch.equal(chunk, model.predict_action_chunk(ids, mask.bool(), chunk_size=4))


def test_an_adapted_head_is_called_whole():
    """A head that is more than one matrix (LoRA, quantised) must not be cut into rows."""
    model = tiny_model()
    ids = torch.tensor([Writer().policy()[0]])
    expected = model.predict_action_chunk(ids)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert torch.equal(model.predict_action_chunk(ids), expected)


POLICY, WORLD = Writer(1).policy()[0], Writer(1).world_model()[0]


@pytest.mark.parametrize(
    ("call", "ids", "options", "message"),
    [
        (
            "predict_action_chunk",
            [POLICY],
            {"chunk_size": 0},
            "`chunk_size` must be a whole number of at least 1, got 0",
        ),
        (
            "predict_action_chunk",
            [POLICY[:-1]],
            {},
            "must end in the separator .* row 0 ends in 4. Build prompts with",
        ),
        ("predict_action_chunk", [POLICY], {"chunk_size": 100}, r"at most 400 tokens together .* got 31 \+ 500"),
        ("predict_action_chunk", [[*POLICY[:-1], 7, 6]], {}, "begin of action .* where the action block begun"),
        ("predict_action_chunk", [[0, 200, 6]], {}, "must lie in 0 … 199, got 200 at position 1 of row 0"),
        ("predict_action_chunk", POLICY, {}, "Add the batch axis"),
        ("predict_action_chunk", [[]], {}, "needs at least one token"),
        ("predict_next_frame", [[0, 110, 6]], {}, "row 0 holds no image"),
        ("predict_next_frame", [[0, 3, 10, 10, 60, 61, 5, 4, 6]], {}, r"grid sizes \[1, 1\] and 7 tokens"),
        ("predict_next_frame", [[0, 3, 10, 4, 6]], {}, r"grid sizes \[1, -5\]"),
        ("predict_next_frame", [[0, *WORLD[:-1], 3, 6]], {}, "begin of image .* where the image block begun"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(call, ids, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny_model(), call)(torch.tensor(ids, dtype=torch.long), **options)


def test_right_padding_is_refused():
    ids, mask = torch.tensor([[*POLICY, 1, 1]]), torch.tensor([[1] * len(POLICY) + [0, 0]])
    with pytest.raises(ValueError, match="must be padded on the left"):
        tiny_model().predict_action_chunk(ids, mask)
    with pytest.raises(ValueError, match="must have the shape of `input_ids`"):
        tiny_model().predict_action_chunk(ids, mask[:, 1:])


def test_frames_of_two_sizes_are_refused():
    writer = Writer()
    ids, mask = pad_left([writer.world_model(height=2, width=2)[0], writer.world_model(height=2, width=4)[0]])
    with pytest.raises(ValueError, match=r"one size, got .* 2 x 2, 2 x 4. Call once per size"):
        tiny_model().predict_next_frame(ids, mask)
