"""Decoding frames by draft: the answer never depends on the draft, greedy or drawn."""

import itertools
import math

import pytest
import torch

from modeling_worldvla import generation_worldvla
from modeling_worldvla.prompt_checks_worldvla import DRAFTS
from modeling_worldvla.stream_decoding_worldvla import best_draft_length

from .sequences import Writer, pad_left, tiny_model

SIDE = 4


def draft_with(monkeypatch, codes):
    """Let `codes` `(B, h, w)` be the draft, whatever the last frame of the prompt is."""
    original = generation_worldvla.last_image_blocks

    def replaced(*arguments):
        blocks, height, width = original(*arguments)
        rows = torch.nn.functional.pad(codes, (0, 1), value=blocks[0, 3 + width])
        return torch.cat([blocks[:, :3], rows.flatten(1)], dim=1), height, width

    monkeypatch.setattr(generation_worldvla, "last_image_blocks", replaced)


def prompts_of(seed, count=4):
    writer = Writer(seed)
    return pad_left([writer.world_model(text, 1, SIDE, SIDE)[0] for text in range(3, 3 + count)])


def spoil(codes, shares, generator):
    """Replace a share of each row's codes by others."""
    wrong = torch.rand(codes.shape, generator=generator) < torch.tensor(shares)[:, None, None]
    return torch.where(wrong, 60 + (codes - 60 + 1) % 40, codes)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_rows_with_different_drafts_equal_decoding_without(seed, sampled, monkeypatch):
    model = tiny_model(seed, initializer_range=0.1 if sampled else 0.3)
    ids, mask = prompts_of(seed)

    def frame(draft):
        options = {"do_sample": True, "generator": torch.Generator().manual_seed(seed)} if sampled else {}
        return model.predict_next_frame(ids, mask, draft=draft, return_dict_in_generate=True, **options)

    expected = frame("none")
    drafted = spoil(expected.image_ids, [0.0, 0.2, 0.6, 1.0], torch.Generator().manual_seed(seed))
    draft_with(monkeypatch, drafted)
    outputs = {draft: frame(draft) for draft in ("last_frame", "jacobi")}
    for out in outputs.values():
        assert torch.equal(out.image_ids, expected.image_ids)
        torch.testing.assert_close(out.log_probs, expected.log_probs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.entropies, expected.entropies, atol=1e-4, rtol=1e-4)
        assert out.acceptance_rate[0] == 1 and out.num_forwards <= expected.num_forwards
    right = (drafted == expected.image_ids).float().mean(dim=(1, 2))
    assert torch.equal(outputs["last_frame"].acceptance_rate, right) and right[1] > right[3] == 0
    assert expected.acceptance_rate is None and expected.num_forwards == SIDE * SIDE


def test_a_right_draft_saves_forwards_and_a_wrong_one_costs_none(monkeypatch):
    model, (ids, mask) = tiny_model(3), prompts_of(3, count=1)
    calls = []
    model.model.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
    expected = model.predict_next_frame(ids, mask, draft="none")
    draft_with(monkeypatch, expected)
    right = model.predict_next_frame(ids, mask, draft="last_frame", return_dict_in_generate=True)
    assert right.acceptance_rate.tolist() == [1.0] and right.num_forwards <= 2
    assert right.tokens_per_forward == (4 + SIDE * (SIDE + 1)) / right.num_forwards
    draft_with(monkeypatch, spoil(expected, [1.0], torch.Generator()))
    calls.clear()
    wrong = model.predict_next_frame(ids, mask, draft="last_frame", return_dict_in_generate=True)
    assert wrong.acceptance_rate.tolist() == [0.0] and wrong.num_forwards == SIDE * SIDE == len(calls)
    assert all(count <= 2 for count in calls[-4:])  # by then blocks have shrunk to one code, and the end of a row


