"""Whether imagined futures follow the actions: how far the gripper moved, and how that agrees with the simulator.

Shapes: `S` starting states, `A` actions tried from each, `H, W` pixels. Displacements are (down, right), in pixels.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import spearmanr

REPEATS = 2000  # draws of the bootstrap
AXES = {"horizontal": 1, "vertical": 0}


def centroid(mask: np.ndarray) -> np.ndarray:
    """Middle of the true pixels of a mask `(H, W)`: row and column; NaN where there is none."""
    rows, columns = np.nonzero(mask)
    return np.array([rows.mean(), columns.mean()]) if len(rows) else np.full(2, np.nan)


def find_shift(before: np.ndarray, mask: np.ndarray, after: np.ndarray, reach: int) -> np.ndarray:
    """How far the pixels of a mask have moved, by the shift that makes them fit best.

    Of all shifts up to `reach`, the one with the smallest mean squared difference over the shifted mask's pixels
    inside the picture counts; among equal ones, the shortest.

    Args:
        before (`np.ndarray` of shape `(H, W, 3)`): uint8.
        mask (`np.ndarray` of shape `(H, W)`): bool, at least one pixel.
        after (`np.ndarray` of shape `(H, W, 3)`): uint8.
        reach (`int`): longest shift in each direction, pixels.

    Returns:
        `np.ndarray` of shape `(2,)`: pixels down and right.

    Raises:
        ValueError: if the mask is empty.
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError("There is nothing to follow: the mask is empty. Choose a state in which the gripper is seen.")
    padding = ((reach, reach), (reach, reach))
    inside = sliding_window_view(np.pad(np.ones(mask.shape, bool), padding), mask.shape)[:, :, rows, columns]
    error = np.zeros(inside.shape)
    for colour in range(3):
        shifted = sliding_window_view(np.pad(after[..., colour].astype(float), padding), mask.shape)
        error += (shifted[:, :, rows, columns] - before[rows, columns, colour]) ** 2
    counts = inside.sum(axis=-1)
    fit = np.where(counts * 2 >= len(rows), (error * inside).sum(axis=-1) / np.maximum(counts, 1), np.inf)
    shifts = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    best = np.lexsort((np.abs(shifts).sum(axis=1), fit.reshape(-1)))[0]
    return shifts[best].astype(float)


def effect_correlation(
    one: np.ndarray, other: np.ndarray, real_one: np.ndarray, real_other: np.ndarray, mask: np.ndarray
) -> float:
    """How alike the difference that an action makes is in the imagination and in the simulator.

    Args:
        one (`np.ndarray` of shape `(H, W, 3)`): uint8, imagined after one action.
        other (`np.ndarray`): imagined after another action.
        real_one (`np.ndarray`): the simulator's picture after the one.
        real_other (`np.ndarray`): the simulator's picture after the other.
        mask (`np.ndarray` of shape `(H, W)`): bool, the pixels that count.

    Returns:
        `float`: Pearson correlation of the two differences of pixels, -1 to 1; 0 where an action makes no difference.
    """
    imagined, real = (
        (a.astype(float) - b.astype(float))[mask].ravel() for a, b in ((one, other), (real_one, real_other))
    )
    if imagined.std() == 0 or real.std() == 0:
        return 0.0
    return float(np.corrcoef(imagined, real)[0, 1])


def agreement(found: np.ndarray, truth: np.ndarray, least: float = 2.0, seed: int = 0) -> dict[str, dict[str, Any]]:
    """How displacements agree with the simulator's, once what all actions of a start have in common is taken off.

    Without that, a model that lets the hand drift the same way whatever it is told would score, too.

    Args:
        found (`np.ndarray` of shape `(S, A, 2)`): measured, pixels.
        truth (`np.ndarray` of shape `(S, A, 2)`): the simulator's, pixels.
        least (`float`): true displacements that are shorter, from the start's mean, have no sign that counts.
        seed (`int`): seed of the bootstrap over the starts.

    Returns:
        `dict`: for `horizontal` and `vertical`: `rank_correlation` (Spearman) and `sign_accuracy`, each with `value`
        (None where there is nothing to compare) and `interval` (95 %; None with one start), `pairs` and `signs`:
        what they were taken from.

    Raises:
        ValueError: if the gripper left the picture.
    """
    if np.isnan(truth).any():
        raise ValueError(
            "The gripper left the simulator's picture under one of the actions, so it has no displacement. Lower "
            "`--num_frames` or `--strength`."
        )
    found, truth = (each - each.mean(axis=1, keepdims=True) for each in (found, truth))
    draws = np.random.default_rng(seed).integers(len(found), size=(REPEATS, len(found)))
    results = {}
    for name, axis in AXES.items():
        pair = found[..., axis], truth[..., axis]
        results[name] = {
            "pairs": pair[0].size,
            "signs": int((np.abs(pair[1]) >= least).sum()),
            "rank_correlation": _with_interval(_rank_correlation, pair, draws),
            "sign_accuracy": _with_interval(lambda x, y: _sign_accuracy(x, y, least), pair, draws),
        }
    return results


def _rank_correlation(found: np.ndarray, truth: np.ndarray) -> float:
    if np.ptp(truth) == 0:
        return np.nan
    # A model that never moves anything orders nothing.
    return 0.0 if np.ptp(found) == 0 else float(spearmanr(found.ravel(), truth.ravel()).statistic)


def _sign_accuracy(found: np.ndarray, truth: np.ndarray, least: float) -> float:
    counts = np.abs(truth) >= least
    return float((np.sign(found) == np.sign(truth))[counts].mean()) if counts.any() else np.nan


def _with_interval(measure: Any, pair: tuple[np.ndarray, np.ndarray], draws: np.ndarray) -> dict[str, Any]:
    value = measure(*pair)
    if np.isnan(value):
        return {"value": None, "interval": None}
    if draws.shape[1] < 2:
        return {"value": value, "interval": None}
    drawn = [measure(pair[0][rows], pair[1][rows]) for rows in draws]
    return {"value": value, "interval": [float(bound) for bound in np.nanpercentile(drawn, [2.5, 97.5])]}
