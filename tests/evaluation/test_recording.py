"""The recorder's books: which seeds are kept, going on after an interruption, and its options; no simulator needed."""

import dataclasses
import itertools
import json
import random
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from evaluation import demonstration_files
from evaluation.atomic_files import write_atomically
from evaluation.demonstration_files import RecordedEpisode, RecordedPictures, write_episode
from evaluation.expert_variation import Variation
from evaluation.record_demonstrations import RecordingArguments, format_table, write_report
from evaluation.recording import _next_task
from evaluation.recording_ledger import Attempt, RecordingSettings, TaskLedger, summarise
from tokenization.demonstrations import read_demonstrations

TASK = SimpleNamespace(suite="libero_object", task_id=3, name="stack_the_cups", instruction="stack the cups")
SETTINGS = RecordingSettings("libero_object", 4, "random", 10, 20, ("agentview",), 8)
FAILING = {11, 14}


@pytest.fixture(autouse=True)
def no_simulator(monkeypatch):
    def write_task_attributes(data, task, settings):
        data.attrs["problem_info"] = f'{{"language_instruction": "{task.instruction}"}}'

    monkeypatch.setattr(demonstration_files, "_write_task_attributes", write_task_attributes)


def episode_of(seed):
    """What a simulator would have recorded: decided by the seed alone."""
    rng, steps = np.random.default_rng(seed), 3 + seed % 2
    widths = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "robot0_joint_pos": 7}
    robot = {key: rng.normal(size=(steps, width)) for key, width in widths.items()}
    frames = {"agentview": rng.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8)}
    actions = rng.uniform(-1, 1, (steps, 7))
    return RecordedEpisode(seed, -1, actions, actions, rng.normal(size=(steps, 5)), robot, RecordedPictures(frames))


def attempt(ledger, seed):
    if seed in FAILING:
        return ledger.finish(seed, Attempt(False, 9))
    write_episode(ledger.part_of(seed), episode_of(seed))
    return ledger.finish(seed, Attempt(True, len(episode_of(seed).actions)))


def run(ledger, workers, order):
    """Let `workers` attempts be under way at a time; `order` picks which of them ends next."""
    for step in itertools.count():
        while len(ledger.under_way) < workers and (seed := ledger.next_seed()) is not None:
            ledger.under_way.add(seed)
        if not ledger.under_way:
            break
        attempt(ledger, order.choice(sorted(ledger.under_way)))
        yield step
    ledger.write()


def finished_bytes(folder, workers=1, order_seed=0, interrupt=()):
    folder.mkdir(exist_ok=True)
    order = random.Random(order_seed)
    for stop in (*interrupt, None):
        ledger = TaskLedger(TASK, SETTINGS, folder)
        for step in run(ledger, workers, order):
            if step == stop:
                break
    return ledger.path.read_bytes()


def test_first_successful_seeds_are_kept_in_order(tmp_path):
    finished_bytes(tmp_path)
    demonstrations = read_demonstrations(tmp_path / "stack_the_cups_demo.hdf5")
    with h5py.File(demonstrations.path) as file:
        assert [int(group.attrs["seed"]) for group in file["data"].values()] == [10, 12, 13, 15]
        assert file["data"].attrs["num_demos"] == 4 and file["data"].attrs["total"] == sum(map(len, demonstrations))
        assert file["data"].attrs["tag"] == "libero-v1"
        assert file["data/demo_0"].attrs["num_samples"] == 3
        assert list(file["data/demo_0/dones"]) == [0, 0, 1]
        assert file["data/demo_0/robot_states"].shape == (3, 9)
    wanted = episode_of(12)
    assert np.array_equal(demonstrations[1].frames(), wanted.pictures.frames["agentview"])
    assert np.allclose(demonstrations[1].actions, wanted.actions)
    assert np.array_equal(demonstrations[1].states, wanted.states)
    assert np.allclose(demonstrations[1].proprioception[:, :3], wanted.robot["robot0_eef_pos"])
    assert [path.name for path in tmp_path.iterdir()] == ["stack_the_cups_demo.hdf5"]


