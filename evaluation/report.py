"""Numbers as people read them: intervals, tables, files that are complete or absent."""

from collections.abc import Iterable, Sequence
from typing import Any

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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
