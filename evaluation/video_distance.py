"""Fréchet video distance: how far the statistics of one set of clips lie from those of another.

Shapes: `N` clips, `T` frames, `H, W` pixels, `F` features.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

NETWORK = "flateon/FVD-I3D-torchscript"  # the field's port of the network of the first implementation
NETWORK_FILE = "i3d_torchscript.pt"
LEAST_FRAMES = 9  # the network halves time three times and averages two of what is left
FEWER_CLIPS_ERROR = "A Fréchet distance needs at least 2 clips on each side, got {} and {}. Measure more windows."


class Fvd:
    """Fréchet distance of I3D features (Kinetics-400, 400 logits) of two sets of clips.

    It grows when there are fewer clips and depends on their number and length: compare values of the same numbers
    only. The literature measures hundreds to thousands of clips.

    Args:
        network (`str`): TorchScript file of the I3D network, or the id of a repository on the Hub that holds
            `i3d_torchscript.pt`.
        device (`str`): torch device of the network.
        batch_size (`int`): clips at once.

    Raises:
        OSError: if there is no such network here, and none to be had from the Hub.

    References:
        Unterthiner et al. (arXiv 1812.01717); clips are resized and scaled by the network itself, as StyleGAN-V
        (arXiv 2112.14683) does.
    """

    name, title, digits = "fvd", "FVD", 1

    def __init__(self, network: str = NETWORK, device: str = "cpu", batch_size: int = 4):
        path = find_network(network)
        try:
            self._network: Any = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise OSError(
                f"`{path}` is no TorchScript network: {str(error).splitlines()[0]}. Give the file {NETWORK_FILE} of "
                f"`{NETWORK}` (`--fvd_network`)."
            ) from error
        self._device, self._batch_size = device, batch_size

    @torch.no_grad()
    def features(self, clips: np.ndarray) -> np.ndarray:
        """Features of clips.

        Args:
            clips (`np.ndarray` of shape `(N, T, H, W, 3)`): uint8, at least 9 frames each.

        Returns:
            `np.ndarray` of float64, shape `(N, F)`.

        Raises:
            ValueError: if the clips are too short or no clips.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != np.uint8:
            raise ValueError(
                f"FVD compares uint8 clips of shape (N, T, H, W, 3), got {clips.dtype} of shape {clips.shape}."
            )
        if clips.shape[1] < LEAST_FRAMES:
            raise ValueError(
                f"FVD needs clips of at least {LEAST_FRAMES} frames, got {clips.shape[1]}. Raise `--num_frames`, or "
                "leave `fvd` out of `--metrics`."
            )
        found = []
        for start in range(0, len(clips), self._batch_size):
            batch = np.ascontiguousarray(clips[start : start + self._batch_size].transpose(0, 4, 1, 2, 3))
            pixels = torch.from_numpy(batch).to(self._device).float()
            out = self._network(pixels, rescale=True, resize=True, return_features=True)
            found.append(out.flatten(1).double().cpu().numpy())
        return np.concatenate(found)


def find_network(network: str) -> Path:
    """The file of the I3D network.

    Args:
        network (`str`): a file, or the id of a repository on the Hub.

    Returns:
        `Path`: a local file.

    Raises:
        OSError: if it is neither here nor to be had.
    """
    if Path(network).is_file():
        return Path(network)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(network, NETWORK_FILE))
    except Exception as error:  # the client of the Hub raises errors of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"FVD needs the I3D network, and `{network}` is no file here and cannot be had from the Hub ({reason}). "
            f"Download {NETWORK_FILE} of `{NETWORK}` where there is a network and give the file with "
            "`--fvd_network`, or leave `fvd` out of `--metrics`: `psnr` and `ssim` run anywhere."
        ) from error


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians fitted to two sets of features.

    The trace of the root of the product of the covariances is the sum of the singular values of one centred set times
    the other, which is exact and stable where there are fewer clips than features, too.

    Args:
        features (`np.ndarray` of shape `(N, F)`): one set.
        reference (`np.ndarray` of shape `(M, F)`): the other.

    Returns:
        `float`: 0 for equal sets.

    Raises:
        ValueError: if a set has fewer than two members.
    """
    if len(features) < 2 or len(reference) < 2:
        raise ValueError(FEWER_CLIPS_ERROR.format(len(features), len(reference)))
    (mean, centred), (other_mean, other_centred) = (_centre(each) for each in (features, reference))
    joint = float(np.linalg.svd(centred @ other_centred.T, compute_uv=False).sum())
    spread = float((centred**2).sum() + (other_centred**2).sum())
    return max(0.0, float(((mean - other_mean) ** 2).sum()) + spread - 2 * joint)


def _centre(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a root of the covariance with at most F rows."""
    mean = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    if len(centred) > centred.shape[1]:
        centred = np.asarray(np.linalg.qr(centred, mode="r"))
    return mean, centred
