"""Rendering recorded episodes anew: what is kept, interruptions, fixtures; and in the real simulator."""

import dataclasses
import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from evaluation import demonstration_files, rerender_ledger, rerendering
from evaluation.demonstration_files import RecordedEpisode, join_episodes, write_episode
from evaluation.fixture_poses import current_fixture_poses, place_fixtures, read_fixture_poses
from evaluation.libero_setup import LiberoTask
from evaluation.rerender import RerenderArguments, format_table, main
from evaluation.rerender_ledger import open_file_ledgers
from evaluation.rerendering import RerenderSettings, rerender_episode
from tokenization.demonstrations import read_demonstrations
from tokenization.noops import find_noops

TASK = LiberoTask("libero_goal", 0, "stack_the_cups", "stack the cups", "b.bddl", "i.init")
SETTINGS = RerenderSettings(("agentview",), 8)
STEPS = 5
KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "robot0_joint_pos": 7}


class FakeModel:
    """A cabinet that every reset moves, and a table without a body of its own."""

    nbody = 2

    def __init__(self):
        self.body_pos, self.body_quat = np.zeros((2, 3)), np.tile([1.0, 0, 0, 0], (2, 1))

    def body(self, number):
        return SimpleNamespace(name=("world", "cabinet_1_main")[number])


class FakeEnv:
    """A state counts the actions of which it is the result; the goal is reached after `goal` of them."""

    image_size = 8

    def __init__(self, goal=0, task=TASK):
        self.goal, self.task, self.model = goal, task, FakeModel()
        sim = SimpleNamespace(model=SimpleNamespace(_model=self.model), forward=lambda: None)
        fixtures = {"cabinet_1": SimpleNamespace(root_body="cabinet_1_main"), "table": SimpleNamespace()}
        self.domain = SimpleNamespace(sim=sim, fixtures_dict=fixtures)
        self.state, self.commands = np.zeros(3), []

    def reset(self, seed):
        self.model.body_pos[1] = seed

    def set_simulator_state(self, state):
        self.state = np.array(state)

    def simulator_state(self):
        return self.state.copy()

    def robot_observation(self):
        return {key: np.resize([self.state[0], 0, 0, 1], width) for key, width in KEYS.items()}

    def step(self, action):
        self.commands.append(np.array(action))
        self.state = self.state + 1
        return {}, len(self.commands) >= self.goal, {}

    def render(self, camera):
        return np.full((8, 8, 3), int(self.state[0]), np.uint8)

    def close(self):
        pass


