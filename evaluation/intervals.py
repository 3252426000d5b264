"""Intervals and tests of success rates: how far a number from few episodes can be trusted. Loads no torch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest


class Estimate(NamedTuple):
    """A number with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class PairCounts(NamedTuple):
    """How pairs of episodes from the same initial states ended.

    Attributes:
        both (`int`): both runs succeeded.
        only_first (`int`): only the first run did.
        only_second (`int`): only the second run did.
        neither (`int`): none did.
    """

    both: int
    only_first: int
    only_second: int
    neither: int


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


def average_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of independent estimates, its interval made from theirs.

    The distances of the bounds from the values are averaged as standard errors are: the root of the sum of their
    squares, over their number, below and above apart. One estimate stays as it is; at rates of 0 and 1 the interval
    keeps a width, which the normal approximation loses.

    Args:
        estimates (`Sequence[Estimate]`): at least one, such as the success rates of the suites.

    Returns:
        `Estimate`: mean and interval.

    References:
        Zou, Huang, Zhang (2009), "A note on confidence interval estimation for a linear function of binomial
        proportions", with Wilson intervals.
    """
    values, lows, highs = np.array(estimates, dtype=float).T
    mean, number = float(values.mean()), len(values)
    below, above = (float(np.sqrt(((values - bound) ** 2).sum())) / number for bound in (lows, highs))
    return Estimate(mean, mean - below, mean + above)


def paired_difference(counts: PairCounts) -> Estimate:
    """Success rate of the second run minus that of the first, on the same initial states.

    Args:
        counts (`PairCounts`): at least one pair.

    Returns:
        `Estimate`: the difference, in -1 … 1, with Newcombe's interval.

    References:
        Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions based on paired
        data", method 10: Wilson intervals of both rates, joined by the correlation of the pairs with a continuity
        correction.
    """
    both, first, second, neither = counts
    pairs = sum(counts)
    rates = [(both + second) / pairs, (both + first) / pairs]
    (low, high), (other_low, other_high) = (success_interval(both + alone, pairs) for alone in (second, first))
    product = float(both * neither - first * second)
    if product > 0:
        product = max(0.0, product - pairs / 2)
    spread = (both + first) * (second + neither) * (both + second) * (first + neither)
    correlation = product / math.sqrt(spread) if spread else 0.0
    difference = rates[0] - rates[1]

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    return Estimate(
        difference,
        difference - distance(rates[0] - low, other_high - rates[1]),
        difference + distance(high - rates[0], rates[1] - other_low),
    )


def mcnemar_p_value(counts: PairCounts) -> float:
    """Exact two-sided McNemar test: how likely pairs that differ are split at least so unevenly by chance.

    Args:
        counts (`PairCounts`): of any number of pairs.

    Returns:
        `float`: p-value; 1 where no pair differs.
    """
    differing = counts.only_first + counts.only_second
    return float(binomtest(counts.only_first, differing).pvalue) if differing else 1.0


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
