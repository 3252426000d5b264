"""Tokens of every kind of demonstrations: which part is kept under which name, no-ops, cameras."""

import json

import h5py
import numpy as np
import pytest

import tokenization
import train.demonstration_tasks
import train.pretokenize
import train.token_shards
from tokenization.demonstrations import read_demonstrations
from train.demonstration_tasks import open_tasks
from train.episodes import TokenizedEpisodes
from train.pretokenize_arguments import DemonstrationArguments

from ..conftest import DATASET
from ..made_up_lerobot import AGENTVIEW, LENGTHS, TASKS, write_data_set
from .made_up_demonstrations import STEPS, write_demonstrations


@pytest.fixture(scope="module")
def processor_folder(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(processor_folder, tmp_path):
    """Tokenize, and open the result."""

    def tokenize(*demonstrations, **options):
        flags = ["--processor", processor_folder, "--dataset_name", DATASET, "--validation_fraction", "0"]
        flags += ["--demonstrations", *map(str, demonstrations), "--output_dir", str(tmp_path / "tokens")]
        for name, value in options.items():
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        train.pretokenize.main(flags)
        return TokenizedEpisodes.load(tmp_path / "tokens")

    return tokenize


@pytest.mark.parametrize(("version", "pictures"), [("v2.1", "video"), ("v3.0", "video"), ("v2.1", "image")])
def test_a_lerobot_data_set_becomes_tokens(run, processor, tmp_path, version, pictures):
    root = write_data_set(tmp_path / "cups", version, pictures)
    data = run(root, cameras=["wrist"], rotate_180=True)
    rows = {row["episode"]: row for row in data.splits["train"]}
    for number, episode in enumerate(read_demonstrations(root)):
        row = rows[episode.name]
        assert row["instruction"] == row["task"] == TASKS[number] and row["num_steps"] == LENGTHS[number]
        expected = processor.encode_images(list(episode.frames("wrist")[:, ::-1, ::-1]))
        np.testing.assert_array_equal(np.array(row["image_token_ids"]), expected.reshape(-1))
        np.testing.assert_array_equal(np.array(row["actions"], np.float32), episode.actions.reshape(-1))
        assert row["leads_to_next_frame"] == [True] * (LENGTHS[number] - 1) + [False]
    assert data.card["sources"] == [{"file": "cups", "tasks": 2, "episodes": 3}] and data.card["steps"] == sum(LENGTHS)


def test_both_kinds_together(run, tmp_path):
    file = write_demonstrations(tmp_path / "square_demo.hdf5")
    data = run(file, write_data_set(tmp_path / "cups"))
    tasks = [row["task"] for row in data.splits["train"]]
    assert tasks == ["square_demo"] * 3 + ["lift the cup"] * 2 + ["push the plate"]


def test_noops_are_left_out(run, tmp_path):
    path = write_demonstrations(tmp_path / "square_demo.hdf5", episodes=2)
    with h5py.File(path, "a") as file:
        for name in ("demo_0", "demo_1"):
            file[f"data/{name}/actions"][2:4, :6] = 0
            file[f"data/{name}/actions"][:, 6] = -1
    data = run(path, drop_noops=True)
    assert data.card["dropped_noops"] == 4 and data.card["steps"] == 2 * (STEPS - 2)
    row = data.splits["train"][0]
    assert row["num_steps"] == STEPS - 2 and row["leads_to_next_frame"] == [True, False, True, False]
    whole = run(path)
    assert whole.card["dropped_noops"] == 0 and whole.splits["train"][0]["num_steps"] == STEPS
    kept = [0, 1, 4, 5]
    for key in ("image_token_ids", "actions"):
        every = np.array(whole.splits["train"][0][key]).reshape(STEPS, -1)
        np.testing.assert_array_equal(np.array(row[key]).reshape(len(kept), -1), every[kept])


def test_long_episodes_are_read_in_stretches(run, tmp_path, monkeypatch):
    root = write_data_set(tmp_path / "cups")
    whole = run(root, batch_size=2).splits["train"]["image_token_ids"][:]
    monkeypatch.setattr(train.token_shards, "FRAMES_READ_AT_ONCE", 3)
    shards = tmp_path / "tokens" / "shards"
    shards.rename(tmp_path / "earlier")
    assert run(root, batch_size=2).splits["train"]["image_token_ids"][:] == whole


def shard_names(demonstrations, **options):
    arguments = DemonstrationArguments([str(demonstrations)], vq_model="vqgan", **options)
    return [part.content_name(arguments.cameras[0], "h") for task in open_tasks(arguments) for part in task.shards()]


def test_shards_are_small_and_named_by_their_content(tmp_path, monkeypatch):
    root = write_data_set(tmp_path / "cups")
    names = shard_names(root)
    assert [name.rsplit("-", 1)[0] for name in names] == ["lift_the_cup", "push_the_plate"]
    assert shard_names(write_data_set(tmp_path / "moved" / "cups")) == names  # wherever it lies
    variants = [{"cameras": ["wrist"]}, {"rotate_180": True}, {"cameras": [AGENTVIEW]}]
    assert len({*names, *(name for options in variants for name in shard_names(root, **options))}) == 8
    info = root / "meta" / "episodes.jsonl"
    info.write_text(info.read_text().replace("push the plate", "push the plates"))
    assert shard_names(root)[0] == names[0] and shard_names(root)[1] != names[1]
    video = root / f"videos/chunk-000/{AGENTVIEW}/episode_000000.mp4"
    video.write_bytes(video.read_bytes() + b"x")
    assert shard_names(root)[0] != names[0]
    monkeypatch.setattr(train.demonstration_tasks, "EPISODES_PER_SHARD", 1)
    assert len(shard_names(root)) == 3


def test_a_missing_camera_is_said_before_anything_is_tokenized(tmp_path):
    path = write_demonstrations(tmp_path / "square_demo.hdf5")
    with pytest.raises(ValueError, match="has no camera `wrist` in `demo_0`. Recorded were: `agentview`"):
        shard_names(path, cameras=["agentview", "wrist"])
    root = write_data_set(tmp_path / "cups")
    with pytest.raises(ValueError, match="Unknown camera of .*`wrst`.*Did you mean `wrist`"):
        shard_names(root, cameras=["wrst"])


def test_several_cameras_lie_side_by_side_and_none_is_encoded_twice(run, processor, tmp_path, monkeypatch):
    root = write_data_set(tmp_path / "cups")
    run(root, cameras=["agentview"])
    encoded = []
    iterate_rows = train.token_shards.iterate_rows
    monkeypatch.setattr(
        train.token_shards, "iterate_rows", lambda task, *rest: encoded.append(rest[0]) or iterate_rows(task, *rest)
    )
    data = run(root, cameras=["agentview", "wrist"])
    assert encoded == ["wrist"] * 2  # one part of each of two tasks; the other camera was there
    assert data.card["cameras"] == ["agentview", "wrist"] and data.card["camera"] == "agentview+wrist"
    assert data.card["world_model_camera"] == "agentview"
    rows = {row["episode"]: row for row in data.splits["train"]}
    for episode in read_demonstrations(root):
        for column, camera in (("image_token_ids", "agentview"), ("image_token_ids_1", "wrist")):
            expected = processor.encode_images(list(episode.frames(camera)))
            np.testing.assert_array_equal(np.array(rows[episode.name][column]), expected.reshape(-1))
    assert data.open_splits()["train"].frames(0, slice(1, 3)).shape == (2, 2, 2, 2)


def test_the_card_says_how_it_was_made_and_names_no_folder_of_this_machine(run, tmp_path):
    data = run(write_data_set(tmp_path / "cups"))
    card = json.loads((data.folder / "data_card.json").read_text())
    assert card["made_with"]["drop_noops"] is False and card["made_with"]["demonstrations"] == ["cups"]
    assert str(tmp_path.parent) not in json.dumps(card) and "torch" in card["software"]
    tokenization.WorldVLAProcessor.from_pretrained(data.folder / "processor")
