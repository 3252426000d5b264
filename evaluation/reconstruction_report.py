"""What `evaluation/reconstruct.py` writes: means with intervals, tables, and a picture to look at.

Shapes: `N` frames, `H, W` pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from evaluation.intervals import episode_interval
from evaluation.reconstruction import WHOLE, Measured
from evaluation.reconstruction_frames import Frame
from evaluation.report import markdown_table
from evaluation.video import enlarge, label
from tokenization.reconstruction_metrics import PictureMetric, codebook_perplexity
from tokenization.regions import Region

DIFFERENCE_GAIN = 4
FILE = "file "  # titles of the groups that are one file
COLOURS = {"gripper": (255, 60, 60), "face": (255, 60, 60), "salient": (255, 220, 0)}
HOW = (
    "Means over frames; in brackets the 95 % interval, by bootstrap over episodes (2000 draws), because frames of an "
    "episode resemble each other. A region recorded in segmentation masks is measured on the pixels of its mask, any "
    "other on its box; where a frame lacks a region, it does not count there."
)


def groups_of(frames: Sequence[Frame]) -> dict[str, np.ndarray]:
    """Sets of frames that have a row of their own: all, and by camera, folder and file where there are several.

    Args:
        frames (`Sequence[Frame]`): N frames.

    Returns:
        `dict[str, np.ndarray]`: title -> bool `(N,)`.
    """
    keys = {
        "camera": [frame.camera for frame in frames],
        "folder": [frame.path.parent.name for frame in frames],
        "file": [f"{frame.path.parent.name}/{frame.path.stem}" if frame.camera != "image" else "" for frame in frames],
    }
    groups = {"all": np.ones(len(frames), bool)}
    for key, values in keys.items():
        different = sorted(set(values) - {""})
        if len(set(values)) > 1:
            groups |= {f"{key} {value}": np.array([other == value for other in values]) for value in different}
    return groups


def summarise(measured: Measured, metrics: Sequence[PictureMetric]) -> dict[str, Any]:
    """Means and intervals of every group and part, and the use of the codebook.

    Args:
        measured (`Measured`): the numbers of each frame.
        metrics (`Sequence[PictureMetric]`): the metrics of `measured`.

    Returns:
        `dict`: `groups` -> title -> part -> `frames`, `episodes` and metric -> `mean`, `interval`; `codebook`;
        `all_frames` with the metrics of the whole set.
    """
    episodes = np.array([frame.episode for frame in measured.frames])
    groups: dict[str, Any] = {}
    for title, members in groups_of(measured.frames).items():
        for part, scores in measured.scores.items():
            there = members & ~np.isnan(scores[metrics[0].name])
            if there.any():
                row: dict[str, Any] = {"frames": int(there.sum()), "episodes": len(np.unique(episodes[there]))}
                for metric in metrics:
                    values = scores[metric.name][there]
                    interval = episode_interval(values, episodes[there])
                    row[metric.name] = {"mean": float(values.mean()), "interval": list(interval) if interval else None}
                groups.setdefault(title, {})[part] = row
    counts = measured.code_counts
    codebook = {"codes": len(counts), "used": int((counts > 0).sum()), "perplexity": codebook_perplexity(counts)}
    return {"groups": groups, "all_frames": measured.set_scores, "codebook": codebook}


def format_report(summary: dict[str, Any], metrics: Sequence[PictureMetric], settings: dict[str, Any]) -> str:
    """The summary as Markdown.

    Args:
        summary (`dict`): see `summarise`.
        metrics (`Sequence[PictureMetric]`): the columns.
        settings (`dict`): what was measured with what.

    Returns:
        `str`: the report.
    """
    header = ["frames of", "part", "frames", "episodes", *(metric.title for metric in metrics)]
    rows = [
        [title, part, row["frames"], row["episodes"], *(_cell(row[m.name], m.digits) for m in metrics)]
        for title, parts in summary["groups"].items()
        for part, row in parts.items()
        if not title.startswith(FILE)
    ]
    codebook = summary["codebook"]
    lines = [
        "# Reconstructions",
        markdown_table(header, rows),
        HOW,
        f"Codes: {codebook['used']} of {codebook['codes']} used, perplexity {codebook['perplexity']:.1f}.",
    ]
    for name, value in summary["all_frames"].items():
        lines.append(f"{name}: {value:.2f} over {summary['groups']['all'][WHOLE]['frames']} frames.")
    lines += _file_table(summary, metrics[0])
    lines.append("![original, reconstruction, difference and regions](pictures.png)")
    lines.append(markdown_table(["setting", "value"], [[key, f"`{value}`"] for key, value in settings.items()]))
    return "\n\n".join(lines) + "\n"


def _file_table(summary: dict[str, Any], metric: PictureMetric) -> list[str]:
    """One row a file, the means of one metric; nothing where there is one file only."""
    files = {title: parts for title, parts in summary["groups"].items() if title.startswith(FILE)}
    parts = list(summary["groups"]["all"])
    rows = [
        [title.removeprefix(FILE), row[WHOLE]["frames"]]
        + [f"{row[part][metric.name]['mean']:.{metric.digits}f}" if part in row else "" for part in parts]
        for title, row in files.items()
    ]
    return [f"{metric.title} by file:", markdown_table(["file", "frames", *parts], rows)] if rows else []


def _cell(value: dict[str, Any], digits: int) -> str:
    mean = f"{value['mean']:.{digits}f}"
    if value["interval"] is None:
        return mean
    low, high = value["interval"]
    return f"{mean} ({low:.{digits}f} to {high:.{digits}f})"


def draw_regions(picture: np.ndarray, regions: Sequence[Region], height: int = 256) -> np.ndarray:
    """Enlarge a picture and draw boxes with names on it.

    Args:
        picture (`np.ndarray` of shape `(H, W, 3)`): uint8.
        regions (`Sequence[Region]`): boxes in the picture's own pixels.
        height (`int`): wanted height in pixels.

    Returns:
        `np.ndarray`: uint8.
    """
    large = Image.fromarray(enlarge(picture, height))
    factor, draw = large.height // picture.shape[0], ImageDraw.Draw(large)
    for region in regions:
        colour = COLOURS.get(region.name, (80, 255, 80))
        left, top = region.left * factor, region.top * factor
        draw.rectangle((left, top, region.right * factor - 1, region.bottom * factor - 1), outline=colour, width=2)
        draw.text((left + 4, top + 2), region.name, fill=colour)
    return np.asarray(large)


def draw_rows(
    pictures: np.ndarray, reconstructed: np.ndarray, titles: Sequence[str], regions: Sequence[Sequence[Region]]
) -> np.ndarray:
    """Original, reconstruction, difference and, where there are some, regions; a row a picture.

    Args:
        pictures (`np.ndarray` of shape `(N, H, W, 3)`): uint8.
        reconstructed (`np.ndarray` of shape `(N, H, W, 3)`): uint8.
        titles (`Sequence[str]`): N captions of the originals.
        regions (`Sequence[Sequence[Region]]`): regions of each picture.

    Returns:
        `np.ndarray` of shape `(..., ..., 3)`: uint8.
    """
    difference = np.abs(pictures.astype(np.int16) - reconstructed) * DIFFERENCE_GAIN
    rows = []
    for number, picture in enumerate(pictures):
        cells = {
            titles[number]: enlarge(picture, 256),
            "reconstruction": enlarge(reconstructed[number], 256),
            f"|difference| x {DIFFERENCE_GAIN}": enlarge(difference[number].clip(0, 255).astype(np.uint8), 256),
        }
        if any(regions):
            cells["regions"] = draw_regions(picture, regions[number])
        rows.append(np.concatenate([label(cell, caption) for caption, cell in cells.items()], axis=1))
    return np.concatenate(rows)
