"""Imagining whole excerpts of episodes in batches, and the numbers of each.

Shapes: `B` excerpts, `n` given frames, `N` imagined frames, `H, W` pixels, `h, w` image tokens, `D` action dimensions.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.imagination_sources import Excerpt
from evaluation.imagination_streams import ImaginedFrame, PolicyView, stream_actions, stream_policy
from evaluation.sampling import GREEDY, SamplingArguments
from evaluation.world_model import decode_frames, fit_frames, reconstruct
from tokenization.reconstruction_metrics import psnr

logger = logging.getLogger("worldvla.imagine")


class ImaginedEpisode(NamedTuple):
    """What was imagined from one excerpt.

    Attributes:
        image_ids (`torch.LongTensor` of shape `(N + 1, h, w)`): image token ids; the last given frame comes first.
        action_ids (`torch.LongTensor` of shape `(N, D)`): token ids of the commands.
        entropies (`np.ndarray` of shape `(N,)`): mean entropy of each frame's codes, nats.
        seconds_per_frame (`float`): of the batch that the excerpt was imagined in.
    """

    image_ids: torch.Tensor
    action_ids: torch.Tensor
    entropies: np.ndarray
    seconds_per_frame: float


@torch.inference_mode()
def imagine_excerpts(
    model: Any,
    processor: Any,
    excerpts: Sequence[Excerpt],
    dataset_name: str | None = None,
    history: int | None = None,
    view: PolicyView | None = None,
    sampling: SamplingArguments = GREEDY,
    on_frame: Callable[[int, ImaginedFrame], None] = lambda number, frame: None,
) -> list[ImaginedEpisode]:
    """Imagine excerpts together: under their commands, or, with a `view`, under the policy's own.

    Shorter excerpts are imagined as far as the longest and cut; rows of a batch do not depend on each other.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        excerpts (`Sequence[Excerpt]`): B of them, with equally many given frames.
        dataset_name (`str`, *optional*): whose action limits; may be left out when the processor has one data set.
        history (`int`, *optional*): most frames that the world model is shown; by default the checkpoint's.
        view (`PolicyView`, *optional*): how the policy acts on `told`; by default the excerpts' own commands are used.
        sampling (`SamplingArguments`): whether codes are drawn; what is drawn depends on the excerpt's name alone.
        on_frame (`Callable`): called with number, from 1, and tokens of every frame as soon as it is there.

    Returns:
        `list[ImaginedEpisode]`: one per excerpt, tokens on the CPU.

    Raises:
        ValueError: if the excerpts cannot go together, or as `stream_actions` and `stream_policy`.
    """
    given = _encode_given(processor, excerpts)
    longest = max(excerpt.num_frames for excerpt in excerpts)
    action_ids = _encode_commands(
        processor, excerpts, dataset_name, model.config.action_dim, longest, view is not None
    )
    options = {"history": history, **sampling.sampling_options([excerpt.name for excerpt in excerpts], model.device)}
    started = time.perf_counter()
    if view is None:
        stream = stream_actions(model, processor, given, action_ids, **options)
    else:
        told = [excerpt.told for excerpt in excerpts]
        stream = stream_policy(model, processor, given, action_ids, told, longest, view, **options)
    frames = []
    for number, frame in enumerate(stream, start=1):
        on_frame(number, frame)
        frames.append(ImaginedFrame(*(part.cpu() for part in frame)))
    seconds = (time.perf_counter() - started) / sum(excerpt.num_frames for excerpt in excerpts)
    joined = [torch.stack(parts, dim=1) for parts in zip(*frames, strict=True)]
    return [
        ImaginedEpisode(
            torch.cat([given[row, -1:].cpu(), joined[0][row, : excerpt.num_frames]]),
            joined[1][row, : excerpt.num_frames],
            joined[2][row, : excerpt.num_frames].float().numpy(),
            seconds,
        )
        for row, excerpt in enumerate(excerpts)
    ]


def judge_excerpt(processor: Any, excerpt: Excerpt, episode: ImaginedEpisode) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw what was imagined, and compare it with what really followed, where that is known.

    Args:
        processor (`WorldVLAProcessor`): holds the VQ-GAN.
        excerpt (`Excerpt`): what was given, and what followed.
        episode (`ImaginedEpisode`): what was imagined from it.

    Returns:
        `tuple`: frames `(N + 1, H, W, 3)` under `imagined` and, where known, `real` and `reconstructed`; and the
        numbers: `num_frames`, `entropy_nats`, `entropy_curve_nats`, `seconds_per_frame` and those of `measure`.
    """
    frames = {"imagined": decode_frames(processor, episode.image_ids)}
    numbers: dict[str, Any] = {"num_frames": excerpt.num_frames}
    following = excerpt.frames[excerpt.num_given - 1 :]
    if len(following) > 1:
        frames |= {"real": fit_frames(processor, following), "reconstructed": reconstruct(processor, following)}
        numbers |= measure(frames["real"], frames["imagined"], frames["reconstructed"])
    return frames, {
        **numbers,
        "entropy_nats": float(episode.entropies.mean()),
        "entropy_curve_nats": [round(float(value), 4) for value in episode.entropies],
        "seconds_per_frame": episode.seconds_per_frame,
    }


