"""The loss of a VQ-GAN, put together from its terms, and its adversary.

Shapes: `B` pictures, `H, W` pixels.
"""

import logging
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from train.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from train.frames import FrameBatch
from train.perceptual import make_perceptual_distance
from train.vqgan_arguments import VQGANArguments
from train.vqgan_losses import codebook_loss, pixel_weights, reconstruction_loss, region_loss

logger = logging.getLogger("worldvla.vqgan")


class VQGANObjective:
    """The weighted terms of the loss.

    Args:
        arguments (`VQGANArguments`): which terms, and their weights.
        accelerator (`Accelerator`): device, precision and processes.
        last_layer (`torch.Tensor`): weight of the decoder's last convolution, where the terms' pulls are compared.
    """

    def __init__(self, arguments: VQGANArguments, accelerator: Accelerator, last_layer: Tensor) -> None:
        self.arguments, self.accelerator, self.last_layer = arguments, accelerator, last_layer
        distance = make_perceptual_distance(arguments.perceptual)
        self.distance: Any = None if distance is None else distance.to(accelerator.device)
        self.adversary = Adversary(arguments, accelerator) if arguments.adversarial_weight else None
        if arguments.regions and self.distance is None:
            logger.warning("No region loss with `--perceptual none`: regions only weigh pixels and are judged.")

    def loss(self, batch: FrameBatch, result: dict[str, Tensor], done: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute what the VQ-GAN descends.

        Args:
            batch (`FrameBatch`): recorded pictures with their regions.
            result (`dict`): what `train.vqgan_trainer.Reconstruction` gave for them.
            done (`int`): number of the step, from 1.

        Returns:
            `tuple`: a scalar whose gradient is that of the loss, and the terms by name: detached scalars, each with
            its weight. With an adversary the first is not the terms' sum, but has its gradient.
        """
        arguments, decoded = self.arguments, result["decoded"]
        codes = arguments.codebook_weight * codebook_loss(
            result["latents"], result["codes"], arguments.commitment_weight
        )
        terms = self._quality(batch, decoded)
        total = torch.stack(list(terms.values())).sum()
        if self.adversary is not None and done > arguments.adversarial_start:
            total, terms["adversarial"] = self._add_adversary(self.adversary, total, decoded)
        terms["codebook"] = codes
        return total + codes, {name: term.detach() for name, term in terms.items()}

    def _quality(self, batch: FrameBatch, decoded: Tensor) -> dict[str, Tensor]:
        """The terms that compare decoded with recorded pictures."""
        arguments = self.arguments
        weights = pixel_weights(batch, arguments.moving_region_weight, arguments.region_pixel_weight)
        terms = {"reconstruction": reconstruction_loss(decoded, batch.frames, weights, arguments.l2_weight)}
        if self.distance is None:
            return terms
        if arguments.perceptual_weight:
            terms["perceptual"] = arguments.perceptual_weight * self._compare(batch.frames, decoded).mean()
        for name, regions in batch.regions.items():
            loss = region_loss(batch.frames, decoded, regions, self._compare, arguments.region_patch_size)
            terms[f"regions_{name}"] = regions.scale * loss
        return terms

    def _compare(self, recorded: Tensor, reconstructed: Tensor) -> Tensor:
        """Distances `(B,)` in feature space, in the run's precision."""
        with self.accelerator.autocast():
            return self.distance(recorded, reconstructed)

    def _add_adversary(self, adversary: "Adversary", quality: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Join minus the adversary's score to the other terms, so weighted that it pulls as hard as they do.

        The weight needs both gradients at the decoder. To go through the perceptual network and the discriminator only
        once, their gradients are kept, and the result is linear in `decoded` with their sum as its slope.
        """
        score = -adversary.score(decoded).mean()
        pull_quality, pull_adversary = (torch.autograd.grad(term, decoded)[0] for term in (quality, score))
        weight = self.arguments.adversarial_weight * adaptive_weight(
            pull_quality, pull_adversary, decoded, self.last_layer, partial(self.accelerator.reduce, reduction="mean")
        )
        return (decoded * (pull_quality + weight * pull_adversary)).sum(), weight * score


class Adversary:
    """A discriminator that learns beside the VQ-GAN, with an optimizer of its own.

    Args:
        arguments (`VQGANArguments`): its sizes and when it begins.
        accelerator (`Accelerator`): device, precision and processes; its checkpoints hold the discriminator.
    """

    def __init__(self, arguments: VQGANArguments, accelerator: Accelerator) -> None:
        self.arguments, self.accelerator = arguments, accelerator
        network = PatchDiscriminator(arguments.discriminator_channels, arguments.discriminator_layers)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=arguments.discriminator_learning_rate, betas=(0.5, 0.9), weight_decay=0
        )
        self._network = network
        self.network, self.optimizer = accelerator.prepare(network, optimizer)

    def score(self, reconstructed: Tensor) -> Tensor:
        """Judge reconstructions for the VQ-GAN's sake: the gradient reaches the pictures, not the discriminator.

        Args:
            reconstructed (`torch.FloatTensor` of shape `(B, 3, H, W)`): decoded pictures.

        Returns:
            `torch.FloatTensor`: one score a patch.
        """
        self._network.requires_grad_(False)
        try:
            return self._network(reconstructed)
        finally:
            self._network.requires_grad_(True)

    def loss(self, recorded: Tensor, reconstructed: Tensor) -> Tensor:
        """Compute what the discriminator descends.

        Args:
            recorded (`torch.FloatTensor` of shape `(B, 3, H, W)`): recorded pictures.
            reconstructed (`torch.FloatTensor` of shape `(B, 3, H, W)`): decoded pictures; they get no gradient.

        Returns:
            `torch.FloatTensor`: a scalar.
        """
        real, fake = self.network(torch.cat([recorded, reconstructed.detach()])).chunk(2)
        return discriminator_loss(real, fake)

    def learns(self, done: int) -> bool:
        """Whether the discriminator learns in step `done`: it warms up before the VQ-GAN heeds it."""
        return done > self.arguments.adversarial_start - self.arguments.discriminator_warmup

    def descend(self, loss: Tensor) -> Any:
        """Compute the gradient of a loss and clip it; returns its norm."""
        self.accelerator.backward(loss)
        return self.accelerator.clip_grad_norm_(self.network.parameters(), self.arguments.max_grad_norm)

    def step(self) -> None:
        """Take the step that `descend` prepared."""
        self.optimizer.step()
        self.optimizer.zero_grad()
