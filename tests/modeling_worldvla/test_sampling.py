"""Drawing tokens: the distribution, the options, and what is reported of it."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from modeling_worldvla import build_action_attention_mask
from modeling_worldvla.sampling_worldvla import SamplingOptions, TokenChooser

from .sequences import Writer, pad_left, tiny_model

ACTIONS = slice(30, 50)


def draw(logits, count, **options):
    """Shares of the ids of `logits` `(A,)` among `count` draws."""
    head = torch.nn.Linear(len(logits), len(logits), bias=False)
    torch.nn.init.eye_(head.weight)
    chooser = TokenChooser(head, 0, len(logits), SamplingOptions(do_sample=True, **options))
    uniforms = torch.rand(1, count, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chosen = chooser.choose(logits.expand(1, count, -1), uniforms).token_ids
    return torch.bincount(chosen[0], minlength=len(logits)) / count


@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"top_k": 100}, []),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        (
            {"temperature": 1.5, "top_k": 7, "top_p": 0.8},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(7), TopPLogitsWarper(0.8)],
        ),
    ],
)
def test_options_mean_what_they_mean_in_generate(options, warpers):
    logits = 2 * torch.randn(12, generator=torch.Generator().manual_seed(1))
    expected = logits[None]
    for warper in warpers:
        expected = warper(None, expected)
    expected = expected[0].softmax(dim=-1)
    shares = draw(logits, 40000, **options)
    assert (shares[expected == 0] == 0).all()
    assert float((shares - expected).abs().max()) < 0.008  # three standard deviations of a share of a half


def test_numbers_at_the_edge_never_choose_what_is_impossible():
    logits = torch.tensor([-float("inf"), 1.0, 1.0, -float("inf")])
    head = torch.nn.Linear(4, 4, bias=False)
    chooser = TokenChooser(torch.nn.Sequential(head), 0, 4, SamplingOptions(do_sample=True))
    edges = torch.tensor([[0.0, 1 - 2**-24]])
    assert chooser._draw(logits.expand(1, 2, -1), edges).tolist() == [[1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_medians_have_the_least_expected_distance(dtype):
    logits = 2 * torch.randn(1, 50, 9, generator=torch.Generator().manual_seed(2))
    head = torch.nn.Linear(9, 9, bias=False, dtype=dtype)
    torch.nn.init.eye_(head.weight)
    options = SamplingOptions(median=True)
    with torch.no_grad():
        chosen = TokenChooser(head, 0, 9, options).choose(logits.to(dtype), options.draw(1, 50, logits.device))
    bins = torch.arange(9.0)
    distances = logits.to(dtype).float().softmax(-1) @ (bins[:, None] - bins).abs()
    assert torch.equal(chosen.token_ids, distances.argmin(-1))
    assert not torch.equal(chosen.token_ids, logits.argmax(-1))


def chunk_logits(model, prompt, chunk):
    """Logits of the chosen bins' places in one forward over prompt and chunk: `(K, D, A)`."""
    blocks = torch.nn.functional.pad(chunk, (1, 0), value=model.config.boa_token_id)
    blocks = torch.nn.functional.pad(blocks, (0, 1), value=model.config.eoa_token_id)
    ids = torch.cat([torch.tensor(prompt), blocks.flatten()])[None]
    mask = build_action_attention_mask(ids, model.config)[:, None]
    if not model.config.use_action_attention_mask:
        mask = torch.ones_like(mask).tril()
    logits = model(ids, attention_mask=mask).logits[0, len(prompt) :, ACTIONS]
    return logits.view(len(chunk), -1, logits.shape[-1])[:, :-2]


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_drawn_chunk_and_its_scores_equal_token_by_token(seed, masked):
    model, writer = tiny_model(seed, use_action_attention_mask=masked), Writer(seed)
    prompts = [writer.policy(3)[0], writer.policy(7)[0]]
    ids, mask = pad_left(prompts)
    options = {"do_sample": True, "temperature": 1.3, "top_k": 12}
    out = model.predict_action_chunk(
        ids, mask, generator=torch.Generator().manual_seed(seed), return_dict_in_generate=True, **options
    )
    uniforms = torch.rand(2, 4 * 3, generator=torch.Generator().manual_seed(seed)).view(2, 4, 3)
    chooser = TokenChooser(torch.nn.Identity(), 0, 20, SamplingOptions(**options))
    for row, prompt in enumerate(prompts):
        logits = chunk_logits(model, prompt, out.action_ids[row])
        assert torch.equal(chooser.choose(logits, uniforms[row]).token_ids + 30, out.action_ids[row])
        log_probs = logits.log_softmax(dim=-1)
        expected = log_probs.gather(-1, out.action_ids[row][..., None] - 30)[..., 0]
        torch.testing.assert_close(out.log_probs[row], expected, atol=1e-4, rtol=1e-4)
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
        torch.testing.assert_close(out.entropies[row], entropies, atol=1e-4, rtol=1e-4)
    assert out.num_forwards == (3 if masked else 4 * 3)
    assert out.tokens_per_forward == 4 * 5 / out.num_forwards


