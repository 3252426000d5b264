"""Measure how well a VQ-GAN draws again what it sees: overall, by camera and suite, and inside regions.

    python evaluation/reconstruct.py --vq_model vqgan/ --demonstrations demos/ --cameras agentview wrist \
        --regions segmentation --output_dir reconstructions/

Writes `report.md`, `results.json` and `pictures.png` (original | reconstruction | difference | regions).
"""

import json
import logging
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from evaluation.arguments import ReconstructArguments, parse_arguments
from evaluation.atomic_files import write_atomically, write_json, write_text
from evaluation.reconstruction import find_regions, measure_frames, reconstruct_pictures
from evaluation.reconstruction_frames import Frame, choose_frames, read_pictures
from evaluation.reconstruction_report import draw_rows, format_report, summarise
from tokenization import WorldVLAImageTokenizer, load_vq_model
from tokenization.reconstruction_metrics import SET_METRICS, make_metric, psnr
from tokenization.regions import RegionProvider, make_region_provider
from tokenization.vqgan_worldvla import stride_of

logger = logging.getLogger("worldvla.reconstruct")

PACKAGES = ("torch", "diffusers", "numpy", "pillow", "torchmetrics", "opencv-python", "opencv-contrib-python")


def load_vq_gan(folder_or_id: str) -> Any:
    """Load a VQ-GAN from its own folder, or from a folder or Hub id that holds it in `vq_model/`.

    Args:
        folder_or_id (`str`): where it lies.

    Returns:
        `diffusers.VQModel`: in evaluation mode, float32.

    Raises:
        OSError: if there is none.
    """
    folder = Path(folder_or_id)
    config = folder / "config.json"
    own = config.is_file() and json.loads(config.read_text("utf-8")).get("_class_name") == "VQModel"
    if not own or folder.resolve().name == "vq_model":
        return load_vq_model(str(folder.resolve().parent) if own else folder_or_id)
    from diffusers import VQModel

    model: Any = VQModel.from_pretrained(folder_or_id, torch_dtype=torch.float32, use_safetensors=True)
    return model.eval().requires_grad_(False)


def choose_size(image_size: list[int], frames: list[Frame], stride: int) -> tuple[int, int]:
    """Height and width of the comparison.

    Args:
        image_size (`list[int]`): what the user asked for: nothing, one number or two.
        frames (`list[Frame]`): the first one's size is taken, down to a multiple of the stride, when nothing was.
        stride (`int`): pixels along a code's side.

    Returns:
        `tuple[int, int]`: multiples of the stride.

    Raises:
        ValueError: if the size is none.
    """
    first = frames[0].picture().shape
    height, width = (image_size * 2)[:2] if image_size else (side - side % stride for side in first[:2])
    if height % stride or width % stride or not height or not width:
        raise ValueError(
            f"`--image_size` must be multiples of the VQ-GAN's stride {stride}, got {height} x {width} "
            f"(the first picture has {first[0]} x {first[1]})."
        )
    return height, width


def draw_examples(tokenizer: Any, frames: list[Frame], providers: list[RegionProvider], number: int) -> np.ndarray:
    """Some of the frames, spread over all, beside their reconstructions; see `draw_rows`."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, number).round().astype(int))
    shown = [frames[index] for index in chosen]
    pictures = read_pictures(shown, tokenizer.image_size)
    reconstructed, _ = reconstruct_pictures(tokenizer, pictures)
    regions = [
        [region for provider in providers for region in find_regions(provider, frame, picture)[0]]
        for frame, picture in zip(shown, pictures, strict=True)
    ]
    decibels = psnr(reconstructed, pictures)
    titles = [f"{frame.camera}: {value:.1f} dB" for frame, value in zip(shown, decibels, strict=True)]
    return draw_rows(pictures, reconstructed, titles, regions)


def describe_run(arguments: ReconstructArguments, tokenizer: Any, seconds: float, frames: int) -> dict[str, Any]:
    """Settings, hash of the VQ-GAN, versions and commit: what the numbers belong to."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        **asdict(arguments),
        "image_size": list(tokenizer.image_size),
        "vq_model_hash": tokenizer.hash(),
        "commit": commit,
        "versions": versions,
        "seconds_per_frame": round(seconds / frames, 4),
    }


def prepare(arguments: ReconstructArguments) -> tuple[Any, list[Frame], list[Any], list[RegionProvider]]:
    """Load and check everything that is needed, so that nothing is found missing in the middle.

    Args:
        arguments (`ReconstructArguments`): all options.

    Returns:
        `tuple`: image tokenizer, frames, metrics, region providers.

    Raises:
        ValueError: if a choice is unknown, or masks are asked for where none were recorded.
        ImportError: if a metric lacks a package.
        OSError: if the VQ-GAN or the weights of a metric are missing.
    """
    metrics = [make_metric(name, arguments.device) for name in dict.fromkeys(arguments.metrics)]
    providers = [make_region_provider(name) for name in dict.fromkeys(arguments.regions)]
    vq_model = load_vq_gan(arguments.vq_model).to(arguments.device)
    frames = choose_frames(
        arguments.demonstrations, arguments.images, arguments.cameras, arguments.frames, arguments.seed
    )
    if "segmentation" in arguments.regions:
        for frame in frames:
            if not frame.names:
                frame.mask()  # says which file lacks its masks
    tokenizer = WorldVLAImageTokenizer(
        vq_model,
        image_size=choose_size(arguments.image_size, frames, stride_of(vq_model)),
        num_image_tokens=vq_model.config.num_vq_embeddings,
        codes_per_grid_unit=1,
        slice_size=arguments.batch_size,
    )
    return tokenizer, frames, metrics, providers


def reconstruct(arguments: ReconstructArguments) -> dict[str, Any]:
    """Measure, and write what was found.

    Args:
        arguments (`ReconstructArguments`): all options.

    Returns:
        `dict`: `settings`, and what `summarise` gives.
    """
    tokenizer, frames, metrics, providers = prepare(arguments)
    of_pictures = [metric for metric in metrics if metric.name not in SET_METRICS]
    of_sets = [metric for metric in metrics if metric.name in SET_METRICS]
    started = time.perf_counter()
    with tqdm(total=len(frames), desc="reconstruct", unit="picture") as bar:
        measured = measure_frames(
            tokenizer, frames, of_pictures, of_sets, providers, arguments.batch_size, on_batch=bar.update
        )
    settings = describe_run(arguments, tokenizer, time.perf_counter() - started, len(frames))
    result = {"settings": settings, **summarise(measured, of_pictures)}
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    examples = Image.fromarray(draw_examples(tokenizer, frames, providers, arguments.shown))
    write_atomically(output / "pictures.png", examples.save)
    write_text(output / "report.md", format_report(result, of_pictures, settings))
    write_json(output / "results.json", result)
    return result


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(ReconstructArguments, argv)
    result = reconstruct(arguments)
    for part, row in result["groups"]["all"].items():
        found = ", ".join(f"{name} {value['mean']:.3f}" for name, value in row.items() if isinstance(value, dict))
        logger.info("%s: %s (%d frames)", part, found, row["frames"])
    logger.info("report in %s", Path(arguments.output_dir) / "report.md")


if __name__ == "__main__":
    main(sys.argv[1:])