def write_source(path, episodes=3, seed=True, **attributes):
    """Episodes whose steps 1 and 2 are no-ops."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "stack the cups"})
        data.attrs["bddl_file_name"] = "bddl_files/libero_goal/stack_the_cups.bddl"
        for number in range(episodes):
            group = data.create_group(f"demo_{number}")
            actions = np.full((STEPS, 7), 0.1 + number)
            actions[1:3, :6] = 0
            group["actions"] = actions
            group["states"] = np.arange(STEPS)[:, None] + 10.0 * number + np.zeros(3)
            group["obs/agentview_rgb"] = np.zeros((STEPS, 4, 4, 3), np.uint8)
            if seed:
                group.attrs["seed"] = 7 + number
            group.attrs.update(attributes)
    return path


@pytest.fixture(autouse=True)
def no_simulator(request, monkeypatch):
    if request.node.get_closest_marker("libero"):
        return
    monkeypatch.setattr(rerender_ledger, "list_tasks", lambda suite: [TASK] if suite == TASK.suite else [])
    monkeypatch.setattr(
        demonstration_files,
        "_write_task_attributes",
        lambda data, task, settings: data.attrs.update(
            problem_info=json.dumps({"language_instruction": task.instruction}), bddl_file_name="a/stack_the_cups.bddl"
        ),
    )


@pytest.fixture
def episode_group(tmp_path):
    with h5py.File(write_source(tmp_path / "stack_the_cups_demo.hdf5")) as file:
        yield file["data/demo_1"]


def test_recorded_states_are_rendered(episode_group):
    episode = rerender_episode(FakeEnv(), episode_group, tuple(range(STEPS)), SETTINGS)
    assert episode.pictures.frames["agentview"][:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]
    assert np.array_equal(episode.states, episode_group["states"][()])
    assert np.array_equal(episode.actions, episode_group["actions"][()]) and episode.seed == 8
    assert episode.robot["robot0_eef_pos"][:, 0].tolist() == [10, 11, 12, 13, 14]
    assert json.loads(episode.attributes["fixture_poses"]) == {"cabinet_1": [8, 8, 8, 1, 0, 0, 0]}  # by the seed


def test_a_replay_keeps_what_reaches_the_goal_at_its_end(episode_group):
    replay = dataclasses.replace(SETTINGS, replay=True)
    kept = (0, 3, 4)
    env = FakeEnv(goal=10 + len(kept))  # ten still steps come first
    episode = rerender_episode(env, episode_group, kept, replay)
    assert np.array_equal(np.stack(env.commands[:10]), np.tile([0, 0, 0, 0, 0, 0, -1.0], (10, 1)))
    assert np.array_equal(np.stack(env.commands[10:]), episode_group["actions"][()][[0, 3, 4]])
    assert episode.states[:, 0].tolist() == [20, 21, 22]  # before each action
    assert episode.pictures.frames["agentview"][:, 0, 0, 0].tolist() == [20, 21, 22]
    assert rerender_episode(FakeEnv(goal=14), episode_group, kept, replay) is None


def test_a_file_that_does_not_say_where_fixtures_stood(tmp_path):
    with h5py.File(write_source(tmp_path / "a.hdf5", seed=False)) as file:
        with pytest.raises(ValueError, match="does not say where `cabinet_1` stood: fixtures are no part of a state"):
            rerender_episode(FakeEnv(), file["data/demo_0"], (0, 1), SETTINGS)
        env = FakeEnv()
        del env.domain.fixtures_dict["cabinet_1"]  # nothing to be moved: nothing to be known
        assert rerender_episode(env, file["data/demo_0"], (0, 1), SETTINGS).seed is None


XML = '<mujoco><body name="b"><body name="cabinet_1_main" pos="1 2 3" quat="0 0 0 2"/></body></mujoco>'


def test_fixtures_of_official_files(tmp_path):
    with h5py.File(write_source(tmp_path / "a.hdf5", seed=False, model_file=XML)) as file:
        env = FakeEnv()
        rerender_episode(env, file["data/demo_0"], (0, 1), SETTINGS)
    assert current_fixture_poses(env.domain) == {"cabinet_1": [1, 2, 3, 0, 0, 0, 1]}
    place_fixtures(env.domain, {"cabinet_1": [4, 5, 6, 1, 0, 0, 0]})
    assert current_fixture_poses(env.domain) == {"cabinet_1": [4, 5, 6, 1, 0, 0, 0]}
    with pytest.raises(ValueError, match="Unknown fixture `cabinet_2`.*Did you mean `cabinet_1`"):
        place_fixtures(env.domain, {"cabinet_2": [0] * 7})


@pytest.mark.parametrize(
    ("xml", "text"), [("<mujoco>", "is no XML"), ("<mujoco/>", "knows no fixture `cabinet_1`. The episode belongs to")]
)
def test_damaged_scenes(xml, text):
    with pytest.raises(ValueError, match=f"The attribute `model_file` {text}"):
        read_fixture_poses({"model_file": xml}, FakeEnv().domain)


def open_ledger(source, out, settings=SETTINGS):
    (ledger,) = open_file_ledgers([source], settings, out, find_noops)
    return ledger


@pytest.fixture
def fake_simulator(monkeypatch):
    """Renders in this process; episodes of the second demonstration reach no goal when replayed."""
    goals = {}
    monkeypatch.setattr(rerendering, "_environment", None)
    monkeypatch.setattr(rerendering, "LiberoEnv", lambda *_, **__: FakeEnv(goals.get("goal", 0)))
    return goals


def test_interruptions_do_not_change_the_file(tmp_path, fake_simulator):
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5")
    for stop in (0, 1, 3):  # finished episodes before each interruption
        ledger = open_ledger(source, tmp_path / "b")
        assert len(ledger.open_jobs()) == 3 - len(ledger.steps)
        for job in ledger.open_jobs()[: stop - len(ledger.steps)]:
            ledger.finish(job.number, rerendering.rerender_job(job, SETTINGS))
        assert ledger.write_if_complete() is (stop == 3)
    ledger = open_ledger(source, tmp_path / "a")
    for job in reversed(ledger.open_jobs()):
        ledger.finish(job.number, rerendering.rerender_job(job, SETTINGS))
    assert ledger.write_if_complete()
    assert (tmp_path / "a" / source.name).read_bytes() == (tmp_path / "b" / source.name).read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == [source.name]
    again = open_ledger(source, tmp_path / "a")
    assert again.open_jobs() == [] and again.summary()["kept"] == 3
    episodes = read_demonstrations(tmp_path / "a" / source.name)
    assert [episode.frames()[0, 0, 0, 0] for episode in episodes] == [0, 10, 20]
    with h5py.File(again.path) as file:
        assert file["data/demo_2"].attrs["source_episode"] == "stack_the_cups_demo.hdf5/demo_2"
        assert file["data"].attrs["num_demos"] == 3 and file["data/demo_2"].attrs["seed"] == 9


def test_noops_are_dropped_and_failures_left_out(tmp_path, fake_simulator):
    settings = dataclasses.replace(SETTINGS, replay=True, drop_noops=True)
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5")
    ledger = open_ledger(source, tmp_path / "out", settings)
    for job in ledger.open_jobs():
        assert job.kept == (0, 3, 4)
        fake_simulator["goal"] = 99 if job.number == 1 else 0
        rerendering.close_environment()
        ledger.finish(job.number, rerendering.rerender_job(job, settings))
    assert ledger.write_if_complete()
    summary = ledger.summary()
    assert (summary["kept"], summary["failed"], summary["dropped_noops"], summary["steps"]) == (2, [1], 6, 6)
    assert open_ledger(source, tmp_path / "out", settings).summary() == summary
    assert [len(episode) for episode in read_demonstrations(ledger.path)] == [3, 3]


def test_an_episode_of_noops_alone_counts_as_failed(tmp_path):
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5", episodes=1)
    with h5py.File(source, "a") as file:
        file["data/demo_0/actions"][:] = 0
    settings = dataclasses.replace(SETTINGS, replay=True, drop_noops=True)
    ledger = open_ledger(source, tmp_path / "out", settings)
    assert ledger.open_jobs() == [] and not ledger.write_if_complete() and ledger.summary()["file"] is None


def test_an_episode_whose_file_is_gone_is_rendered_again(tmp_path, fake_simulator):
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5")
    ledger = open_ledger(source, tmp_path / "out")
    job = ledger.open_jobs()[0]
    ledger.finish(0, rerendering.rerender_job(job, SETTINGS))
    assert len(open_ledger(source, tmp_path / "out").open_jobs()) == 2
    job.part.unlink()
    assert len(open_ledger(source, tmp_path / "out").open_jobs()) == 3


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_and_other_sources_are_refused(tmp_path, fake_simulator, finished):
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5", episodes=1)
    ledger = open_ledger(source, tmp_path / "out")
    if finished:
        ledger.finish(0, rerendering.rerender_job(ledger.open_jobs()[0], SETTINGS))
        ledger.write_if_complete()
    with pytest.raises(ValueError, match="made otherwise: image_size 8 there, 16 asked for. Give the same"):
        open_ledger(source, tmp_path / "out", dataclasses.replace(SETTINGS, image_size=16))
    write_source(source, episodes=2)
    with pytest.raises(ValueError, match="made otherwise: source_sha256 "):
        open_ledger(source, tmp_path / "out")


def test_files_are_not_overwritten(tmp_path):
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5")
    with pytest.raises(ValueError, match="would be overwritten, or another file of this name"):
        open_ledger(source, tmp_path)
    (tmp_path / "more").mkdir()
    twin = write_source(tmp_path / "more" / source.name)
    with pytest.raises(ValueError, match="would be overwritten, or another file of this name"):
        open_file_ledgers([source, twin], SETTINGS, tmp_path / "out", find_noops)
    (tmp_path / "out" / source.name).write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="exists and was not rendered here. Choose another `--out`"):
        open_ledger(source, tmp_path / "out")


def test_a_task_that_no_suite_has(tmp_path):
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5")
    with h5py.File(source, "a") as file:
        file["data"].attrs["bddl_file_name"] = "stack_the_cup.bddl"
    with pytest.raises(ValueError, match="Unknown LIBERO task `stack_the_cup`.*Did you mean `stack_the_cups`"):
        open_ledger(source, tmp_path / "out")


def test_a_damaged_file_is_named(tmp_path):
    source = write_source(tmp_path / "stack_the_cups_demo.hdf5")
    source.write_bytes(source.read_bytes()[:500])
    with pytest.raises(ValueError, match="stack_the_cups_demo.hdf5` cannot be replayed: truncated"):
        open_ledger(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cameras": ["wrists"]}, "Unknown camera `wrists`.*Did you mean `wrist`"),
        ({"cameras": []}, "`--cameras` needs at least one of"),
        ({"image_size": 0}, "`--image_size` must be at least 1, got 0"),
        ({"num_workers": 0}, "`--num_workers` must be at least 1, got 0"),
        ({"drop_noops": True}, "`--drop_noops` needs `--replay`: between the recorded states.*train/pretokenize.py"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError, match=text):
        RerenderArguments(["in"], "out", **options)


def test_table_sums_up():
    row = {"source": "a.hdf5", "episodes": 4, "kept": 3, "dropped_noops": 10, "steps": 300}
    table = format_table([row, row | {"source": "b.hdf5", "kept": 0, "steps": 0}]).splitlines()
    assert table[2] == "| a.hdf5 | 4 | 3 | 75 % | 10 | 300 |"
    assert table[4] == "| all | 8 | 3 | 38 % | 20 | 300 |"


COMMANDS = np.array([[0.8, 0.3, -0.4, 0, 0, 0.2, -1 + 2 * (step > 5)] for step in range(11)])
SEED, SIZE = 3, 32


def _record(env, folder):
    """What our recorder stores of these commands, and what LIBERO's own script does; the latter from really acting."""
    states, robot, after, readings = [], [], [], []
    env.reset(seed=SEED)
    scene = env.domain.sim.model.get_xml()
    for command in COMMANDS:
        states.append(env.simulator_state())
        robot.append(env.robot_observation())
        env.step(command)
        after.append(env.render("agentview"))
        readings.append(env.robot_observation())
    pictures = rerendering.render_states(env, states, ("agentview",))
    stacked = {key: np.stack([step[key] for step in robot]) for key in robot[0]}
    write_episode(folder / "part", RecordedEpisode(SEED, -1, COMMANDS, COMMANDS, np.stack(states), stacked, pictures))
    join_episodes(folder / "ours.hdf5", [folder / "part"], env.task, {"image_size": SIZE})
    _write_official(folder / "ours.hdf5", folder / "official.hdf5", after, readings, scene)


