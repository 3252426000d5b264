"""Robot commands <-> action tokens: every dimension of a command becomes one of a fixed number of bins.

A command is first brought to [-1, 1] by the limits of its data set, then binned. Where the bins lie is data: a
`Binning`, one per name in `BINNINGS`.

Shapes: `...` any leading dimensions, `D` action dimensions, `K` commands of a chunk, `N` bins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .choices_worldvla import require_choice
from .inputs_worldvla import as_array, require_range

# Limits that the official code hard-codes for LIBERO: three translations, three rotations, gripper.
LIBERO_ACTION_LIMITS = {
    "low": [-0.9375, -0.9375, -0.9375, -0.32571429, -0.375, -0.375, -1.0],
    "high": [0.9375, 0.9375, 0.9375, 0.375, 0.375, 0.375, 1.0],
}

_CLIP_TOLERANCE = 1e-6  # share of the range that counts as rounding, not as clipping


@dataclass(frozen=True)
class Binning:
    """Where the bins of a dimension lie, on the scale on which its limits are -1 and 1.

    Args:
        edges (`np.ndarray` of shape `(N - 1,)`): rising; the value at edge i is the first of bin i + 1.
        centres (`np.ndarray` of shape `(N,)`): what each bin decodes to.
        range_epsilon (`float`): added to `high - low`, in the units of the commands.
    """

    edges: np.ndarray
    centres: np.ndarray
    range_epsilon: float = 0.0


def _uniform_binning(num_bins: int) -> Binning:
    """Equal bins that decode to their centres. Error: at most `(high - low) / (2 * num_bins)`."""
    edges = np.linspace(-1, 1, num_bins + 1)
    return Binning(edges[1:-1], (edges[:-1] + edges[1:]) / 2)


def _official_binning(num_bins: int) -> Binning:
    """Edges of the official code: one bin fewer, and a last one for the upper limit alone, which decodes like it.

    Error: at most `(high - low + 1e-8) / (2 * (num_bins - 1))`, half of one of its wider bins.
    """
    edges = np.linspace(-1, 1, num_bins)
    centres = (edges[:-1] + edges[1:]) / 2
    return Binning(edges[1:], np.append(centres, centres[-1]), range_epsilon=1e-8)


BINNINGS: dict[str, Callable[[int], Binning]] = {"uniform": _uniform_binning, "official": _official_binning}


def measure_action_limits(actions: np.ndarray, quantile: float = 0.0) -> dict[str, list[float]]:
    """Limits of every action dimension, from data.

    Args:
        actions (`np.ndarray` or `torch.Tensor` of shape `(..., D)`): commands in the data's own units.
        quantile (`float`): share of the values that may lie below `low`, and above `high`; 0 takes the extremes.

    Returns:
        `dict`: `low` and `high`, each a list of `D` numbers. A dimension that never changes gets `low == high`; it
        decodes to that value.

    Raises:
        ValueError: if there is no command, one is not finite, or the quantile lies outside `[0, 0.5)`.
    """
    values = _as_numbers(actions)
    if values.ndim < 2 or values.size == 0:
        raise ValueError(f"Action limits need an array of shape (..., D) with values, got shape {values.shape}.")
    if not 0 <= quantile < 0.5:
        raise ValueError(f"`quantile` must lie in [0, 0.5), got {quantile}. 0 takes the smallest and largest value.")
    _require_finite(values)
    rows = values.reshape(-1, values.shape[-1])
    low, high = np.quantile(rows, quantile, axis=0), np.quantile(rows, 1 - quantile, axis=0)
    return {"low": low.tolist(), "high": high.tolist()}


class WorldVLAActionTokenizer:
    """Bin robot commands into token ids and back.

    Args:
        action_token_id_start (`int`): id of the first bin.
        num_bins (`int`): bins of every dimension.
        binning (`str`): a name in `BINNINGS`: `uniform`, equal bins that decode to their centres (the paper), or
            `official`, the edges of the official code, for official weights.
        limits (`dict`): data set name to `{"low": [...], "high": [...]}` in that data set's units; all of one width.

    Raises:
        ValueError: if the binning is unknown or the limits cannot be used.

    References:
        WorldVLA (arXiv 2506.21539) section 3.1: 256 bins, their width from the range of the training data. `official`
        has one edge more than needed, so 255 of its bins decode differently.
    """

    def __init__(
        self,
        action_token_id_start: int,
        num_bins: int = 256,
        binning: str = "uniform",
        limits: dict[str, dict[str, list[float]]] | None = None,
    ) -> None:
        require_choice("binning", binning, BINNINGS)
        if num_bins < 2:
            raise ValueError(f"`num_bins` must be at least 2, got {num_bins}.")
        self.action_token_id_start = int(action_token_id_start)
        self.num_bins = int(num_bins)
        self.binning = binning
        self._bins = BINNINGS[binning](self.num_bins)
        self.limits = {name: _check_limits(name, values) for name, values in (limits or {}).items()}
        widths = {name: len(values["low"]) for name, values in self.limits.items()}
        if not widths:
            raise ValueError(
                "An action tokenizer needs the limits of at least one data set, got none. Pass "
                '`limits={"name": {"low": [...], "high": [...]}}`; `measure_action_limits(actions)` finds them.'
            )
        if len(set(widths.values())) > 1:
            raise ValueError(f"All data sets of one action tokenizer must have one action width, got {widths}.")
        self.action_dim = next(iter(widths.values()))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WorldVLAActionTokenizer":
        """Read what `to_dict` wrote.

        Args:
            values (`dict`): arguments of the constructor.

        Returns:
            `WorldVLAActionTokenizer`: an equal tokenizer.
        """
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Everything needed to build this tokenizer again, as JSON values.

        Returns:
            `dict`: arguments of the constructor.
        """
        return {
            "action_token_id_start": self.action_token_id_start,
            "num_bins": self.num_bins,
            "binning": self.binning,
            "limits": {
                name: {key: list(side) for key, side in values.items()} for name, values in self.limits.items()
            },
        }

    def encode(self, actions: Any, dataset_name: str | None = None) -> Any:
        """Turn robot commands into action token ids. Values outside the limits are clipped: see `count_clipped`.

        Args:
            actions (`np.ndarray` or `torch.Tensor` of shape `(..., D)`): commands in the data set's units.
            dataset_name (`str`, *optional*): whose limits; may be left out when there is one data set.

        Returns:
            `np.ndarray` of int64 or `torch.LongTensor`, as came in, of the same shape: token ids.

        Raises:
            ValueError: if the width is not `D`, a value is not finite, or the data set is unknown.
        """
        low, high = self._limits_of(dataset_name)
        values = self._as_commands(actions)
        with np.errstate(over="ignore"):  # far outside the limits: clipped like everything there
            scaled = np.clip(2 * (values - low) / self._range(low, high) - 1, -1, 1)
        bins = np.searchsorted(self._bins.edges, scaled, side="right")
        ids = (bins + self.action_token_id_start).astype(np.int64)
        return torch.from_numpy(ids).to(actions.device) if isinstance(actions, torch.Tensor) else ids

    def decode(self, ids: Any, dataset_name: str | None = None) -> Any:
        """Turn action token ids into robot commands.

        Args:
            ids (integer `np.ndarray` or `torch.Tensor` of shape `(..., D)`): ids inside the action range.
            dataset_name (`str`, *optional*): whose limits; may be left out when there is one data set.

        Returns:
            `np.ndarray` of float64 or float32 `torch.Tensor`, as came in, of the same shape: commands in the data
            set's units (LIBERO: dimensionless deltas, gripper -1 open ... +1 closed).

        Raises:
            ValueError: if an id lies outside the action range (the message names it and its position), the width is
                not `D`, or the data set is unknown.
        """
        low, high = self._limits_of(dataset_name)
        bins = self.check_ids(ids) - self.action_token_id_start
        spans = high - low + self._bins.range_epsilon
        commands = low + (self._bins.centres[bins] + 1) / 2 * spans
        if isinstance(ids, torch.Tensor):
            return torch.from_numpy(commands).to(device=ids.device, dtype=torch.float32)
        return commands

    def count_clipped(self, actions: Any, dataset_name: str | None = None) -> np.ndarray:
        """Count the values that `encode` would clip. Whoever encodes in bulk reports them.

        Args:
            actions (`np.ndarray` or `torch.Tensor` of shape `(..., D)`): commands in the data set's units.
            dataset_name (`str`, *optional*): whose limits; may be left out when there is one data set.

        Returns:
            `np.ndarray` of int64, shape `(D,)`: for every dimension, values outside the limits by more than rounding.

        Raises:
            ValueError: as in `encode`.
        """
        low, high = self._limits_of(dataset_name)
        values = self._as_commands(actions).reshape(-1, self.action_dim)
        tolerance = _CLIP_TOLERANCE * np.maximum(high - low, np.abs(low) + np.abs(high))
        return np.count_nonzero((values < low - tolerance) | (values > high + tolerance), axis=0).astype(np.int64)

    def check_ids(self, ids: Any) -> np.ndarray:
        """Refuse ids that are no action tokens.

        Args:
            ids (integer array of shape `(..., D)`): token ids.

        Returns:
            `np.ndarray` of int64: the same ids.

        Raises:
            ValueError: names the first bad id and its position.
        """
        values = as_array(ids)
        if values.dtype.kind not in "iu":
            raise ValueError(f"Action token ids must be integers, got {values.dtype}. Use `encode` on commands first.")
        self._check_width(values, "action token ids")
        values = values.astype(np.int64)
        start, end = self.action_token_id_start, self.action_token_id_start + self.num_bins
        advice = "Pass what `predict_action_chunk` or `encode` returned; commands are floats."
        require_range(values, start, end, "Action token ids", advice)
        return values

    def _as_commands(self, actions: Any) -> np.ndarray:
        """Commands as float64, of the right width and finite."""
        values = _as_numbers(actions)
        self._check_width(values, "actions")
        _require_finite(values)
        return values

    def _range(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """What a command's distance from `low` is divided by; 1 where a dimension has one value only."""
        spans = high - low + self._bins.range_epsilon
        return np.where(spans > 0, spans, 1.0)

    def _check_width(self, values: np.ndarray, what: str) -> None:
        if values.ndim == 0 or values.shape[-1] != self.action_dim:
            raise ValueError(
                f"Expected {what} of shape (..., {self.action_dim}), the width of this processor's limits, got shape "
                f"{values.shape}. Pass one value per action dimension."
            )

    def choose_dataset(self, dataset_name: str | None = None) -> str:
        """Say whose limits are meant.

        Args:
            dataset_name (`str`, *optional*): a data set's name; may be left out where there is one.

        Returns:
            `str`: the name.

        Raises:
            ValueError: if the name is unknown, or left out where there are several; the message lists them.
        """
        names = list(self.limits)
        if dataset_name is None and len(names) > 1:
            raise ValueError(
                f"This processor holds action limits of several data sets: {', '.join(names)}. "
                "Say whose with `dataset_name=`."
            )
        chosen = names[0] if dataset_name is None else dataset_name
        require_choice("data set", chosen, names)
        return chosen

    def _limits_of(self, dataset_name: str | None) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.limits[self.choose_dataset(dataset_name)]
        return np.asarray(chosen["low"], dtype=np.float64), np.asarray(chosen["high"], dtype=np.float64)


def _as_numbers(actions: Any) -> np.ndarray:
    """Commands as float64, whatever floats or integers they came in."""
    try:
        values = as_array(actions)
    except ValueError as error:  # lists of different lengths
        raise ValueError(
            "Actions must be numbers of shape (..., D), got rows of different lengths. Give every command one "
            "value per action dimension."
        ) from error
    if values.dtype.kind not in "fiu":
        raise ValueError(f"Actions must be numbers, got an array of {values.dtype}. Pass floats of shape (..., D).")
    return values.astype(np.float64)


def _require_finite(values: np.ndarray) -> None:
    """Refuse NaN and infinities, naming the first."""
    finite = np.isfinite(values)
    if not finite.all():
        position = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"Actions must be finite numbers, got {values[position]} at position {position}. "
            "Drop or repair that command; it is not clipped."
        )


def _check_limits(name: str, values: dict[str, Any]) -> dict[str, list[float]]:
    """Limits of one data set as two lists of floats."""
    if not isinstance(values, dict) or set(values) != {"low", "high"}:
        got = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"Action limits of `{name}` must be a dict with `low` and `high`, got {got}.")
    try:
        low, high = (np.asarray(values[key], dtype=np.float64) for key in ("low", "high"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`low` and `high` of `{name}` must be lists of numbers, got {values}.") from error
    if low.ndim != 1 or low.shape != high.shape or low.size == 0:
        raise ValueError(
            f"`low` and `high` of `{name}` must be lists of one length, got shapes {low.shape} and {high.shape}."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        usable = np.isfinite(low) & np.isfinite(high) & (low <= high) & np.isfinite(high - low)
    if not usable.all():
        first = int(np.argmin(usable))
        raise ValueError(
            f"Action limits of `{name}` must be finite with low <= high in every dimension, got low {low[first]} and "
            f"high {high[first]} in dimension {first}. `measure_action_limits(actions)` finds usable ones."
        )
    return {"low": low.tolist(), "high": high.tolist()}
