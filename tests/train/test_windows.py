import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.windows import WindowOptions, Windows


def options(**changes):
    return WindowOptions(**({"n_obs_steps": 2, "chunk_size": 2} | changes))


def world_model_windows(lengths, leading=None, **changes):
    windows = Windows(np.array(lengths), options(policy_samples=False, **changes), 0, leading)
    return [(episode, step) for _, episode, step in windows]


def test_windows_by_hand():
    windows = list(Windows(np.array([4, 2]), options()))
    policy, world = windows[:6], windows[6:]
    assert policy == [("policy", 0, t) for t in range(4)] + [("policy", 1, t) for t in range(2)]
    # Frame t and action t give frame t + 1: the last step has no frame after it. Ratio 1: as many as policy windows.
    assert set(world) == {("world_model", 0, 0), ("world_model", 0, 1), ("world_model", 0, 2), ("world_model", 1, 0)}
    assert len(world) == len(policy)


def test_rounds_need_as_many_frames_after():
    assert world_model_windows([4, 3], world_model_rounds=2) == [(0, 0), (0, 1), (1, 0)]


def test_no_world_model_window_ends_at_a_gap():
    leading = [np.array([True, False, True, False]), np.array([False, False]), np.array([True, True, False])]
    assert world_model_windows([4, 2, 3], leading) == [(0, 0), (0, 2), (2, 0), (2, 1)]
    assert world_model_windows([4, 2, 3], leading, world_model_rounds=2) == [(2, 0)]


def test_gaps_everywhere_are_refused():
    with pytest.raises(ValueError, match="No episode has 3 frames in a row.*Tokenize without `--drop_noops`"):
        world_model_windows([4], [np.array([True, False, True, False])], world_model_rounds=2)


@pytest.mark.parametrize(("tail", "steps"), [("drop", [0, 1, 2]), ("shorten", [0, 1, 2, 3]), ("pad", [0, 1, 2, 3])])
def test_tails(tail, steps):
    windows = Windows(np.array([4, 1]), options(tail=tail, world_model_samples=False))
    assert [step for _, episode, step in windows if episode == 0] == steps
    assert sum(episode for _, episode, _ in windows) == (tail != "drop")


def test_ratio_and_seed():
    lengths = np.array([50, 40])
    some = list(Windows(lengths, options(world_model_ratio=0.5), seed=1))
    world = [window for window in some if window.role == "world_model"]
    assert len(world) == len(set(world)) == 45
    # Spread evenly: one from each 88 / 45 of the 88 that there are, so never more than 3 apart within an episode.
    assert max(np.diff([step for _, episode, step in world if episode == 0])) <= 3
    assert some == list(Windows(lengths, options(world_model_ratio=0.5), seed=1))
    assert some != list(Windows(lengths, options(world_model_ratio=0.5), seed=2))


def test_a_larger_ratio_repeats_all_before_any_comes_again():
    world = [w for w in Windows(np.array([5, 3]), options(world_model_ratio=2.0)) if w.role == "world_model"]
    counts = [world.count(window) for window in set(world)]
    assert len(world) == 16 and len(counts) == 6 and set(counts) == {2, 3}


def test_single_roles():
    assert {w.role for w in Windows(np.array([9]), options(policy_samples=False))} == {"world_model"}
    assert {w.role for w in Windows(np.array([9]), options(world_model_samples=False))} == {"policy"}


def test_numbers_from_the_end_slices_and_numbers_that_are_not_there():
    windows = Windows(np.array([4, 2]), options())
    assert windows[-1] == windows[11] and windows[:2] == [("policy", 0, 0), ("policy", 0, 1)]
    for index in (12, -13):
        with pytest.raises(IndexError, match=f"There are 12 windows, asked was for number {index}"):
            windows[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 5}, "No episode is long enough for `--chunk_size 5`: the longest has 4 steps"),
        ({"chunk_size": 5, "tail": "drop"}, "long enough for `--chunk_size 5`: the longest has 4 steps. Lower"),
        ({"n_obs_steps": 6}, "No episode is long enough for `--n_obs_steps 6`"),
        ({"world_model_rounds": 4}, r"`--world_model_history 1` with `--world_model_rounds 4` \(5 frames\): the long"),
        ({"world_model_history": 4}, r"`--world_model_history 4` with `--world_model_rounds 1` \(5 frames\)"),
    ],
)
def test_what_no_episode_is_long_enough_for_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Windows(np.array([4, 2]), options(**changes))


def test_a_role_that_is_off_is_not_checked():
    assert len(Windows(np.array([2]), options(chunk_size=9, policy_samples=False))) == 1
    assert len(Windows(np.array([2]), options(world_model_history=9, world_model_samples=False))) == 2


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=9), min_size=1, max_size=5), st.integers(1, 3))
def test_every_world_model_window_is_there_once(flags, rounds):
    leading = [np.array([*flag, False]) for flag in flags]
    expected = [
        (episode, step)
        for episode, flag in enumerate(leading)
        for step in range(len(flag))
        if step + rounds <= len(flag) and flag[step : step + rounds].all()
    ]
    if not expected:
        with pytest.raises(ValueError, match="frames in a row"):
            world_model_windows(list(map(len, leading)), leading, world_model_rounds=rounds)
    else:
        assert world_model_windows(list(map(len, leading)), leading, world_model_rounds=rounds) == expected


def test_memory_does_not_grow_with_the_number_of_windows():
    lengths = np.full(200_000, 300)  # 120 million windows; a list of them would take gigabytes
    tracemalloc.start()
    windows = Windows(lengths, options(chunk_size=10))
    assert windows[len(windows) - 1].role == "world_model" and windows[59_999_999] == ("policy", 199_999, 299)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(windows) == 120_000_000 and peak < 20e6
