import itertools

import numpy as np
import pytest
import torch

from train.codebook import CodebookUsage
from train.frames import RegionBatch, draw_batches, paint_regions
from train.vqgan_losses import codebook_loss, crop_regions, psnr_per_picture, reconstruction_loss, region_loss
from train.weight_average import WeightAverage


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


def test_reconstruction_loss_is_a_mean_over_pictures():
    torch.manual_seed(0)
    frames, decoded, weights = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5), 1 + torch.rand(4, 1, 5, 5)
    halves = [reconstruction_loss(decoded[part], frames[part], weights[part], 1.0) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(reconstruction_loss(decoded, frames, weights, 1.0), sum(halves) / 2)


def test_codebook_loss_by_hand():
    latents = torch.tensor([[[[1.0]], [[0.0]]]], requires_grad=True)
    codes = torch.tensor([[[[3.0]], [[0.0]]]], requires_grad=True)
    loss = codebook_loss(latents, codes, commitment_weight=0.25)
    loss.backward()
    assert loss.item() == pytest.approx(1.25 * 2.0)  # squared differences 4 and 0
    assert codes.grad.flatten().tolist() == pytest.approx([2.0, 0.0])
    assert latents.grad.flatten().tolist() == pytest.approx([-0.5, 0.0])


def test_crops_lie_where_their_boxes_do():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramp = torch.stack([rows, columns])  # a pixel's value is its place, its centre half a pixel further
    pictures = torch.stack([ramp, ramp + 100])
    boxes = torch.tensor([[2.0, 1.0, 6.0, 5.0], [1.0, 2.0, 7.0, 4.0]])
    crops = crop_regions(pictures, boxes, torch.tensor([1, 0]), patch_size=8)
    steps = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(crops[0, 0, :, 3], 100 + 2 + 4 * steps - 0.5)
    torch.testing.assert_close(crops[0, 1, 3], 100 + 1 + 4 * steps - 0.5)
    torch.testing.assert_close(crops[1, 0, :, 0], 1 + 6 * steps - 0.5)
    torch.testing.assert_close(crops[1, 1, 0], 2 + 2 * steps - 0.5)


def test_a_crop_of_everything_is_the_picture():
    pictures = torch.rand(2, 3, 8, 8)
    crops = crop_regions(pictures, torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([1]), patch_size=8)
    torch.testing.assert_close(crops[0], pictures[1])


def test_large_regions_are_averaged_down():
    stripes = torch.zeros(1, 1, 16, 16)
    stripes[..., ::2] = 1.0
    crop = crop_regions(stripes, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([0]), patch_size=4)
    torch.testing.assert_close(crop, torch.full((1, 1, 4, 4), 0.5))


def test_crops_pass_gradients_only_to_their_box():
    pictures = torch.rand(1, 1, 8, 8, requires_grad=True)
    crop_regions(pictures, torch.tensor([[2.0, 2.0, 6.0, 6.0]]), torch.tensor([0]), patch_size=4).sum().backward()
    touched = pictures.grad[0, 0] > 0
    assert touched[2:6, 2:6].all() and touched.sum() <= 36  # the box, and at most the pixels that touch it


def regions_of(boxes, picture, weights, scale=1.0):
    return RegionBatch(torch.tensor(boxes, dtype=torch.float32), torch.tensor(picture), torch.tensor(weights), scale)


def squared_distance(first, second):
    return (first - second).square().mean((1, 2, 3))


def test_region_loss_weighs_regions_within_a_picture_and_averages_pictures():
    frames, decoded = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    decoded[0, :, :4], decoded[0, :, 4:] = 1.0, 2.0
    regions = regions_of([[0, 0, 3, 8], [5, 0, 8, 8]], [0, 0], [3.0, 1.0])
    loss = region_loss(frames, decoded, regions, squared_distance, patch_size=4)
    assert loss.item() == pytest.approx((0.75 * 1.0 + 0.25 * 4.0) / 2, rel=1e-4)  # the second picture has no region


def test_region_loss_without_regions_is_a_zero_with_gradient():
    decoded = torch.rand(2, 3, 8, 8, requires_grad=True)
    empty = RegionBatch(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0), 1.0)
    loss = region_loss(torch.rand(2, 3, 8, 8), decoded, empty, squared_distance, patch_size=4)
    loss.backward()
    assert loss.item() == 0 and decoded.grad.abs().sum() == 0


def test_painted_regions_keep_the_largest_weight():
    first = regions_of([[0, 0, 2, 4], [1, 0, 3, 4]], [0, 0], [1.0, 2.0], scale=0.5)
    second = regions_of([[2, 2, 4, 4]], [0], [0.7])
    painted = paint_regions([first, second], 2, (4, 4))
    assert painted[0, 0].tolist() == [
        [0.5] * 4,
        [1.0] * 4,
        [1.0] * 4,
        [0, 0, pytest.approx(0.7), pytest.approx(0.7)],
    ]
    assert painted[1].sum() == 0


def test_psnr_by_hand_overall_and_inside():
    frames, decoded = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    decoded[:, :, 0, 0] = 0.2
    where = torch.zeros(2, 1, 2, 2)
    where[0, 0, 0, 0] = 1
    assert psnr_per_picture(decoded, frames)[0].item() == pytest.approx(10 * np.log10(4 / 0.01), rel=1e-5)
    inside = psnr_per_picture(decoded, frames, where)
    assert inside[0].item() == pytest.approx(10 * np.log10(4 / 0.04), rel=1e-5)
    assert inside[1].isnan()


def test_dead_codes_move_onto_latents_and_used_ones_stay():
    usage = CodebookUsage(4, torch.device("cpu"))
    usage.update(torch.tensor([0, 0, 2, 2]))
    codebook = torch.arange(8.0).reshape(4, 2)
    latents = torch.full((5, 2), -1.0)
    assert usage.revive(codebook, latents, torch.Generator().manual_seed(0)).tolist() == [1, 3]
    assert codebook.tolist() == [[0, 1], [-1, -1], [4, 5], [-1, -1]]
    assert usage.counts.sum() == 0


def test_usage_since_the_last_summary():
    usage = CodebookUsage(4, torch.device("cpu"))
    usage.update(torch.tensor([0, 0, 2, 2]))
    usage.revive(torch.zeros(4, 2), torch.zeros(5, 2), torch.Generator())
    assert usage.summary() == {"perplexity": pytest.approx(2.0), "codes_used": 0.5}
    usage.update(torch.tensor([1]))
    assert usage.summary() == {"perplexity": pytest.approx(1.0), "codes_used": 0.25}


def test_weight_average_follows_slowly_and_forgets_replaced_rows():
    model = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.1)
    torch.nn.init.ones_(model.weight)
    average.update(model)
    assert average.weights["weight"].flatten().tolist() == pytest.approx([0.9, 0.9])
    average.replace_rows("weight", torch.tensor([1]), torch.tensor([[5.0], [7.0]]))
    assert average.weights["weight"].flatten().tolist() == pytest.approx([0.9, 7.0])
    other = torch.nn.Linear(1, 2, bias=False)
    average.copy_to(other)
    assert other.weight.flatten().tolist() == pytest.approx([0.9, 7.0])


def test_weight_average_begins_with_a_small_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.999)
    torch.nn.init.ones_(model.weight)
    average.update(model)
    assert average.weights["weight"].item() == pytest.approx(1 - 2 / 11)
