import pytest

from train.episodes import TokenizedEpisodes
from train.pretokenize_arguments import DemonstrationArguments
from train.splits import assign_splits, number_splits


def test_unfinished_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished data set"):
        TokenizedEpisodes.load(tmp_path)


def split_arguments(**changes):
    return DemonstrationArguments(["d"], vq_model="v", **changes)


def test_official_split_by_hand():
    splits = assign_splits([10] * 10, split_arguments(split="official"))
    assert splits[:9] == [["train"] * 9 + ["val_ind"]] * 9
    assert splits[9] == ["val_ood"] * 10


def test_random_split_holds_out_the_share_and_follows_the_seed():
    arguments = split_arguments(validation_fraction=0.25)
    splits = assign_splits([8, 4], arguments)
    assert [names.count("val_ind") for names in splits] == [2, 1]
    assert splits == assign_splits([8, 4], arguments)
    assert any(
        splits != assign_splits([8, 4], split_arguments(validation_fraction=0.25, split_seed=s)) for s in range(1, 5)
    )


def test_a_single_trajectory_trains():
    assert assign_splits([1], split_arguments()) == [["train"]]


def test_episodes_are_numbered_over_all_tasks():
    numbers = number_splits([["train", "val_ind"], ["train", "train"], ["val_ood"]])
    assert {name: rows.tolist() for name, rows in numbers.items()} == {
        "train": [0, 2, 3],
        "val_ind": [1],
        "val_ood": [4],
    }
