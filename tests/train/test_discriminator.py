import pytest
import torch

from train.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss


@pytest.mark.parametrize(("layers", "patches"), [(2, 6), (3, 2)])
def test_a_patch_is_judged_by_what_it_covers(layers, patches):
    network = PatchDiscriminator(channels=8, num_layers=layers)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 1, patches, patches)


def test_scores_do_not_depend_on_the_rest_of_the_batch():
    network, pictures = PatchDiscriminator(channels=8, num_layers=2), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(pictures)[1:2], network(pictures[1:2]))


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))


def test_the_discriminator_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    network = PatchDiscriminator(channels=8, num_layers=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    sharp = torch.rand(8, 3, 32, 32) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(sharp, 5, 1, 2)
    losses = []
    for _ in range(30):
        losses.append(discriminator_loss(network(sharp), network(blurred)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_adaptive_weight_makes_both_terms_pull_alike():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    quality, adversarial = (layer * torch.tensor([3.0, 4.0])).sum(), (layer * torch.tensor([0.0, 0.5])).sum()
    assert adaptive_weight(quality, adversarial, layer).item() == pytest.approx(5.0 / 0.5001)
    vanishing = (layer * 1e-12).sum()
    assert adaptive_weight(quality * 1e6, vanishing, layer).item() == 1e4
