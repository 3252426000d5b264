"""Scores of recorded answers are those that decoding returns for the tokens it chose."""

import pytest
import torch

from .sequences import Writer, pad_left, tiny_model
from .test_imagination import SIDE, start

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
MASKS = [{}, {"use_action_attention_mask": False}]


@pytest.mark.parametrize("variant", MASKS)
@pytest.mark.parametrize("seed", range(20))
def test_a_chunk_scores_as_it_did_when_chosen(seed, variant):
    model, writer = tiny_model(seed, initializer_range=0.15, loss_chunk_size=7, **variant), Writer(seed)
    ids, mask = pad_left([writer.policy(3)[0], writer.policy(8)[0]])
    sampled = {"do_sample": True, "generator": torch.Generator().manual_seed(seed)} if seed % 2 else {}
    chunk = model.predict_action_chunk(ids, mask, chunk_size=3, return_dict_in_generate=True, **sampled)
    scores = model.score_action_chunk(ids, chunk.action_ids, mask)
    torch.testing.assert_close(scores.log_probs, chunk.log_probs, **CLOSE)
    torch.testing.assert_close(scores.entropies, chunk.entropies, **CLOSE)
    torch.testing.assert_close(scores.total_log_probs, chunk.log_probs.sum(dim=2), **CLOSE)


@pytest.mark.parametrize("seed", range(20))
def test_a_future_scores_as_it_did_when_imagined(seed):
    model, history = tiny_model(seed, initializer_range=0.15, **MASKS[seed // 3 % 2]), 1 + seed % 3
    *_, arguments = start(seed, 1, num_actions=3)
    sampled = {"do_sample": True, "generator": torch.Generator().manual_seed(seed)} if seed % 2 else {}
    out = model.imagine(**arguments, history=history, return_dict_in_generate=True, **sampled)
    scores = model.score_future(image_ids=out.image_ids, history=history, **arguments)
    assert scores.log_probs.shape == (2, 4, SIDE, SIDE)
    torch.testing.assert_close(scores.log_probs, out.log_probs, **CLOSE)
    torch.testing.assert_close(scores.entropies, out.entropies, **CLOSE)
    torch.testing.assert_close(scores.total_log_probs, out.log_probs.sum(dim=(2, 3)), **CLOSE)


def test_among_the_whole_vocabulary_as_in_the_loss():
    model, writer = tiny_model(1), Writer(1)
    prompt, chunk = writer.policy(4)[0], torch.randint(30, 50, (1, 4, 3))
    answer = [token for action in chunk[0].tolist() for token in [7, *action, 8]]
    whole = torch.tensor([prompt + answer])
    with torch.no_grad():
        log_probs = model(whole).logits.log_softmax(-1)[:, :-1].gather(-1, whole[:, 1:, None])[..., 0]
    places = torch.tensor([[len(prompt) + 5 * k + j for j in range(3)] for k in range(4)])
    scores = model.score_action_chunk(torch.tensor([prompt]), chunk)
    torch.testing.assert_close(scores.vocabulary_log_probs, log_probs[:, places], **CLOSE)
    assert (scores.vocabulary_log_probs < scores.log_probs).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_ids": torch.full((1, 2, 2, 4), 60)}, r"`image_ids` must be whole numbers of shape \(1, any, 2, 2\)"),
        ({"image_ids": torch.full((1, 2, 2, 2), 100)}, r"must lie in 60 … 99, got 100 at \(0, 0, 0, 0\)"),
        ({"actions": torch.full((1, 2, 3), 30)}, r"`actions` must be whole numbers of shape \(1, 1, 3\)"),
        ({"history": 0}, "`history` must be a whole number"),
    ],
)
def test_futures_that_cannot_be_scored_are_refused(changes, message):
    ids = torch.tensor([Writer().world_model(3, 1, 2, 2)[0]])
    arguments = {"image_ids": torch.full((1, 2, 2, 2), 60), "actions": torch.full((1, 1, 3), 30), **changes}
    with pytest.raises(ValueError, match=message):
        tiny_model().score_future(ids, **arguments)


def test_chunks_that_cannot_be_scored_are_refused():
    ids, model = torch.tensor([Writer().policy()[0]]), tiny_model()
    with pytest.raises(ValueError, match="`action_ids` must lie in 30 … 49, got 29"):
        model.score_action_chunk(ids, torch.full((1, 2, 3), 29))
    with pytest.raises(ValueError, match="`chunk_size` must be a whole number of at least 1, got 0"):
        model.score_action_chunk(ids, torch.full((1, 0, 3), 30))
