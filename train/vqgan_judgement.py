"""How well a VQ-GAN does on pictures that it did not learn from.

Shapes: `B` pictures, `H, W` pixels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tokenization.pixels_worldvla import convert_to_images
from train.frames import FrameArray, FrameBatch
from train.vqgan_losses import psnr_per_picture

PAIRS_IN_A_ROW = 4


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Choose some of many, evenly spaced.

    Args:
        indices (`np.ndarray` of shape `(N,)`): what to choose from.
        count (`int`): how many at most.

    Returns:
        `np.ndarray`: the first, the last, and what lies between.
    """
    count = min(count, len(indices))
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]


@torch.no_grad()
def _reconstruct(
    model: Any, frames: FrameArray, indices: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[FrameBatch, Tensor]]:
    for start in range(0, len(indices), batch_size):
        batch = frames.batch(indices[start : start + batch_size]).to(device)
        yield batch, model(batch.frames)["decoded"]


def judge(
    model: Any, frames: FrameArray, indices: np.ndarray, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """Measure reconstructions; the work is shared between processes.

    Args:
        model (`nn.Module`): pictures to a dict with `decoded`.
        frames (`FrameArray`): pictures and regions.
        indices (`np.ndarray` of shape `(N,)`): which pictures.
        batch_size (`int`): pictures at once.
        accelerator (`Accelerator`): the processes.

    Returns:
        `dict[str, float]`: `held_out_psnr` and, where there are regions, `held_out_psnr_regions`: dB, means over
        pictures.
    """
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(2, 2, device=accelerator.device)  # overall, inside regions: dB, pictures
    for batch, decoded in _reconstruct(model, frames, mine, batch_size, accelerator.device):
        for row, where in enumerate((None, batch.attention)):
            values = psnr_per_picture(decoded, batch.frames, where)
            known = ~values.isnan()
            sums[row] += torch.stack([values[known].sum(), known.sum()])
    sums = accelerator.reduce(sums, "sum")
    names = ("held_out_psnr", "held_out_psnr_regions")
    return {name: total / number for name, (total, number) in zip(names, sums.tolist(), strict=True) if number}


def draw_pairs(
    model: Any, frames: FrameArray, indices: np.ndarray, batch_size: int, device: torch.device
) -> np.ndarray:
    """Draw recorded pictures, each with its reconstruction on its right.

    Args:
        model (`nn.Module`): pictures to a dict with `decoded`.
        frames (`FrameArray`): the pictures.
        indices (`np.ndarray` of shape `(N,)`): which pictures.
        batch_size (`int`): pictures at once.
        device (`torch.device`): where the model is.

    Returns:
        `np.ndarray` of uint8, shape `(rows · H, 8 · W, 3)`: four pairs a row, white where pairs are missing.
    """
    pairs = [
        np.concatenate([np.asarray(image) for image in convert_to_images(torch.stack(pair))], axis=1)
        for batch, decoded in _reconstruct(model, frames, indices, batch_size, device)
        for pair in zip(batch.frames, decoded.float(), strict=True)
    ]
    pairs += [np.full_like(pairs[0], 255)] * (-len(pairs) % PAIRS_IN_A_ROW)
    rows = [np.concatenate(pairs[at : at + PAIRS_IN_A_ROW], axis=1) for at in range(0, len(pairs), PAIRS_IN_A_ROW)]
    return np.concatenate(rows)
