"""Fitting how much of an episode has gone by: the algebra by hand, and the whole command on made-up episodes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.arguments import parse_arguments
from evaluation.fit_progress import FitProgressArguments, fit_progress, fit_ridge, judge_episode
from evaluation.ranking_scores import ProgressScore
from tests.train.made_up_demonstrations import STEPS, write_demonstrations
from tokenization.demonstrations import read_demonstrations

TASK = "move the square"


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_the_dual_form_is_ridge_regression(shape):
    generator = np.random.default_rng(0)
    vectors, targets = generator.normal(size=shape), generator.normal(size=shape[0])
    weights, bias = fit_ridge(vectors, targets, 0.5)
    centred = vectors - vectors.mean(axis=0)
    penalty = 0.5 * (centred**2).sum() / shape[1]
    expected = np.linalg.solve(
        centred.T @ centred + penalty * np.eye(shape[1]), centred.T @ (targets - targets.mean())
    )
    np.testing.assert_allclose(weights, expected)
    assert bias == pytest.approx(targets.mean() - vectors.mean(axis=0) @ expected)


def test_what_is_linear_is_found():
    vectors = np.random.default_rng(1).normal(size=(50, 3))
    weights, bias = fit_ridge(vectors, vectors @ np.array([1.0, -2.0, 0.0]) + 0.3, 1e-9)
    np.testing.assert_allclose(weights, [1, -2, 0], atol=1e-6)
    assert bias == pytest.approx(0.3)


def test_frames_that_are_all_the_same_get_the_mean():
    weights, bias = fit_ridge(np.ones((5, 3)), np.linspace(0, 1, 5), 1.0)
    assert not weights.any() and bias == pytest.approx(0.5)


def test_judging_by_hand():
    assert judge_episode(np.array([0.0, 0.1, 0.5, 0.9]), 2) == {"rank_correlation": 1.0, "later_higher": 1.0}
    found = judge_episode(np.array([0.0, 3.0, 1.0, 2.0, -1.0]), 2)  # pairs: 0 < 1, 3 > 2, 1 > -1
    # ranks 2 5 3 4 1 against 1 ... 5: 1 - 6 * (1 + 9 + 0 + 0 + 16) / (5 * 24)
    assert found == {"rank_correlation": pytest.approx(-0.3), "later_higher": pytest.approx(1 / 3)}
    assert judge_episode(np.zeros(3), 5) == {"rank_correlation": 0.0, "later_higher": None}


@pytest.fixture
def arguments(processor, tmp_path):
    processor.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "demos").mkdir()
    write_demonstrations(tmp_path / "demos" / "square_demo.hdf5", episodes=5)
    return FitProgressArguments(
        checkpoint=str(tmp_path / "checkpoint"),
        demonstrations=[str(tmp_path / "demos")],
        output_dir=str(tmp_path / "progress"),
        held_out=0.3,
        frames_per_episode=3,
        steps_apart=2,
        ridge=0.01,
    )


def test_the_command_writes_a_score_that_loads(processor, arguments):
    card = fit_progress(arguments)
    assert card == json.loads(Path(arguments.output_dir, "progress.json").read_text())
    assert (card["instructions"], card["camera"]) == ([TASK], "agentview")
    assert (card["episodes"], card["held_out"]["episodes"]) == (3, 2)
    assert card["settings"]["ridge"] == 0.01
    score = ProgressScore.from_folder(arguments.output_dir, processor, "agentview")

    # The held-out episodes are the first of the permutation; what was found is what their frames say.
    episodes = list(read_demonstrations(f"{arguments.demonstrations[0]}/square_demo.hdf5"))
    order = np.random.default_rng(0).permutation(5)
    judged = []
    for number in order[:2]:
        ids = processor.encode_images(list(episodes[number].frames()))
        judged.append(judge_episode(score.rate(ids, TASK), 2))
    for name in ("rank_correlation", "later_higher"):
        assert card["held_out"][name]["value"] == pytest.approx(np.mean([one[name] for one in judged]))
    # And the others are what was fitted to: first, middle and last frame.
    steps = np.array([0, 2, STEPS - 1])
    ids = torch.cat([processor.encode_images(list(episodes[number].frames()[steps])) for number in order[2:]])
    vectors = processor.image_tokenizer.embed_ids(ids).flatten(1).numpy()
    weights, bias = fit_ridge(vectors, np.tile(steps / (STEPS - 1), 3), 0.01)
    np.testing.assert_allclose(score.rate(ids, TASK), vectors @ weights + bias, atol=1e-4)


def test_nothing_can_be_held_out_of_one_episode(arguments, tmp_path):
    write_demonstrations(tmp_path / "demos" / "square_demo.hdf5", episodes=1)
    with pytest.raises(ValueError, match="Task `move the square` has 1 episode of two frames or more"):
        fit_progress(arguments)


def test_a_camera_that_is_not_imagined_is_refused(arguments, tmp_path):
    (tmp_path / "checkpoint" / "data_card.json").write_text(json.dumps({"cameras": ["wrist", "agentview"]}))
    with pytest.raises(ValueError, match="its world model imagines `wrist`, not `agentview`"):
        fit_progress(arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames_per_episode", "1"], "`--frames_per_episode` must be at least 2, got 1"),
        (["--held_out", "1"], r"`--held_out` must lie in \(0, 1\), got 1.0"),
        (["--ridge", "0"], "`--ridge` must be larger than 0, got 0.0"),
        (["--steps_apart", "0"], "`--steps_apart` must be larger than 0, got 0"),
    ],
)
def test_options_are_checked(flags, message):
    needed = ["--checkpoint", "c", "--demonstrations", "d", "--output_dir", "o"]
    with pytest.raises(ValueError, match=message):
        parse_arguments(FitProgressArguments, [*needed, *flags])
