"""Imagine an episode: one real frame and the actions that were carried out in, the frames that follow out.

    python evaluation/imagine.py --checkpoint outputs/demo/checkpoint --demonstrations demo.hdf5 --output imagined.mp4
    python evaluation/imagine.py --checkpoint outputs/demo/checkpoint --rollouts results/

The second form takes the filmed episodes of `evaluation/run.py --traces true` and writes, in their folder, a video
beside each of theirs, imagined.json and imagined.md (docs/reports.md). In the first form, beside the video (real |
imagined) stands a JSON file. Numbers are the PSNR of every frame, of the tokenizer's own reconstruction (the ceiling)
and of repeating the last real frame (the floor).
"""

import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm.auto import tqdm

from evaluation.arguments import ImagineArguments, parse_arguments
from evaluation.atomic_files import write_json
from evaluation.checkpoints import fingerprint_checkpoint, load_checkpoint
from evaluation.imagined_rollouts import (
    choose_traces,
    read_trace,
    summarise_rollouts,
    write_imagined_video,
    write_rollouts,
)
from evaluation.run_settings import current_commit
from evaluation.video import side_by_side, write_video
from evaluation.world_model import fit_frames, imagine_episode, reconstruct
from tokenization.demonstrations import find_demonstration_files, read_demonstrations
from tokenization.reconstruction_metrics import psnr

logger = logging.getLogger("worldvla.imagine")


def read_window(arguments: ImagineArguments) -> tuple[np.ndarray, np.ndarray]:
    """Read the frames and actions that the rollout runs over.

    Args:
        arguments (`ImagineArguments`): file, episode and range.

    Returns:
        `tuple`: frames `(N + 1, H, W, 3)` uint8 and actions `(N, D)`.

    Raises:
        ValueError: if the file has no such episode or the episode no such steps.
    """
    if arguments.demonstrations is None:
        raise ValueError("A recorded episode is read from `--demonstrations`, which is not given.")
    demonstrations = [
        demonstration
        for file in find_demonstration_files([arguments.demonstrations])
        for demonstration in read_demonstrations(file)
    ]
    if arguments.episode >= len(demonstrations):
        raise ValueError(
            f"`{arguments.demonstrations}` holds {len(demonstrations)} episodes; `--episode {arguments.episode}` "
            f"does not exist. Choose 0 … {len(demonstrations) - 1}."
        )
    demonstration = demonstrations[arguments.episode]
    frames, actions = demonstration.frames(arguments.camera), demonstration.actions
    return choose_window(frames, actions[: len(frames) - 1], arguments)


def choose_window(
    frames: np.ndarray, actions: np.ndarray, arguments: ImagineArguments
) -> tuple[np.ndarray, np.ndarray]:
    """The part of an episode that is imagined.

    Args:
        frames (`np.ndarray` of shape `(T + 1, H, W, 3)`): uint8.
        actions (`np.ndarray` of shape `(T, D)`): each between two frames.
        arguments (`ImagineArguments`): first step and number of frames.

    Returns:
        `tuple`: frames `(N + 1, H, W, 3)` and actions `(N, D)`.

    Raises:
        ValueError: if the episode has no such steps.
    """
    available = len(actions) - arguments.start
    count = available if arguments.num_frames is None else arguments.num_frames
    if not 1 <= count <= available:
        wanted = "at least 1 is needed" if arguments.num_frames is None else f"{count} were asked for"
        raise ValueError(
            f"The episode has {max(0, available)} frames after step {arguments.start}; {wanted}. "
            "Lower `--start` or `--num_frames`."
        )
    end = arguments.start + count
    return frames[arguments.start : end + 1], actions[arguments.start : end]


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


