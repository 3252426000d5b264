"""Episodes of a run beside what the world model makes of their actions: traces in, tables out.

Shapes: `T` steps of an episode, `N` imagined frames, `H, W` pixels, `D` action dimensions.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.atomic_files import write_json, write_text
from evaluation.intervals import episode_interval
from evaluation.report import markdown_table
from tokenization.choices_worldvla import require_choice

NAMES = {
    "imagined": "imagined",
    "copy_last_frame": "floor: first frame repeated",
    "copy_last_reconstruction": "the same through the tokenizer",
    "reconstruction": "ceiling: real frames through the tokenizer",
}


class Trace(NamedTuple):
    """What was seen and done in an episode.

    Attributes:
        frames (`np.ndarray` of shape `(T + 1, H, W, 3)`): uint8, the initial state first.
        actions (`np.ndarray` of shape `(T, D)`): commands between the frames.
        instruction (`str`): what the robot was told.
        outcome (`str`): how it ended.
    """

    frames: np.ndarray
    actions: np.ndarray
    instruction: str
    outcome: str


def choose_traces(folder: Path, names: Sequence[str]) -> list[Path]:
    """Find the traces of a run.

    Args:
        folder (`Path`): results folder.
        names (`Sequence[str]`): episodes; none: all.

    Returns:
        `list[Path]`: at least one.

    Raises:
        ValueError: if there is no trace, or none of a name; names the nearest.
    """
    found = {path.stem: path for path in sorted((folder / "videos").glob("*.npz"))}
    if not found:
        raise ValueError(
            f"`{folder}` holds no traces (videos/*.npz). Run evaluation/run.py with `--traces true` and `--videos` in "
            "an empty folder."
        )
    for name in names:
        require_choice("episode", name, list(found))
    return [found[name] for name in dict.fromkeys(names)] if names else list(found.values())


def read_trace(path: Path, camera: str) -> Trace:
    """Read and check a trace; nothing in it is executed.

    Args:
        path (`Path`): NPZ file of evaluation/run.py.
        camera (`str`): whose frames are wanted.

    Returns:
        `Trace`: checked.

    Raises:
        ValueError: if the file is no trace, or shows another camera; names the file and what came.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            frames, actions = stored["frames"], stored["actions"]
            texts = {name: str(stored[name][()]) for name in ("instruction", "outcome", "camera")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`{path}` is no trace of an episode: {error}. Delete it, and run the evaluation again with `--traces "
            "true`."
        ) from error
    shaped = frames.ndim == 4 and frames.shape[3] == 3 and actions.ndim == 2 and len(frames) == len(actions) + 1
    if not shaped or frames.dtype != np.uint8 or not len(actions) or actions.dtype.kind != "f":
        raise ValueError(
            f"`{path}` is no trace of an episode: it holds frames {frames.dtype}{list(frames.shape)} and actions "
            f"{actions.dtype}{list(actions.shape)}; uint8[T + 1, H, W, 3] and float[T, D] are expected."
        )
    if not np.isfinite(actions).all():
        raise ValueError(f"`{path}` holds actions that are NaN or infinite. Run the episode again.")
    if texts["camera"] != camera:
        raise ValueError(
            f"`{path}` shows camera `{texts['camera']}`, and `{camera}` is asked for. Choose `--camera "
            f"{texts['camera']}`, or run the evaluation with `--camera {camera}`."
        )
    return Trace(frames, actions, texts["instruction"], texts["outcome"])


def summarise_episodes(episodes: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Means over all imagined frames.

    Args:
        episodes (`Mapping`): name of the episode to its numbers.
        settings (`Mapping`): options of the command.

    Returns:
        `dict`: `num_frames`, `num_episodes`, `entropy_nats` and its interval, `psnr_db` and its interval where real
        frames are known, `seconds_per_frame`, `clipped_action_values`, `episodes`, `settings`. Intervals (95 %) are by
        bootstrap over episodes; null with one episode.
    """
    lengths = [episode["num_frames"] for episode in episodes.values()]
    belongs = np.repeat(np.arange(len(lengths)), lengths)
    entropies = np.concatenate([episode["entropy_curve_nats"] for episode in episodes.values()])
    seconds = float(np.dot([episode["seconds_per_frame"] for episode in episodes.values()], lengths))
    return {
        "num_frames": sum(lengths),
        "num_episodes": len(lengths),
        "entropy_nats": float(entropies.mean()),
        "entropy_nats_interval_95": episode_interval(entropies, belongs),
        **_summarise_psnr(episodes, lengths, belongs),
        "seconds_per_frame": seconds / sum(lengths),
        "clipped_action_values": sum(episode["clipped_action_values"] for episode in episodes.values()),
        "episodes": dict(episodes),
        "settings": dict(settings),
    }


def _summarise_psnr(
    episodes: Mapping[str, Mapping[str, Any]], lengths: Sequence[int], belongs: np.ndarray
) -> dict[str, Any]:
    """Mean PSNR and its interval; nothing where nothing real is known."""
    first = next(iter(episodes.values()))
    if "curves_db" not in first:
        return {}
    curves = {
        name: np.concatenate([episode["curves_db"][name] for episode in episodes.values()])
        for name in first["curves_db"]
    }
    means = {
        name: np.average([episode["psnr_db"][name] for episode in episodes.values()], weights=lengths)
        for name in curves
    }
    return {
        "psnr_db": {name: float(mean) for name, mean in means.items()},
        "psnr_db_interval_95": {name: episode_interval(curve, belongs) for name, curve in curves.items()},
    }


def write_rollouts(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write imagined.json and imagined.md.

    Args:
        folder (`Path`): results folder.
        summary (`Mapping`): see `summarise_episodes`.
    """
    rows = []
    for name, value in summary["psnr_db"].items():
        bounds = summary["psnr_db_interval_95"][name]
        rows.append([NAMES[name], f"{value:.2f}", f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else ""])
    per_episode = [
        [name, episode["instruction"], episode["outcome"], episode["num_frames"]]
        + [f"{episode['psnr_db'][kind]:.2f}" for kind in ("imagined", "copy_last_frame", "reconstruction")]
        + [f"[{episode['video']}](videos/{episode['video']})"]
        for name, episode in summary["episodes"].items()
    ]
    header = ["episode", "instruction", "outcome", "frames", "imagined", "floor", "ceiling", "video"]
    parts = [
        "# Imagined episodes",
        f"{summary['num_frames']} frames of {summary['num_episodes']} episodes, each imagined from one real frame and "
        f"the actions that were carried out; {summary['seconds_per_frame']:.2f} s a frame, "
        f"{summary['clipped_action_values']} action values clipped. The model was unsure by "
        f"{summary['entropy_nats']:.2f} nats per image token in the mean.",
        markdown_table(["mean PSNR", "dB", "95 % interval, bootstrap over episodes"], rows),
        markdown_table(header, per_episode),
    ]
    write_json(folder / "imagined.json", summary)
    write_text(folder / "imagined.md", "\n\n".join(parts) + "\n")