def _write_official(ours, path, after, readings, scene, first=5):
    """LIBERO's layout: entries from after each action, the first five steps left out, the scene as XML."""
    with h5py.File(ours) as source, h5py.File(path, "w") as file:
        data = file.create_group("data")
        for key in ("problem_info", "bddl_file_name", "macros_image_convention"):
            data.attrs[key] = source["data"].attrs[key]
        group = data.create_group("demo_0")
        group.attrs["model_file"] = scene
        group["actions"] = source["data/demo_0/actions"][first:]
        group["states"] = source["data/demo_0/states"][first:]
        group["obs/agentview_rgb"] = np.stack(after)[first:, ::-1, ::-1]
        group["obs/joint_states"] = np.stack([reading["robot0_joint_pos"] for reading in readings])[first:]


@pytest.mark.libero
def test_official_files_are_read_and_rendered_as_what_was_seen(tmp_path):
    """In a task whose fixtures move; rendering happens in a process of its own."""
    from evaluation.libero_env import LiberoEnv

    with LiberoEnv("libero_goal", 0, cameras=(), image_size=SIZE) as env:
        _record(env, tmp_path)
    (ours,) = read_demonstrations(tmp_path / "ours.hdf5")
    (official,) = read_demonstrations(tmp_path / "official.hdf5")
    assert official.observed_after and len(official) == len(ours) - 6  # five left out, one without frame before it
    assert np.array_equal(official.frames(), ours.frames()[6:])  # to the pixel
    assert np.array_equal(official.actions, ours.actions[6:]) and np.array_equal(official.states, ours.states[6:])

    flags = ["--cameras", "agentview", "--image_size", str(SIZE), "--out", str(tmp_path / "again")]
    assert main(["--demonstrations", str(tmp_path), *flags]) == 0  # both, in one process
    (again,) = read_demonstrations(tmp_path / "again" / "ours.hdf5")
    assert np.array_equal(again.frames(), ours.frames()) and np.array_equal(again.states, ours.states)
    assert np.abs(again.proprioception - ours.proprioception).max() < 0.02  # readings lag the state by 2 ms
    (again,) = read_demonstrations(tmp_path / "again" / "official.hdf5")
    assert len(again) == len(ours) - 5  # states are from before the action: none is lost
    difference = np.abs(again.frames().astype(int) - ours.frames()[5:])
    assert difference.max() <= 8 and (difference > 0).mean() < 0.01  # poses in XML have six digits
