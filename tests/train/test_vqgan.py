import itertools

import numpy as np
import pytest
import torch

from train.run_vqgan import draw_batches
from train.vqgan_losses import CodebookUsage, reconstruction_loss


def test_every_frame_once_an_epoch():
    batches = list(itertools.islice(draw_batches(10, 4, seed=3, first_step=0), 5))
    seen = np.concatenate(batches)
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_resumed_order_equals_uninterrupted_order(first_step):
    whole = list(itertools.islice(draw_batches(10, 4, seed=3, first_step=0), 12))
    rest = list(itertools.islice(draw_batches(10, 4, seed=3, first_step=first_step), 12 - first_step))
    for expected, found in zip(whole[first_step:], rest, strict=True):
        np.testing.assert_array_equal(expected, found)


def test_reconstruction_loss_by_hand():
    frames = torch.zeros(1, 3, 1, 2)
    decoded = torch.zeros(1, 3, 1, 2)
    decoded[..., 1] = 0.5
    weights = torch.tensor([[[[1.0, 3.0]]]])
    # Pixel 0 is exact; pixel 1 is off by 0.5: (0.5 + 2 * 0.25) weighs 3 of 4.
    assert reconstruction_loss(decoded, frames, weights, l2_weight=2.0).item() == pytest.approx(0.75)


def test_dead_codes_move_onto_latents_and_used_ones_stay():
    usage = CodebookUsage(4, torch.device("cpu"))
    usage.update(torch.tensor([0, 0, 2, 2]))
    assert usage.perplexity == pytest.approx(2.0)
    codebook = torch.arange(8.0).reshape(4, 2)
    latents = torch.full((5, 2), -1.0)
    assert usage.revive(codebook, latents, torch.Generator().manual_seed(0)) == 2
    assert codebook.tolist() == [[0, 1], [-1, -1], [4, 5], [-1, -1]]
    assert usage.counts.sum() == 0
