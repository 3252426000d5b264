import subprocess
import sys

import pytest

from evaluation.policies import make_batched_policy
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 0}, "`--best_of` must be larger than 0, got 0"),
        ({"best_of": 4}, "`--best_of 4` goes by one score: .* got neither. Give one of the two"),
        ({"best_of": 4, "goal": ["g"], "progress": "p"}, "goes by one score: .* got both. Give one of the two"),
        ({"goal": ["g"]}, "`--goal` would do nothing: one chunk leaves nothing to choose. Add `--best_of 4`"),
        ({"temperature": 0.5, "sampling_seed": 1}, "`--temperature`, `--sampling_seed` would do nothing"),
        ({"best_of": 2, "goal": ["g"], "temperature": 0.0}, "`--temperature` must be a number above 0, got 0.0"),
    ],
)
def test_what_ranking_needs(options, message):
    with pytest.raises(ValueError, match=message):
        PolicyArguments(checkpoint="c", **options)


def test_other_policies_do_not_rank():
    with pytest.raises(ValueError, match="Policy `expert` has no option `--best_of`; it belongs to worldvla"):
        PolicyArguments(policy="expert", best_of=4)


def test_options_of_other_policies_are_refused():
    with pytest.raises(ValueError, match="Policy `expert` has no option `--checkpoint`; it belongs to worldvla"):
        PolicyArguments(policy="expert", checkpoint="c")
    with pytest.raises(ValueError, match="Policy `noop` has no option `--demonstrations`; it belongs to replay, repl"):
        PolicyArguments(policy="noop", demonstrations=["a.hdf5"])
    assert PolicyArguments(policy="noop", camera="wrist", device="cuda").camera == "wrist"


def test_replays_need_demonstrations():
    with pytest.raises(ValueError, match="Policy `replay` needs `--demonstrations`"):
        PolicyArguments(policy="replay")
    with pytest.raises(ValueError, match="Unknown --replay_by `numbers`.*Did you mean `number`"):
        PolicyArguments(policy="replay", demonstrations=["a"], replay_by="numbers")


@pytest.mark.parametrize("limit", [0, -1, 1.5, float("nan")])
def test_random_actions_stay_in_the_simulators_range(limit):
    with pytest.raises(ValueError, match=r"`--random_limit` must lie in \(0, 1\], what the simulator takes; got"):
        PolicyArguments(policy="random", random_limit=limit)


def test_a_server_needs_an_address_and_patience():
    with pytest.raises(ValueError, match="Policy `http` needs `--server`, which was not given"):
        PolicyArguments(policy="http")
    with pytest.raises(ValueError, match="`--server_timeout` must be larger than 0 and .* got 0 and 3"):
        PolicyArguments(policy="http", server="http://a", server_timeout=0)
    with pytest.raises(ValueError, match="`--server_retries` at least 0, got 60.0 and -1"):
        PolicyArguments(policy="http", server="http://a", server_retries=-1)


def test_policies_of_the_simulators_process_are_not_made_in_batches():
    with pytest.raises(ValueError, match="Policy `noop` acts in the simulator's process"):
        make_batched_policy(PolicyArguments(policy="noop"))


def test_choosing_a_policy_loads_no_torch():
    code = (
        "import sys, evaluation.policies, evaluation.remote_policy; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
