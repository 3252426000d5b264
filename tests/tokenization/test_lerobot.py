"""LeRobot data sets: the right frame to each command in every layout, names of features, every kind of damage."""

import json
import pickle
import shutil
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tokenization.demonstrations import LeRobotReading, find_demonstration_files, read_demonstrations
from tokenization.noops import drop_noops
from tokenization.video_frames import read_video_frames

from ..made_up_lerobot import (
    AGENTVIEW,
    FPS,
    LENGTHS,
    SIZE,
    TASKS,
    WRIST,
    actions_of,
    frames_of,
    grey_of,
    states_of,
    write_data_set,
    write_video,
)

LAYOUTS = [("v2.0", "image"), ("v2.1", "video"), ("v2.1", "image"), ("v3.0", "video"), ("v3.0", "image")]
OLD_TABLE = "data/chunk-000/episode_000001.parquet"
OLD_VIDEO = f"videos/chunk-000/{AGENTVIEW}/episode_000001.mp4"


def greys(frames):
    """The grey of each picture's lower half, which compression changes by less than 2."""
    return frames[:, SIZE // 2 :].astype(float).mean((1, 2, 3))


@pytest.fixture(scope="module", params=LAYOUTS, ids="-".join)
def data_set(request, tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("lerobot") / "cups", *request.param)


@pytest.fixture(scope="module")
def old_template(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("lerobot") / "old")


@pytest.fixture(scope="module")
def new_template(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("lerobot") / "new", "v3.0")


@pytest.fixture
def old(old_template, tmp_path):
    return shutil.copytree(old_template, tmp_path / "old")


@pytest.fixture
def new(new_template, tmp_path):
    return shutil.copytree(new_template, tmp_path / "new")


def change_info(root, **changes):
    info = json.loads((root / "meta" / "info.json").read_text())
    info |= changes
    (root / "meta" / "info.json").write_text(json.dumps({key: value for key, value in info.items() if value != ...}))


def test_each_command_has_its_frame(data_set):
    demonstrations = read_demonstrations(data_set)
    assert [len(episode) for episode in demonstrations] == list(LENGTHS)
    assert [episode.instruction for episode in demonstrations] == list(TASKS)
    for number, episode in enumerate(demonstrations):
        assert episode.cameras == ("agentview", "wrist") and episode.name == f"episode_{number:06d}"
        assert np.array_equal(episode.actions, actions_of(number)) and episode.actions.dtype == np.float32
        assert np.array_equal(episode.proprioception, states_of(number))
        for camera, feature in (("agentview", AGENTVIEW), ("wrist", WRIST)):
            frames = episode.frames(camera)
            assert frames.shape == (LENGTHS[number], SIZE, SIZE, 3) and frames.dtype == np.uint8
            wanted = [grey_of(number, step, feature) for step in range(LENGTHS[number])]
            assert np.abs(greys(frames) - wanted).max() < 1.5  # neighbours differ by 8
            assert frames[0, 2, 2, 0] > frames[0, -2, -2, 0] + 30  # as stored


def test_some_frames_only(data_set):
    episode = read_demonstrations(data_set)[1]
    assert np.array_equal(episode.frames(steps=slice(2, 4)), episode.frames()[2:4])
    assert np.array_equal(episode.frames(steps=slice(0, None, 3)), episode.frames()[::3])
    assert np.array_equal(episode.frames(AGENTVIEW, slice(1)), episode.frames("agentview")[:1])


def test_pictures_are_turned_on_request(old_template):
    turned = read_demonstrations(old_template, lerobot=LeRobotReading(rotate_180=True))[0]
    plain = read_demonstrations(old_template)[0]
    assert np.array_equal(turned.frames(), plain.frames()[:, ::-1, ::-1])
    assert turned.identity() != plain.identity()


def test_av1(tmp_path):
    episode = read_demonstrations(write_data_set(tmp_path / "av1", "v3.0", codec="libsvtav1"))[1]
    assert np.abs(greys(episode.frames()) - [grey_of(1, step) for step in range(LENGTHS[1])]).max() < 1.5


def test_other_names(tmp_path):
    names = {AGENTVIEW: "image", WRIST: "observation.images.side", "action": "actions", "state": "state"}
    root = write_data_set(tmp_path / "other", "v2.0", "image", **names)
    episode = read_demonstrations(root)[2]
    assert episode.cameras == ("agentview", "observation.images.side")
    assert np.array_equal(episode.frames(), frames_of(2))
    assert np.array_equal(episode.frames("observation.images.side"), frames_of(2, WRIST))
    assert np.array_equal(episode.actions, actions_of(2))
    with pytest.raises(ValueError, match="Unknown camera of .* `observation.images.sid`.*Did you mean `obs.*side`"):
        episode.frames("observation.images.sid")


def test_features_can_be_named(tmp_path):
    root = write_data_set(tmp_path / "named", "v2.1", "image", action="command", state="felt")
    with pytest.raises(ValueError, match="Unknown action feature of .* `action`. Choose one of: .*`command`"):
        read_demonstrations(root)
    episode = read_demonstrations(root, lerobot=LeRobotReading(action_feature="command"))[0]
    assert np.array_equal(episode.actions, actions_of(0))
    with pytest.raises(ValueError, match="has no feature of the robot's readings"):
        _ = episode.proprioception
    reading = LeRobotReading(action_feature="command", state_feature="felt")
    assert np.array_equal(read_demonstrations(root, lerobot=reading)[0].proprioception, states_of(0))
    with pytest.raises(ValueError, match="Unknown action feature of .* `comand`.*Did you mean `command`"):
        read_demonstrations(root, lerobot=LeRobotReading(action_feature="comand"))


def test_what_it_does_not_hold(old_template):
    episode = read_demonstrations(old_template)[0]
    with pytest.raises(ValueError, match="holds no simulator states"):
        _ = episode.states
    with pytest.raises(ValueError, match="no segmentation masks of camera `agentview`"):
        episode.segmentation()
    assert np.array_equal(episode.expert_actions, episode.actions) and episode.picture_stride == 1
    assert drop_noops(episode) is episode


def test_survives_pickling_and_moving(old_template, old):
    there, here = read_demonstrations(old_template)[1], pickle.loads(pickle.dumps(read_demonstrations(old)[1]))
    assert np.array_equal(there.frames(), here.frames()) and there.identity() == here.identity()
    json.dumps(there.identity())
    assert [path.relative_to(old).as_posix() for path in here.files("agentview")] == [OLD_TABLE, OLD_VIDEO]


def test_an_instruction_may_be_known_by_its_number(old, new):
    lines = [json.loads(line) for line in (old / "meta" / "episodes.jsonl").read_text().splitlines()]
    (old / "meta" / "episodes.jsonl").write_text("\n".join(json.dumps({**line, "tasks": []}) for line in lines))
    table = new / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = parquet.read_table(table)
    position = rows.column_names.index("tasks")
    parquet.write_table(rows.set_column(position, "tasks", [[[] for _ in LENGTHS]]), table)
    for root in (old, new):
        assert [episode.instruction for episode in read_demonstrations(root)] == list(TASKS)


def test_finds_folders_and_data_sets_of_the_hub(old, tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    stored = cache / "datasets--someone--cups"
    shutil.copytree(old, stored / "snapshots" / ("0" * 40))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder, found = find_demonstration_files([old, "someone/cups"])
    assert folder == old and found == stored / "snapshots" / ("0" * 40)
    assert np.array_equal(read_demonstrations(found)[2].frames(), read_demonstrations(old)[2].frames())
    with pytest.raises(
        FileNotFoundError, match="No demonstrations at `someone/plates`: there is no such file or fold"
    ):
        find_demonstration_files(["someone/plates"])


def test_options_are_for_these_only(tmp_path):
    with pytest.raises(ValueError, match=r"`.*a\.hdf5` is no LeRobot data set: HDF5 files .* say themselves"):
        read_demonstrations(tmp_path / "a.hdf5", lerobot=LeRobotReading(rotate_180=True))


@pytest.mark.parametrize("version", ["v1.6", "v2.2", "v4.0"])
def test_other_versions(old, version):
    change_info(old, codebase_version=version)
    with pytest.raises(ValueError, match=f"has the layout `{version}`. Read are v2.0, v2.1, v3.0: convert it"):
        read_demonstrations(old)


@pytest.mark.parametrize("key", ["codebase_version", "fps", "features", "data_path"])
def test_incomplete_description(old, key):
    change_info(old, **{key: ...})
    with pytest.raises(ValueError, match=rf"info\.json` lacks the key `{key}`"):
        read_demonstrations(old)


def test_no_description(old):
    (old / "meta" / "info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info\.json` is not readable JSON"):
        read_demonstrations(old)
    (old / "meta" / "info.json").unlink()
    with pytest.raises(FileNotFoundError, match="is no LeRobot data set: it has no meta/info.json"):
        read_demonstrations(old)


def test_another_width(old):
    info = json.loads((old / "meta" / "info.json").read_text())
    info["features"]["action"]["shape"] = [14]
    change_info(old, features=info["features"])
    with pytest.raises(ValueError, match=r"`action` has \[14\] numbers per step, but a command has 7"):
        read_demonstrations(old)


def test_no_pictures(old):
    info = json.loads((old / "meta" / "info.json").read_text())
    features = {key: value for key, value in info["features"].items() if value["dtype"] != "video"}
    change_info(old, features=features)
    with pytest.raises(ValueError, match="has no pictures: none of its features is a video or an image. It has `obs"):
        read_demonstrations(old)


@pytest.mark.parametrize(("kind", "file"), [("table", OLD_TABLE), ("video", OLD_VIDEO)])
def test_missing_files(old, kind, file):
    (old / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"The {kind} `.*{file}` of episode 1 is missing"):
        read_demonstrations(old)


@pytest.mark.parametrize("file", ["meta/episodes.jsonl", "meta/episodes"])
def test_missing_episodes(old, new, file):
    root = old if file.endswith("jsonl") else new
    (root / file).unlink() if (root / file).is_file() else shutil.rmtree(root / file)
    with pytest.raises(FileNotFoundError, match="There is no .*episodes.*Download the data set again"):
        read_demonstrations(root)


def test_damaged_episodes(old):
    (old / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["a"]}\n')
    with pytest.raises(ValueError, match=r"what `meta` says about episode 0 is incomplete \(KeyError\('length'\)\)"):
        read_demonstrations(old)
    (old / "meta" / "episodes.jsonl").write_text('{"episode_index": 0')
    with pytest.raises(ValueError, match=r"episodes\.jsonl` is damaged"):
        read_demonstrations(old)
    (old / "meta" / "episodes.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no episodes"):
        read_demonstrations(old)


@pytest.mark.parametrize(("tasks", "text"), [([" "], "has no instruction"), (["a", "b"], "has 2 instructions")])
def test_instructions_that_are_none(old, tasks, text):
    (old / "meta" / "episodes.jsonl").write_text(json.dumps({"episode_index": 0, "tasks": tasks, "length": 7}))
    with pytest.raises(ValueError, match=f"episode 0 {text}"):
        read_demonstrations(old)


def test_an_instruction_that_is_missing(old):
    (old / "meta" / "episodes.jsonl").write_text(json.dumps({"episode_index": 1, "length": 5}))
    (old / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "another"}))
    with pytest.raises(ValueError, match="episode 1 has no instruction, neither in `meta` .* nor by the `task_index`"):
        read_demonstrations(old)


