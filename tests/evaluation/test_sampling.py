"""Drawn frames: who decides the chance, and that nothing else does."""

import numpy as np
import pytest
import torch

from evaluation.counterfactual import CounterfactualArguments, Simulated, imagine_starts
from evaluation.imagine_arguments import ImagineArguments
from evaluation.sampling import GREEDY, SamplingArguments, seeded_generator
from evaluation.world_model import imagine_tokens
from evaluation.world_model_arguments import WorldModelArguments

DRAWN = SamplingArguments(temperature=1.0)


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.1).eval()


def imagine(model, processor, stored, names, sampling=DRAWN):
    frames, actions = (np.stack([stored[name][part][:3] for name in names]) for part in (0, 1))
    first, action_ids = processor.encode_images(list(frames[:, 0])), torch.as_tensor(processor.encode_actions(actions))
    options = sampling.sampling_options(names, model.device)
    return imagine_tokens(model, processor, first, action_ids, **options)


def test_a_generator_follows_seed_and_names():
    def first(*key):
        return torch.rand(4, generator=seeded_generator("cpu", *key)).tolist()

    assert first(0, "a", 1) == first(0, "a", 1)
    assert len({tuple(first(*key)) for key in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1")]}) == 5


def test_drawn_episodes_depend_on_seed_and_name_and_not_on_the_batch(model, processor, stored):
    names = list(stored)
    together = imagine(model, processor, stored, names)
    alone = torch.cat([imagine(model, processor, stored, [name]) for name in reversed(names)])
    assert torch.equal(together, alone.flip(0))
    assert not torch.equal(together, imagine(model, processor, stored, names, GREEDY))
    other_seed = SamplingArguments(temperature=1.0, sampling_seed=1)
    assert not torch.equal(together, imagine(model, processor, stored, names, other_seed))


def test_cold_or_narrow_draws_are_the_likeliest_codes(model, processor, stored):
    greedy = imagine(model, processor, stored, list(stored), GREEDY)
    for sampling in (SamplingArguments(temperature=1e-6), SamplingArguments(temperature=1.0, top_p=1e-9)):
        assert torch.equal(greedy, imagine(model, processor, stored, list(stored), sampling))


def test_actions_of_one_start_draw_the_same_numbers(model, processor, stored):
    """Equal commands give equal frames, so that what differs between two actions is not chance."""
    frames, actions = stored["demo_0"]
    start = Simulated(frames[0], np.ones((32, 32), bool), np.repeat(frames[:1], 2, axis=0), np.zeros((2, 2)))
    ids = np.repeat(processor.encode_actions(actions[:3])[None, None], 2, axis=1)
    (imagined,), _, _ = imagine_starts(model, processor, [start], ids, ["a@1"], DRAWN)
    np.testing.assert_array_equal(imagined[0], imagined[1])
    (other,), _, _ = imagine_starts(model, processor, [start], ids, ["b@1"], DRAWN)
    assert (imagined != other).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: WorldModelArguments(checkpoint="c", demonstrations=["d"], output_dir="o", **options),
        lambda **options: CounterfactualArguments(checkpoint="c", demonstrations=["d"], output_dir="o", **options),
        lambda **options: ImagineArguments(checkpoint="c", rollouts="r", **options),
    ],
)
def test_every_command_checks_its_chance(make):
    assert make(temperature=0.7, top_p=0.9, sampling_seed=3).sampling_options(["a"], "cpu")["temperature"] == 0.7
    assert make().sampling_options(["a"], torch.device("cpu")) == {}
    for options, message in (
        ({"temperature": 0.0}, "`temperature` must be a number above 0, got 0.0"),
        ({"temperature": 1.0, "top_p": 2.0}, "`top_p` must lie above 0 and at most at 1, got 2.0"),
        ({"top_p": 0.9}, "add `--temperature 1`"),
        ({"sampling_seed": 4}, "add `--temperature 1`"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