def test_pictures_of_every_second_step_with_masks(tmp_path):
    settings = dataclasses.replace(SETTINGS, picture_stride=2, segmentation=True)
    ledger = TaskLedger(TASK, settings, tmp_path)
    for seed in (10, 12, 13, 15):
        episode = episode_of(seed)
        frames = episode.pictures.frames["agentview"][::2]
        masks = (frames[..., 0] > 99).astype(np.uint8)
        episode.pictures = RecordedPictures(
            {"agentview": frames}, {"agentview": masks}, ("background", "cup_1"), ("cup_1",)
        )
        episode.picture_stride = 2
        write_episode(ledger.part_of(seed), episode)
        ledger.finish(seed, Attempt(True, len(episode.actions)))
    ledger.write()
    with pytest.raises(ValueError, match="holds pictures of one in 2 steps.*--picture_stride 1"):
        read_demonstrations(ledger.path)
    first = read_demonstrations(ledger.path, allow_picture_stride=True)[0]
    assert first.num_steps == 3 and first.picture_stride == 2
    assert np.array_equal(first.frames(), episode_of(10).pictures.frames["agentview"][::2])
    assert np.array_equal(first.segmentation(), (first.frames()[..., 0] > 99))
    assert first.segmentation_names == ("background", "cup_1") and first.objects_of_interest == ("cup_1",)
    assert len(first.actions) == len(first.states) == 3


def test_what_the_expert_wanted_stands_beside_what_was_done(tmp_path):
    settings = dataclasses.replace(SETTINGS, variation=Variation(action_noise=0.1))
    ledger = TaskLedger(TASK, settings, tmp_path)
    for seed in (10, 12, 13, 15):
        episode = episode_of(seed)
        episode.expert_actions = episode.actions / 2
        write_episode(ledger.part_of(seed), episode)
        ledger.finish(seed, Attempt(True, len(episode.actions)))
    ledger.write()
    first = read_demonstrations(ledger.path)[0]
    assert np.array_equal(first.expert_actions, first.actions / 2)
    assert json.loads(h5py.File(ledger.path)["data"].attrs["recorder"])["variation"]["action_noise"] == 0.1
    finished_bytes(tmp_path / "plain")
    plain = read_demonstrations(tmp_path / "plain" / "stack_the_cups_demo.hdf5")[0]
    assert np.array_equal(plain.expert_actions, plain.actions)
    with h5py.File(ledger.path, "a") as file:
        file["data/demo_1/expert_actions"][1, 2] = np.nan
    with pytest.raises(ValueError, match="`data/demo_1/expert_actions` holds NaN or infinity, first in step 1"):
        read_demonstrations(ledger.path)


def test_a_recording_of_before_an_option_existed_goes_on(tmp_path):
    ledger = TaskLedger(TASK, SETTINGS, tmp_path)
    note = json.loads((ledger.folder / "settings.json").read_text())
    del note["segmentation"], note["picture_stride"], note["variation"]
    (ledger.folder / "settings.json").write_text(json.dumps(note))
    assert TaskLedger(TASK, SETTINGS, tmp_path).next_seed() == 10
    with pytest.raises(ValueError, match="segmentation False there, True asked for"):
        TaskLedger(TASK, dataclasses.replace(SETTINGS, segmentation=True), tmp_path)


@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("order_seed", range(4))
def test_number_of_workers_does_not_change_the_file(tmp_path, workers, order_seed):
    assert finished_bytes(tmp_path / "one") == finished_bytes(tmp_path / "many", workers, order_seed)


@pytest.mark.parametrize("interrupt", [(0,), (1, 0), (3,), (2, 0, 0, 1)])
def test_interruptions_do_not_change_the_file(tmp_path, interrupt):
    assert finished_bytes(tmp_path / "a") == finished_bytes(tmp_path / "b", 2, 1, interrupt)


def test_a_finished_file_is_not_touched_again(tmp_path):
    finished_bytes(tmp_path)
    before = (tmp_path / "stack_the_cups_demo.hdf5").stat().st_mtime_ns
    ledger = TaskLedger(TASK, SETTINGS, tmp_path)
    assert ledger.is_written and ledger.next_seed() is None
    assert ledger.successes == [10, 12, 13, 15] and len(ledger.attempts) == 6
    assert (tmp_path / "stack_the_cups_demo.hdf5").stat().st_mtime_ns == before


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    ledger = TaskLedger(TASK, SETTINGS, tmp_path)
    (tmp_path / ".stack_the_cups_demo.hdf5.123").write_bytes(b"half")
    (ledger.folder / ".episode_000010.hdf5.123").write_bytes(b"half")
    finished_bytes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stack_the_cups_demo.hdf5"]


