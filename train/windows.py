"""Which samples are cut from episodes: computed from cumulative counts, so that no list of them is ever kept.

Shapes: `E` episodes, `T` steps of an episode, `M` observations, `K` actions of a chunk, `H` most known frame-action
pairs, `N` rounds of the world model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np

TAILS = ("shorten", "pad", "drop")


@dataclass(frozen=True)
class WindowOptions:
    """Which windows are cut: see `train.arguments.DataArguments` for the meaning of each field."""

    n_obs_steps: int
    chunk_size: int
    world_model_history: int = 1
    world_model_rounds: int = 1
    tail: str = "shorten"
    policy_samples: bool = True
    world_model_samples: bool = True
    world_model_ratio: float = 1.0
    action_dead_band: Sequence[float] = ()


class Window(NamedTuple):
    """One sample: its role, its episode, and the step t that it is about."""

    role: str
    episode: int
    step: int


def world_model_steps(leading: np.ndarray, rounds: int) -> np.ndarray:
    """List the steps that a world-model window can be about.

    Args:
        leading (`np.ndarray` of shape `(T,)`): whether the action of a step led to the next frame.
        rounds (`int`): N, frames that follow one another.

    Returns:
        `np.ndarray` of int64: steps t for which the actions t … t+N−1 each led to the next frame.
    """
    totals = np.concatenate([[0], np.cumsum(leading)])
    return np.flatnonzero(totals[rounds:] - totals[: len(totals) - rounds] == rounds)


class Windows(Sequence[Window]):
    """Every window of every episode, by number: those of the policy first, then those of the world model.

    A policy window at step t shows frames t−M+1 … t (the first frame repeated before the start) and asks for actions
    t … t+K−1, as the expert wanted them. A world-model window at step t shows the last H frame-action pairs up to t
    (actions as carried out), fewer at the start, and asks for frames t+1 … t+N. Where steps were left out after t,
    frame t+1 is not what action t led to: no world-model window ends there, and none reaches across.

    With both roles there are `world_model_ratio` times as many world-model windows as policy windows. Where that is
    more than there are, each comes several times; where it is fewer, they are spread evenly: one is drawn from each of
    so many equal stretches.

    Args:
        lengths (`np.ndarray` of shape `(E,)`): steps of each episode.
        options (`WindowOptions`): which windows.
        seed (`int`): draws where `world_model_ratio` asks for fewer world-model windows than there are.
        leading (sequence of `np.ndarray` of shape `(T,)`, *optional*): for each episode and step, whether its action
            led to the next frame; by default all but the last of an episode did. Read again where steps are missing.

    Raises:
        ValueError: if no episode is long enough for a role that is asked for.
    """

    def __init__(
        self, lengths: np.ndarray, options: WindowOptions, seed: int = 0, leading: Sequence[np.ndarray] | None = None
    ) -> None:
        self.options, self.seed = options, seed
        lengths = np.asarray(lengths, dtype=np.int64)
        require_long_episodes(int(lengths.max(initial=0)), options)
        missing = options.chunk_size - 1 if options.tail == "drop" else 0
        policy = np.maximum(lengths - missing, 0) * options.policy_samples
        world = np.maximum(lengths - options.world_model_rounds, 0) * options.world_model_samples
        self._leading = leading
        self._has_gaps = np.zeros(len(lengths), dtype=bool)
        if leading is not None and options.world_model_samples:
            for episode, flags in enumerate(leading):
                self._has_gaps[episode] = not flags[:-1].all()
                world[episode] = len(world_model_steps(flags, options.world_model_rounds))
        self._policy_ends, self._world_ends = np.cumsum(policy), np.cumsum(world)
        self.num_policy, self._num_known = int(policy.sum()), int(world.sum())
        self.num_world_model = self._num_known
        if options.policy_samples and options.world_model_samples:
            self.num_world_model = round(options.world_model_ratio * self.num_policy)
        if options.world_model_samples and not self._num_known:
            raise ValueError(
                f"No episode has {options.world_model_rounds + 1} frames in a row that follow one another: steps were "
                "left out everywhere. Tokenize without `--drop_noops`, or train with `--world_model_samples false`."
            )

    def __len__(self) -> int:
        return self.num_policy + self.num_world_model

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = int(index) + len(self) * (index < 0)
        if not 0 <= number < len(self):
            raise IndexError(f"There are {len(self)} windows, asked was for number {index}.")
        if number < self.num_policy:
            return Window("policy", *_locate(self._policy_ends, number))
        episode, place = _locate(self._world_ends, self._draw(number - self.num_policy))
        if self._leading is not None and self._has_gaps[episode]:
            place = int(world_model_steps(self._leading[episode], self.options.world_model_rounds)[place])
        return Window("world_model", episode, place)

    def _draw(self, number: int) -> int:
        """The world-model window, of all there are, that stands at a place."""
        whole, rest = divmod(self.num_world_model, self._num_known)
        if number < whole * self._num_known:
            return number % self._num_known
        number -= whole * self._num_known
        first, stop = (place * self._num_known // rest for place in (number, number + 1))
        return first + int(np.random.default_rng((self.seed, number)).integers(stop - first))


def _locate(ends: np.ndarray, number: int) -> tuple[int, int]:
    """The episode that a window lies in, and its place there."""
    episode = int(np.searchsorted(ends, number, side="right"))
    return episode, number - (int(ends[episode - 1]) if episode else 0)


def require_long_episodes(longest: int, options: WindowOptions) -> None:
    """Refuse windows that even the longest episode does not fill.

    Args:
        longest (`int`): steps of the longest episode.
        options (`WindowOptions`): which windows.

    Raises:
        ValueError: names the options that ask for more, and both lengths.
    """
    shown = options.world_model_history + options.world_model_rounds
    for wanted, flags, steps in (
        (options.policy_samples, f"`--n_obs_steps {options.n_obs_steps}`", options.n_obs_steps),
        (options.policy_samples, f"`--chunk_size {options.chunk_size}`", options.chunk_size),
        (
            options.world_model_samples,
            f"`--world_model_history {options.world_model_history}` with "
            f"`--world_model_rounds {options.world_model_rounds}` ({shown} frames)",
            shown,
        ),
    ):
        if wanted and steps > longest:
            raise ValueError(
                f"No episode is long enough for {flags}: the longest has {longest} steps. Lower the number, or give "
                "longer demonstrations."
            )
