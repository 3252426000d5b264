import json
import time

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


def test_every_recorded_row(recorded_behaviour):
    notes = json.loads((recorded_behaviour / "tokenize.json").read_text())
    rows = np.load(recorded_behaviour / "tokenize.npz")
    limits = {"low": notes["min_values"], "high": notes["max_values"]}
    assert limits == LIBERO_ACTION_LIMITS
    tokenizer = WorldVLAActionTokenizer(10006, 256, "official", {"libero": limits})
    unit = WorldVLAActionTokenizer(10006, 256, "official", {"unit": {"low": [-1.0] * 7, "high": [1.0] * 7}})
    assert len(rows["act/raw"]) == len(notes["action_rows"]) == 476
    for name, raw, tokens, scaled, commands in zip(
        notes["action_rows"],
        rows["act/raw"],
        rows["act/tokens"],
        rows["act/decoded_numpy"],
        rows["act/unnorm"],
        strict=True,
    ):
        if name in ("nan", "inf", "ninf"):  # silently the last or the first bin there, refused here
            assert not np.isfinite(raw).all()
            with pytest.raises(ValueError, match="Actions must be finite"):
                tokenizer.encode(raw)
            continue
        ids = tokenizer.encode(raw)
        assert [10004, *ids, 15004] == tokens.tolist(), name
        np.testing.assert_allclose(unit.decode(ids), scaled, atol=1e-8)
        np.testing.assert_allclose(tokenizer.decode(ids), commands, atol=1e-7)
    np.testing.assert_array_equal(
        tokenizer.encode(torch.from_numpy(rows["act/raw"][:10])), rows["act/tokens"][:10, 1:8]
    )
    every_id = np.arange(10006, 10262)[:, None].repeat(7, axis=1)
    table = dict(zip(rows["act/decode_ids"].tolist(), rows["act/decode_all_numpy"], strict=True))
    np.testing.assert_allclose(unit.decode(every_id)[:, 0], [table[i] for i in range(10006, 10262)], atol=1e-8)
    worst = np.array(notes["roundtrip_max_err_in_range_per_dim"])
    assert (worst <= half_a_bin("official", *map(np.array, limits.values()))).all()
    twice = notes["double_normalisation"]  # what feeding normalised commands back would give
    assert tokenizer.encode(np.array(twice["raw"])).tolist() == twice["tokens_true"][1:8]
    assert tokenizer.encode(np.array(twice["decoded_norm"])).tolist() == twice["tokens_if_normalised_fed_back"][1:8]


def half_a_bin(binning, low, high, num_bins=256):
    """The largest error of a round trip: the official code has one bin fewer, of a range longer by 1e-8."""
    return (high - low) / num_bins / 2 if binning == "uniform" else (high - low + 1e-8) / (num_bins - 1) / 2


LIMITS = arrays(np.float64, st.tuples(st.just(2), st.integers(1, 9)), elements=st.floats(-1e6, 1e6))


@settings(max_examples=200, deadline=None)
@given(LIMITS, st.integers(2, 300), st.sampled_from(["uniform", "official"]), st.integers(0, 2**32 - 1), st.booleans())
def test_round_trip_is_within_half_a_bin(limits, num_bins, binning, seed, as_tensor):
    low, high = np.sort(limits, axis=0)
    tokenizer = make(binning, num_bins, {"any": {"low": low.tolist(), "high": high.tolist()}})
    share = np.random.default_rng(seed).uniform(-0.2, 1.2, (3, 5, len(low)))  # (B, K, D), some outside
    share[0, 0], share[0, 1] = 0, 1
    actions = low + share * (high - low)
    ids = tokenizer.encode(torch.from_numpy(actions) if as_tensor else actions)
    decoded = tokenizer.decode(np.asarray(ids))
    rounding = 1e-9 * (1 + np.abs(low) + np.abs(high))
    bound = half_a_bin(binning, low, high, num_bins) + rounding
    inside = (actions >= low) & (actions <= high)
    assert decoded.shape == actions.shape
    assert (np.abs(decoded - actions) <= bound)[inside].all()
    official_epsilon = 1e-8 if binning == "official" else 0  # its range reaches that far above the upper limit
    assert (np.abs(decoded - np.clip(actions, low, high)) <= bound + official_epsilon).all()


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


@pytest.mark.parametrize("low", [0.5, 0.0, -1e300])
def test_a_dimension_that_never_moves_is_kept(low):
    limits = {"still": {"low": [low, 0.0], "high": [low, 1.0]}}
    actions = np.array([[low, 0.1], [low + 1, 0.1]])
    assert make(limits=limits).decode(make(limits=limits).encode(actions))[:, 0].tolist() == [low, low]
    official = make("official", limits=limits)
    np.testing.assert_allclose(official.decode(official.encode(actions))[:, 0], low, atol=1e-8)