def test_an_episode_whose_file_is_gone_is_recorded_again(tmp_path):
    ledger = TaskLedger(TASK, SETTINGS, tmp_path)
    attempt(ledger, 10)
    ledger.part_of(10).unlink()
    assert TaskLedger(TASK, SETTINGS, tmp_path).next_seed() == 10


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused(tmp_path, finished):
    if finished:
        finished_bytes(tmp_path)
    else:
        TaskLedger(TASK, SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="recorded with other settings: image_size 8 there, 16 asked for.*--out"):
        TaskLedger(TASK, dataclasses.replace(SETTINGS, image_size=16), tmp_path)


def test_a_foreign_file_is_not_overwritten(tmp_path):
    with h5py.File(tmp_path / "stack_the_cups_demo.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match="exists and was not written by this recorder"):
        TaskLedger(TASK, SETTINGS, tmp_path)


def test_attempts_run_out(tmp_path):
    ledger = TaskLedger(TASK, dataclasses.replace(SETTINGS, max_attempts=3), tmp_path)
    assert [*run(ledger, 2, random.Random(0))] == [0, 1, 2]
    assert ledger.successes == [10, 12] and ledger.is_complete and ledger.is_written
    (row,) = summarise([ledger])
    assert (row["attempts"], row["successes"], row["failed_seeds"]) == (3, 2, [11])


def test_a_task_without_success_writes_no_file(tmp_path):
    ledger = TaskLedger(TASK, dataclasses.replace(SETTINGS, first_seed=11, max_attempts=1), tmp_path)
    for _ in run(ledger, 1, random.Random(0)):
        pass
    assert not ledger.path.exists() and summarise([ledger])[0]["file"] is None


def test_workers_spread_over_the_tasks(tmp_path):
    ledgers = [TaskLedger(SimpleNamespace(**vars(TASK) | {"name": name}), SETTINGS, tmp_path) for name in "ab"]
    workers = []
    for _ in range(3):
        workers.append(SimpleNamespace(ledger=_next_task(ledgers, workers)))
    assert [worker.ledger.task.name for worker in workers] == ["a", "b", "a"]


def test_failed_write_leaves_nothing(tmp_path):
    def write(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", write)
    assert not list(tmp_path.iterdir())


def test_report_keeps_other_tasks(tmp_path):
    rows = [{"name": "a", "successes": 1}, {"name": "b", "successes": 2}]
    write_report(rows[:1], tmp_path)
    write_report(rows[1:], tmp_path)
    write_report([{"name": "a", "successes": 5}], tmp_path)
    assert json.loads((tmp_path / "recording.json").read_text()) == [{"name": "a", "successes": 5}, rows[1]]


def test_table_sums_up():
    row = {"task_id": 0, "successes": 3, "attempts": 4, "mean_steps": 112.6, "instruction": "stack the cups"}
    none = {"task_id": 1, "successes": 0, "attempts": 4, "mean_steps": None, "instruction": "fold"}
    table = format_table([row, none]).splitlines()
    assert table[2] == "| 0 | 3 | 4 | 75 % | 113 | stack the cups |"
    assert table[3] == "| 1 | 0 | 4 | 0 % | - | fold |"
    assert table[4] == "| all | 3 | 8 | 38 % | | |"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"suite": "libero_objects"}, "Unknown suite `libero_objects`.*Did you mean `libero_object`"),
        ({"cameras": ["wrists"]}, "Unknown camera `wrists`.*Did you mean `wrist`"),
        ({"cameras": []}, "`--cameras` needs at least one of: agentview, wrist"),
        ({"placements": "bench"}, "Unknown value of --placements `bench`.*`benchmark`"),
        ({"episodes": 0}, "`--episodes` must be at least 1, got 0"),
        ({"num_workers": 0}, "`--num_workers` must be at least 1"),
        ({"image_size": -1}, "`--image_size` must be at least 1"),
        ({"max_attempts": 0}, "`--max_attempts` must be at least 1"),
        ({"first_seed": -1}, "`--first_seed` must not be negative"),
        ({"placements": "benchmark", "first_seed": 45, "episodes": 6}, "from seed 45 on there are 5, but 6 episodes"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError, match=text):
        RecordingArguments(out="somewhere", **options)


def test_attempts_stay_within_the_benchmark_states():
    arguments = RecordingArguments(out="somewhere", placements="benchmark", first_seed=40, episodes=5)
    assert arguments.settings.max_attempts == 10
    assert RecordingArguments(out="somewhere", episodes=5).settings.max_attempts == 20
