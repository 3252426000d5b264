"""Imagine episodes: real frames and commands in, or an instruction for the policy; the frames that follow out.

    python evaluation/imagine.py --checkpoint outputs/run --demonstrations demo.hdf5 --output imagined.mp4
    python evaluation/imagine.py --checkpoint outputs/run --image frame.png --actions actions.npy \
        --output imagined.gif
    python evaluation/imagine.py --checkpoint outputs/run --image frame.png --num_frames 50 \
        --instruction "pick up the alphabet soup and place it in the basket" --output imagined.png
    python evaluation/imagine.py --checkpoint outputs/run --rollouts results/

docs/imagination.md says what comes out. The last form takes the filmed episodes of `evaluation/run.py --traces true`
and writes, in their folder, a video beside each of theirs, imagined.json and imagined.md (docs/reports.md). In the
others a JSON file stands beside the picture. Numbers are the mean token entropy of every frame and, where real frames
are known, its PSNR, beside that of the tokenizer's own reconstruction (the ceiling) and of repeating the last real
frame (the floor).
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm.auto import tqdm

from evaluation.arguments import parse_arguments
from evaluation.atomic_files import write_atomically, write_json
from evaluation.checkpoints import (
    check_imagined_camera,
    check_policy_in_imagination,
    fingerprint_checkpoint,
    load_checkpoint,
)
from evaluation.imagination_episodes import ImaginedEpisode, count_clipped, imagine_excerpts, judge_excerpt
from evaluation.imagination_pictures import list_columns, write_imagination, write_picture
from evaluation.imagination_sources import Excerpt, check_action_width, find_excerpts
from evaluation.imagination_streams import ImaginedFrame, PolicyView
from evaluation.imagine_arguments import ImagineArguments
from evaluation.imagined_rollouts import summarise_episodes, write_rollouts
from evaluation.run_settings import current_commit
from evaluation.world_model import decode_frames

logger = logging.getLogger("worldvla.imagine")


def imagine(arguments: ImagineArguments) -> dict[str, Any]:
    """Imagine everything that the options name; write films or strips, and the numbers.

    Args:
        arguments (`ImagineArguments`): all options.

    Returns:
        `dict`: see `judge_excerpt`, with the settings; of several episodes, and of a run, see `summarise_episodes`.

    Raises:
        ValueError: if a source is damaged or shorter than what is asked for, or shows a camera that is not imagined,
            before the model is loaded; or if it does not fit the checkpoint.
    """
    check_imagined_camera(arguments.checkpoint, arguments.camera)
    if arguments.instruction is not None:
        check_policy_in_imagination(arguments.checkpoint)
    readers = find_excerpts(arguments)
    model, processor = load_checkpoint(arguments.checkpoint, arguments.device)
    episodes: dict[str, dict[str, Any]] = {}
    for first in range(0, len(readers), arguments.batch_size):
        excerpts = [read() for read in readers[first : first + arguments.batch_size]]
        check_action_width(excerpts, arguments, model.config.action_dim)
        for excerpt, imagined in _imagine_batch(model, processor, excerpts, arguments):
            path = name_output(arguments, excerpt, alone=len(readers) == 1)
            episodes[excerpt.name] = _write_episode(processor, excerpt, imagined, path, arguments)
    settings = describe_settings(arguments, model)
    if arguments.rollouts is not None:
        summary = summarise_episodes(episodes, settings)
        write_rollouts(Path(arguments.rollouts), summary)
        return summary
    alone = next(iter(episodes.values())) if len(episodes) == 1 else None
    result = summarise_episodes(episodes, settings) if alone is None else {**alone, "settings": settings}
    write_json(Path(str(arguments.output)).with_suffix(".json"), result)
    return result


def name_output(arguments: ImagineArguments, excerpt: Excerpt, alone: bool) -> Path:
    """The file that an episode is shown in.

    Args:
        arguments (`ImagineArguments`): names the file, or the folder of a run.
        excerpt (`Excerpt`): the episode.
        alone (`bool`): whether it is the only one.

    Returns:
        `Path`: of several episodes each has its name added.
    """
    if arguments.rollouts is not None:
        return Path(arguments.rollouts) / "videos" / f"{excerpt.name}_imagined.mp4"
    output = Path(str(arguments.output))
    return output if alone else output.with_name(f"{output.stem}_{excerpt.name}{output.suffix}")


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


def list_captions(excerpt: Excerpt, numbers: dict[str, Any]) -> list[str]:
    """What stands below the instruction in every frame of a film.

    Args:
        excerpt (`Excerpt`): for the step and the outcome.
        numbers (`dict`): of `judge_excerpt`.

    Returns:
        `list[str]`: N + 1 texts; the given frame has no numbers.
    """
    ending = f", episode: {excerpt.outcome.replace('_', ' ')}" if excerpt.outcome else ""
    captions = [f"step {excerpt.start}, given frame{ending}"]
    decibels = numbers.get("curves_db", {}).get("imagined")
    for number, entropy in enumerate(numbers["entropy_curve_nats"]):
        closeness = f", {decibels[number]:.1f} dB" if decibels else ""
        captions.append(f"step {excerpt.start + number + 1}{closeness}, entropy {entropy:.2f} nats{ending}")
    return captions


def _imagine_batch(
    model: Any, processor: Any, excerpts: Sequence[Excerpt], arguments: ImagineArguments
) -> Iterator[tuple[Excerpt, ImaginedEpisode]]:
    """Imagine excerpts together, with a progress bar, and frames written as they come where that is asked for."""
    view = None
    if arguments.instruction is not None:
        names = ("n_obs_steps", "chunk_size", "n_action_steps", "through_pixels")
        view = PolicyView(**{name: getattr(arguments, name) for name in names})
    save = _frame_writer(processor, excerpts, arguments.frame_folder)
    with tqdm(total=sum(excerpt.num_frames for excerpt in excerpts), desc="imagine", unit="frame") as bar:

        def show(number: int, frame: ImaginedFrame) -> None:
            bar.set_postfix(entropy=f"{float(frame.mean_entropy.mean()):.2f}", refresh=False)
            bar.update(sum(excerpt.num_frames >= number for excerpt in excerpts))
            save(number, frame)

        imagined = imagine_excerpts(
            model, processor, excerpts, arguments.dataset_name, arguments.history, view, arguments, on_frame=show
        )
    yield from zip(excerpts, imagined, strict=True)


def _frame_writer(
    processor: Any, excerpts: Sequence[Excerpt], folder: str | None
) -> Callable[[int, ImaginedFrame], None]:
    """A function that writes the frames of a batch into a folder, or does nothing."""

    def write(number: int, frame: ImaginedFrame) -> None:
        if folder is None:
            return
        for excerpt, picture in zip(excerpts, decode_frames(processor, frame.image_ids), strict=True):
            if number <= excerpt.num_frames:
                write_picture(Path(folder) / f"{excerpt.name}_{number:05d}.png", picture)

    return write


def _write_episode(
    processor: Any, excerpt: Excerpt, imagined: ImaginedEpisode, path: Path, arguments: ImagineArguments
) -> dict[str, Any]:
    """Write the film or strip of one episode, and the policy's commands; returns its numbers."""
    frames, numbers = judge_excerpt(processor, excerpt, imagined)
    curves = {"mean entropy of the image tokens, nats": imagined.entropies}
    if "curves_db" in numbers:
        curves = {"PSNR of the imagined frames, dB": np.array(numbers["curves_db"]["imagined"]), **curves}
    write_imagination(path, list_columns(**frames), curves, excerpt.told, list_captions(excerpt, numbers))
    told = {"instruction": excerpt.told, "outcome": excerpt.outcome, "video": path.name}
    if arguments.instruction is not None:
        commands = processor.decode_actions(imagined.action_ids, arguments.dataset_name)
        beside = path.with_name(f"{path.stem}_actions.npy")
        write_atomically(beside, lambda temporary: np.save(temporary, commands.astype(np.float32)))
        told["actions"] = beside.name
    return {**told, **numbers, "clipped_action_values": count_clipped(processor, excerpt, arguments.dataset_name)}


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = imagine(parse_arguments(ImagineArguments, argv))
    for name, value in result.get("psnr_db", {}).items():
        logger.info("PSNR %-26s %.2f dB", name, value)
    logger.info("Mean token entropy %21.2f nats", result["entropy_nats"])


if __name__ == "__main__":
    main(sys.argv[1:])