def test_frame_scores_are_those_of_a_full_forward():
    model, (ids, mask) = tiny_model(1), prompts_of(1, count=2)
    out = model.predict_next_frame(ids, mask, return_dict_in_generate=True)
    codes = out.image_ids
    rows = torch.nn.functional.pad(codes, (0, 1), value=5).flatten(1)
    opening = torch.tensor([[3, 9 + SIDE // 2, 9 + SIDE // 2]]).expand(len(ids), 3)
    whole = torch.cat([ids, opening, rows], dim=1)
    mask = torch.nn.functional.pad(mask, (0, whole.shape[1] - mask.shape[1]), value=1)
    with torch.no_grad():
        logits = model(whole, attention_mask=mask).logits[:, ids.shape[1] + 2 : -1, 60:100]
    log_probs = logits.log_softmax(-1)
    places = [place for place in range(rows.shape[1]) if place % (SIDE + 1) != SIDE]
    log_probs = log_probs[:, places].view(len(ids), SIDE, SIDE, -1)
    torch.testing.assert_close(out.log_probs, log_probs.gather(-1, codes[..., None] - 60)[..., 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.entropies, -(log_probs.exp() * log_probs).sum(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.mean_log_prob, out.log_probs.mean(dim=(1, 2)))
    torch.testing.assert_close(out.mean_entropy, out.entropies.mean(dim=(1, 2)))


def chi_square_limit(degrees):
    """The value exceeded once in a thousand times (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("draft", DRAFTS)
def test_drawn_frames_follow_the_distribution_of_the_model(draft):
    """All 81 frames of 2 x 2 codes out of three, against their exact probabilities."""
    model, count = tiny_model(0, num_image_tokens=3, initializer_range=0.12), 3000
    prompt = [0, 150, 120, 3, 10, 10, 60, 61, 5, 62, 60, 5, 4, 7, 31, 32, 33, 8, 6]
    frames = torch.tensor(list(itertools.product(range(60, 63), repeat=4)))
    answers = torch.tensor([[3, 10, 10, a, b, 5, c, d, 5] for a, b, c, d in frames.tolist()])
    whole = torch.cat([torch.tensor([prompt]).expand(len(frames), -1), answers], dim=1)
    with torch.no_grad():
        log_probs = model(whole).logits[:, :, 60:63].log_softmax(-1)
    places = torch.tensor([2, 3, 5, 6]) + len(prompt)
    expected = log_probs[:, places].gather(-1, frames[..., None] - 60).sum(dim=(1, 2)).exp()
    assert abs(float(expected.sum()) - 1) < 1e-4 and 2 * float(expected.max()) > 3 / 81
    options = {"do_sample": True, "generator": torch.Generator().manual_seed(7)}
    drawn = model.predict_next_frame(torch.tensor([prompt]).expand(count, -1), draft=draft, **options)
    index = ((drawn.flatten(1) - 60) * torch.tensor([27, 9, 3, 1])).sum(dim=1)
    observed = torch.bincount(index, minlength=81).double()
    common = expected * count >= 5
    observed = torch.cat([observed[common], observed[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]).double() * count
    kept = wanted > 0
    statistic = float(((observed - wanted)[kept] ** 2 / wanted[kept]).sum())
    assert statistic < chi_square_limit(int(kept.sum()) - 1)


def test_the_block_is_as_long_as_it_pays():
    lengths = [best_draft_length(rate) for rate in (0.0, 0.04, 0.3, 0.6, 0.9, 0.99)]
    assert lengths[:2] == [0, 0] and lengths == sorted(lengths) and 8 <= lengths[4] <= 16
    assert best_draft_length(1.0) == 32


def test_unknown_drafts_are_refused():
    with pytest.raises(
        ValueError, match="Unknown draft `jacoby`.*`last_frame`, `jacobi`, `none`. Did you mean `jacobi`"
    ):
        tiny_model().predict_next_frame(prompts_of(0)[0], draft="jacoby")
