"""The loss of a VQ-GAN, put together from its terms, and its adversary.

Shapes: `B` pictures, `H, W` pixels.
"""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from train.arguments import VQGANArguments
from train.discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from train.frames import FrameBatch
from train.perceptual import make_perceptual_distance
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

    def terms(self, batch: FrameBatch, result: dict[str, Tensor], done: int) -> dict[str, Tensor]:
        """Compute the terms; their sum is what the VQ-GAN descends.

        Args:
            batch (`FrameBatch`): recorded pictures with their regions.
            result (`dict`): what `train.vqgan_trainer.Reconstruction` gave for them.
            done (`int`): number of the step, from 1.

        Returns:
            `dict[str, torch.Tensor]`: scalars with gradient, by name, each with its weight.
        """
        arguments, decoded = self.arguments, result["decoded"]
        weights = pixel_weights(batch, arguments.moving_region_weight, arguments.region_pixel_weight)
        terms = {"reconstruction": reconstruction_loss(decoded, batch.frames, weights, arguments.l2_weight)}
        if self.distance is not None:
            if arguments.perceptual_weight:
                terms["perceptual"] = arguments.perceptual_weight * self._compare(batch.frames, decoded).mean()
            for name, regions in batch.regions.items():
                loss = region_loss(batch.frames, decoded, regions, self._compare, arguments.region_patch_size)
                terms[f"regions_{name}"] = regions.scale * loss
        if self.adversary is not None and done > arguments.adversarial_start:
            terms["adversarial"] = self._adversarial(terms, decoded)
        codes = codebook_loss(result["latents"], result["codes"], arguments.commitment_weight)
        return terms | {"codebook": arguments.codebook_weight * codes}

    def _compare(self, recorded: Tensor, reconstructed: Tensor) -> Tensor:
        """Distances `(B,)` in feature space, in the run's precision."""
        with self.accelerator.autocast():
            return self.distance(recorded, reconstructed)

    def _adversarial(self, terms: dict[str, Tensor], decoded: Tensor) -> Tensor:
        """Minus the adversary's score, weighted so that it pulls as hard as `terms` do."""
        loss = -self.adversary.score(decoded).mean()  # type: ignore[union-attr]
        quality = torch.stack(list(terms.values())).sum()
        weight = adaptive_weight(
            quality, loss, self.last_layer, reduce=lambda gradient: self.accelerator.reduce(gradient, "mean")
        )
        return self.arguments.adversarial_weight * weight * loss


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
