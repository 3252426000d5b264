"""Decoding with fixed shapes: the same answers, and a model that is compiled once."""

import pytest
import torch

from .sequences import Writer, pad_left, tiny_model

STATIC = {"cache_implementation": "static", "pad_to_multiple_of": 64}


@pytest.mark.parametrize("variant", [{}, {"use_action_attention_mask": False}])
@pytest.mark.parametrize("seed", range(20))
def test_fixed_shapes_change_nothing(seed, variant):
    model, writer = tiny_model(seed, **variant), Writer(seed)
    ids, mask = pad_left([writer.policy(3)[0], writer.policy(8)[0]])
    assert torch.equal(model.predict_action_chunk(ids, mask, **STATIC), model.predict_action_chunk(ids, mask))
    ids, mask = pad_left([writer.world_model(text, 1, 2, 4)[0] for text in (3, 5, 9)])
    for draft in ("none", "jacobi"):
        expected = model.predict_next_frame(ids, mask, draft=draft)
        assert torch.equal(model.predict_next_frame(ids, mask, draft=draft, **STATIC), expected)


class CountingBackend:
    """Compiles nothing, and counts the graphs it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield CountingBackend()
    torch._dynamo.reset()


@pytest.mark.parametrize("call", ["predict_action_chunk", "predict_next_frame"])
def test_another_prompt_of_the_same_padded_length_compiles_nothing(call, backend):
    model, writer = tiny_model(2), Writer(2)
    lengths = (3, 5, 7)  # of the text; padded, all prompts are equally long
    prompts = [
        writer.policy(text)[0] if call == "predict_action_chunk" else writer.world_model(text)[0] for text in lengths
    ]
    expected = [getattr(model, call)(torch.tensor([prompt])) for prompt in prompts]
    model.model.compile(backend=backend, fullgraph=True)
    counts = []
    for prompt, answer in zip(prompts, expected, strict=True):
        assert torch.equal(getattr(model, call)(torch.tensor([prompt]), **STATIC), answer)
        counts.append(backend.graphs)
    assert 0 < counts[0] <= 4 and counts[1:] == [counts[0]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("call", ["predict_action_chunk", "predict_next_frame"])
def test_compiled_by_inductor(call):
    torch._dynamo.reset()
    model, writer = tiny_model(4), Writer(4)
    prompts = [
        writer.policy(text)[0] if call == "predict_action_chunk" else writer.world_model(text)[0] for text in (3, 6)
    ]
    expected = [getattr(model, call)(torch.tensor([prompt])) for prompt in prompts]
    model.model.compile(fullgraph=True)
    for prompt, answer in zip(prompts, expected, strict=True):
        assert torch.equal(getattr(model, call)(torch.tensor([prompt]), **STATIC), answer)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "statik"}, "Unknown cache implementation `statik`.*Did you mean `static`"),
        ({"pad_to_multiple_of": 0}, "`pad_to_multiple_of` must be a whole number of at least 1, got 0"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    ids = torch.tensor([Writer().policy()[0]])
    with pytest.raises(ValueError, match=message):
        tiny_model().predict_action_chunk(ids, **options)
