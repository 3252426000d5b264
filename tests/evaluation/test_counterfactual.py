from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.counterfactual import (
    ACTIONS,
    NUM_MOTIONS,
    CounterfactualArguments,
    Simulated,
    command_table,
    draw_actions,
    format_report,
    measure,
    simulate,
)
from evaluation.counterfactual_measures import agreement, centroid, effect_correlation, find_shift
from evaluation.libero_env import LiberoEnv


def picture_with_square(top, left):
    generator = np.random.default_rng(0)
    picture = np.full((32, 32, 3), 40, np.uint8)
    picture[top : top + 6, left : left + 5] = generator.integers(100, 255, (6, 5, 3))
    mask = np.zeros((32, 32), bool)
    mask[top : top + 6, left : left + 5] = True
    return picture, mask


@pytest.mark.parametrize("shift", [(0, 0), (3, -4), (-5, 7)])
def test_a_square_is_followed(shift):
    before, mask = picture_with_square(12, 12)
    after, mask_after = picture_with_square(12 + shift[0], 12 + shift[1])
    noise = np.random.default_rng(1).integers(0, 8, after.shape, dtype=np.uint8)
    assert find_shift(before, mask, after - noise, reach=8).tolist() == list(shift)
    assert (centroid(mask_after) - centroid(mask)).tolist() == list(shift)


def test_where_nothing_fits_better_nothing_moved():
    flat = np.full((16, 16, 3), 7, np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:8] = True
    assert find_shift(flat, mask, flat, reach=4).tolist() == [0, 0]
    assert np.isnan(centroid(~mask & mask)).all()
    with pytest.raises(ValueError, match="the mask is empty"):
        find_shift(flat, np.zeros((16, 16), bool), flat, reach=4)


