"""The picture of a report: a bar a task with its interval, the suites side by side."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.atomic_files import write_atomically

COLUMNS = 2
INCHES_PER_TASK = 0.44
LABEL_CHARACTERS = 42
COLOURS = ("#4477aa", "#228833", "#aa7733", "#aa3377", "#555555")


def import_figure(file_name: str, numbers: str) -> Any:
    """Get matplotlib's class of figures, when something is to be drawn.

    Args:
        file_name (`str`): the picture.
        numbers (`str`): where what it shows can be read without it.

    Returns:
        `type`: `matplotlib.figure.Figure`, which needs no screen.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{file_name} is drawn with matplotlib, which is not installed: pip install 'worldvla[eval]'. The numbers "
            f"are {numbers}."
        ) from error
    return Figure


def draw_report(summary: Mapping[str, Any], path: Path) -> None:
    """Draw success rates of all tasks.

    Args:
        summary (`Mapping`): see `evaluation.report.summarise`.
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure_class = import_figure(path.name, "in the results folder; the same command draws the picture")
    suites = list(summary["suites"].items())
    columns = min(COLUMNS, len(suites))
    lines = [suites[start : start + columns] for start in range(0, len(suites), columns)]
    heights = [INCHES_PER_TASK * max(len(suite["tasks"]) for _, suite in line) + 1.0 for line in lines]
    figure = figure_class(figsize=(8.5 * columns, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for number, axis in enumerate(axes.flat):
        if number < len(suites):
            name, suite = suites[number]
            _draw_suite(axis, name, suite, COLOURS[number % len(COLOURS)])
        else:
            axis.axis("off")
    if average := summary["average"]:
        low, high = average["interval_95"]
        named = f"Average of {average['suites']} suites" if average["suites"] > 1 else "Success"
        figure.suptitle(
            f"{named}: {100 * average['success_rate']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100))


def _draw_suite(axis: Any, name: str, suite: Mapping[str, Any], colour: str) -> None:
    """Horizontal bars, so that instructions can be read; the first task on top."""
    tasks = suite["tasks"]
    axis.set_title(f"{name}: {suite['successes']}/{suite['episodes']}", fontsize=12, fontweight="bold")
    for place, task in enumerate(tasks.values()):
        rate = task["success_rate"]
        if rate is None:
            axis.text(1, place, "not judged", va="center", fontsize=9, color="#aa0000")
            continue
        low, high = task["interval_95"]
        axis.barh(place, 100 * rate, height=0.7, color=colour, alpha=0.75)
        axis.plot([100 * low, 100 * high], [place, place], color="black", linewidth=1.2)
        axis.plot([100 * low, 100 * high], [place, place], "|", color="black", markersize=8)
        left_out = task["errors"] + task["missing"]
        note = f"{task['successes']}/{task['episodes']}" + (f" ({left_out} not judged)" if left_out else "")
        axis.annotate(note, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    titles = [f"{number}: {task['instruction'] or 'not run'}" for number, task in tasks.items()]
    axis.set_yticks(range(len(tasks)), [textwrap.fill(title, LABEL_CHARACTERS) for title in titles], fontsize=9)
    axis.set_ylim(len(tasks) - 0.4, -0.6)
    axis.set_xlim(0, 100)
    axis.set_xlabel("success, % of episodes; line: 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
