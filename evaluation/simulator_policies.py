"""Policies that act inside the simulator's process: they may look at the simulation, or at nothing at all.

Loads no torch. Each is made once per process and takes one episode after another: `reset`, then `actions`.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from evaluation.expert import ScriptedExpert
from evaluation.expert_variation import EpisodeVariation
from evaluation.libero_env import ACTION_DIM, OPEN_HAND_STILL, LiberoEnv
from evaluation.policy_arguments import PolicyArguments
from evaluation.recorded_actions import RecordedActions, RecordedTask, hash_file, list_files, read_recorded_actions

logger = logging.getLogger("worldvla.simulator_policies")

RANDOM_STREAM = 104_729  # keeps these numbers apart from others that are drawn with an episode's seed
# A scene that the expert cannot read, or a plan that does not work out: the expert's failure, not the harness's.
EXPERT_FAILURES = (ValueError, ArithmeticError, LookupError, np.linalg.LinAlgError)


class SimulatorPolicy(Protocol):
    """Decides for the one episode that runs in this process."""

    def reset(self, env: LiberoEnv, initial_state: int | None, seed: int) -> dict[str, np.ndarray]:
        """Begin an episode; gives the first observation, as `LiberoEnv.reset` does."""

    def actions(self, env: LiberoEnv) -> Iterator[np.ndarray]:
        """Commands `(7,)`; each is carried out before the next is asked for. May end before the episode does."""

    def describe(self) -> dict[str, Any]:
        """What decides the commands, as JSON values; part of the settings of a run."""


class _FromBenchmark:
    """A policy that begins where the protocol says.

    Args:
        arguments (`PolicyArguments`): the options.
    """

    def __init__(self, arguments: PolicyArguments) -> None:
        self.name = arguments.policy
        self._seed = 0

    def reset(self, env: LiberoEnv, initial_state: int | None, seed: int) -> dict[str, np.ndarray]:
        """Begin an episode, see `LiberoEnv.reset`.

        Args:
            env (`LiberoEnv`): the simulator.
            initial_state (`int`, *optional*): number of the benchmark state; None for a random placement.
            seed (`int`): of the reset, and of what the policy draws.

        Returns:
            `dict`: the first observation.
        """
        self._seed = seed
        return env.reset(initial_state=initial_state, seed=seed)

    def describe(self) -> dict[str, Any]:
        """What decides the commands.

        Returns:
            `dict`: JSON values.
        """
        return {"policy": self.name}


class ExpertPolicy(_FromBenchmark):
    """The scripted expert, which knows where everything is; see `evaluation/expert.py`."""

    def actions(self, env: LiberoEnv) -> Iterator[np.ndarray]:
        """What the expert does.

        Args:
            env (`LiberoEnv`): after `reset`.

        Yields:
            `np.ndarray` of shape `(7,)`: commands; ends when the expert has nothing left to try.
        """
        try:
            yield from ScriptedExpert(env.domain).actions()
        except EXPERT_FAILURES as failure:
            logger.warning("The expert gives up: %s: %s", type(failure).__name__, failure)


class NoopPolicy(_FromBenchmark):
    """Keeps the hand open and still, as in the settling steps."""

    def actions(self, env: LiberoEnv) -> Iterator[np.ndarray]:
        """The same command for ever.

        Args:
            env (`LiberoEnv`): not looked at.

        Yields:
            `np.ndarray` of shape `(7,)`: an open hand that keeps still.
        """
        while True:
            yield OPEN_HAND_STILL.copy()


class RandomPolicy(_FromBenchmark):
    """Draws every number of every command, uniformly; the episode's seed and task decide which.

    Args:
        arguments (`PolicyArguments`): the options; `random_limit` is the largest size of a number.
    """

    def __init__(self, arguments: PolicyArguments) -> None:
        super().__init__(arguments)
        self.limit = arguments.random_limit

    def describe(self) -> dict[str, Any]:
        """What decides the commands.

        Returns:
            `dict`: JSON values.
        """
        return {"policy": self.name, "random_limit": self.limit}

    def actions(self, env: LiberoEnv) -> Iterator[np.ndarray]:
        """Drawn commands.

        Args:
            env (`LiberoEnv`): asked for its task's number only.

        Yields:
            `np.ndarray` of shape `(7,)`: in [-limit, limit].
        """
        random = np.random.default_rng([RANDOM_STREAM, self._seed, env.task.task_id])
        while True:
            yield random.uniform(-self.limit, self.limit, ACTION_DIM)


class _FromDemonstrations(_FromBenchmark):
    """A policy made from demonstration files.

    Args:
        arguments (`PolicyArguments`): the options; `demonstrations` are the files and folders.

    Raises:
        ValueError: if there is no file at a path.
    """

    def __init__(self, arguments: PolicyArguments) -> None:
        super().__init__(arguments)
        self.files = list_files(arguments.demonstrations)
        self._read = functools.cache(read_recorded_actions)

    def describe(self) -> dict[str, Any]:
        """What decides the commands.

        Returns:
            `dict`: JSON values; the SHA-256 of every file under its name.

        Raises:
            ValueError: if a file is damaged, incomplete or of another kind.
        """
        for file in self.files:
            self._read(file)
        return {"policy": self.name, "demonstrations": {file.name: hash_file(file) for file in self.files}}

    def recorded_of(self, task_name: str) -> RecordedTask:
        """The demonstrations of one task.

        Args:
            task_name (`str`): LIBERO's name of the task.

        Returns:
            `RecordedTask`: its file's contents.

        Raises:
            ValueError: if no file has the task; lists what is there.
        """
        named = [file for file in self.files if file.stem.removesuffix("_demo") == task_name]
        for file in named or self.files:  # a file is nearly always called after its task
            if (recorded := self._read(file)).task_name == task_name:
                return recorded
        listed = ", ".join(f"`{file.name}`" for file in self.files)
        raise ValueError(f"No demonstrations of task `{task_name}` in `--demonstrations`. There are: {listed}.")


class ReplayMeanPolicy(_FromDemonstrations):
    """Carries out the mean of all demonstrations of the task, step by step: how far one gets without looking."""

    def actions(self, env: LiberoEnv) -> Iterator[np.ndarray]:
        """The mean command of each step, over the demonstrations that last so long.

        Args:
            env (`LiberoEnv`): asked for its task only.

        Yields:
            `np.ndarray` of shape `(7,)`: commands; ends with the longest demonstration.
        """
        actions = [recorded.actions for recorded in self.recorded_of(env.task.name).demonstrations]
        for step in range(max(map(len, actions))):
            yield np.mean([rows[step] for rows in actions if len(rows) > step], axis=0)


class ReplayPolicy(_FromDemonstrations):
    """Carries out recorded actions again, from where they were recorded.

    Args:
        arguments (`PolicyArguments`): the options; `replay_by` says how the demonstration of an episode is found.
    """

    def __init__(self, arguments: PolicyArguments) -> None:
        super().__init__(arguments)
        self.replay_by = arguments.replay_by
        self._recorded: RecordedActions | None = None

    def describe(self) -> dict[str, Any]:
        """What decides the commands.

        Returns:
            `dict`: JSON values.
        """
        return {**super().describe(), "replay_by": self.replay_by}

    def reset(self, env: LiberoEnv, initial_state: int | None, seed: int) -> dict[str, np.ndarray]:
        """Begin where the demonstration of this episode began.

        The recorded seed puts fixtures where they were, and the recorder's way to a varied start is repeated: with our
        recorder's files this gives the recorded state to the bit, and what follows, too. Other files do not note their
        seed; there the state is set.

        Args:
            env (`LiberoEnv`): the simulator.
            initial_state (`int`, *optional*): of the episode.
            seed (`int`): of the episode.

        Returns:
            `dict`: the first observation.

        Raises:
            ValueError: if no demonstration belongs to this episode; lists those that there are.
        """
        task = self.recorded_of(env.task.name)
        self._recorded = recorded = find_recorded(task, self.replay_by, initial_state, seed)
        env.reset(initial_state=recorded.initial_state, seed=seed if recorded.seed is None else recorded.seed)
        if recorded.seed is not None:
            start = EpisodeVariation(task.variation, recorded.seed)
            for action in start.start_actions(lambda: env.robot_observation()["robot0_eef_pos"]):
                env.step(action)
        if not np.array_equal(env.simulator_state(), recorded.first_state):
            env.set_simulator_state(recorded.first_state)
        pictures = {camera: env.render(camera) for camera in env.cameras}
        return {**pictures, "state": env.proprioception().astype(np.float32)}

    def actions(self, env: LiberoEnv) -> Iterator[np.ndarray]:
        """The recorded actions.

        Args:
            env (`LiberoEnv`): after `reset`.

        Yields:
            `np.ndarray` of shape `(7,)`: commands; ends with the recording.

        Raises:
            RuntimeError: if `reset` was not called.
        """
        if self._recorded is None:
            raise RuntimeError("A replay begins with its own reset. Call `policy.reset(env, initial_state, seed)`.")
        yield from self._recorded.actions


def find_recorded(task: RecordedTask, replay_by: str, initial_state: int | None, seed: int) -> RecordedActions:
    """Choose the demonstration that belongs to an episode.

    Args:
        task (`RecordedTask`): what there is.
        replay_by (`str`): `number`: demonstration k for initial state k. `recorded`: where demonstrations note their
            benchmark state, the one with the episode's; else where they note their seed, the one with the episode's;
            else by number.
        initial_state (`int`, *optional*): of the episode.
        seed (`int`): of the episode.

    Returns:
        `RecordedActions`: the demonstration.

    Raises:
        ValueError: if there is none; lists those that there are.
    """
    there = task.demonstrations
    what, wanted, values = "number", initial_state, [recorded.number for recorded in there]
    if replay_by == "recorded" and all(recorded.initial_state is not None for recorded in there):
        what, values = "initial state", [int(recorded.initial_state or 0) for recorded in there]
    elif replay_by == "recorded" and all(recorded.seed is not None for recorded in there):
        what, wanted, values = "seed", seed, [int(recorded.seed or 0) for recorded in there]
    for recorded, value in zip(there, values, strict=True):
        if value == wanted:
            return recorded
    raise ValueError(
        f"`{task.path}` has no demonstration with {what} {wanted}. It has those with {what} "
        f"{', '.join(map(str, values))}. Ask for these, or take them in order with `--replay_by number`."
    )


_POLICIES: dict[str, Callable[[PolicyArguments], SimulatorPolicy]] = {
    "expert": ExpertPolicy,
    "replay": ReplayPolicy,
    "replay_mean": ReplayMeanPolicy,
    "random": RandomPolicy,
    "noop": NoopPolicy,
}
SIMULATOR_POLICIES = tuple(_POLICIES)


def make_simulator_policy(arguments: PolicyArguments) -> SimulatorPolicy:
    """Make the policy that a command line names.

    Args:
        arguments (`PolicyArguments`): name, one of `SIMULATOR_POLICIES`, and options.

    Returns:
        `SimulatorPolicy`: ready for its first `reset`.

    Raises:
        ValueError: if an option does not fit.
    """
    return _POLICIES[arguments.policy](arguments)


def describe_simulator_policy(arguments: PolicyArguments) -> dict[str, Any]:
    """What decides the commands of a policy, found before any simulator starts.

    Args:
        arguments (`PolicyArguments`): name, one of `SIMULATOR_POLICIES`, and options.

    Returns:
        `dict`: JSON values.

    Raises:
        ValueError: if an option does not fit.
    """
    return make_simulator_policy(arguments).describe()