def test_one_choice_is_the_greedy_one():
    model, ids = tiny_model(), torch.tensor([Writer().policy()[0]])
    greedy = model.predict_action_chunk(ids)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert torch.equal(model.predict_action_chunk(ids, do_sample=True, **options), greedy)
    assert torch.equal(model.predict_action_chunk(ids, return_dict_in_generate=True).action_ids, greedy)


def test_a_generator_makes_draws_repeatable():
    model, ids = tiny_model(initializer_range=0.1), torch.tensor([Writer().policy()[0]] * 3)

    def chunk(seed):
        return model.predict_action_chunk(ids, do_sample=True, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(chunk(0), chunk(0)) and not torch.equal(chunk(0), chunk(1))
    assert not torch.equal(chunk(0)[0], chunk(0)[1])  # rows are drawn apart


def test_rows_with_generators_of_their_own_do_not_depend_on_the_batch():
    model, prompts = tiny_model(initializer_range=0.1), [Writer(seed).policy()[0] for seed in range(3)]

    def chunks(rows):
        ids, mask = pad_left([prompts[row] for row in rows])
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return model.predict_action_chunk(ids, mask, do_sample=True, generator=generators)

    together = chunks([0, 1, 2])
    for row in range(3):
        assert torch.equal(chunks([row])[0], together[row])
    assert torch.equal(chunks([2, 0]), together[[2, 0]])
    one = model.predict_action_chunk(
        torch.tensor([prompts[1]]), do_sample=True, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(one[0], together[1])  # a list of one draws what a single generator does


def test_frames_drawn_with_generators_of_their_own():
    model, prompt = tiny_model(initializer_range=0.1), Writer().world_model()[0]
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    frames = model.predict_next_frame(torch.tensor([prompt] * 2), do_sample=True, generator=generators)
    assert not torch.equal(frames[0], frames[1])
    alone = torch.Generator().manual_seed(5)
    assert torch.equal(
        model.predict_next_frame(torch.tensor([prompt]), do_sample=True, generator=[alone])[0], frames[1]
    )


@pytest.mark.parametrize("call", ["predict_action_chunk", "predict_next_frame"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5, "top_k": 3}, "got `temperature`, `top_k` without `do_sample`. Add `do_sample=True`"),
        (
            {"do_sample": True, "temperature": 0.0},
            "`temperature` must be a number above 0, got 0.0. For the likeliest",
        ),
        ({"do_sample": True, "top_k": 0}, "`top_k` must be a whole number of at least 1, got 0. Leave it out"),
        ({"do_sample": True, "top_p": 1.5}, "`top_p` must lie above 0 and at most at 1, got 1.5. Leave it out"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(call, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny_model(), call)(torch.tensor([Writer().world_model()[0]]), **options)


def test_a_generator_of_another_device_is_refused():
    with pytest.raises(ValueError, match="must be on the model's device meta, got one on cpu. Make it with"):
        SamplingOptions(do_sample=True, generator=torch.Generator()).draw(1, 1, torch.device("meta"))
    with pytest.raises(ValueError, match="must be on the model's device meta, got one on cpu. Make it with"):
        SamplingOptions(do_sample=True, generator=[torch.Generator()]).draw(1, 1, torch.device("meta"))


def test_a_list_of_generators_has_one_for_each_row():
    with pytest.raises(ValueError, match="got 1 for a batch of 2. Give one for each row, or a single one"):
        SamplingOptions(do_sample=True, generator=[torch.Generator()]).draw(2, 1, torch.device("cpu"))
