"""What a VQ-GAN is trained on, term by term.

Every term is a mean over pictures, so that it does not matter how a batch is divided between processes.
Shapes: `B` pictures, `C` channels, `H, W` pixels, `N` regions of a batch, `P` pixels of a patch, `h, w` rows and
columns of codes, `E` code dimensions.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from train.frames import FrameBatch, RegionBatch


def pixel_weights(batch: FrameBatch, moving_region_weight: float, region_pixel_weight: float) -> Tensor:
    """How much each pixel counts in the reconstruction loss.

    Args:
        batch (`FrameBatch`): pictures, with what moves and what deserves attention.
        moving_region_weight (`float`): extra weight of pixels that differ from their clip's median.
        region_pixel_weight (`float`): extra weight of pixels in regions, times the largest weight of these.

    Returns:
        `torch.FloatTensor` of shape `(B, 1, H, W)`: at least 1.
    """
    return 1.0 + moving_region_weight * batch.moving + region_pixel_weight * batch.attention


def reconstruction_loss(reconstruction: Tensor, frames: Tensor, weights: Tensor, l2_weight: float) -> Tensor:
    """Weighted absolute plus squared error.

    Args:
        reconstruction (`torch.FloatTensor` of shape `(B, C, H, W)`): decoded frames in [−1, 1].
        frames (`torch.FloatTensor` of shape `(B, C, H, W)`): the frames themselves.
        weights (`torch.FloatTensor` of shape `(B, 1, H, W)`): weight of each pixel.
        l2_weight (`float`): weight of the squared error beside the absolute error.

    Returns:
        `torch.FloatTensor`: a scalar, the mean over pictures of each picture's weighted mean.
    """
    difference = reconstruction - frames
    error = (difference.abs() + l2_weight * difference.square()).mean(1, keepdim=True)
    return ((error * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))).mean()


def codebook_loss(latents: Tensor, codes: Tensor, commitment_weight: float) -> Tensor:
    """Pull codes to latents, and latents to codes.

    Args:
        latents (`torch.FloatTensor` of shape `(B, E, h, w)`): what the encoder gave.
        codes (`torch.FloatTensor` of shape `(B, E, h, w)`): the nearest codes, with gradient.
        commitment_weight (`float`): beta, weight of the pull on the latents.

    Returns:
        `torch.FloatTensor`: a scalar, `‖sg[z] − e‖² + beta ‖z − sg[e]‖²`, means over everything.

    References:
        VQ-VAE (arXiv 1711.00937) eq. 3.
    """
    return F.mse_loss(codes, latents.detach()) + commitment_weight * F.mse_loss(latents, codes.detach())


def crop_regions(pictures: Tensor, boxes: Tensor, picture: Tensor, patch_size: int) -> Tensor:
    """Cut regions out and bring them to one size, differentiably, all at once.

    Bilinear; in pictures larger than the patch, each patch pixel is the mean of 2 x 2 samples (4 x 4 in pictures more
    than four times larger), so that large regions are averaged down rather than sampled sparsely.

    Args:
        pictures (`torch.FloatTensor` of shape `(B, C, H, W)`): the pictures.
        boxes (`torch.FloatTensor` of shape `(N, 4)`): top, left, bottom, right in pixels, half-open.
        picture (`torch.LongTensor` of shape `(N,)`): which picture each lies in.
        patch_size (`int`): P.

    Returns:
        `torch.FloatTensor` of shape `(N, C, P, P)`.
    """
    height, width = pictures.shape[-2:]
    side = max(height, width)
    finer = 1 if side <= patch_size else 2 if side <= 4 * patch_size else 4
    steps = (torch.arange(patch_size * finer, device=boxes.device) + 0.5) / (patch_size * finer)
    # Pixel i covers [i, i + 1); grid_sample with align_corners=False puts the picture's edges at -1 and 1.
    rows = (boxes[:, :1] + steps * (boxes[:, 2:3] - boxes[:, :1])) / height * 2 - 1
    columns = (boxes[:, 1:2] + steps * (boxes[:, 3:4] - boxes[:, 1:2])) / width * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    patches = F.grid_sample(pictures[picture], grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(patches, finer) if finer > 1 else patches


def region_loss(
    frames: Tensor,
    reconstruction: Tensor,
    regions: RegionBatch,
    distance: Callable[[Tensor, Tensor], Tensor],
    patch_size: int,
) -> Tensor:
    """Compare regions in feature space.

    Args:
        frames (`torch.FloatTensor` of shape `(B, 3, H, W)`): recorded pictures.
        reconstruction (`torch.FloatTensor` of shape `(B, 3, H, W)`): decoded pictures.
        regions (`RegionBatch`): N regions; their provider's weight is not applied here.
        distance (`Callable`): two `(N, 3, P, P)` to `(N,)`, a perceptual network.
        patch_size (`int`): P.

    Returns:
        `torch.FloatTensor`: a scalar, the mean over pictures of the weighted mean over each picture's regions; a
        picture without regions adds 0.

    References:
        WorldVLA (arXiv 2506.21539) §3.2: extra perceptual losses on faces and salient objects; Make-A-Scene (arXiv
        2203.13131) §3.3, where they come from.
    """
    if not len(regions.boxes):
        return reconstruction.sum() * 0.0  # every process must have a gradient
    crops = [crop_regions(p, regions.boxes, regions.picture, patch_size) for p in (frames, reconstruction)]
    totals = torch.zeros(len(frames), device=frames.device).index_add(0, regions.picture, regions.weights)
    shares = regions.weights / totals[regions.picture].clamp(min=1e-8)
    return (distance(*crops) * shares).sum() / len(frames)


def psnr_per_picture(reconstruction: Tensor, frames: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each picture.

    Args:
        reconstruction (`torch.FloatTensor` of shape `(B, C, H, W)`): clipped to [−1, 1].
        frames (`torch.FloatTensor` of shape `(B, C, H, W)`): in [−1, 1].
        where (`torch.Tensor` of shape `(B, 1, H, W)`, *optional*): pixels that count, larger than 0; all by default.

    Returns:
        `torch.FloatTensor` of shape `(B,)`: dB; NaN where no pixel of a picture counts.
    """
    error = (reconstruction.detach().float().clamp(-1, 1) - frames).square().mean(1, keepdim=True)
    inside = torch.ones_like(error) if where is None else (where > 0).float()
    mean = (error * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))
    return 10 * torch.log10(4 / mean.clamp(min=1e-10))
