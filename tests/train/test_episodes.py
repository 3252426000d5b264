import datasets
import numpy as np
import pytest

from train.episodes import SampleDataset, TokenizedEpisodes, WindowOptions, list_windows
from train.pretokenize import assign_splits
from train.pretokenize_arguments import PretokenizeArguments


def options(**changes):
    return WindowOptions(**({"n_obs_steps": 2, "chunk_size": 3} | changes))


def test_windows_by_hand():
    windows = list_windows(np.array([4, 2]), options(), seed=0)
    policy = [w for w in windows if w[0] == "policy"]
    world = [w for w in windows if w[0] == "world_model"]
    assert policy == [("policy", 0, t) for t in range(4)] + [("policy", 1, t) for t in range(2)]
    # Frame t and action t give frame t + 1: the last step has no frame after it. Ratio 1: as many as policy windows.
    assert set(world) == {("world_model", 0, 0), ("world_model", 0, 1), ("world_model", 0, 2), ("world_model", 1, 0)}
    assert len(world) == len(policy)


def test_no_world_model_window_ends_at_a_gap():
    leading = [np.array([True, False, True, False]), np.array([False, False])]
    windows = list_windows(np.array([4, 2]), options(policy_samples=False), 0, leading)
    assert windows == [("world_model", 0, 0), ("world_model", 0, 2)]


def test_no_world_model_window_reaches_across_a_gap():
    leading = [True, True, False, True, True, False]
    rows = {
        "instruction": ["lift"],
        "num_steps": [6],
        "image_token_ids": [list(range(6))],
        "actions": [[float(step) for step in range(6) for _ in range(7)]],
        "expert_actions": [[0.0] * 42],
    }
    shown = []

    class Recorder:
        def build_sample(self, frames, actions, **_):
            shown.append((np.concatenate(frames).ravel().tolist(), actions[:, 0].tolist()))

    window_options = options(policy_samples=False, world_model_history=3)
    for columns in (rows | {"leads_to_next_frame": [leading]}, rows):  # without: written before gaps were noted
        samples = SampleDataset(datasets.Dataset.from_dict(columns), (1, 1), Recorder(), window_options, "libero")
        for index in range(len(samples)):
            samples[index]
    assert shown[:4] == [([0, 1], [0]), ([0, 1, 2], [0, 1]), ([3, 4], [3]), ([3, 4, 5], [3, 4])]
    assert shown[4:] == [
        ([0, 1], [0]), ([0, 1, 2], [0, 1]), ([0, 1, 2, 3], [0, 1, 2]), ([1, 2, 3, 4], [1, 2, 3]),
        ([2, 3, 4, 5], [2, 3, 4]),
    ]  # fmt: skip


def test_dropped_tails_have_whole_chunks():
    windows = list_windows(np.array([4, 2]), options(tail="drop", world_model_samples=False), seed=0)
    assert windows == [("policy", 0, 0), ("policy", 0, 1)]


def test_ratio_and_seed():
    lengths = np.array([50, 40])
    some = list_windows(lengths, options(world_model_ratio=0.5), seed=1)
    assert sum(role == "world_model" for role, _, _ in some) == 45
    assert some == list_windows(lengths, options(world_model_ratio=0.5), seed=1)
    assert some != list_windows(lengths, options(world_model_ratio=0.5), seed=2)


def test_single_roles():
    assert {w[0] for w in list_windows(np.array([9]), options(policy_samples=False), 0)} == {"world_model"}
    assert {w[0] for w in list_windows(np.array([9]), options(world_model_samples=False), 0)} == {"policy"}


def test_episodes_too_short_are_refused():
    with pytest.raises(ValueError, match="No episode is long enough for a `policy` sample: the longest has 2 steps"):
        list_windows(np.array([2]), options(tail="drop"), seed=0)


def test_unfinished_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished data set"):
        TokenizedEpisodes.load(tmp_path)


def split_arguments(**changes):
    return PretokenizeArguments(["d"], "o", vq_model="v", **changes)


def test_official_split_by_hand():
    splits = assign_splits([10] * 10, split_arguments(split="official"))
    assert splits[:9] == [["train"] * 9 + ["val_ind"]] * 9
    assert splits[9] == ["val_ood"] * 10


def test_random_split_holds_out_the_share_and_follows_the_seed():
    arguments = split_arguments(validation_fraction=0.25)
    splits = assign_splits([8, 4], arguments)
    assert [names.count("val_ind") for names in splits] == [2, 1]
    assert splits == assign_splits([8, 4], arguments)
    assert any(splits != assign_splits([8, 4], split_arguments(validation_fraction=0.25, seed=s)) for s in range(1, 5))


def test_a_single_trajectory_trains():
    assert assign_splits([1], split_arguments()) == [["train"]]
