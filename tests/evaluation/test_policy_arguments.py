import pytest

from evaluation.policy_arguments import PolicyArguments


def test_an_unknown_policy_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="Unknown policy `wordvla`.*Did you mean `worldvla`"):
        PolicyArguments(policy="wordvla")


def test_what_a_policy_cannot_do_without():
    with pytest.raises(ValueError, match="Policy `worldvla` needs `--checkpoint`, which was not given"):
        PolicyArguments(policy="worldvla")


@pytest.mark.parametrize("name", ["n_obs_steps", "chunk_size", "n_action_steps"])
def test_sizes_are_positive(name):
    with pytest.raises(ValueError, match=f"`--{name}` must be larger than 0, got 0"):
        PolicyArguments(checkpoint="c", **{name: 0})
