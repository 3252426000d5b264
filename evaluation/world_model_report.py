"""What `evaluation/measure_world_model.py` writes: tables beside ceiling and floor, and a picture of the curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.atomic_files import write_atomically
from evaluation.imagined_rollouts import NAMES
from evaluation.reconstruction import WHOLE
from evaluation.report import markdown_table
from evaluation.report_picture import import_figure
from evaluation.world_model_metrics import CEILING, CHANGED, FLOOR, IMAGINED, SOURCES, TOKEN_FLOOR, TOKENS
from modeling_worldvla.sampling_worldvla import describe_sampling
from tokenization.reconstruction_metrics import PICTURE_METRICS

TITLES = {name: metric.title for name, metric in PICTURE_METRICS.items()} | {
    TOKENS: "token accuracy",
    CHANGED: "accuracy of changed tokens",
}
DIGITS = {name: metric.digits for name, metric in PICTURE_METRICS.items()} | {TOKENS: 3, CHANGED: 3}
COLOURS = {IMAGINED: "#4477aa", FLOOR: "#aa3377", TOKEN_FLOOR: "#ccbb44", CEILING: "#228833"}
HOW = (
    "Each window: one real frame is given, the recorded actions follow, codes are {codes}. Means over windows; in "
    "brackets the 95 % interval, by bootstrap over episodes (2000 draws). PSNR of a frame counts at most 100 dB. "
    "Changed tokens are those that differ from the given frame's: where nothing moves, repeating a frame is hard to "
    "beat, and only these tell whether motion is imagined."
)
FVD_NOTE = (
    "FVD has no interval: it belongs to the whole set, and grows when there are fewer clips. Compare it only with "
    "values of as many clips of as many frames."
)


def format_report(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown.

    Args:
        summary (`Mapping`): see `evaluation.world_model_summary.summarise`, with `settings` and, where two runs are
            compared, `difference`.

    Returns:
        `str`: the report.
    """
    temperature, top_p = (summary["settings"][name] for name in ("temperature", "top_p"))
    how = HOW.format(codes="the likeliest" if temperature is None else describe_sampling(temperature, top_p))
    lines = ["# World model", f"{summary['num_windows']} windows of {summary['num_episodes']} episodes. {how}"]
    if summary["fvd"]:
        lines.append(FVD_NOTE)
    for horizon, parts in summary["horizons"].items():
        lines.append(f"## {horizon} frames")
        for part, rows in parts.items():
            lines += [
                f"{part[0].upper()}{part[1:]}:",
                _table(rows, summary["fvd"].get(horizon) if part == WHOLE else None),
            ]
        gain = {name: value for name, value in summary["gain"][horizon].items() if value}
        lines.append(f"Imagined minus repeated frame: {_listed(gain)}.")
        if "difference" in summary:
            compared = summary["settings"]["compare_with"]
            lines.append(
                f"Imagined, minus `{compared}` on the same windows: {_listed(summary['difference'][horizon])}."
            )
    lines.append(f"{summary['clipped_action_values']} action values lie outside the checkpoint's limits: clipped.")
    lines.append("![each metric by frame](curves.png)")
    settings = [[key, f"`{value}`"] for key, value in summary["settings"].items()]
    lines.append(markdown_table(["setting", "value"], settings))
    return "\n\n".join(lines) + "\n"


def _table(rows: Mapping[str, Mapping[str, Any]], fvd: Mapping[str, float] | None) -> str:
    """One row a source, one column a metric; empty where a metric says nothing about a source."""
    metrics = list(dict.fromkeys(name for row in rows.values() for name in row))
    header = ["frames", *(TITLES[name] for name in metrics), *(["FVD"] if fvd else [])]
    cells = []
    for source in SOURCES:
        row = [NAMES[source], *(_cell(rows[source].get(name), DIGITS[name]) for name in metrics)]
        cells.append([*row, f"{fvd[source]:.1f}"] if fvd else row)
    return markdown_table(header, cells)


def _cell(value: Mapping[str, Any] | None, digits: int) -> str:
    if value is None:
        return ""
    if value["interval"] is None:
        return f"{value['mean']:.{digits}f}"
    low, high = value["interval"]
    return f"{value['mean']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{TITLES[name]} {_cell(value, DIGITS[name])}" for name, value in values.items() if value)


def draw_curves(summary: Mapping[str, Any], path: Path) -> None:
    """Draw every metric by frame: a row a part of the picture, a column a metric.

    Args:
        summary (`Mapping`): see `evaluation.world_model_summary.summarise`.
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure_class = import_figure(path.name, "in results.json and report.md")
    panels = [
        (part, name)
        for part, rows in summary["curves"].items()
        for name in dict.fromkeys(name for row in rows.values() for name in row)
    ]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = figure_class(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for number, axis in enumerate(axes.flat):
        if number < len(panels):
            _draw_panel(axis, summary["curves"][panels[number][0]], *panels[number])
        else:
            axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100))


def _draw_panel(axis: Any, rows: Mapping[str, Mapping[str, Sequence[float | None]]], part: str, name: str) -> None:
    for source in SOURCES:
        if name in rows[source]:
            curve = np.array(rows[source][name], float)
            axis.plot(np.arange(1, len(curve) + 1), curve, color=COLOURS[source], label=NAMES[source], linewidth=1.5)
    axis.set_title(f"{TITLES[name]}, {part}", fontsize=10)
    axis.set_xlabel("frame")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
