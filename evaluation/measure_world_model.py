"""Measure how near imagined frames come to the real ones, on held-out episodes.

    python evaluation/measure_world_model.py --checkpoint outputs/demo-train/checkpoint \
        --demonstrations outputs/demo-train/held_out --num_frames 10 50 --output_dir outputs/demo-train/world_model

Writes `report.md`, `results.json` and `curves.png`: PSNR, SSIM, LPIPS, FVD and token accuracy, beside the tokenizer's
own reconstruction (the ceiling) and the given frame repeated (the floor). See docs/world_model.md.
"""

import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm.auto import tqdm

from evaluation.arguments import parse_arguments
from evaluation.atomic_files import write_json, write_text
from evaluation.checkpoints import check_imagined_camera, fingerprint_checkpoint, load_checkpoint
from evaluation.run_settings import current_commit, package_versions
from evaluation.video_distance import Fvd
from evaluation.world_model_arguments import WorldModelArguments
from evaluation.world_model_metrics import Instruments, measure_windows
from evaluation.world_model_report import draw_curves, format_report
from evaluation.world_model_summary import compare_results, summarise
from evaluation.world_model_windows import Window, choose_windows
from tokenization.reconstruction_metrics import make_metric
from tokenization.regions import make_region_provider

logger = logging.getLogger("worldvla.measure_world_model")


def make_instruments(arguments: WorldModelArguments) -> Instruments:
    """Load every metric, so that nothing is found missing after the imagining.

    Args:
        arguments (`WorldModelArguments`): all options.

    Returns:
        `Instruments`.

    Raises:
        ValueError: if a choice is unknown.
        ImportError: if a metric lacks a package.
        OSError: if the weights of a metric are not to be had.
    """
    names = list(dict.fromkeys(arguments.metrics))
    return Instruments(
        metrics=[make_metric(name, arguments.device) for name in names if name != Fvd.name],
        fvd=Fvd(arguments.fvd_network, arguments.device) if Fvd.name in names else None,
        providers=[make_region_provider(name) for name in dict.fromkeys(arguments.regions)],
        horizons=tuple(arguments.num_frames),
    )


def find_windows(arguments: WorldModelArguments) -> list[Window]:
    """Choose the windows, and refuse episodes that lack what is asked for.

    Args:
        arguments (`WorldModelArguments`): all options.

    Returns:
        `list[Window]`: at least one, and two for FVD.

    Raises:
        FileNotFoundError: if there are no episodes.
        ValueError: if none is long enough, or masks are missing.
    """
    windows = choose_windows(
        arguments.demonstrations,
        arguments.camera,
        arguments.num_frames[-1],
        arguments.windows_per_episode,
        arguments.episodes,
    )
    if Fvd.name in arguments.metrics and len(windows) < 2:
        raise ValueError(
            "FVD compares sets of clips, and there is one window. Give more episodes or `--windows_per_episode`, or "
            "leave `fvd` out of `--metrics`."
        )
    if "segmentation" in arguments.regions:
        for window in windows:
            if not window.demonstration.segmentation_names:
                window.demonstration.segmentation(arguments.camera, slice(0))  # says which file lacks its masks
    return windows


def read_other_results(path: str | None) -> Any:
    """Read the results to compare with.

    Args:
        path (`str`, *optional*): `results.json` of another run.

    Returns:
        `dict`, or None without a path.

    Raises:
        ValueError: if it is no such file.
    """
    if path is None:
        return None
    try:
        other = json.loads(Path(path).read_text("utf-8"))
        other["windows"][0]["imagined"], other["horizons"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"`{path}` holds no results of evaluation/measure_world_model.py ({type(error).__name__}: {error}). Give "
            "the `results.json` of another run."
        ) from error
    return other


def measure_world_model(arguments: WorldModelArguments) -> dict[str, Any]:
    """Measure, and write what was found.

    Args:
        arguments (`WorldModelArguments`): all options.

    Returns:
        `dict`: see `summarise`, with `settings` and `difference`.
    """
    other = read_other_results(arguments.compare_with)
    windows = find_windows(arguments)
    check_imagined_camera(arguments.checkpoint, arguments.camera)
    instruments = make_instruments(arguments)
    model, processor = load_checkpoint(arguments.checkpoint, arguments.device)
    started = time.perf_counter()
    with tqdm(total=len(windows) * arguments.num_frames[-1], desc="imagine", unit="frame") as bar:
        measured = measure_windows(
            model,
            processor,
            windows,
            instruments,
            arguments.camera,
            arguments.dataset_name,
            arguments.batch_size,
            arguments,
            on_frames=bar.update,
        )
    seconds = (time.perf_counter() - started) / (len(windows) * arguments.num_frames[-1])
    summary = summarise(measured, arguments.num_frames)
    if other is not None:
        summary["difference"] = compare_results(summary, other)
    summary["settings"] = {
        **asdict(arguments),
        "image_size": list(processor.image_tokenizer.image_size),
        "world_model_history": model.config.world_model_history,
        "checkpoint_fingerprint": fingerprint_checkpoint(arguments.checkpoint, model),
        "commit": current_commit(),
        "versions": package_versions(),
        "seconds_per_frame": round(seconds, 4),
    }
    write_results(Path(arguments.output_dir), summary)
    return summary


def write_results(folder: Path, summary: dict[str, Any]) -> None:
    """Write numbers first, the picture last.

    Args:
        folder (`Path`): made where it is missing.
        summary (`dict`): see `measure_world_model`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", summary)
    write_text(folder / "report.md", format_report(summary))
    draw_curves(summary, folder / "curves.png")


def main(argv: list[str]) -> None:
    """Command line entry."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(WorldModelArguments, argv)
    summary = measure_world_model(arguments)
    for horizon, parts in summary["horizons"].items():
        for source, row in parts["whole picture"].items():
            found = ", ".join(f"{name} {value['mean']:.3f}" for name, value in row.items() if value)
            logger.info("%s frames, %s: %s", horizon, source, found)
    logger.info("report in %s", Path(arguments.output_dir) / "report.md")


if __name__ == "__main__":
    main(sys.argv[1:])