@pytest.mark.parametrize("width", [1, 2, 7, 32])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 3, 4), (0,)])
def test_any_width_and_any_leading_shape(width, leading):
    tokenizer = make(num_bins=256, limits={"any": {"low": [-1.0] * width, "high": [1.0] * width}})
    actions = np.random.default_rng(0).uniform(-1, 1, (*leading, width))
    ids = tokenizer.encode(actions)
    assert tokenizer.action_dim == width and ids.shape == tokenizer.decode(ids).shape == (*leading, width)
    flat = [tokenizer.encode(row) for row in actions.reshape(-1, width)]
    np.testing.assert_array_equal(ids.reshape(-1, width), np.array(flat).reshape(-1, width))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_kind_of_number_is_read(dtype):
    actions = torch.tensor([[0.5, 3.0], [-1.0, 1.0]]).to(dtype)
    expected = make().encode(actions.double().numpy())
    np.testing.assert_array_equal(make().encode(actions.clone().requires_grad_(dtype.is_floating_point)), expected)
    np.testing.assert_array_equal(make().encode(actions.tolist()), expected)


def test_a_hundred_thousand_actions_in_a_second():
    tokenizer = make(num_bins=256, limits={"libero": LIBERO_ACTION_LIMITS})
    actions = np.random.default_rng(0).uniform(-1, 1, (100_000, 7))
    start = time.process_time()
    tokenizer.decode(tokenizer.encode(actions))
    assert time.process_time() - start < 1


def test_clipped_values_are_counted():
    tokenizer = make()
    actions = np.array([[1.5, 2.0], [1.0 + 1e-9, 4.0], [-1.01, -0.1]])
    assert tokenizer.count_clipped(actions).tolist() == [2, 1]
    assert tokenizer.count_clipped(torch.from_numpy(actions)[None]).tolist() == [2, 1]
    assert tokenizer.encode(actions).tolist() == [[103, 102], [103, 103], [100, 100]]
    assert tokenizer.count_clipped(np.float32([[0.9, 3.9]])).tolist() == [0, 0]


def test_commands_far_outside_the_limits_are_clipped():
    for binning, last in (("uniform", 103), ("official", 103)):
        ids = make(binning).encode(np.array([[1e308, -1e308]]))
        assert ids.tolist() == [[last, 100]]


def test_limits_from_data():
    actions = np.arange(202, dtype=float).reshape(101, 2)
    assert measure_action_limits(actions) == {"low": [0.0, 1.0], "high": [200.0, 201.0]}
    assert measure_action_limits(actions, quantile=0.01) == {"low": [2.0, 3.0], "high": [198.0, 199.0]}
    assert measure_action_limits(torch.from_numpy(actions).bfloat16())["high"] == [200.0, 201.0]
    assert measure_action_limits(np.ones((3, 2))) == {"low": [1.0, 1.0], "high": [1.0, 1.0]}
    for empty in (np.zeros((0, 7)), np.zeros(7), []):
        with pytest.raises(ValueError, match=r"need an array of shape \(..., D\) with values"):
            measure_action_limits(empty)
    with pytest.raises(ValueError, match=r"finite numbers, got nan at position \(2, 1\)"):
        measure_action_limits(np.array([[0, 1], [2, 3], [4, np.nan]]))
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
        ([[0.0, 1.0], [0.0]], "Actions must be numbers of shape .*rows of different lengths"),
        (np.array([[True, False]]), "Actions must be numbers, got an array of bool"),
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
        (
            {"limits": {"a": {"low": [0.0, 2.0], "high": [1.0, 1.0]}}},
            r"`a` must be finite with low <= high .* got low 2.0 and high 1.0 in dimension 1. `measure_action_limits",
        ),
        ({"limits": {"a": {"low": [np.nan], "high": [1.0]}}}, "must be finite .* got low nan"),
        ({"limits": {"a": {"low": [-1e308], "high": [1.7e308]}}}, "must be finite .* got low -1e.308"),
        ({"limits": {"a": {"low": ["x"], "high": [1.0]}}}, "`high` of `a` must be lists of numbers, got {'low'"),
        ({"limits": {**UNIT, "a": {"low": [0.0], "high": [1.0]}}}, "one action width, got {'unit': 2, 'a': 1}"),
    ],
)
def test_unusable_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