@pytest.mark.parametrize("kept", [0, 0.5, -4])
def test_truncated_table(old, kept):
    path = old / OLD_TABLE
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 <= kept < 1 else kept])
    with pytest.raises(ValueError, match="episode_000001.parquet` is not a readable Parquet file: truncated or"):
        _ = read_demonstrations(old)[1].actions


def test_a_table_of_other_columns_or_length(old):
    table = parquet.read_table(old / OLD_TABLE)
    parquet.write_table(table.drop_columns(["action"]), old / OLD_TABLE)
    with pytest.raises(ValueError, match="lacks the column `action`. It has `observation.state`, `timestamp`"):
        _ = read_demonstrations(old)[1].actions
    parquet.write_table(table.slice(0, 3), old / OLD_TABLE)
    with pytest.raises(ValueError, match="holds 3 steps of episode 1, but the data set says 5"):
        _ = read_demonstrations(old)[1].actions


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[0.0] * 6] * 5, "`action` has 6 numbers per step, but a command has 7"),
        ([[0.0] * 7] * 3 + [[float("nan")] * 7] * 2, "`action` of episode 1 holds NaN or infinity, first in step 3"),
        ([[0.0] * 7] * 4 + [[0.0]], "does not hold rows of numbers of one length"),
        (["left"] * 5, "does not hold rows of numbers of one length"),
    ],
)
def test_commands_that_are_none(old, values, text):
    table = parquet.read_table(old / OLD_TABLE)
    position = table.column_names.index("action")
    parquet.write_table(table.set_column(position, "action", [values]), old / OLD_TABLE)
    with pytest.raises(ValueError, match=text):
        _ = read_demonstrations(old)[1].actions


