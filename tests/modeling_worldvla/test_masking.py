from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_worldvla import WorldVLAConfig, build_action_attention_mask
from modeling_worldvla.masking_worldvla import check_markers, compute_action_block_ids

from .sequences import Writer, pad_left, tiny_config

RECORDED = np.load(Path(__file__).parents[1] / "fixtures" / "recorded_masks.npz")
CASES = sorted({name.split("/")[0] for name in RECORDED.files})
# There the official code fails or returns what no rule explains; we refuse.
MALFORMED = {"stray_end_head", "stray_end_tail", "two_unclosed", "unclosed_then_closed"}
OFFICIAL = WorldVLAConfig()
TINY = tiny_config()


def block_ids_by_hand(tokens, config):
    """The rule of docs/attention_mask.md, token by token."""
    ids, number, current = [], 0, 0
    for position, token in enumerate(tokens):
        if token == config.boa_token_id:
            number += 1
            image_follows = config.boi_token_id in tokens[position:]
            open_image = config.boi_token_id in tokens[:position] and config.eoi_token_id not in tokens[:position]
            current = -number if image_follows or open_image else number
        ids.append(current)
        if token == config.eoa_token_id:
            current = 0
    return ids


def mask_by_hand(ids):
    return [
        [k <= q and (ids[q] <= 0 or ids[k] == 0 or ids[q] == ids[k]) for k in range(len(ids))] for q in range(len(ids))
    ]


def test_block_ids_by_eye():
    ids = torch.tensor([[0, 110, 7, 30, 8, 3, 10, 10, 60, 5, 4, 6, 7, 31, 8, 111, 7, 32, 8, 6]])
    expected = [0, 0, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 0, 3, 3, 3, 0]
    assert compute_action_block_ids(ids, TINY).tolist() == [expected]


def test_mask_by_eye():
    """One frame, two actions: the second action sees the frame and itself, the separator sees all."""
    mask = build_action_attention_mask(torch.tensor([[0, 6, 7, 30, 8, 7, 31, 8, 6]]), TINY)
    expected = """
        1 . . . . . . . .
        1 1 . . . . . . .
        1 1 1 . . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 1 . . . .
        1 1 . . . 1 . . .
        1 1 . . . 1 1 . .
        1 1 . . . 1 1 1 .
        1 1 1 1 1 1 1 1 1"""
    assert mask.dtype == torch.bool
    assert mask[0].int().tolist() == [[int(c == "1") for c in line.split()] for line in expected.strip().splitlines()]


@pytest.mark.parametrize("case", [case for case in CASES if case not in MALFORMED])
def test_recorded_masks(case):
    tokens = torch.from_numpy(np.atleast_2d(RECORDED[f"{case}/tokens"]).astype(np.int64))
    recorded = np.unpackbits(RECORDED[f"{case}/m3"], axis=-1, count=tokens.shape[1]).astype(bool)
    assert np.array_equal(build_action_attention_mask(tokens, OFFICIAL).numpy(), recorded)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("stray_end_head", r"end of action \(`eoa_token_id` 15004\) at position 1 where no action block is open"),
        ("stray_end_tail", r"end of action \(`eoa_token_id` 15004\) at position 42 where no action block is open"),
        (
            "two_unclosed",
            r"begin of action .* at position 29 where the action block begun at position 24 is not closed",
        ),
        ("unclosed_then_closed", r"at position 29 where the action block begun at position 24 is not closed"),
    ],
)
def test_malformed_markers_are_refused(case, message):
    tokens = torch.from_numpy(np.atleast_2d(RECORDED[f"{case}/tokens"]).astype(np.int64))
    with pytest.raises(ValueError, match=message):
        build_action_attention_mask(tokens, OFFICIAL)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3, 10, 3], "begin of image .* at position 2 where the image block begun at position 0 is not closed"),
        ([3, 10, 7], "begin of action .* at position 2 where the image block begun at position 0"),
        ([7, 30, 3], "begin of image .* at position 2 where the action block begun at position 0"),
        ([7, 30, 4], "end of image .* at position 2 where the action block begun at position 0"),
        ([3, 10, 8], "end of action .* at position 2 where the image block begun at position 0"),
    ],
)
def test_markers_inside_another_block_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        build_action_attention_mask(torch.tensor([[0, 0, 0], tokens]), TINY)


def test_the_message_names_the_row():
    with pytest.raises(ValueError, match="row 1 has an end of action"):
        check_markers(torch.tensor([[0, 6], [0, 8]]), TINY)


def test_a_missing_batch_axis_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\). Add the batch axis"):
        build_action_attention_mask(torch.tensor([0, 110, 6]), TINY)


blocks = st.lists(st.sampled_from(["text", "image", "action", "sep"]), max_size=9)


@settings(max_examples=60, deadline=None)
@given(blocks, st.integers(0, 6), st.integers(0, 2**31))
def test_any_well_formed_sequence_follows_the_rule(names, cut, seed):
    writer = Writer(seed)
    make = {
        "text": lambda: writer.text(2),
        "image": lambda: writer.image(2, 2),
        "action": writer.action,
        "sep": lambda: [6],
    }
    tokens = [0] + sum((make[name]() for name in names), [])
    tokens = tokens[: max(1, len(tokens) - cut)]
    ids = torch.tensor([tokens])
    assert compute_action_block_ids(ids, TINY).tolist() == [block_ids_by_hand(tokens, TINY)]
    assert build_action_attention_mask(ids, TINY)[0].tolist() == mask_by_hand(block_ids_by_hand(tokens, TINY))


def test_padding_changes_nothing_among_real_tokens():
    writer = Writer(3)
    rows = [sum(writer.policy(5, 2), []), sum(writer.world_model(3, 2), [])]
    ids, attention_mask = pad_left(rows)
    mask = build_action_attention_mask(ids, TINY, attention_mask)
    for row, tokens in enumerate(rows):
        pad = ids.shape[1] - len(tokens)
        assert torch.equal(mask[row, pad:, pad:], build_action_attention_mask(torch.tensor([tokens]), TINY)[0])
        assert not mask[row, pad:, :pad].any()
        assert torch.equal(mask[row, :pad, :pad], torch.eye(pad, dtype=torch.bool))
