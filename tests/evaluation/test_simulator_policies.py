import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import evaluation.simulator_policies
from evaluation.libero_env import LiberoEnv
from evaluation.policy_arguments import OPTIONS, PolicyArguments
from evaluation.simulator_policies import SIMULATOR_POLICIES, describe_simulator_policy, make_simulator_policy

TASK = "pick_up_the_cup"


class PretendEnv:
    """Stands in for `LiberoEnv`: the state is [seed, initial state or -1, steps]; notes what happens."""

    cameras = ("wrist",)
    domain = "the scene"

    def __init__(self, task_id=0, name=TASK):
        self.task = SimpleNamespace(task_id=task_id, name=name)
        self.resets, self.set_states, self.stepped = [], [], []

    def reset(self, initial_state=None, seed=None):
        self.resets.append((initial_state, seed))
        self.state = np.array([seed, -1 if initial_state is None else initial_state, 0.0])
        return {"state": self.state}

    def step(self, action):
        self.stepped.append(action)
        self.state = self.state + [0, 0, 1]

    def simulator_state(self):
        return self.state.copy()

    def set_simulator_state(self, state):
        self.set_states.append(state)
        self.state = state

    def robot_observation(self):
        return {"robot0_eef_pos": np.array([0.0, 0.0, 0.1 + 0.001 * len(self.stepped)])}

    def render(self, camera):
        return f"picture of {camera} in state {self.state.tolist()}"

    def proprioception(self):
        return self.state.astype(float)


