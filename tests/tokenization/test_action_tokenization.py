import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tokenization import LIBERO_ACTION_LIMITS, WorldVLAActionTokenizer, measure_action_limits

UNIT = {"unit": {"low": [-1.0, 0.0], "high": [1.0, 4.0]}}


def make(binning="uniform", num_bins=4, limits=UNIT):
    return WorldVLAActionTokenizer(100, num_bins, binning, limits)


def test_uniform_bins_by_hand():
    tokenizer = make()
    actions = np.array([[-1.0, 0.0], [-0.51, 0.99], [-0.5, 1.0], [0.0, 2.0], [0.999, 3.999], [1.0, 4.0]])
    expected = np.array([[100, 100], [100, 100], [101, 101], [102, 102], [103, 103], [103, 103]])
    np.testing.assert_array_equal(tokenizer.encode(actions), expected)
    np.testing.assert_allclose(
        tokenizer.decode(expected)[[0, 2, 3, 5]], [[-0.75, 0.5], [-0.25, 1.5], [0.25, 2.5], [0.75, 3.5]]
    )


def test_official_bins_by_hand():
    tokenizer = make("official", num_bins=5)  # edges -1, -0.5, 0, 0.5, 1 of the normalised value
    actions = np.array([[-1.0, 0.0], [-0.5, 1.1], [0.1, 2.1], [0.9, 3.9], [5.0, 9.0]])
    np.testing.assert_array_equal(tokenizer.encode(actions)[:, 1], [100, 101, 102, 103, 104])
    np.testing.assert_allclose(
        tokenizer.decode(np.array([[100, 100], [103, 103], [104, 104]])),
        [[-0.75, 0.5], [0.75, 3.5], [0.75, 3.5]],
        atol=1e-7,
    )


def test_official_bins_as_recorded(recorded):
    rows = recorded("actions")
    tokenizer = WorldVLAActionTokenizer(10006, 256, "official", {"libero": LIBERO_ACTION_LIMITS})
    finite = np.isfinite(rows["raw"]).all(axis=1)
    assert finite.sum() == 473
    ids = tokenizer.encode(rows["raw"][finite])
    np.testing.assert_array_equal(ids, rows["ids"][finite])
    np.testing.assert_allclose(tokenizer.decode(ids), rows["commands"][finite], atol=1e-6)
    unit = WorldVLAActionTokenizer(10006, 256, "official", {"unit": {"low": [-1.0], "high": [1.0]}})
    every_id = np.arange(10006, 10262)[:, None]
    np.testing.assert_allclose(unit.decode(every_id)[:, 0], rows["normalised_by_id"], atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(arrays(np.float64, (3, 5, 7), elements=st.floats(0, 1)), st.sampled_from(["uniform", "official"]))
def test_round_trip_is_within_half_a_bin(share, binning):
    low, high = (np.array(LIBERO_ACTION_LIMITS[side]) for side in ("low", "high"))
    tokenizer = WorldVLAActionTokenizer(10006, 256, binning, {"libero": LIBERO_ACTION_LIMITS})
    actions = low + share * (high - low)
    half_a_bin = (high - low) / (256 if binning == "uniform" else 255) / 2
    assert (np.abs(tokenizer.decode(tokenizer.encode(actions)) - actions) <= half_a_bin + 1e-8).all()


@pytest.mark.parametrize("binning", ["uniform", "official"])
def test_decode_then_encode_gives_the_ids_back(binning):
    tokenizer = make(binning, num_bins=256)
    ids = np.arange(100, 355 if binning == "official" else 356)[:, None].repeat(2, axis=1)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


def test_tensors_give_tensors():
    tokenizer = make()
    actions = torch.tensor([[[0.2, 3.0], [-2.0, 1.0]]])
    ids = tokenizer.encode(actions)
    assert ids.dtype == torch.int64 and ids.shape == (1, 2, 2)
    np.testing.assert_array_equal(ids.numpy(), tokenizer.encode(actions.numpy()))
    decoded = tokenizer.decode(ids)
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded.numpy(), tokenizer.decode(ids.numpy()), atol=1e-6)


