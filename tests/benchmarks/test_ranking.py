"""The benchmark runs, at a size that says nothing about speed."""

import json

import h5py
import numpy as np
import pytest

from benchmarks.ranking import BenchmarkArguments, read_requests, run
from evaluation.worldvla_policy import WorldVLAPolicy
from tokenization.demonstrations import read_demonstrations

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def demonstrations(tmp_path):
    with h5py.File(tmp_path / "cup_demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift the cup"})
        data.attrs["macros_image_convention"] = "opengl"
        data["demo_0/actions"] = np.zeros((9, 7))
        data["demo_0/obs/agentview_rgb"] = FRAMES[:, ::-1, ::-1]
    return str(tmp_path / "cup_demo.hdf5")


def test_every_number_of_candidates_has_its_line(tmp_path, make_model, processor, demonstrations):
    model = make_model(initializer_range=0.5, chunk_size=2)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    options = {"candidates": [2, 3], "decisions": 2, "repetitions": 1}
    results = run(BenchmarkArguments(str(tmp_path / "checkpoint"), demonstrations, **options))
    assert [row["what"] for row in results["rows"]] == ["best of 2", "best of 3"]
    assert all(row["ratio"] > 1 for row in results["rows"])  # imagining costs something


def test_decisions_lie_inside_the_episode(make_model, processor, demonstrations):
    policy = WorldVLAPolicy(make_model(), processor, n_obs_steps=2)
    first, second = read_requests(read_demonstrations(demonstrations)[0], policy, 2)
    for request, steps in ((first, [2, 3]), (second, [4, 5])):
        np.testing.assert_array_equal([one["agentview"] for one in request.observations], FRAMES[steps])


@pytest.mark.parametrize("options", [{"candidates": [1]}, {"candidates": []}, {"decisions": 0}])
def test_nothing_to_measure_is_refused(options):
    with pytest.raises(ValueError, match="`--candidates` are numbers of at least 2 and `--decisions` at least 1, got"):
        BenchmarkArguments("c", "d", **options)