def test_a_video_shorter_than_its_table(old):
    write_video(old / OLD_VIDEO, frames_of(1)[:3])
    episode = read_demonstrations(old)[1]
    assert len(episode.frames(steps=slice(3))) == 3
    with pytest.raises(
        ValueError, match=r"episode_000001\.mp4` is shorter than its table: it ends at 0.1000 s, but a"
    ):
        episode.frames()


@pytest.mark.parametrize("kept", [0, 0.5])
def test_truncated_video(old, kept):
    content = (old / OLD_VIDEO).read_bytes()
    (old / OLD_VIDEO).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"episode_000001\.mp4` cannot be decoded: truncated or of another kind"):
        read_demonstrations(old)[1].frames()


def test_a_video_of_another_rate(old):
    write_video(old / OLD_VIDEO, frames_of(1), fps=15)
    with pytest.raises(ValueError, match=r"has no frame at 0.0500 s; the next is at 0.0667 s. Its table belongs to"):
        read_demonstrations(old)[1].frames()


def test_times_need_not_be_exact(old_template):
    path = old_template / OLD_VIDEO
    exact = read_video_frames(path, [0.1, 0.15], 0.25 / FPS)
    assert np.array_equal(read_video_frames(path, [0.11, 0.14], 0.25 / FPS), exact)
    with pytest.raises(ValueError, match="has no frame at 0.1150 s"):
        read_video_frames(path, [0.115], 0.25 / FPS)


