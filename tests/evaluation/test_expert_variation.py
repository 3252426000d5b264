"""Variation of demonstrations: decided by the seed, bounded, and none by default."""

import numpy as np
import pytest

from evaluation.expert_motion import POSITION_GAIN
from evaluation.expert_variation import LONGEST_PUSH, EpisodeVariation, Variation
from evaluation.record_demonstrations import RecordingArguments

WANTED = np.r_[0.5, -0.2, 0.9, 0.0, 0.1, -0.3, -1.0]


def disturbed(variation, seed, steps=200):
    episode = EpisodeVariation(variation, seed)
    return np.stack([episode.disturb(WANTED) for _ in range(steps)])


def test_nothing_varies_by_default():
    episode = EpisodeVariation(Variation(), 3)
    assert episode.speed == 1 and not list(episode.start_actions(lambda: np.zeros(3)))
    assert np.array_equal(disturbed(Variation(), 3), np.tile(WANTED, (200, 1)))


def test_the_seed_decides_everything():
    variation = Variation(0.1, 0.05, 0.05, 0.5)
    assert np.array_equal(disturbed(variation, 3), disturbed(variation, 3))
    assert not np.array_equal(disturbed(variation, 3), disturbed(variation, 4))
    speeds = [EpisodeVariation(variation, seed).speed for seed in range(200)]
    assert 0.5 <= min(speeds) < 0.55 and 0.95 < max(speeds) <= 1


def test_tremble_has_its_size_drifts_and_leaves_the_gripper_alone():
    trembles = np.concatenate([disturbed(Variation(action_noise=0.05), seed) - WANTED for seed in range(50)])
    assert not trembles[:, 6].any()
    assert trembles[:, 0].std() == pytest.approx(0.05, rel=0.1)
    assert trembles[:, 3].std() == pytest.approx(0.015, rel=0.1)
    assert np.corrcoef(trembles[:-1, 0], trembles[1:, 0])[0, 1] > 0.7
    assert np.abs(disturbed(Variation(action_noise=1.0), 0)).max() <= 1


def test_pushes_are_constant_and_short():
    pushes = np.concatenate([disturbed(Variation(push_probability=0.02), seed) for seed in range(50)]) - WANTED
    pushed = np.abs(pushes[:, :6]).max(axis=1) > 0
    begins = np.flatnonzero(pushed & ~np.r_[False, pushed[:-1]])
    lengths = [int(np.argmin(np.r_[pushed[begin:], False])) for begin in begins]
    assert 0.03 < pushed.mean() < 0.12  # 2 % of the free steps begin a push of 2 to 6 steps
    assert min(lengths) >= 2 and np.median(lengths) <= LONGEST_PUSH
    first = begins[0]
    assert np.array_equal(pushes[first], pushes[first + 1])


def test_the_hand_is_brought_to_another_start():
    starts = []
    for seed in range(40):
        hand = np.array([0.1, 0.2, 0.3])
        for action in EpisodeVariation(Variation(start_offset=0.06), seed).start_actions(lambda hand=hand: hand):
            assert action.shape == (7,) and np.abs(action).max() <= 1 and action[6] == -1
            hand += action[:3] / POSITION_GAIN
        starts.append(hand - [0.1, 0.2, 0.3])
    starts = np.array(starts)
    assert np.abs(starts).max() < 0.07 and starts.std(axis=0).min() > 0.02
    assert starts[:, 2].min() > -0.03  # never far down, where the table is


@pytest.mark.parametrize("option", ["action_noise", "push_probability", "start_offset", "slowest_speed"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=f"`{option}` must lie in .* got -0.1. Choose a value in between"):
        RecordingArguments("out", **{option: -0.1})