def measure(real: np.ndarray, imagined: np.ndarray, reconstructed: np.ndarray) -> dict[str, Any]:
    """Compare imagined frames with the real ones, next to ceiling and floor.

    Args:
        real (`np.ndarray` of shape `(N + 1, H, W, 3)`): uint8; the first frame was given.
        imagined (`np.ndarray` of shape `(N + 1, H, W, 3)`): uint8.
        reconstructed (`np.ndarray` of shape `(N + 1, H, W, 3)`): uint8.

    Returns:
        `dict`: means over the N imagined frames, in dB, and the curves.
    """
    floor = np.broadcast_to(real[:1], real.shape)
    token_floor = np.broadcast_to(reconstructed[:1], real.shape)
    curves = {
        "imagined": psnr(imagined, real)[1:],
        "reconstruction": psnr(reconstructed, real)[1:],
        "copy_last_frame": psnr(floor, real)[1:],
        "copy_last_reconstruction": psnr(token_floor, real)[1:],
    }
    # Frames equal to the last bit have no finite PSNR; 8-bit rounding alone gives 58.9 dB.
    finite = {name: np.minimum(curve, 100.0) for name, curve in curves.items()}
    return {
        "num_frames": len(real) - 1,
        "psnr_db": {name: float(curve.mean()) for name, curve in finite.items()},
        "curves_db": {name: [round(float(value), 3) for value in curve] for name, curve in finite.items()},
    }


def count_clipped(processor: Any, excerpt: Excerpt, dataset_name: str | None) -> int:
    """Count values of commands outside the checkpoint's limits, and warn of them.

    Args:
        processor (`WorldVLAProcessor`): knows the limits.
        excerpt (`Excerpt`): with commands.
        dataset_name (`str`, *optional*): whose limits.

    Returns:
        `int`: values that are clipped.
    """
    if not excerpt.actions.size:
        return 0
    clipped = int(processor.action_tokenizer.count_clipped(excerpt.actions, dataset_name).sum())
    if clipped:
        logger.warning(
            "%d of %d action values lie outside the checkpoint's limits: clipped.", clipped, excerpt.actions.size
        )
    return clipped


def _encode_given(processor: Any, excerpts: Sequence[Excerpt]) -> torch.Tensor:
    """Image token ids `(B, n, h, w)` of the given frames, all encoded together."""
    counts = {excerpt.num_given for excerpt in excerpts}
    if len(counts) > 1:
        raise ValueError(f"Excerpts of a batch must have equally many given frames, got {sorted(counts)}.")
    frames = [frame for excerpt in excerpts for frame in excerpt.frames[: excerpt.num_given]]
    grids = processor.encode_images(frames)
    if isinstance(grids, list):
        sizes = {tuple(grid.shape): None for grid in grids}
        if len(sizes) > 1:
            listed = ", ".join(f"{height} x {width}" for height, width in sizes)
            raise ValueError(
                f"Frames that are imagined together must have one size, got (rows x columns of tokens) {listed}. "
                "Lower `--batch_size` to 1, or give frames of one camera."
            )
        grids = torch.stack(grids)
    return grids.unflatten(0, (len(excerpts), -1))


def _encode_commands(
    processor: Any, excerpts: Sequence[Excerpt], dataset_name: str | None, width: int, longest: int, past_only: bool
) -> torch.Tensor:
    """Action token ids `(B, n - 1 + N, D)`, the last repeated in shorter excerpts; or `(B, n - 1, D)` of the past."""
    count = excerpts[0].num_given - 1 + (0 if past_only else longest)
    if not count:
        return torch.empty((len(excerpts), 0, width), dtype=torch.long)
    padded = [
        np.pad(excerpt.actions, ((0, count - len(excerpt.actions)), (0, 0)), mode="edge") for excerpt in excerpts
    ]
    return torch.as_tensor(processor.encode_actions(np.stack(padded), dataset_name))
