"""The adversary of a VQ-GAN: a network that judges patches, its hinge losses, and how much its judgement counts.

Shapes: `B` pictures, `H, W` pixels, `h, w` patches.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Narrower groups would hide how strong a pattern is, which tells a blurred picture.
CHANNELS_OF_A_NORM = 32


class PatchDiscriminator(nn.Sequential):
    """Scores overlapping patches of a picture: high for recorded ones, low for reconstructed ones.

    Convolutions of size 4, halving the picture `num_layers` times (PatchGAN; 70 x 70 pixels a patch at 3). Norms are
    over groups of channels rather than over the batch, so that a score does not depend on how a batch is divided.

    Args:
        channels (`int`): channels of the first layer; doubled by each, up to eight times.
        num_layers (`int`): convolutions that halve the picture.

    References:
        pix2pix (arXiv 1611.07004) §3.2.2; its use in a VQ-GAN: arXiv 2012.09841 §3.1.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3) -> None:
        widths = [channels * min(2**layer, 8) for layer in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, num_layers + 1):
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(widths[layer], max(1, widths[layer] // CHANNELS_OF_A_NORM)), widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        super().__init__(*layers)
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator.

    Args:
        real (`torch.FloatTensor` of shape `(B, 1, h, w)`): scores of recorded pictures.
        fake (`torch.FloatTensor` of shape `(B, 1, h, w)`): scores of reconstructed pictures.

    Returns:
        `torch.FloatTensor`: a scalar, `½ (mean max(0, 1 − real) + mean max(0, 1 + fake))`.

    References:
        Geometric GAN (arXiv 1705.02894); the factor ½ as in VQ-GAN's official code.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(
    quality: Tensor,
    adversarial: Tensor,
    decoded: Tensor,
    last_layer: Tensor,
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    most: float = 1e4,
) -> Tensor:
    """How much the adversarial term counts so that it pulls as hard as the others at the decoder's last layer.

    Args:
        quality (`torch.FloatTensor` of shape `(B, 3, H, W)`): gradient of reconstruction and perceptual terms with
            respect to `decoded`.
        adversarial (`torch.FloatTensor` of shape `(B, 3, H, W)`): the same of the adversarial term.
        decoded (`torch.FloatTensor` of shape `(B, 3, H, W)`): decoded pictures, with their graph, which is kept.
        last_layer (`torch.Tensor`): weight of the decoder's last convolution.
        reduce (`Callable`): averages a gradient over all processes.
        most (`float`): upper limit.

    Returns:
        `torch.FloatTensor`: scalar without gradient, `‖∇ quality‖ / (‖∇ adversarial‖ + 1e-4)`, gradients with respect
        to `last_layer`.

    References:
        VQ-GAN (arXiv 2012.09841) eq. 7; constants of its official code.
    """
    norms = [
        reduce(torch.autograd.grad(decoded, last_layer, pull, retain_graph=True)[0].float()).norm()
        for pull in (quality, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, most)