def test_frames_between_distant_key_frames(tmp_path):
    path = tmp_path / "long.mp4"
    pictures = np.stack([np.full((SIZE, SIZE, 3), 20 + 5 * number, np.uint8) for number in range(40)])
    write_video(path, pictures, options={"g": "15", "bf": "3", "crf": "10"})
    for first, last in ((0, 40), (14, 17), (22, 23), (39, 40)):
        frames = read_video_frames(path, [number / FPS for number in range(first, last)], 0.25 / FPS)
        assert np.abs(greys(frames) - (20 + 5 * np.arange(first, last))).max() < 1.5


@pytest.mark.parametrize("picture", [None, {"bytes": b"no picture", "path": None}])
def test_pictures_that_are_none(tmp_path, picture):
    root = write_data_set(tmp_path / "pictures", "v2.1", "image")
    table = parquet.read_table(root / OLD_TABLE)
    column = table.column(AGENTVIEW).to_pylist()
    column[2] = picture
    type_ = table.schema.field(AGENTVIEW).type
    stored = pyarrow.array(column, type_)
    parquet.write_table(table.set_column(table.column_names.index(AGENTVIEW), AGENTVIEW, stored), root / OLD_TABLE)
    with pytest.raises(ValueError, match=f"a picture of `{AGENTVIEW}` in episode 1 (cannot be decoded|is neither in)"):
        read_demonstrations(root)[1].frames()


def test_a_library_that_is_missing(old_template, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        read_demonstrations(old_template)[0].frames()
