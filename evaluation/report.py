"""Numbers as people read them: intervals, tables, files that are complete or absent."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest


def success_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson interval of a success rate.

    Args:
        successes (`int`): episodes that succeeded.
        episodes (`int`): episodes in all.

    Returns:
        `tuple[float, float]`: bounds of the 95 % interval, each in 0 … 1.
    """
    interval = binomtest(successes, episodes).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def format_success(successes: int, episodes: int) -> str:
    """A success rate with its sample size and interval, such as `3/5 (60 %, 95 % interval 23 to 88 %)`."""
    low, high = success_interval(successes, episodes)
    rate = successes / episodes
    return f"{successes}/{episodes} ({100 * rate:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def episode_interval(values: np.ndarray, episodes: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Interval of a mean over frames that come from few episodes, by bootstrap over the episodes.

    Frames of an episode resemble each other, so episodes, not frames, are drawn anew (2000 times).

    Args:
        values (`np.ndarray` of shape `(N,)`): one number a frame.
        episodes (`np.ndarray` of shape `(N,)`): integers, which episode a frame belongs to.
        seed (`int`): seed of the draws.

    Returns:
        `tuple[float, float]`: bounds of the 95 % interval; `None` where there is only one episode.
    """
    _, place = np.unique(episodes, return_inverse=True)
    counts = np.bincount(place)
    if len(counts) < 2:
        return None
    sums = np.bincount(place, weights=values)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(2000, len(counts)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