def imagine_window(
    model: Any, processor: Any, frames: np.ndarray, actions: np.ndarray, dataset_name: str | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Imagine and measure.

    Args:
        model (`WorldVLAForCausalLM`): the model.
        processor (`WorldVLAProcessor`): its processor.
        frames (`np.ndarray` of shape `(N + 1, H, W, 3)`): uint8; the first is shown to the model.
        actions (`np.ndarray` of shape `(N, D)`): what was carried out.
        dataset_name (`str`, *optional*): whose action limits.

    Returns:
        `tuple`: real and imagined frames `(N + 1, h, w, 3)`, both of the model's image size, and `measure`'s numbers
        with the time per frame and the number of clipped action values.
    """
    clipped = int(processor.action_tokenizer.count_clipped(actions, dataset_name).sum())
    if clipped:
        logger.warning("%d of %d action values lie outside the checkpoint's limits: clipped.", clipped, actions.size)
    real = fit_frames(processor, frames)
    started = time.perf_counter()
    with tqdm(total=len(actions), desc="imagine", unit="frame") as bar:
        imagined = imagine_episode(model, processor, frames[0], actions, dataset_name, lambda _: bar.update())
    seconds = time.perf_counter() - started
    result = measure(real, imagined, reconstruct(processor, frames))
    result |= {"seconds_per_frame": seconds / len(actions), "clipped_action_values": clipped}
    return real, imagined, result


def describe_settings(arguments: ImagineArguments, model: Any) -> dict[str, Any]:
    """What the numbers came from: all options, the weights and the code.

    Args:
        arguments (`ImagineArguments`): all options.
        model (`WorldVLAForCausalLM`): the loaded model.

    Returns:
        `dict`: JSON values.
    """
    fingerprint = fingerprint_checkpoint(arguments.checkpoint, model)
    return {**asdict(arguments), "checkpoint_fingerprint": fingerprint, "commit": current_commit()}


def imagine(arguments: ImagineArguments) -> dict[str, Any]:
    """Imagine a recorded episode; write the video and the numbers.

    Args:
        arguments (`ImagineArguments`): all options.

    Returns:
        `dict`: see `measure`, with the time per frame and the settings.
    """
    frames, actions = read_window(arguments)
    model, processor = load_checkpoint(arguments.checkpoint, arguments.device)
    real, imagined, result = imagine_window(model, processor, frames, actions, arguments.dataset_name)
    result["settings"] = describe_settings(arguments, model)
    output = Path(str(arguments.output))
    write_video(output, side_by_side({"real": real, "imagined": imagined}, height=256))
    write_json(output.with_suffix(".json"), result)
    return result


def imagine_rollouts(arguments: ImagineArguments) -> dict[str, Any]:
    """Imagine episodes of a run under the actions that were carried out; write videos, numbers and a table.

    Args:
        arguments (`ImagineArguments`): all options.

    Returns:
        `dict`: see `summarise_rollouts`.

    Raises:
        ValueError: if a trace is missing, is none, shows another camera, or is shorter than what is asked for.
    """
    folder = Path(str(arguments.rollouts))
    paths = choose_traces(folder, arguments.names)
    for path in paths:  # before the model is loaded
        trace = read_trace(path, arguments.camera)
        choose_window(trace.frames, trace.actions, arguments)
    model, processor = load_checkpoint(arguments.checkpoint, arguments.device)
    episodes = {}
    for path in paths:
        trace = read_trace(path, arguments.camera)
        frames, actions = choose_window(trace.frames, trace.actions, arguments)
        real, imagined, result = imagine_window(model, processor, frames, actions, arguments.dataset_name)
        video = path.with_name(f"{path.stem}_imagined.mp4")
        write_imagined_video(video, real, imagined, np.array(result["curves_db"]["imagined"]), trace, arguments.start)
        told = {"instruction": trace.instruction, "outcome": trace.outcome, "video": video.name}
        episodes[path.stem] = {**told, **result}
    summary = summarise_rollouts(episodes, describe_settings(arguments, model))
    write_rollouts(folder, summary)
    return summary


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(ImagineArguments, argv)
    result = imagine(arguments) if arguments.rollouts is None else imagine_rollouts(arguments)
    for name, value in result["psnr_db"].items():
        logger.info("PSNR %-26s %.2f dB", name, value)


if __name__ == "__main__":
    main(sys.argv[1:])