def test_a_dimension_that_never_moves_is_kept():
    tokenizer = make(limits={"still": {"low": [0.5, 0.0], "high": [0.5, 1.0]}})
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(np.array([[0.5, 0.1]])))[0, 0], 0.5)


def test_clipped_values_are_counted():
    tokenizer = make()
    actions = np.array([[1.5, 2.0], [1.0 + 1e-9, 4.0], [-1.01, -0.1]])
    assert tokenizer.count_clipped(actions) == 3
    assert tokenizer.encode(actions).max() == 103
    assert tokenizer.count_clipped(np.float32([[0.9, 3.9]])) == 0


def test_limits_from_data():
    actions = np.arange(202, dtype=float).reshape(101, 2)
    assert measure_action_limits(actions) == {"low": [0.0, 1.0], "high": [200.0, 201.0]}
    assert measure_action_limits(actions, quantile=0.01) == {"low": [2.0, 3.0], "high": [198.0, 199.0]}
    with pytest.raises(ValueError, match=r"needs? an array|need an array of shape"):
        measure_action_limits(np.zeros((0, 7)))
    with pytest.raises(ValueError, match=r"`quantile` must lie in \[0, 0.5\), got 0.5"):
        measure_action_limits(actions, quantile=0.5)


def test_several_data_sets_need_a_choice():
    tokenizer = make(limits={**UNIT, "wide": {"low": [-10.0, 0.0], "high": [10.0, 40.0]}})
    assert tokenizer.encode(np.array([[5.0, 20.0]]), "wide").tolist() == [[103, 102]]
    with pytest.raises(ValueError, match="several data sets: unit, wide. Say whose with `dataset_name=`"):
        tokenizer.encode(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="Unknown data set `wid`.*Did you mean `wide`?"):
        tokenizer.decode(np.full((1, 2), 100), "wid")


def test_saved_and_loaded_it_is_the_same():
    tokenizer = make("official")
    assert WorldVLAActionTokenizer.from_dict(tokenizer.to_dict()).to_dict() == tokenizer.to_dict()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([[0.0, np.nan]]), r"finite numbers, got nan at position \(0, 1\)"),
        (torch.tensor([[0.0, 1.0], [float("inf"), 0.0]]), r"finite numbers, got inf at position \(1, 0\)"),
        (np.zeros((3, 7)), r"actions of shape \(..., 2\).*got shape \(3, 7\)"),
        (np.float64(3.0), r"actions of shape \(..., 2\).*got shape \(\)"),
        (np.array([["a", "b"]]), "Actions must be numbers, got an array of <U1"),
        (np.array([[None, None]]), "Actions must be numbers, got an array of object"),
    ],
)
def test_unusable_actions_are_refused(actions, message):
    with pytest.raises(ValueError, match=message):
        make().encode(actions)
    with pytest.raises(ValueError, match=message):
        make().count_clipped(actions)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[100, 104]]), r"must lie in \[100, 104\), got 104 at position \(0, 1\)"),
        (torch.tensor([[[100, 100], [8, 100]]]), r"got 8 at position \(0, 1, 0\)"),
        (np.array([[100.0, 101.0]]), "must be integers, got float64"),
        (np.array([[100, 101, 102]]), r"action token ids of shape \(..., 2\)"),
    ],
)
def test_ids_outside_the_range_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        make().decode(ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"binning": "unform"},
            "Unknown binning `unform`. Choose one of: `uniform`, `official`. Did you mean `uniform`?",
        ),
        ({"num_bins": 1}, "`num_bins` must be at least 2, got 1"),
        ({"limits": {}}, "needs the limits of at least one data set, got none"),
        ({"limits": {"a": {"low": [0.0]}}}, r"must be a dict with `low` and `high`, got \['low'\]"),
        ({"limits": {"a": {"low": [0.0], "high": [1.0, 2.0]}}}, r"lists of one length, got shapes \(1,\) and \(2,\)"),
        ({"limits": {"a": {"low": [2.0], "high": [1.0]}}}, "low <= high"),
        ({"limits": {"a": {"low": [np.nan], "high": [1.0]}}}, "must be finite"),
        ({"limits": {**UNIT, "a": {"low": [0.0], "high": [1.0]}}}, "one action width, got {'unit': 2, 'a': 1}"),
    ],
)
def test_unusable_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
