"""LIBERO's own files, regenerated ones and no-ops: which frame belongs to which action."""

import json

import h5py
import numpy as np
import pytest

from tokenization.demonstrations import read_demonstrations
from tokenization.noops import drop_noops, find_noops

STEPS, SIZE = 8, 5
STILL_HAND = [0.0] * 6


def make_episode():
    """Everything that happened: T + 1 moments and T actions; joints 1 to 7 of a state are what the robot feels."""
    random = np.random.default_rng(0)
    return {
        "actions": random.uniform(-1, 1, (STEPS, 7)),
        "states": np.cumsum(random.normal(size=(STEPS + 1, 11)), axis=0),
        "frames": random.integers(0, 256, (STEPS + 1, SIZE, SIZE, 3), dtype=np.uint8),
        "hand": random.normal(size=(STEPS + 1, 6)),
    }


def write_file(path, episode, after, joints=True, **attributes):
    """Store an episode; `after`: observations from after each action, as LIBERO's script does."""
    seen = slice(1, None) if after else slice(0, -1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        group = data.create_group("demo_0")
        if after:
            group.attrs["model_file"] = "<mujoco/>"
        group["actions"] = episode["actions"]
        group["states"] = episode["states"][:-1]
        group["obs/agentview_rgb"] = episode["frames"][seen, ::-1, ::-1]
        group["obs/ee_states"] = episode["hand"][seen]
        group["obs/gripper_states"] = episode["hand"][seen, :2]
        if joints:
            lag = 0.02 * (episode["states"][seen, 1:8])  # readings are a little behind the state
            group["obs/joint_states"] = episode["states"][seen, 1:8] - lag
    return path


OFFICIAL = {"problem_info": json.dumps({"language_instruction": ["pick ", "up"]}), "macros_image_convention": "opengl"}


@pytest.mark.parametrize("joints", [True, False])
def test_the_frame_of_an_official_step_is_the_one_before_its_action(tmp_path, joints):
    episode = make_episode()
    (read,) = read_demonstrations(write_file(tmp_path / "a.hdf5", episode, after=True, joints=joints, **OFFICIAL))
    assert len(read) == STEPS - 1 and read.instruction == "pick up" and read.observed_after
    assert np.array_equal(read.actions, episode["actions"][1:].astype(np.float32))
    assert np.array_equal(read.states, episode["states"][1:-1])
    assert np.array_equal(read.frames(), episode["frames"][1:-1])
    assert np.array_equal(read.proprioception[:, :6], episode["hand"][1:-1].astype(np.float32))
    assert np.array_equal(read.frames(steps=slice(2, 100)), episode["frames"][3:-1])
    assert np.array_equal(read.frames(steps=slice(1, 6, 2)), episode["frames"][2:7:2])
    assert len(read.frames(steps=slice(3, 3))) == 0


@pytest.mark.parametrize("model_file", [True, False])
def test_what_the_numbers_say_counts_more_than_an_attribute(tmp_path, model_file):
    episode = make_episode()
    path = write_file(tmp_path / "a.hdf5", episode, after=False, **OFFICIAL)
    if model_file:
        with h5py.File(path, "a") as file:
            file["data/demo_0"].attrs["model_file"] = "<mujoco/>"
    (read,) = read_demonstrations(path)
    assert len(read) == STEPS and np.array_equal(read.frames(), episode["frames"][:-1])


def test_our_recorder_is_known_by_its_attribute(tmp_path):
    episode = make_episode()
    (read,) = read_demonstrations(write_file(tmp_path / "a.hdf5", episode, after=True, recorder="{}", **OFFICIAL))
    assert not read.observed_after and len(read) == STEPS


def test_an_official_episode_of_one_step_has_no_pair(tmp_path):
    episode = {key: value[: 2 - (key == "actions")] for key, value in make_episode().items()}
    path = write_file(tmp_path / "a.hdf5", episode, after=True, **OFFICIAL)
    with pytest.raises(ValueError, match=r"`.*a\.hdf5`: `data/demo_0` has one step, and no frame from before it"):
        read_demonstrations(path)


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("put_the_bowl_on_the_plate_demo.hdf5", "put the bowl on the plate"),
        ("KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5", "close the top drawer"),
        ("LIVING_ROOM_SCENE2_pick_up_the_soup_demo.hdf5", "pick up the soup"),
    ],
)
def test_a_regenerated_file_is_called_by_its_instruction(tmp_path, name, instruction):
    (read,) = read_demonstrations(write_file(tmp_path / name, make_episode(), after=False))
    assert read.instruction == instruction and not read.observed_after


