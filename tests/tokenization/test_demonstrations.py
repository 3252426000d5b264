"""The reader of LIBERO demonstrations: orientation, laziness, and every kind of broken file."""

import json
import pickle

import h5py
import numpy as np
import pytest

from tokenization.demonstrations import find_demonstration_files, read_demonstrations

STEPS, SIZE = 4, 6


def write_file(path, episodes=2, convention="opengl", instruction="pick up the cup"):
    """A small demonstration file in LIBERO's layout."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": instruction})
        if convention:
            data.attrs["macros_image_convention"] = convention
        for number in range(episodes):
            group = data.create_group(f"demo_{number}")
            group["actions"] = random.uniform(-1, 1, (STEPS, 7))
            group["states"] = random.normal(size=(STEPS, 11))
            group["rewards"] = group["dones"] = np.zeros(STEPS, np.uint8)
            group["obs/agentview_rgb"] = random.integers(0, 256, (STEPS, SIZE, SIZE, 3), dtype=np.uint8)
            group["obs/eye_in_hand_rgb"] = random.integers(0, 256, (STEPS, SIZE, SIZE, 3), dtype=np.uint8)
            group["obs/ee_states"] = random.normal(size=(STEPS, 6))
            group["obs/gripper_states"] = random.normal(size=(STEPS, 2))
    return path


def replace(path, key, value):
    with h5py.File(path, "a") as file:
        del file[key]
        if value is not None:
            file[key] = value


@pytest.fixture
def path(tmp_path):
    return write_file(tmp_path / "task_demo.hdf5")


def test_reads_what_was_written(path):
    demonstrations = read_demonstrations(path)
    assert len(demonstrations) == 2 and demonstrations.instruction == "pick up the cup"
    first = demonstrations[0]
    assert (first.name, len(first), first.cameras) == ("demo_0", STEPS, ("agentview", "wrist"))
    assert first.actions.shape == (STEPS, 7) and first.actions.dtype == np.float32
    assert first.states.shape == (STEPS, 11) and first.states.dtype == np.float64
    assert first.proprioception.shape == (STEPS, 8)
    with h5py.File(path) as file:
        stored = file["data/demo_0/obs/agentview_rgb"][()]
    frames = first.frames()
    assert frames.dtype == np.uint8 and np.array_equal(frames, np.rot90(stored, 2, axes=(1, 2)))
    assert np.array_equal(first.frames(steps=slice(1, 3)), frames[1:3])


def test_wrist_camera_is_another_picture(path):
    first = read_demonstrations(path)[0]
    assert not np.array_equal(first.frames("wrist"), first.frames("agentview"))


def add_masks(path, masks, names=("background", "robot", "cup_1")):
    with h5py.File(path, "a") as file:
        for group in file["data"].values():
            group.attrs["segmentation_names"] = json.dumps(names)
            group.attrs["objects_of_interest"] = json.dumps(names[-1:])
            for camera, value in masks.items():
                group[f"obs/{camera}_segmentation"] = value


def test_masks_lie_like_the_pictures(path):
    stored = np.random.default_rng(1).integers(0, 3, (STEPS, SIZE, SIZE), dtype=np.uint8)
    add_masks(path, {"agentview": stored, "eye_in_hand": np.zeros_like(stored)})
    first = read_demonstrations(path)[0]
    assert np.array_equal(first.segmentation(), np.rot90(stored, 2, axes=(1, 2)))
    assert not first.segmentation("wrist", slice(1, 3)).any()
    assert first.segmentation_names == ("background", "robot", "cup_1") and first.objects_of_interest == ("cup_1",)


def test_no_masks(path):
    with pytest.raises(ValueError, match="no segmentation masks of camera `wrist` in `demo_0`.*--segmentation"):
        read_demonstrations(path)[0].segmentation("wrist")


@pytest.mark.parametrize(
    ("masks", "text"),
    [
        ({"agentview": np.zeros((STEPS, SIZE, SIZE), np.uint8)}, "lacks the key `.*eye_in_hand_segmentation`"),
        ({"agentview": np.zeros((STEPS, 2, SIZE), np.uint8)}, r"must be uint8 of shape \(4, 6, 6\), got uint8 of"),
        ({"agentview": np.zeros((STEPS, SIZE, SIZE))}, "must be uint8 of shape .* got float64"),
        ({"agentview": np.full((STEPS, SIZE, SIZE), 3, np.uint8)}, "holds number 3, but there are 3 names"),
    ],
)
def test_wrong_masks(path, masks, text):
    add_masks(path, masks)
    with pytest.raises(ValueError, match=text):
        read_demonstrations(path)


def test_opencv_files_are_only_mirrored(tmp_path):
    opengl = write_file(tmp_path / "a.hdf5")
    opencv = write_file(tmp_path / "b.hdf5", convention="opencv")
    with h5py.File(opencv, "a") as file:
        images = file["data/demo_0/obs/agentview_rgb"]
        images[...] = images[()][:, ::-1]
    assert np.array_equal(read_demonstrations(opengl)[0].frames(), read_demonstrations(opencv)[0].frames())


def test_a_file_without_convention_counts_as_opengl(tmp_path):
    with_attribute, without = write_file(tmp_path / "a.hdf5"), write_file(tmp_path / "b.hdf5", convention=None)
    assert np.array_equal(read_demonstrations(with_attribute)[0].frames(), read_demonstrations(without)[0].frames())


def test_episodes_are_in_the_order_of_their_numbers(tmp_path):
    demonstrations = read_demonstrations(write_file(tmp_path / "many.hdf5", episodes=12))
    assert [episode.name for episode in demonstrations] == [f"demo_{number}" for number in range(12)]
    assert [episode.name for episode in demonstrations[10:]] == ["demo_10", "demo_11"]


def test_survives_pickling(path):
    copy = pickle.loads(pickle.dumps(read_demonstrations(path)))
    assert np.array_equal(copy[1].actions, read_demonstrations(path)[1].actions)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no demonstration file `.*nothing\.hdf5`"):
        read_demonstrations(tmp_path / "nothing.hdf5")


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_truncated_file(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="not a readable HDF5 file: truncated or of another kind") as error:
        read_demonstrations(path)
    assert str(path) in str(error.value) and "again" in str(error.value)


def test_a_damaged_image_is_reported_with_its_key(tmp_path):
    path = write_file(tmp_path / "task_demo.hdf5")
    images = np.random.default_rng(0).integers(0, 256, (STEPS, 32, 32, 3), dtype=np.uint8)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        dataset = file["data/demo_0/obs"].create_dataset("agentview_rgb", data=images, compression="gzip")
        chunk = dataset.id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * min(64, chunk.size))
    demonstration = read_demonstrations(path)[0]
    with pytest.raises(ValueError, match=r"`data/demo_0/obs/agentview_rgb` cannot be read"):
        demonstration.frames()


@pytest.mark.parametrize("key", ["data", "data/demo_1/actions", "data/demo_1/obs"])
def test_missing_key_is_named(path, key):
    replace(path, key, None)
    with pytest.raises(ValueError, match=f"lacks the key `{key}`"):
        read_demonstrations(path)


def test_no_image_at_all(path):
    for key in ("agentview_rgb", "eye_in_hand_rgb"):
        replace(path, f"data/demo_0/obs/{key}", None)
    with pytest.raises(ValueError, match="lacks the key `data/demo_0/obs/agentview_rgb`"):
        read_demonstrations(path)


def test_no_episode(tmp_path):
    with pytest.raises(ValueError, match="lacks the key `data/demo_0`"):
        read_demonstrations(write_file(tmp_path / "empty.hdf5", episodes=0))


@pytest.mark.parametrize("problem_info", [None, "{", "{}", "[]"])
def test_missing_instruction(path, problem_info):
    with h5py.File(path, "a") as file:
        del file["data"].attrs["problem_info"]
        if problem_info is not None:
            file["data"].attrs["problem_info"] = problem_info
    with pytest.raises(ValueError, match="lacks the key `data.attrs"):
        read_demonstrations(path)


def test_a_camera_that_was_not_recorded(path):
    replace(path, "data/demo_0/obs/eye_in_hand_rgb", None)
    with pytest.raises(ValueError, match="no camera `wrist` in `demo_0`. Recorded were: `agentview`"):
        read_demonstrations(path)[0].frames("wrist")


def test_states_are_optional_until_they_are_asked_for(path):
    replace(path, "data/demo_0/states", None)
    episode = read_demonstrations(path)[0]
    with pytest.raises(ValueError, match="lacks the key `data/demo_0/states`"):
        _ = episode.states


@pytest.mark.parametrize(
    ("key", "shape"),
    [("obs/agentview_rgb", (STEPS + 1, SIZE, SIZE, 3)), ("states", (STEPS - 1, 11)), ("rewards", (STEPS + 2,))],
)
def test_ragged_episode(path, key, shape):
    replace(path, f"data/demo_1/{key}", np.zeros(shape, np.uint8))
    with pytest.raises(
        ValueError, match=f"lengths disagree in `data/demo_1`: {STEPS} actions, but `{key}` has {shape[0]}"
    ):
        read_demonstrations(path)


@pytest.mark.parametrize("shape", [(STEPS, 6), (0, 7), (STEPS,)])
def test_actions_of_the_wrong_shape(path, shape):
    replace(path, "data/demo_0/actions", np.zeros(shape))
    with pytest.raises(ValueError, match=r"`data/demo_0/actions` must have shape \(T, 7\)"):
        read_demonstrations(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite(path, value):
    actions = np.zeros((STEPS, 7))
    actions[2, 5] = value
    replace(path, "data/demo_1/actions", actions)
    with pytest.raises(ValueError, match="`data/demo_1/actions` holds NaN or infinity, first in step 2"):
        read_demonstrations(path)


@pytest.mark.parametrize(
    "images", [np.zeros((STEPS, SIZE, SIZE), np.uint8), np.zeros((STEPS, SIZE, SIZE, 3), np.float32)]
)
def test_images_of_the_wrong_kind(path, images):
    replace(path, "data/demo_0/obs/agentview_rgb", images)
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(T, H, W, 3\)"):
        read_demonstrations(path)


def test_unknown_image_convention(tmp_path):
    with pytest.raises(ValueError, match="convention `sideways`. Known are: opengl, opencv"):
        read_demonstrations(write_file(tmp_path / "a.hdf5", convention="sideways"))


def test_finds_files_in_folders(tmp_path):
    (tmp_path / "more").mkdir()
    a, b, c = (write_file(tmp_path / name) for name in ("b.hdf5", "a.hdf5", "more/c.hdf5"))
    assert find_demonstration_files([tmp_path]) == [b, a]
    assert find_demonstration_files([str(c), a]) == [c, a]


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_files(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"No demonstrations at `.*{name}`"):
        find_demonstration_files([tmp_path / name])