def write_demonstrations(path, demonstrations, **attributes):
    """Write the part of LIBERO's layout that a replay reads: (actions, first state, attributes) of each."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        for number, (actions, state, notes) in enumerate(demonstrations):
            group = data.create_group(f"demo_{number}")
            group.attrs.update(notes)
            group["actions"] = np.asarray(actions, float)
            group["states"] = np.tile(state, (len(actions), 1))
    return str(path)


def rows(value, count):
    return np.full((count, 7), value) + np.arange(count)[:, None] / 100


def play(policy, env, initial_state=None, seed=0):
    observation = policy.reset(env, initial_state, seed)
    return observation, [action.copy() for action in policy.actions(env)]


def replay(path, **options):
    return make_simulator_policy(PolicyArguments(policy="replay", demonstrations=[path], **options))


@pytest.fixture
def random_placements(tmp_path):
    """Two demonstrations from random placements, as the recorder writes them: seeds 4 and 7."""
    notes = [(rows(0.1, 3), [4.0, -1, 0], {"seed": 4, "initial_state": -1}),
             (rows(0.2, 2), [7.0, -1, 0], {"seed": 7, "initial_state": -1})]  # fmt: skip
    return write_demonstrations(tmp_path / f"{TASK}_demo.hdf5", notes)


# Baselines


def test_the_idle_policy_keeps_an_open_hand_still():
    env, policy = PretendEnv(), make_simulator_policy(PolicyArguments(policy="noop"))
    assert policy.reset(env, 3, 11)["state"].tolist() == [11, 3, 0]
    for action in itertools.islice(policy.actions(env), 50):
        np.testing.assert_array_equal(action, [0, 0, 0, 0, 0, 0, -1])


def drawn(seed, task_id=0, count=200, **options):
    env, policy = PretendEnv(task_id), make_simulator_policy(PolicyArguments(policy="random", **options))
    policy.reset(env, 0, seed)
    return np.array(list(itertools.islice(policy.actions(env), count)))


def test_random_actions_are_decided_by_seed_and_task_and_fill_their_range():
    actions = drawn(seed=3)
    np.testing.assert_array_equal(actions, drawn(seed=3))
    assert not np.array_equal(actions, drawn(seed=4))
    assert not np.array_equal(actions, drawn(seed=3, task_id=1))
    assert actions.shape == (200, 7)
    assert (actions.min(0) < -0.9).all() and (actions.max(0) > 0.9).all() and np.abs(actions).max() <= 1
    np.testing.assert_allclose(drawn(seed=3, random_limit=0.25), actions / 4)


def test_an_episode_does_not_depend_on_those_before_it():
    env, policy = PretendEnv(), make_simulator_policy(PolicyArguments(policy="random"))
    for seed in (1, 2):
        policy.reset(env, 0, seed)
        actions = list(itertools.islice(policy.actions(env), 3))
    np.testing.assert_array_equal(actions, drawn(seed=2, count=3))


def test_an_expert_that_cannot_read_the_scene_ends_without_an_exception(monkeypatch, caplog):
    class Puzzled:
        def __init__(self, domain):
            assert domain == "the scene"

        def actions(self):
            yield np.ones(7)
            raise ArithmeticError("no grasp")

    monkeypatch.setattr(evaluation.simulator_policies, "ScriptedExpert", Puzzled)
    _, actions = play(make_simulator_policy(PolicyArguments(policy="expert")), PretendEnv(), 0)
    assert len(actions) == 1
    assert "The expert gives up: ArithmeticError: no grasp" in caplog.text


# Replay


def test_a_replay_finds_the_demonstration_of_the_seed(random_placements):
    env = PretendEnv()
    observation, actions = play(replay(random_placements), env, initial_state=0, seed=7)
    assert env.resets == [(None, 7)]
    assert env.set_states == [], "the reset gave the recorded state already"
    assert observation["wrist"] == "picture of wrist in state [7.0, -1.0, 0.0]"
    assert observation["state"].tolist() == [7, -1, 0] and observation["state"].dtype == np.float32
    np.testing.assert_array_equal(actions, rows(0.2, 2))


def test_a_replay_by_number(random_placements):
    env = PretendEnv()
    _, actions = play(replay(random_placements, replay_by="number"), env, initial_state=1, seed=0)
    assert env.resets == [(None, 7)]
    np.testing.assert_array_equal(actions, rows(0.2, 2))


def test_a_replay_from_benchmark_states(tmp_path):
    notes = [(rows(k / 10, 2), [5.0, k, 0], {"seed": 5, "initial_state": k}) for k in (2, 6)]
    env = PretendEnv()
    policy = replay(write_demonstrations(tmp_path / f"{TASK}_demo.hdf5", notes))
    _, actions = play(policy, env, initial_state=6, seed=0)
    assert env.resets == [(6, 5)]
    np.testing.assert_array_equal(actions, rows(0.6, 2))
    with pytest.raises(
        ValueError, match=r"no demonstration with initial state 3\. It has those with initial state 2, 6"
    ):
        policy.reset(env, 3, 5)


def test_files_that_note_no_seed_are_replayed_from_their_state(tmp_path):
    path = write_demonstrations(tmp_path / f"{TASK}_demo.hdf5", [(rows(0.3, 2), [8.0, 9, 9], {})])
    env = PretendEnv()
    observation, actions = play(replay(path), env, initial_state=0, seed=2)
    assert env.resets == [(None, 2)]
    assert [state.tolist() for state in env.set_states] == [[8, 9, 9]]
    assert observation["state"].tolist() == [8, 9, 9]
    np.testing.assert_array_equal(actions, rows(0.3, 2))


def test_a_varied_start_is_repeated_before_the_replay(tmp_path):
    recorder = json.dumps({"variation": {"action_noise": 0.1, "start_offset": 0.05}})
    path = write_demonstrations(
        tmp_path / f"{TASK}_demo.hdf5", [(rows(0.1, 2), [4.0, -1, 25], {"seed": 4})], recorder=recorder
    )
    env = PretendEnv()
    policy = replay(path)
    policy.reset(env, 0, 4)
    assert len(env.stepped) == 25 and env.set_states == []
    assert np.abs(np.array(env.stepped)[:, :3]).max() > 0.1


def test_a_demonstration_that_is_not_there(random_placements):
    with pytest.raises(
        ValueError, match=r"no demonstration with seed 5\. It has those with seed 4, 7.*--replay_by numb"
    ):
        replay(random_placements).reset(PretendEnv(), 0, 5)
    with pytest.raises(ValueError, match=r"no demonstration with number 2\. It has those with number 0, 1"):
        replay(random_placements, replay_by="number").reset(PretendEnv(), 2, 4)
    with pytest.raises(ValueError, match=f"No demonstrations of task `fold`.*There are: `{TASK}_demo.hdf5`"):
        replay(random_placements).reset(PretendEnv(name="fold"), 0, 4)


def test_a_file_is_found_by_the_task_that_it_holds(tmp_path):
    notes = [(rows(0.1, 1), [4.0, -1, 0], {"seed": 4})]
    path = write_demonstrations(tmp_path / "mine.hdf5", notes, bddl_file_name=f"bddl_files/a/{TASK}.bddl")
    assert len(play(replay(path), PretendEnv(), 0, 4)[1]) == 1
    with pytest.raises(ValueError, match="No demonstrations of task `mine`"):
        replay(path).reset(PretendEnv(name="mine"), 0, 4)


def test_a_replay_without_its_reset_is_refused(random_placements):
    with pytest.raises(RuntimeError, match=r"Call `policy\.reset\(env, initial_state, seed\)`"):
        next(replay(random_placements).actions(PretendEnv()))


def test_the_mean_of_the_demonstrations(random_placements):
    policy = make_simulator_policy(PolicyArguments(policy="replay_mean", demonstrations=[random_placements]))
    env = PretendEnv()
    _, actions = play(policy, env, initial_state=3, seed=9)
    assert env.resets == [(3, 9)]  # the protocol's own beginning
    np.testing.assert_allclose(np.array(actions)[:, 0], [0.15, 0.16, 0.12])


# Damaged files and wrong options


def test_files_that_cannot_be_replayed_are_named(tmp_path):
    with pytest.raises(ValueError, match="No demonstrations at `.*nowhere`"):
        replay(str(tmp_path / "nowhere"))
    path = tmp_path / f"{TASK}_demo.hdf5"
    path.write_bytes(b"no file of this kind")
    with pytest.raises(ValueError, match=f"{TASK}_demo.hdf5` cannot be replayed: truncated.*OSError"):
        replay(str(path)).describe()
    with h5py.File(path, "w") as file:
        file.create_group("data/demo_0")["actions"] = rows(0, 3)
    with pytest.raises(ValueError, match="cannot be replayed.*KeyError.*states"):
        replay(str(path)).describe()
    with h5py.File(path, "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match="cannot be replayed.*KeyError"):
        replay(str(path)).describe()
    write_demonstrations(path, [(np.full((2, 6), 0.0), [0.0], {})])
    with pytest.raises(ValueError, match=r"`data/demo_0/actions` must be finite numbers of shape \(T, 7\).*\(2, 6\)"):
        replay(str(path)).describe()
    write_demonstrations(path, [(np.full((2, 7), np.nan), [0.0], {})])
    with pytest.raises(ValueError, match="must be finite numbers"):
        replay(str(path)).describe()


def test_descriptions_say_what_decides_the_commands(random_placements):
    (hashed,) = describe_simulator_policy(PolicyArguments(policy="replay", demonstrations=[random_placements]))[
        "demonstrations"
    ].items()
    assert hashed[0] == f"{TASK}_demo.hdf5" and len(hashed[1]) == 64
    assert describe_simulator_policy(PolicyArguments(policy="random", random_limit=0.5)) == {
        "policy": "random",
        "random_limit": 0.5,
    }
    for name in ("expert", "noop"):
        assert describe_simulator_policy(PolicyArguments(policy=name)) == {"policy": name}


def test_every_simulator_policy_has_its_options():
    assert set(SIMULATOR_POLICIES) < set(OPTIONS)


def test_simulator_policies_load_no_torch():
    code = (
        "import sys, evaluation.simulator_policies; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The real simulator


@pytest.mark.libero
def test_a_recorded_demonstration_is_replayed_to_the_bit(tmp_path):
    from evaluation.demonstration_files import join_episodes, write_episode
    from evaluation.expert_variation import Variation
    from evaluation.recording import RecordingSettings, record_episode

    settings = RecordingSettings(
        *("libero_object", 1, "random", 4, 1, (), 32),
        variation=Variation(action_noise=0.1, push_probability=0.02, start_offset=0.06),
    )
    with LiberoEnv("libero_object", 0, cameras=()) as env:
        attempt, episode = record_episode(env, 4, None, settings)
        assert attempt.success
        write_episode(tmp_path / "part.hdf5", episode)
        note = {"image_size": 32, "variation": {"action_noise": 0.1, "push_probability": 0.02, "start_offset": 0.06}}
        file = tmp_path / f"{env.task.name}_demo.hdf5"
        join_episodes(file, [tmp_path / "part.hdf5"], env.task, note)

        policy = replay(str(file))
        policy.reset(env, 0, 4)
        states, success = [], False
        for action in policy.actions(env):
            states.append(env.simulator_state())
            _, success, _ = env.step(action)
    assert success
    np.testing.assert_array_equal(states, episode.states)
