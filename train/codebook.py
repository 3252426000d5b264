"""How a codebook is used, and a remedy for codes that are not.

Shapes: `N` code positions of a batch, `E` code dimensions.
"""

import torch
from torch import Tensor

from tokenization.reconstruction_metrics import codebook_perplexity


class CodebookUsage:
    """Counts how often codes are used, and places the unused ones where latents are.

    A vector quantizer that starts from random codes soon uses a handful of them only. Codes that no latent chose since
    the last revival are moved onto latents of the current batch (Jukebox, arXiv 2005.00341, §3, random restarts).

    Args:
        num_codes (`int`): size of the codebook.
        device (`torch.device`): where the counts live.
    """

    def __init__(self, num_codes: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_codes, device=device)  # since the last revival
        self.recent = torch.zeros(num_codes, device=device)  # since the last log line

    def update(self, indices: Tensor) -> None:
        """Count the codes of one step.

        Args:
            indices (`torch.LongTensor` of shape `(N,)`): flat code indices.
        """
        new = torch.bincount(indices, minlength=len(self.counts)).to(self.counts)
        self.counts += new
        self.recent += new

    def summary(self) -> dict[str, float]:
        """Describe the use since the last summary, and start the next.

        Returns:
            `dict[str, float]`: `perplexity`, the exponential of the entropy of code use (how many codes are used as if
            evenly), and `codes_used`, the share of codes that were used at all.
        """
        perplexity = codebook_perplexity(self.recent.cpu().numpy())
        used = (self.recent > 0).float().mean()
        self.recent.zero_()
        return {"perplexity": perplexity, "codes_used": float(used)}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds of this object."""
        return {"counts": self.counts, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the counts of a checkpoint."""
        self.counts.copy_(state["counts"])
        self.recent.copy_(state["recent"])

    @torch.no_grad()
    def revive(self, codebook: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Move unused codes onto random latents, and start counting anew.

        Args:
            codebook (`torch.FloatTensor` of shape `(num_codes, E)`): changed in place.
            latents (`torch.FloatTensor` of shape `(N, E)`): unquantized latents of the current batch.
            generator (`torch.Generator`): draws the latents.

        Returns:
            `torch.LongTensor`: indices of the codes that were moved.
        """
        dead = torch.nonzero(self.counts == 0).squeeze(1)
        if len(dead):
            chosen = torch.randint(len(latents), (len(dead),), generator=generator).to(latents.device)
            codebook[dead] = latents[chosen].to(codebook.dtype)
        self.counts.zero_()
        return dead
