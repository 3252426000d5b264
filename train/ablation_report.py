"""What an ablation found: one table with intervals (Markdown, JSON) and a picture of it."""

import importlib.util
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenization.choices_worldvla import require_choice

SUCCESS = "success"
_CONFIDENCE = 0.975  # upper end of a two-sided 95 % interval
_NORMAL = statistics.NormalDist().inv_cdf(_CONFIDENCE)
_FOOTNOTES = (
    "Numbers in brackets are 95 % intervals: of means over seeds, Student's t; of success, Wilson's, the episodes of "
    "all seeds pooled. One seed has no interval.",
    "Scores other than success are teacher-forced: with causal attention a model sees the true earlier actions of the "
    "chunk, which it never does when it acts. Compare mask and causal by success; K = 1 has nothing to mask.",
    "Each run had the same number of optimizer steps and of samples in a step; without the world model all of them "
    "are policy samples.",
)


class Estimate(NamedTuple):
    """A mean with its 95 % interval; None where there is too little for one."""

    value: float
    low: float | None
    high: float | None


def require_packages() -> None:
    """Refuse to begin without the packages that intervals and picture need.

    Raises:
        ImportError: names the first that is missing.
    """
    for name in ("scipy", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"Intervals and picture need the package {name}: `pip install worldvla[eval]`.")


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of runs that differ in their seed alone.

    Args:
        values (`Sequence[float]`): one number a run, at least one.

    Returns:
        `Estimate`: with the interval of Student's t.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    from scipy.stats import t as student

    spread = float(student.ppf(_CONFIDENCE, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - spread, mean + spread)


def success_rate(successes: int, episodes: int) -> Estimate:
    """Share of successes with Wilson's interval.

    Args:
        successes (`int`): episodes that succeeded.
        episodes (`int`): episodes in all, at least one.

    Returns:
        `Estimate`: each number in 0 … 1.
    """
    rate, weight = successes / episodes, _NORMAL**2 / episodes
    middle = (rate + weight / 2) / (1 + weight)
    spread = _NORMAL * math.sqrt(rate * (1 - rate) / episodes + weight / (4 * episodes)) / (1 + weight)
    return Estimate(rate, middle - spread, middle + spread)


def summarise(cells: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Add estimates to every cell of the grid.

    Args:
        cells (`Sequence[Mapping]`): each with `runs`, a list of `{"seed", "metrics", "rollouts"}`.
        metrics (`Sequence[str]`): names of scores, without `eval_`.

    Returns:
        `list[dict]`: the cells with `estimates`: name to `{"value", "low", "high"}`.

    Raises:
        ValueError: if no run has one of the metrics (names the nearest).
    """
    known = sorted({name.removeprefix("eval_") for cell in cells for run in cell["runs"] for name in run["metrics"]})
    for name in metrics:
        require_choice("metric of `--metrics`:", name, known)
    rows = []
    for cell in cells:
        estimates: dict[str, Any] = {}
        for name in metrics:
            values = [run["metrics"][f"eval_{name}"] for run in cell["runs"] if f"eval_{name}" in run["metrics"]]
            estimates[name] = mean_over_seeds(values)._asdict() if values else None
        tried = [run["rollouts"] for run in cell["runs"] if run["rollouts"] is not None]
        if episodes := sum(rollouts["episodes"] for rollouts in tried):
            successes = sum(rollouts["successes"] for rollouts in tried)
            estimates[SUCCESS] = success_rate(successes, episodes)._asdict() | {"episodes": episodes}
        rows.append({**cell, "estimates": estimates})
    return rows


def format_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], title: str) -> str:
    """The table as Markdown.

    Args:
        rows (`Sequence[Mapping]`): see `summarise`.
        metrics (`Sequence[str]`): the columns.
        title (`str`): what was compared.

    Returns:
        `str`: Markdown with footnotes.
    """
    columns = [*([SUCCESS] if any(SUCCESS in row["estimates"] for row in rows) else []), *metrics]
    lines = [
        ["world model", "K", "attention", "seeds", *columns],
        ["---", "---:", "---", "---:", *["---:"] * len(columns)],
    ]
    for row in rows:
        shown = [_format(row["estimates"].get(name)) for name in columns]
        switch = "on" if row["world_model"] else "off"
        lines.append([switch, str(row["chunk_size"]), row["attention"], str(len(row["runs"])), *shown])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"# {title}", table, *_FOOTNOTES]) + "\n"


def _format(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "not measured"
    text = f"{estimate['value']:.4g}"
    if estimate["low"] is not None:
        text += f" [{estimate['low']:.4g}, {estimate['high']:.4g}]"
    return text + (f" of {estimate['episodes']}" if "episodes" in estimate else "")


def draw_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], path: Path) -> None:
    """Draw every column: means, intervals, and each seed as a dot.

    Args:
        rows (`Sequence[Mapping]`): see `summarise`.
        metrics (`Sequence[str]`): the columns.
        path (`Path`): PNG file.
    """
    from matplotlib.figure import Figure

    columns = [*([SUCCESS] if any(SUCCESS in row["estimates"] for row in rows) else []), *metrics]
    figure = Figure(figsize=(2 + 2.8 * len(columns), 1.2 + 0.45 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, columns, strict=True):
        for place, row in enumerate(rows):
            if (estimate := row["estimates"].get(name)) is None:
                continue
            if estimate["low"] is not None:
                panel.plot([estimate["low"], estimate["high"]], [place, place], color="tab:blue", linewidth=2)
            panel.plot(estimate["value"], place, "o", color="tab:blue")
            seeds = [_of_run(run, name) for run in row["runs"]]
            panel.plot(
                [value for value in seeds if value is not None], [place] * sum(v is not None for v in seeds), "k|"
            )
        panel.set_title(name, fontsize=9)
        panel.grid(axis="x", alpha=0.3)
    labels = [
        f"{'world model, ' if row['world_model'] else ''}K = {row['chunk_size']}, {row['attention']}" for row in rows
    ]
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def _of_run(run: Mapping[str, Any], name: str) -> float | None:
    """One run's number in a column."""
    if name != SUCCESS:
        return run["metrics"].get(f"eval_{name}")
    rollouts = run["rollouts"]
    return rollouts["successes"] / rollouts["episodes"] if rollouts and rollouts["episodes"] else None
