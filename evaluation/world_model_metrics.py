"""How near imagined frames come to the real ones, beside what the tokenizer allows and what repeating a frame gives.

Shapes: `W` windows, `B` windows at once, `N` imagined frames, `H, W` pixels, `h, w` image tokens, `D` action dims.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.reconstruction import LARGEST, WHOLE
from evaluation.sampling import GREEDY, SamplingArguments
from evaluation.video_distance import Fvd
from evaluation.world_model import decode_frames, imagine_tokens
from evaluation.world_model_windows import Window
from tokenization.reconstruction_metrics import PictureMetric, Psnr, psnr
from tokenization.regions import RegionProvider

IMAGINED, FLOOR, TOKEN_FLOOR, CEILING = "imagined", "copy_last_frame", "copy_last_reconstruction", "reconstruction"
SOURCES = (IMAGINED, FLOOR, TOKEN_FLOOR, CEILING)
TOKENS, CHANGED = "token_accuracy", "changed_token_accuracy"
Scores = dict[str, dict[str, dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Instruments:
    """What is measured.

    Attributes:
        metrics (`Sequence[PictureMetric]`): compared frame by frame; inside the regions PSNR is.
        fvd (`Fvd`, *optional*): compares clips.
        providers (`Sequence[RegionProvider]`): find the regions.
        horizons (`tuple[int, ...]`): numbers of frames over which is averaged, rising; the last is N.
    """

    metrics: Sequence[PictureMetric]
    fvd: Fvd | None = None
    providers: Sequence[RegionProvider] = ()
    horizons: tuple[int, ...] = (10, 50)


@dataclass
class Measurements:
    """The numbers of every frame of every window.

    Attributes:
        windows (`list[Window]`): W windows.
        scores (`dict`): part of the picture -> source -> metric -> `(W, N)`, NaN where a frame lacks the part.
        features (`dict`): source, or `real`, -> horizon -> features of the clips `(W, F)`.
        clipped (`int`): action values outside of the checkpoint's limits.
    """

    windows: list[Window]
    scores: Scores = field(default_factory=dict)
    features: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    clipped: int = 0


class _Batch(NamedTuple):
    scores: Scores
    features: dict[str, dict[int, np.ndarray]]
    clipped: int


def measure_windows(
    model: Any,
    processor: Any,
    windows: Sequence[Window],
    instruments: Instruments,
    camera: str = "agentview",
    dataset_name: str | None = None,
    batch_size: int = 8,
    sampling: SamplingArguments = GREEDY,
    on_frames: Callable[[int], None] = lambda count: None,
) -> Measurements:
    """Imagine windows, and compare.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        windows (`Sequence[Window]`): where.
        instruments (`Instruments`): what is measured.
        camera (`str`): whose frames.
        dataset_name (`str`, *optional*): whose action limits.
        batch_size (`int`): windows at once.
        sampling (`SamplingArguments`): whether codes are drawn; what is drawn for a window depends on its name alone.
        on_frames (`Callable[[int], None]`): called after every imagined frame with the number of windows.

    Returns:
        `Measurements`.
    """
    measure = partial(_measure_batch, model, processor, instruments, camera, dataset_name, sampling, on_frames)
    parts = [measure(windows[first : first + batch_size]) for first in range(0, len(windows), batch_size)]
    return _join(list(windows), parts, instruments.horizons[-1])


def _measure_batch(
    model: Any,
    processor: Any,
    instruments: Instruments,
    camera: str,
    dataset_name: str | None,
    sampling: SamplingArguments,
    on_frames: Callable[[int], None],
    windows: Sequence[Window],
) -> _Batch:
    read = [window.read(camera, instruments.horizons[-1], processor) for window in windows]
    frames, actions = np.stack([pair[0] for pair in read]), np.stack([pair[1] for pair in read])
    real_ids = torch.stack([processor.encode_images(list(each)) for each in frames])
    action_ids = torch.as_tensor(processor.encode_actions(actions, dataset_name))
    chance = sampling.sampling_options([window.name for window in windows], model.device)
    imagined_ids = imagine_tokens(
        model, processor, real_ids[:, 0], action_ids, lambda _: on_frames(len(windows)), **chance
    )
    videos, real = candidates(processor, frames, real_ids, imagined_ids), frames[:, 1:]
    providers = instruments.providers
    masks = [
        window.masks(camera, each, providers) if providers else {}
        for window, each in zip(windows, frames, strict=True)
    ]
    scores = compare_videos(videos, real, masks, instruments.metrics)
    for source, accuracies in compare_tokens(imagined_ids, real_ids).items():
        scores[WHOLE][source] |= accuracies
    clipped = int(processor.action_tokenizer.count_clipped(actions, dataset_name).sum())
    return _Batch(scores, clip_features(videos | {"real": real}, instruments), clipped)


def candidates(
    processor: Any, real: np.ndarray, real_ids: torch.Tensor, imagined_ids: torch.Tensor
) -> dict[str, np.ndarray]:
    """The imagined frames, and what they are judged beside.

    Args:
        processor (`WorldVLAProcessor`): draws tokens.
        real (`np.ndarray` of shape `(B, N + 1, H, W, 3)`): uint8, the given frame first.
        real_ids (`torch.LongTensor` of shape `(B, N + 1, h, w)`): the same as image token ids.
        imagined_ids (`torch.LongTensor` of shape `(B, N, h, w)`): of the imagined frames.

    Returns:
        `dict[str, np.ndarray]`: source -> uint8 `(B, N, H, W, 3)`.
    """
    reconstructed = np.stack([decode_frames(processor, ids) for ids in real_ids])
    after = real[:, 1:].shape
    return {
        IMAGINED: np.stack([decode_frames(processor, ids) for ids in imagined_ids]),
        FLOOR: np.broadcast_to(real[:, :1], after),
        TOKEN_FLOOR: np.broadcast_to(reconstructed[:, :1], after),
        CEILING: reconstructed[:, 1:],
    }


def compare_videos(
    videos: Mapping[str, np.ndarray],
    real: np.ndarray,
    masks: Sequence[Mapping[str, np.ndarray]],
    metrics: Sequence[PictureMetric],
) -> Scores:
    """Compare frame by frame; inside the regions, by PSNR.

    Args:
        videos (`Mapping[str, np.ndarray]`): source -> uint8 `(B, N, H, W, 3)`.
        real (`np.ndarray` of shape `(B, N, H, W, 3)`): uint8.
        masks (`Sequence[Mapping]`): for each window, kind -> bool `(N, H, W)`.
        metrics (`Sequence[PictureMetric]`): which.

    Returns:
        `dict`: part -> source -> metric -> `(B, N)`, NaN where a frame lacks the part; PSNR is at most 100 dB.
    """
    inside: dict[str, np.ndarray] = {}
    for row, kinds in enumerate(masks):
        for kind, mask in kinds.items():
            inside.setdefault(kind, np.zeros(real.shape[:4], bool))[row] = mask
    scores: Scores = {}
    for source, video in videos.items():
        pairs = list(zip(video, real, strict=True))  # window by window, which bounds the memory
        scores.setdefault(WHOLE, {})[source] = {
            metric.name: _limited([metric(*pair) for pair in pairs]) for metric in metrics
        }
        for part, mask in inside.items():
            found = [psnr(*pair, masks=each) for pair, each in zip(pairs, mask, strict=True)]
            scores.setdefault(part, {})[source] = {Psnr.name: _limited(found)}
    return scores


def _limited(windows: Sequence[np.ndarray]) -> np.ndarray:
    """Windows as one array; no number is above 100, which PSNR alone can be."""
    return np.minimum(np.stack(windows), LARGEST)


def compare_tokens(imagined_ids: torch.Tensor, real_ids: torch.Tensor) -> dict[str, dict[str, np.ndarray]]:
    """How many codes of each frame are those of the real frame.

    Args:
        imagined_ids (`torch.LongTensor` of shape `(B, N, h, w)`): of the imagined frames.
        real_ids (`torch.LongTensor` of shape `(B, N + 1, h, w)`): of the real ones, the given frame first.

    Returns:
        `dict`: source -> `token_accuracy` and `changed_token_accuracy`, each `(B, N)`: shares of all codes, and of
        those that differ from the given frame's (NaN where none does; 0 by definition for the repeated frame).
    """
    real, first = real_ids[:, 1:].flatten(2), real_ids[:, :1].flatten(2)
    changed = real != first
    found = {}
    for source, ids in ((IMAGINED, imagined_ids.flatten(2)), (TOKEN_FLOOR, first.expand_as(real))):
        right = ids == real
        shares = {TOKENS: right.double().mean(-1), CHANGED: (right & changed).sum(-1).double() / changed.sum(-1)}
        found[source] = {name: share.cpu().numpy() for name, share in shares.items()}
    return found


def clip_features(videos: Mapping[str, np.ndarray], instruments: Instruments) -> dict[str, dict[int, np.ndarray]]:
    """Features of the first frames of each clip, for every horizon; nothing without a network."""
    if instruments.fvd is None:
        return {}
    return {
        source: {horizon: instruments.fvd.features(video[:, :horizon]) for horizon in instruments.horizons}
        for source, video in videos.items()
    }


def _join(windows: list[Window], batches: Sequence[_Batch], num_frames: int) -> Measurements:
    """Batches as one; a part or metric that a batch lacks is NaN there."""
    joined = Measurements(windows, clipped=sum(batch.clipped for batch in batches))
    layout: dict[tuple[str, str, str], None] = {}
    for batch in batches:
        layout |= {(part, s, m): None for part, rows in batch.scores.items() for s, row in rows.items() for m in row}
    for part, source, metric in layout:
        rows = []
        for batch in batches:
            size = len(batch.scores[WHOLE][IMAGINED][TOKENS])
            missing = np.full((size, num_frames), np.nan)
            rows.append(batch.scores.get(part, {}).get(source, {}).get(metric, missing))
        joined.scores.setdefault(part, {}).setdefault(source, {})[metric] = np.concatenate(rows)
    for source, by_horizon in batches[0].features.items():
        joined.features[source] = {
            horizon: np.concatenate([batch.features[source][horizon] for batch in batches]) for horizon in by_horizon
        }
    return joined
