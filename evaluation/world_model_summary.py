"""What the measurements of a world model come to: means, intervals over episodes, curves, differences of two runs.

Shapes: `W` windows, `N` imagined frames.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.intervals import episode_interval
from evaluation.reconstruction import WHOLE
from evaluation.video_distance import frechet_distance
from evaluation.world_model_metrics import FLOOR, IMAGINED, SOURCES, Measurements


def mean_with_interval(values: np.ndarray, episodes: np.ndarray) -> dict[str, Any] | None:
    """Mean over windows and its interval over episodes.

    Args:
        values (`np.ndarray` of shape `(W,)` or `(W, N)`): NaN where there is nothing; frames are averaged first.
        episodes (`np.ndarray` of shape `(W,)`): which episode a window belongs to.

    Returns:
        `dict`: `mean`, `interval` (95 %, bootstrap; None with one episode), `windows`; None where all is NaN.
    """
    if values.ndim == 2:
        there = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            values = np.where(there, values, 0.0).sum(axis=1) / there.sum(axis=1)
    known = ~np.isnan(values)
    if not known.any():
        return None
    interval = episode_interval(values[known], episodes[known])
    return {
        "mean": float(values[known].mean()),
        "interval": list(interval) if interval else None,
        "windows": int(known.sum()),
    }


def summarise(measured: Measurements, horizons: Sequence[int]) -> dict[str, Any]:
    """Means, intervals and curves.

    Args:
        measured (`Measurements`): the numbers of each frame.
        horizons (`Sequence[int]`): numbers of frames over which is averaged.

    Returns:
        `dict`: `num_windows`, `num_episodes`, `clipped_action_values`; `horizons` -> number -> part -> source ->
        metric -> see `mean_with_interval`; `gain`: the same of imagined minus repeated frame, paired, of the whole
        picture; `fvd` -> number -> source; `curves`: part -> source -> metric -> N means; `windows`: name, episode
        and the imagined frames' numbers.
    """
    episodes = np.array([window.episode for window in measured.windows])
    by_horizon = {
        str(horizon): {
            part: {
                source: {name: mean_with_interval(values[:, :horizon], episodes) for name, values in row.items()}
                for source, row in rows.items()
            }
            for part, rows in measured.scores.items()
        }
        for horizon in horizons
    }
    whole = measured.scores[WHOLE]
    gain = {
        str(horizon): {
            name: mean_with_interval((values - whole[FLOOR][name])[:, :horizon], episodes)
            for name, values in whole[IMAGINED].items()
            if name in whole[FLOOR]
        }
        for horizon in horizons
    }
    return {
        "num_windows": len(episodes),
        "num_episodes": len(np.unique(episodes)),
        "clipped_action_values": measured.clipped,
        "horizons": by_horizon,
        "gain": gain,
        "fvd": _video_distances(measured, horizons),
        "curves": _curves(measured),
        "windows": _window_rows(measured),
    }


def _video_distances(measured: Measurements, horizons: Sequence[int]) -> dict[str, dict[str, float]]:
    features = measured.features
    if not features:
        return {}
    return {
        str(h): {source: frechet_distance(features[source][h], features["real"][h]) for source in SOURCES}
        for h in horizons
    }


def _curves(measured: Measurements) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """Mean over the windows of each frame; None where no window has a number."""
    curves: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for part, rows in measured.scores.items():
        for source, row in rows.items():
            curves.setdefault(part, {})[source] = {
                name: _numbers(_frame_means(values)) for name, values in row.items()
            }
    return curves


def _frame_means(values: np.ndarray) -> np.ndarray:
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(axis=0) / there.sum(axis=0)


def _window_rows(measured: Measurements) -> list[dict[str, Any]]:
    imagined = measured.scores[WHOLE][IMAGINED]
    return [
        {
            "name": window.name,
            "episode": window.episode,
            IMAGINED: {name: _numbers(values[row]) for name, values in imagined.items()},
        }
        for row, window in enumerate(measured.windows)
    ]


def _numbers(values: np.ndarray) -> list[float | None]:
    """As JSON writes them."""
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


def compare_results(summary: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How far a run lies from another one on the same windows.

    Args:
        summary (`Mapping`): see `summarise`.
        other (`Mapping`): the same of another checkpoint.

    Returns:
        `dict`: horizon -> metric -> see `mean_with_interval`, of the first run's imagined frames minus the other's.

    Raises:
        ValueError: if the runs do not share their windows.
    """
    if list(summary["horizons"]) != list(other["horizons"]):
        raise ValueError(
            f"The runs to compare were measured over {', '.join(other['horizons'])} and "
            f"{', '.join(summary['horizons'])} frames. Give both the same `--num_frames`."
        )
    names, other_names = ([window["name"] for window in each["windows"]] for each in (summary, other))
    if names != other_names:
        missing = [name for name in names if name not in other_names] or other_names
        raise ValueError(
            f"The runs to compare were measured on other windows ({len(names)} and {len(other_names)}; `{missing[0]}` "
            "is not in both). Give both the same `--demonstrations`, `--num_frames`, `--windows_per_episode` and "
            "`--episodes`."
        )
    episodes = np.array([window["episode"] for window in summary["windows"]])
    differences: dict[str, dict[str, Any]] = {}
    for name in summary["windows"][0][IMAGINED]:
        if name in other["windows"][0][IMAGINED]:
            one, two = (
                np.array([window[IMAGINED][name] for window in each["windows"]], float) for each in (summary, other)
            )
            for horizon in summary["horizons"]:
                found = mean_with_interval((one - two)[:, : int(horizon)], episodes)
                differences.setdefault(horizon, {})[name] = found
    return differences
