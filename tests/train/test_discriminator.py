import pytest
import torch
from accelerate import Accelerator

from train.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from train.frames import FrameBatch
from train.vqgan_arguments import VQGANArguments
from train.vqgan_losses import reconstruction_loss
from train.vqgan_objective import Adversary, VQGANObjective


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
    decoded = layer * 2
    quality, adversarial = torch.tensor([1.5, 2.0]), torch.tensor([0.0, 0.25])  # at the layer: (3, 4) and (0, 0.5)
    assert adaptive_weight(quality, adversarial, decoded, layer).item() == pytest.approx(5.0 / 0.5001)
    assert adaptive_weight(quality * 1e6, adversarial * 1e-12, decoded, layer).item() == 1e4


def test_the_loss_has_the_gradient_of_its_terms():
    """Both networks are passed once; the result must be the gradient of quality + weight * adversarial."""
    torch.manual_seed(0)
    arguments = VQGANArguments("out", ["d"], perceptual="segmentation_features", adversarial_weight=0.3)
    decoder = torch.nn.Conv2d(4, 3, 3, padding=1)
    objective = VQGANObjective(arguments, Accelerator(cpu=True), decoder.weight)
    frames, latents, codes = torch.rand(2, 3, 32, 32), torch.rand(2, 4, 2, 2), torch.rand(2, 4, 2, 2)
    batch = FrameBatch(frames, torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32), {})
    hidden = torch.rand(2, 4, 32, 32)

    result = {"decoded": decoder(hidden), "latents": latents, "codes": codes}
    loss, terms = objective.loss(batch, result, done=1)
    (found,) = torch.autograd.grad(loss, decoder.weight)

    decoded = decoder(hidden)
    quality = reconstruction_loss(decoded, frames, torch.ones(2, 1, 32, 32), 1.0)
    quality = quality + objective.distance(frames, decoded).mean()
    score = -objective.adversary.score(decoded).mean()
    pulls = [torch.autograd.grad(term, decoder.weight, retain_graph=True)[0] for term in (quality, score)]
    weight = 0.3 * pulls[0].norm() / (pulls[1].norm() + 1e-4)
    torch.testing.assert_close(found, pulls[0] + weight * pulls[1])
    torch.testing.assert_close(terms["adversarial"], (weight * score).detach())
    assert all(value.grad is None for value in objective.adversary.network.parameters())


def test_the_discriminator_warms_up_before_it_is_heeded():
    arguments = VQGANArguments("o", ["d"], adversarial_weight=1.0, adversarial_start=5, discriminator_warmup=2)
    adversary = Adversary(arguments, Accelerator(cpu=True))
    assert [done for done in range(1, 8) if adversary.learns(done)] == [4, 5, 6, 7]
