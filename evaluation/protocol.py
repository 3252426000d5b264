"""The LIBERO protocol as data: suites, step limits and where they come from, initial states, settling steps.

Loads no torch and no simulator: simulator processes read it, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from evaluation.libero_env import SETTLING_STEPS
from evaluation.libero_setup import SUITES, choose, find_task, list_tasks

# Benchmark initial states that every task ships.
NUM_INITIAL_STATES = 50


@dataclass(frozen=True)
class StepLimits:
    """Steps that a policy may take in a code base's evaluation, settling steps not counted.

    Attributes:
        limits (`Mapping[str, int]`): by suite.
        source (`str`): file of the code base that holds the numbers.
    """

    limits: Mapping[str, int]
    source: str


def _limits(spatial: int, object_: int, goal: int, long: int, ninety: int) -> Mapping[str, int]:
    return MappingProxyType(dict(zip(SUITES, (spatial, object_, goal, long, ninety), strict=True)))


# A fifth to a half more than the longest human demonstration of the suite: 193, 254, 270, 505 and 373 steps, as the
# comments in the sources say.
STEP_LIMITS: Mapping[str, StepLimits] = MappingProxyType(
    {
        "openvla": StepLimits(
            _limits(220, 280, 300, 520, 400), "openvla/openvla experiments/robot/libero/run_libero_eval.py"
        ),
        "openpi": StepLimits(_limits(220, 280, 300, 520, 400), "Physical-Intelligence/openpi examples/libero/main.py"),
        "rynnvla": StepLimits(
            _limits(220, 280, 300, 520, 400),
            "alibaba-damo-academy/RynnVLA-002 rynnvla-002/eval_solver_libero_discrete_w_state.py",
        ),
        "lerobot": StepLimits(_limits(280, 280, 300, 520, 400), "huggingface/lerobot src/lerobot/envs/libero.py"),
        "libero": StepLimits(
            _limits(600, 600, 600, 600, 600), "Lifelong-Robot-Learning/LIBERO libero/configs/eval/default.yaml"
        ),
    }
)


def max_steps(suite: str, step_limits: str = "openvla") -> int:
    """Step limit of a suite.

    Args:
        suite (`str`): name of a LIBERO suite.
        step_limits (`str`): whose numbers, a key of `STEP_LIMITS`.

    Returns:
        `int`: steps after the settling steps.

    Raises:
        ValueError: if the suite or the code base is unknown; the message lists what there is.
    """
    limits = STEP_LIMITS[choose("step limits", step_limits, tuple(STEP_LIMITS))].limits
    return limits[choose("suite", suite, tuple(limits))]


class EpisodeKey(NamedTuple):
    """Which episode: suite, task and benchmark initial state."""

    suite: str
    task_id: int
    initial_state: int

    @property
    def name(self) -> str:
        """Name of the episode's files, such as `libero_goal_task3_state12`."""
        return f"{self.suite}_task{self.task_id}_state{self.initial_state}"


@dataclass(frozen=True)
class Protocol:
    """How episodes are run, whoever acts.

    Attributes:
        step_limits (`str`): whose step limits, a key of `STEP_LIMITS`.
        max_steps (`int`, *optional*): one limit for every suite instead.
        settling_steps (`int`): still steps with an open hand between the reset and the first observation.
        image_size (`int`): height and width of the frames, pixels.
        cameras (`tuple[str, ...]`): what the policy sees.
        n_obs_steps (`int`): latest observations that the policy gets at each request.
        seed (`int`): episode `initial_state` is reset with `seed + initial_state`.
    """

    step_limits: str = "openvla"
    max_steps: int | None = None
    settling_steps: int = SETTLING_STEPS
    image_size: int = 128
    cameras: tuple[str, ...] = ("agentview",)
    n_obs_steps: int = 1
    seed: int = 0

    def step_limit(self, suite: str) -> int:
        """Steps that the policy may take in a suite."""
        return self.max_steps or max_steps(suite, self.step_limits)

    def describe(self) -> dict[str, Any]:
        """All of it, with the limits as numbers and what is fixed, for the results folder.

        Returns:
            `dict`: JSON values.
        """
        limits = {suite: self.step_limit(suite) for suite in SUITES}
        source = "chosen by hand" if self.max_steps else STEP_LIMITS[self.step_limits].source
        return {
            **{key: value for key, value in asdict(self).items() if key != "max_steps"},
            "step_limits": limits,
            "step_limits_source": source,
            "cameras": list(self.cameras),
            "images": "rendered by MuJoCo, turned by 180 degrees",
            "initial_states": "benchmark",
            "num_initial_states": NUM_INITIAL_STATES,
            "resets": "hard, seeded with seed + initial state",
        }


def plan_episodes(suites: Sequence[str], task_ids: Sequence[int], first_state: int, episodes: int) -> list[EpisodeKey]:
    """List the episodes that are wanted, suite by suite and task by task.

    Args:
        suites (`Sequence[str]`): LIBERO suites.
        task_ids (`Sequence[int]`): tasks, in every suite; none: all tasks.
        first_state (`int`): first benchmark initial state.
        episodes (`int`): episodes per task, from that state on.

    Returns:
        `list[EpisodeKey]`: without repetitions.

    Raises:
        ValueError: if a suite, task or initial state does not exist; the message lists what does.
        ImportError: if LIBERO is not installed.
    """
    if not suites:
        raise ValueError(f"No suite was given. Choose any of: {', '.join(SUITES)}.")
    for suite in suites:
        choose("suite", suite, SUITES)
    if not 0 <= first_state < NUM_INITIAL_STATES:
        raise ValueError(
            f"Unknown initial state `{first_state}`. Choose `--first_state` from 0 to {NUM_INITIAL_STATES - 1}."
        )
    left = NUM_INITIAL_STATES - first_state
    if episodes > left:
        raise ValueError(
            f"A task has {NUM_INITIAL_STATES} benchmark initial states: from state {first_state} on there are {left}, "
            f"but {episodes} episodes per task are asked for. Choose `--episodes` of at most {left}."
        )
    return [
        EpisodeKey(suite, task, state)
        for suite in dict.fromkeys(suites)
        for task in _tasks_of(suite, task_ids)
        for state in range(first_state, first_state + episodes)
    ]


def _tasks_of(suite: str, task_ids: Sequence[int]) -> list[int]:
    if task_ids:
        return [find_task(suite, task_id).task_id for task_id in dict.fromkeys(task_ids)]
    return [task.task_id for task in list_tasks(suite)]