def test_a_file_without_instruction(tmp_path):
    path = write_file(tmp_path / "collected.hdf5", make_episode(), after=False)
    with pytest.raises(ValueError, match=r"lacks the key `data\.attrs\['problem_info'\]`"):
        read_demonstrations(path)
    path = write_file(tmp_path / "b.hdf5", make_episode(), after=False, problem_info='{"language_instruction": " "}')
    with pytest.raises(ValueError, match=r"b\.hdf5`: the instruction in .* is empty"):
        read_demonstrations(path)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "actions",
            np.zeros((STEPS, 7), np.int64),
            "`data/demo_0/actions` must hold floating-point numbers, got int64",
        ),
        ("actions", np.zeros((STEPS, 8)), r"must have shape \(T, 7\), T >= 1, got \(8, 8\)"),
        ("obs", np.zeros(3), "lacks the key `data/demo_0/obs`"),
        ("obs/agentview_rgb", np.zeros((STEPS, SIZE, SIZE, 3)), "must be uint8 of shape .* got float64"),
    ],
)
def test_arrays_of_another_kind(tmp_path, key, value, text):
    path = write_file(tmp_path / "a.hdf5", make_episode(), after=True, **OFFICIAL)
    with h5py.File(path, "a") as file:
        del file[f"data/demo_0/{key}"]
        file[f"data/demo_0/{key}"] = value
    with pytest.raises(ValueError, match=text):
        read_demonstrations(path)


def test_damaged_actions_are_reported_with_the_file(tmp_path):
    path = write_file(tmp_path / "a.hdf5", make_episode(), after=True, **OFFICIAL)
    with h5py.File(path, "a") as file:
        actions = file["data/demo_0/actions"][()]
        del file["data/demo_0/actions"]
        chunk = file["data/demo_0"].create_dataset("actions", data=actions, compression="gzip").id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"a\.hdf5` is damaged .* again"):
        read_demonstrations(path)


@pytest.mark.parametrize(
    ("gripper", "moving", "noops"),
    [
        ([-1, -1, -1, -1], [1, 0, 0, 1], [0, 1, 1, 0]),
        ([-1, -1, -1, -1], [0, 0, 1, 0], [1, 1, 0, 1]),  # at the start only the motion counts
        ([-1, 1, 1, -1], [1, 0, 0, 0], [0, 0, 1, 0]),  # closing and opening a still hand is none
        ([1, -1, -1, -1], [0, 0, 1, 0], [1, 1, 0, 1]),  # compared with the last step that is kept
    ],
)
def test_the_rule_for_noops(gripper, moving, noops):
    actions = np.column_stack([np.outer(moving, [0.1] * 6), gripper])
    assert find_noops(actions).tolist() == [bool(noop) for noop in noops]


def test_motion_just_below_and_above_the_limit():
    actions = np.zeros((3, 7))
    actions[:, 0] = 1.0, 0.99e-4, 1.01e-4
    assert find_noops(actions).tolist() == [False, True, False]


def write_with_noops(path):
    episode = make_episode()
    episode["actions"][[0, 3, 4, 7], :6] = 0
    episode["actions"][:, 6] = -1
    return episode, write_file(path, episode, after=False, **OFFICIAL)


def test_frames_stay_with_their_actions(tmp_path):
    episode, path = write_with_noops(tmp_path / "a.hdf5")
    (whole,) = read_demonstrations(path)
    kept = [1, 2, 5, 6]
    read = drop_noops(whole)
    assert len(read) == 4 and read.name == whole.name and read.cameras == whole.cameras
    assert np.array_equal(read.frames(), episode["frames"][kept])
    assert np.array_equal(read.frames(steps=slice(1, 3)), episode["frames"][[2, 5]])
    assert read.frames(steps=slice(4, 9)).shape == (0, SIZE, SIZE, 3)
    for name in ("actions", "expert_actions", "states", "proprioception"):
        assert np.array_equal(getattr(read, name), getattr(whole, name)[kept])


def test_a_frame_after_a_gap_is_no_successor(tmp_path):
    _, path = write_with_noops(tmp_path / "a.hdf5")
    (whole,) = read_demonstrations(path)
    assert whole.leads_to_next_frame.tolist() == [True] * 7 + [False]
    assert drop_noops(whole).leads_to_next_frame.tolist() == [True, False, True, False]


def test_an_episode_without_noops_stays_itself(tmp_path):
    (whole,) = read_demonstrations(write_file(tmp_path / "a.hdf5", make_episode(), after=True, **OFFICIAL))
    assert drop_noops(whole) is whole


def test_nothing_but_noops(tmp_path):
    episode = {**make_episode(), "actions": np.zeros((STEPS, 7))}
    (whole,) = read_demonstrations(write_file(tmp_path / "a.hdf5", episode, after=False, **OFFICIAL))
    with pytest.raises(ValueError, match=r"a\.hdf5`: `demo_0` holds nothing but no-ops"):
        drop_noops(whole)


def test_noops_cannot_be_left_out_of_files_with_few_pictures(tmp_path):
    episode = make_episode()
    path = write_file(tmp_path / "a.hdf5", episode, after=False, **OFFICIAL)
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["picture_stride"] = 2
        pictures = file["data/demo_0/obs/agentview_rgb"][::2]
        del file["data/demo_0/obs/agentview_rgb"]
        file["data/demo_0/obs/agentview_rgb"] = pictures
    (whole,) = read_demonstrations(path, allow_picture_stride=True)
    with pytest.raises(ValueError, match="pictures of one in 2 steps: single steps cannot be left out"):
        drop_noops(whole)
