"""Intervals and tests with known answers."""

import itertools
import math

import pytest

from evaluation.intervals import (
    Estimate,
    PairCounts,
    average_estimates,
    mcnemar_p_value,
    paired_difference,
    success_interval,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(3, 5, 0.2307, 0.8824), (0, 5, 0.0, 0.4345), (5, 5, 0.5655, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_by_hand(successes, episodes, low, high):
    # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96
    assert success_interval(successes, episodes) == pytest.approx((low, high), abs=1e-4)


def test_the_average_of_one_suite_is_the_suite():
    assert average_estimates([Estimate(0.9, 0.7, 0.95)]) == pytest.approx((0.9, 0.7, 0.95))


def test_the_average_of_suites_by_hand():
    # below: sqrt(0.1^2 + 0.2^2) / 2, above: sqrt(0.05^2 + 0.3^2) / 2
    found = average_estimates([Estimate(0.9, 0.8, 0.95), Estimate(0.5, 0.3, 0.8)])
    assert found == pytest.approx((0.7, 0.7 - math.sqrt(0.05) / 2, 0.7 + math.sqrt(0.0925) / 2))


def test_an_average_without_failures_keeps_its_doubt():
    suite = Estimate(1.0, *success_interval(10, 10))
    found = average_estimates([suite] * 4)
    assert found.high == 1 and found.low == pytest.approx(1 - (1 - suite.low) / 2)


@pytest.mark.parametrize("rates", [(0.9, 0.5), (0.95, 0.95), (0.2, 0.99)])
def test_the_average_s_interval_covers_as_often_as_it_says(rates):
    """Exact coverage: every outcome of two suites of 20 episodes, weighed by its probability."""
    episodes, covered = 20, 0.0
    wilson = [success_interval(count, episodes) for count in range(episodes + 1)]
    for counts in itertools.product(range(episodes + 1), repeat=2):
        chance = math.prod(
            math.comb(episodes, count) * rate**count * (1 - rate) ** (episodes - count)
            for count, rate in zip(counts, rates, strict=True)
        )
        found = average_estimates([Estimate(count / episodes, *wilson[count]) for count in counts])
        covered += chance * (found.low <= sum(rates) / 2 <= found.high)
    assert 0.93 <= covered <= 0.99


@pytest.mark.parametrize(
    ("counts", "difference", "low", "high"),
    [
        # Fagerland, Lydersen, Laake (2014), airway hyper-responsiveness: 1 of 21 both, 1 and 7 alone
        (PairCounts(1, 7, 1, 12), -0.286, -0.507, -0.026),
        # Altman and others (2000), table 6.2: 14 of 41 both, 5 and 0 alone
        (PairCounts(14, 0, 5, 22), 0.122, 0.011, 0.226),
    ],
)
def test_paired_differences_as_published(counts, difference, low, high):
    assert paired_difference(counts) == pytest.approx((difference, low, high), abs=6e-4)
    turned = PairCounts(counts.both, counts.only_second, counts.only_first, counts.neither)
    assert paired_difference(turned) == pytest.approx((-difference, -high, -low), abs=6e-4)


@pytest.mark.parametrize("chances", [(0.5, 0.2, 0.1, 0.2), (0.85, 0.1, 0.03, 0.02), (0.1, 0.1, 0.1, 0.7)])
def test_the_paired_interval_covers_as_often_as_it_says(chances):
    """Exact coverage: every way in which 15 pairs can end, weighed by its probability."""
    pairs, covered, whole = 15, 0.0, 0.0
    for both, first, second in itertools.product(range(pairs + 1), repeat=3):
        neither = pairs - both - first - second
        if neither < 0:
            continue
        counts = PairCounts(both, first, second, neither)
        ways = math.factorial(pairs) / math.prod(math.factorial(count) for count in counts)
        chance = ways * math.prod(share**count for share, count in zip(chances, counts, strict=True))
        found = paired_difference(counts)
        whole += chance
        covered += chance * (found.low <= chances[2] - chances[1] <= found.high)
    assert whole == pytest.approx(1)
    assert 0.93 <= covered <= 0.998  # more than 95 % where few pairs differ


def test_equal_runs_do_not_differ():
    found = paired_difference(PairCounts(30, 0, 0, 20))
    assert found.value == 0 and found.low == pytest.approx(-found.high) and 0 < found.high < 0.06
    assert mcnemar_p_value(PairCounts(30, 0, 0, 20)) == 1
    assert paired_difference(PairCounts(10, 0, 0, 0)).value == 0  # no variation: no correlation, and no error


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [(7, 1, 2 * (1 + 8) / 2**8), (5, 0, 2 / 2**5), (1, 0, 1.0), (3, 3, 1.0), (0, 10, 2 / 2**10)],
)
def test_mcnemar_by_hand(first, second, p_value):
    assert mcnemar_p_value(PairCounts(4, first, second, 9)) == pytest.approx(p_value)
