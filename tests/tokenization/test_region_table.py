from dataclasses import dataclass

import numpy as np
import pytest

import tokenization.region_table as region_table
from tokenization.regions import Region, RegionTable, load_regions, precompute_regions, save_regions

REGIONS = [
    [Region(1, 2, 30, 40, "gripper", 0.5), Region(0, 0, 24, 24, "cup_1")],
    [],
    [Region(5, 6, 29, 30, "gripper", 2.0)],
    [],
]


def test_saved_regions_come_back(tmp_path):
    path = tmp_path / "regions.npz"
    save_regions(path, REGIONS)
    table = load_regions(path)
    assert list(table) == REGIONS and len(table) == 4
    assert table[2] == table[-2] == REGIONS[2]
    assert table[1:3] == REGIONS[1:3]
    assert table.names == ("gripper", "cup_1")
    assert table.boxes.dtype == np.int32 and table.boxes[:, 0].tolist() == [0, 0, 2]
    with pytest.raises(IndexError):
        table[4]
    save_regions(path, table)
    assert list(load_regions(path)) == REGIONS
    assert [entry.name for entry in tmp_path.iterdir()] == ["regions.npz"]


def test_no_regions_at_all_come_back(tmp_path):
    save_regions(tmp_path / "regions.npz", [[], []])
    assert list(load_regions(tmp_path / "regions.npz")) == [[], []]


@pytest.mark.parametrize("content", [b"", b"not a zip file", "foreign"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "regions.npz"
    if content == "foreign":
        np.savez(path, frames=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"regions\.npz` holds no precomputed regions .* Delete it; they are found"):
        load_regions(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_regions(tmp_path / "regions.npz")


@dataclass
class Recorder:
    """Finds one region a picture, named after the picture's first byte, and remembers what it was given."""

    margin: int = 0

    name = "recorder"
    fail_at = 10**6  # no option: a killed command and its continuation have the same

    def __post_init__(self):
        self.seen = []

    def find(self, pictures, masks=None, names=(), interest=()):
        self.seen.append(
            ([int(p[0, 0, 0]) for p in pictures], None if masks is None else masks.shape, names, interest)
        )
        if any(p[0, 0, 0] >= self.fail_at for p in pictures):
            raise KeyboardInterrupt
        return [[Region(0, 0, 2, 2 + self.margin, f"p{p[0, 0, 0]}")] for p in pictures]


@pytest.fixture
def pictures():
    return np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)


def test_batches_keep_to_one_episode_and_its_names(pictures, tmp_path):
    provider, masks = Recorder(), np.zeros((10, 4, 4), np.uint8)
    episodes = np.array([0] * 5 + [1] * 5)
    table = precompute_regions(
        tmp_path / "r.npz", provider, pictures, masks, episodes, [("a",), ("b", "c")], [(), ("c",)], batch_size=3
    )
    assert [regions[0].name for regions in table] == [f"p{n}" for n in range(10)]
    assert provider.seen == [
        ([0, 1, 2], (3, 4, 4), ("a",), ()),
        ([3, 4], (2, 4, 4), ("a",), ()),
        ([5, 6, 7], (3, 4, 4), ("b", "c"), ("c",)),
        ([8, 9], (2, 4, 4), ("b", "c"), ("c",)),
    ]


def test_a_finished_file_is_used_again_only_when_it_was_made_the_same_way(pictures, tmp_path):
    path = tmp_path / "r.npz"
    precompute_regions(path, Recorder(), pictures)
    again = Recorder()
    assert list(precompute_regions(path, again, pictures)) == list(load_regions(path))
    assert again.seen == []
    other = Recorder(margin=1)
    assert precompute_regions(path, other, pictures)[3] == [Region(0, 0, 2, 3, "p3")]
    fewer = Recorder(margin=1)
    assert len(precompute_regions(path, fewer, pictures[:7])) == 7
    assert other.seen and fewer.seen


def test_an_interrupted_search_goes_on(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(region_table, "SAVE_EVERY", 2)
    path, killed = tmp_path / "r.npz", Recorder()
    killed.fail_at = 6
    with pytest.raises(KeyboardInterrupt):
        precompute_regions(path, killed, pictures, batch_size=2)
    assert not path.exists()

    resumed = Recorder()
    table = precompute_regions(path, resumed, pictures, batch_size=2)
    assert [seen[0] for seen in resumed.seen] == [[4, 5], [6, 7], [8, 9]]  # two batches were kept
    whole = precompute_regions(tmp_path / "whole.npz", Recorder(), pictures)
    assert list(table) == list(whole)
    assert {entry.name for entry in tmp_path.iterdir()} == {"r.npz", "whole.npz"}


def test_a_table_knows_its_pictures():
    table = RegionTable.from_lists(iter(REGIONS), made_by="hand")
    assert table.made_by == "hand" and [len(regions) for regions in table] == [2, 0, 1, 0]
