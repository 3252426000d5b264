"""What a VQ-GAN is trained on: weighted reconstruction, the codebook terms, and a remedy for dead codes.

Shapes: `B` frames, `C` channels, `H, W` pixels, `N` code positions of a batch, `E` code
dimensions.
"""

import torch
from torch import Tensor


def reconstruction_loss(reconstruction: Tensor, frames: Tensor, pixel_weights: Tensor, l2_weight: float) -> Tensor:
    """Weighted absolute plus squared error.

    Args:
        reconstruction (`torch.FloatTensor` of shape `(B, C, H, W)`): decoded frames in [−1, 1].
        frames (`torch.FloatTensor` of shape `(B, C, H, W)`): the frames themselves.
        pixel_weights (`torch.FloatTensor` of shape `(B, 1, H, W)`): weight of each pixel.
        l2_weight (`float`): weight of the squared error beside the absolute error.

    Returns:
        `torch.FloatTensor`: a scalar, the weighted mean over pixels and channels.
    """
    difference = reconstruction - frames
    error = difference.abs() + l2_weight * difference.square()
    return (error * pixel_weights).mean() / pixel_weights.mean()


class CodebookUsage:
    """Counts how often codes are used, and places the unused ones where latents are.

    A vector quantizer that starts from random codes soon uses a handful of them only. Codes that no latent chose since
    the last call are moved onto latents of the current batch (Jukebox, arXiv 2005.00341, §3, random restarts).

    Args:
        num_codes (`int`): size of the codebook.
        device (`torch.device`): where the counts live.
    """

    def __init__(self, num_codes: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_codes, device=device)

    def update(self, indices: Tensor) -> None:
        """Count the codes of one step.

        Args:
            indices (`torch.LongTensor` of shape `(N,)`): flat code indices.
        """
        self.counts += torch.bincount(indices, minlength=len(self.counts)).to(self.counts)

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy of code use since the last revival: how many codes are used as if evenly."""
        share = self.counts / self.counts.sum().clamp(min=1)
        return float(torch.exp(-(share * share.clamp(min=1e-10).log()).sum()))

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds of this object."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the counts of a checkpoint."""
        self.counts.copy_(state["counts"])

    @torch.no_grad()
    def revive(self, codebook: Tensor, latents: Tensor, generator: torch.Generator) -> int:
        """Move unused codes onto random latents, and start counting anew.

        Args:
            codebook (`torch.FloatTensor` of shape `(num_codes, E)`): changed in place.
            latents (`torch.FloatTensor` of shape `(N, E)`): unquantized latents of the current batch.
            generator (`torch.Generator`): draws the latents.

        Returns:
            `int`: how many codes were moved.
        """
        dead = torch.nonzero(self.counts == 0).squeeze(1)
        if len(dead):
            chosen = torch.randint(len(latents), (len(dead),), generator=generator).to(latents.device)
            codebook[dead] = latents[chosen].to(codebook.dtype)
        self.counts.zero_()
        return len(dead)