def test_agreement_by_hand():
    truth = np.zeros((2, 4, 2))
    truth[..., 1] = [[-10, -4, 4, 10], [-9, -1, 1, 9]]  # horizontal; four of each start's are long enough but ±1
    right = agreement(truth + [5, 3], truth)["horizontal"]  # a drift that all actions share does not count
    assert right["rank_correlation"]["value"] == 1 and right["sign_accuracy"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert (right["pairs"], right["signs"]) == (8, 6)
    wrong = agreement(-truth, truth)["horizontal"]
    assert wrong["rank_correlation"]["value"] == -1 and wrong["sign_accuracy"]["value"] == 0
    still = agreement(np.ones_like(truth), truth)["horizontal"]
    assert still["rank_correlation"]["value"] == 0 and still["sign_accuracy"]["value"] == 0
    half = truth.copy()
    half[0] *= -1
    assert agreement(half, truth)["horizontal"]["sign_accuracy"]["value"] == pytest.approx(2 / 6)


def test_agreement_without_motion_or_with_one_start():
    truth = np.zeros((1, 3, 2))
    truth[0, :, 0] = [-5, 0, 5]
    found = agreement(truth, truth)
    assert found["horizontal"]["rank_correlation"] == {"value": None, "interval": None}
    assert found["vertical"]["sign_accuracy"] == {"value": 1.0, "interval": None}


def test_a_gripper_that_left_the_picture_is_told():
    truth = np.zeros((1, 3, 2))
    truth[0, 1] = np.nan
    with pytest.raises(ValueError, match="left the simulator's picture.*Lower `--num_frames` or `--strength`"):
        agreement(np.zeros((1, 3, 2)), truth)


def test_rank_correlation_ignores_scale_but_not_order():
    truth = np.zeros((1, 5, 2))
    truth[0, :, 1] = [-8, -3, 0, 3, 8]
    found = truth.copy()
    found[0, :, 1] = [-80, -1, 0, 1, 2]
    assert agreement(found, truth)["horizontal"]["rank_correlation"]["value"] == pytest.approx(1)
    found[0, :, 1] = [-80, 1, 0, -1, 2]  # one pair swapped: 1 - 6 * 8 / (5 * 24)
    assert agreement(found, truth)["horizontal"]["rank_correlation"]["value"] == pytest.approx(0.6)


def test_effects_correlate_with_the_same_effect_only():
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    everywhere = np.ones((8, 8), bool)
    assert effect_correlation(one, other, one, other, everywhere) == pytest.approx(1)
    assert effect_correlation(other, one, one, other, everywhere) == pytest.approx(-1)
    assert effect_correlation(one, one, one, other, everywhere) == 0  # the action makes no difference


def test_commands_stay_inside_limits_and_range():
    limits = {"low": [-0.2, -3, -1, -1, -1, -1, -1], "high": [0.4, 2, 1, 1, 1, 1, 1]}
    table = dict(zip(ACTIONS, command_table(limits, 0.5, gripper=1.0), strict=True))
    assert table["forward"].tolist() == [0.2, 0, 0, 0, 0, 0, 1] and table["backward"][0] == -0.1
    assert (table["left"][1], table["right"][1]) == (0.5, -0.5)  # the simulator takes -1 ... 1
    assert table["open gripper"].tolist() == [0, 0, 0, 0, 0, 0, -1] and table["close gripper"][-1] == 1
    assert list(table)[:NUM_MOTIONS] == ["forward", "backward", "left", "right", "up", "down"]


def made_up_starts():
    """Two starts; a square goes where each motion leads."""
    ways = [(0, -6), (0, 6), (3, 0), (-3, 0), (6, 2), (-6, -2), (0, 0), (0, 0)]
    given, mask = picture_with_square(13, 13)
    after = np.stack([picture_with_square(13 + down, 13 + right)[0] for down, right in ways])
    after[-1, 13:16, 13:16] = 255  # the closed gripper looks different
    return Simulated(given, mask, after, np.array(ways, float)), after


def test_an_imagination_equal_to_the_simulator_is_perfect_and_one_that_stands_still_is_not():
    start, after = made_up_starts()
    frames, given = np.stack([after, after]), np.stack([start.given, start.given])
    perfect = measure([start, start], frames, frames, given)
    for axis in ("horizontal", "vertical"):
        assert perfect["imagined"][axis]["rank_correlation"]["value"] == pytest.approx(1)
        assert perfect["imagined"][axis]["sign_accuracy"]["value"] == 1
    assert list(perfect["effects"].values()) == pytest.approx([1] * 4)
    still = measure([start, start], np.broadcast_to(given[:, None], frames.shape), frames, given)
    assert still["imagined"]["vertical"]["sign_accuracy"]["value"] == 0
    assert still["ceiling"]["vertical"]["sign_accuracy"]["value"] == 1
    assert set(still["effects"].values()) == {0.0}


def test_the_report_names_what_was_measured():
    start, after = made_up_starts()
    frames = np.stack([after])
    result = measure([start], frames, frames, start.given[None]) | {"settings": {"num_frames": 3}}
    report = format_report(result)
    assert "1 starts, 8 actions, 3 commands each" in report
    assert "| imagined | horizontal | 1.00 | 1.00 |" in report and "| open gripper / close gripper | 1.00 |" in report
    assert draw_actions(start, after).shape[2] == 3


@pytest.mark.parametrize(
    "changes, message",
    [({"starts": 0}, "`--starts` must be larger than 0"), ({"strength": 1.5}, "at most 1, got 1.5")],
)
def test_options_are_checked_before_anything_is_loaded(changes, message):
    with pytest.raises(ValueError, match=message):
        CounterfactualArguments(checkpoint="c", demonstrations=["d"], output_dir="o", **changes)


@pytest.mark.slow
@pytest.mark.libero
def test_the_simulator_shows_where_each_command_leads_and_one_does_not_disturb_the_next(tmp_path):
    import h5py

    with LiberoEnv("libero_object", 0, cameras=(), image_size=128) as env:
        env.reset(seed=3)
        state = env.simulator_state()
        with h5py.File(tmp_path / "one_demo.hdf5", "w") as file:
            file.create_group("data/demo_0").attrs["seed"] = 3
        recorded = SimpleNamespace(
            path=str(tmp_path / "one_demo.hdf5"), name="demo_0", states=[state], actions=-np.ones((1, 7))
        )
        commands = np.zeros((3, 6, 7))
        commands[..., -1], commands[0, :, 2], commands[1, :, 2], commands[2, :, 2] = -1, 0.5, -0.5, 0.5
        found = simulate(env, recorded, 0, commands, "agentview")
    assert found.gripper.sum() > 50
    assert found.moved[0, 0] < -2 and found.moved[1, 0] > 2  # up and down in the picture
    np.testing.assert_array_equal(found.after[0], found.after[2])
    np.testing.assert_array_equal(found.moved[0], found.moved[2])
