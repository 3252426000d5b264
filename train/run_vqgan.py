"""Train a VQ-GAN on recorded pictures.

    python train/run_vqgan.py --demonstrations demos/ --output_dir vqgan/
    accelerate launch train/run_vqgan.py --demonstrations demos/ --output_dir vqgan/

Killed at any moment, the same command goes on from the last complete checkpoint. The result is
`<output_dir>/vq_model/`, a diffusers `VQModel`. Losses and options: docs/vqgan.md.
"""

import copy
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import VQModel

from tokenization import vq_model_config
from tokenization.vqgan_worldvla import VQ_MODEL_FOLDER, load_vq_model, stride_of
from train.argument_parsing import parse_arguments
from train.atomic_files import new_folder, write_json
from train.frame_cache import FrameSources
from train.frames import FrameArray
from train.run_settings import SETTINGS, check_settings, default_options
from train.vqgan_arguments import VQGANArguments, parse_region_weights
from train.vqgan_checkpoints import last_checkpoint
from train.vqgan_reports import require_tracker
from train.vqgan_trainer import VQGANTrainer

logger = logging.getLogger("worldvla.vqgan")

# Options that may change between a run and its continuation.
FREE_OPTIONS = {"output_dir", "frame_cache", "max_steps", "save_every", "log_every", "report_to"}
FREE_OPTIONS |= {"eval_every", "eval_frames", "image_every", "saved_dtype"}


def train(arguments: VQGANArguments) -> Path:
    """Train, or go on training, and save the model.

    Args:
        arguments (`VQGANArguments`): all options.

    Returns:
        `Path`: folder of the trained `VQModel`.
    """
    require_tracker(arguments.report_to)
    output = Path(arguments.output_dir)
    # Without `cpu`, several processes on a machine without an accelerator would not find each other.
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        cpu=not torch.accelerator.is_available(),
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=output,
    )
    output.mkdir(parents=True, exist_ok=True)
    settings, defaults = (
        {key: value for key, value in options.items() if key not in FREE_OPTIONS}
        for options in (asdict(arguments), default_options(VQGANArguments))
    )
    if accelerator.is_main_process:
        check_settings(settings, defaults, output)  # before pictures are gathered, which takes long
    set_seed(arguments.seed)
    vq_model = make_vq_model(arguments)
    with accelerator.main_process_first():
        frames = load_frames(arguments, vq_model)
    if accelerator.is_main_process:
        write_json(output / SETTINGS, settings)
    trainer = VQGANTrainer(vq_model, frames, arguments, accelerator)
    trainer.run()
    if accelerator.is_main_process:
        with new_folder(output / VQ_MODEL_FOLDER) as folder:
            save_model(trainer.final_model().vq_model, folder, arguments.saved_dtype)
    accelerator.wait_for_everyone()
    trainer.reports.end()
    return output / VQ_MODEL_FOLDER


def make_vq_model(arguments: VQGANArguments) -> Any:
    """Build the preset with random weights, or load the VQ-GAN to start from.

    Args:
        arguments (`VQGANArguments`): all options.

    Returns:
        `diffusers.VQModel`: float32, in training mode.
    """
    if arguments.vq_model is None:
        return VQModel(**vq_model_config(arguments.preset))
    return load_vq_model(arguments.vq_model).train().requires_grad_(True)


def save_model(vq_model: Any, folder: Path, saved_dtype: str) -> None:
    """Write a VQ-GAN; it is loaded in float32 whatever it is written in.

    Args:
        vq_model (`diffusers.VQModel`): the trained model; it stays as it is.
        folder (`Path`): where to.
        saved_dtype (`str`): `float32`, or `float16`: weights rounded to half the bytes.
    """
    if saved_dtype == "float16":
        vq_model = copy.deepcopy(vq_model).half()
    vq_model.save_pretrained(folder)


def load_frames(arguments: VQGANArguments, vq_model: Any) -> FrameArray:
    """Gather the pictures.

    Args:
        arguments (`VQGANArguments`): all options.
        vq_model (`diffusers.VQModel`): says which sizes it can take.

    Returns:
        `FrameArray`: memory-mapped, with regions.

    Raises:
        ValueError: if the size of the pictures is no multiple of the VQ-GAN's stride.
    """
    side = arguments.image_size
    if side is None and arguments.images:
        side = int(vq_model.config.sample_size)
    size = None if side is None else (side, side)
    sources = FrameSources(arguments.demonstrations, arguments.cameras, arguments.images, size)
    cache = Path(arguments.frame_cache or arguments.output_dir)
    frames = FrameArray.from_sources(sources, cache, parse_region_weights(arguments.regions))
    stride = stride_of(vq_model)
    if frames.size[0] % stride or frames.size[1] % stride:
        raise ValueError(
            f"Pictures of {frames.size} pixels do not divide into codes of {stride} pixels. Choose a multiple of "
            f"{stride} as `--image_size`."
        )
    return frames


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (arguments,) = parse_arguments([VQGANArguments], argv)
    output = Path(arguments.output_dir)
    if last_checkpoint(output) is None and (output / VQ_MODEL_FOLDER).exists():
        raise FileExistsError(f"`{arguments.output_dir}` already holds a finished VQ-GAN. Choose another folder.")
    folder = train(arguments)
    logger.info("VQ-GAN saved in %s", folder)


if __name__ == "__main__":
    main(sys.argv[1:])
