"""Renders recorded episodes anew, from their states or by carrying their actions out again. Loads no torch.

Each episode is written to a file of its own as soon as it is finished, so that nothing is lost when a run is stopped.
Shapes: `T` steps, `N` steps that are kept, `S` numbers of a simulator state.
"""

import json
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from evaluation.demonstration_files import RecordedEpisode, write_episode
from evaluation.fixture_poses import FIXTURE_POSES, current_fixture_poses, place_fixtures, read_fixture_poses
from evaluation.libero_env import OPEN_HAND_STILL, SETTLING_STEPS, LiberoEnv
from evaluation.libero_setup import LiberoTask
from evaluation.recording import render_states


@dataclass(frozen=True)
class RerenderSettings:
    """What decides the contents of the new files.

    Attributes:
        cameras (`tuple[str, ...]`): cameras to render.
        image_size (`int`): pixels, height and width.
        segmentation (`bool`): whether to render masks, too.
        drop_noops (`bool`): whether steps in which nothing is commanded are left out.
        replay (`bool`): whether actions are carried out again from the first state, and only successes kept; else the
            recorded states are rendered.
    """

    cameras: tuple[str, ...]
    image_size: int
    segmentation: bool = False
    drop_noops: bool = False
    replay: bool = False


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to render.

    Attributes:
        source (`Path`): the demonstration file.
        number (`int`): k of its group `demo_k`.
        task (`LiberoTask`): the task.
        kept (`tuple[int, ...]`): N of its steps, rising.
        part (`Path`): where it is written to.
    """

    source: Path
    number: int
    task: LiberoTask
    kept: tuple[int, ...]
    part: Path


_environment: LiberoEnv | None = None  # of this process; opened once for all episodes of a task


def _environment_of(task: LiberoTask, image_size: int) -> LiberoEnv:
    global _environment
    if _environment is not None and (_environment.task != task or _environment.image_size != image_size):
        close_environment()
    if _environment is None:
        _environment = LiberoEnv(task.suite, task.task_id, cameras=(), image_size=image_size)
    return _environment


def close_environment_at_exit() -> None:
    """Called once in each process that renders: without it the renderer complains when the process ends."""
    Finalize(None, close_environment, exitpriority=100)


def close_environment() -> None:
    """Close the environment of this process, if one is open."""
    global _environment
    if _environment is not None:
        _environment.close()
    _environment = None


def rerender_job(job: EpisodeJob, settings: RerenderSettings) -> int | None:
    """Render one episode in this process and write it.

    Args:
        job (`EpisodeJob`): the episode.
        settings (`RerenderSettings`): how.

    Returns:
        `int`: its steps; `None` where carrying out its actions did not reach the goal, and nothing was written.

    Raises:
        ValueError: if the file does not say where the fixtures stood, or its states are of another task.
    """
    env = _environment_of(job.task, settings.image_size)
    with h5py.File(job.source, "r") as file:
        group = file["data"][f"demo_{job.number}"]
        try:
            episode = rerender_episode(env, group, job.kept, settings)
        except ValueError as error:
            raise ValueError(f"`{job.source}`, `demo_{job.number}`: {error}") from error
    if episode is None:
        return None
    episode.attributes["source_episode"] = f"{job.source.name}/demo_{job.number}"
    write_episode(job.part, episode)
    return len(episode.actions)


def rerender_episode(
    env: LiberoEnv, group: Any, kept: tuple[int, ...], settings: RerenderSettings
) -> RecordedEpisode | None:
    """Render one episode.

    Args:
        env (`LiberoEnv`): its task, opened without cameras at the wanted size.
        group (`h5py.Group`): the episode: `states`, `actions` and attributes.
        kept (`tuple[int, ...]`): the steps to keep.
        settings (`RerenderSettings`): how.

    Returns:
        `RecordedEpisode`, or `None` where carrying out its actions did not reach the goal.

    Raises:
        ValueError: as `rerender_job`.
    """
    rows = list(kept)
    actions = group["actions"][()].astype(float)[rows]
    wanted = group["expert_actions"][()].astype(float)[rows] if "expert_actions" in group else actions
    recorded = group["states"][()]
    stand_as_recorded(env, group.attrs)
    if settings.replay:
        replayed = _replay(env, recorded[0], actions)
        if replayed is None:
            return None
        states, robot = replayed
    else:
        states = list(recorded[rows])
        robot = [_robot_in(env, state) for state in states]
    seed = group.attrs.get("seed")
    return RecordedEpisode(
        seed=None if seed is None else int(seed),
        initial_state=int(group.attrs.get("initial_state", -1)),
        actions=actions,
        expert_actions=wanted,
        states=np.stack(states),
        robot={key: np.stack([step[key] for step in robot]) for key in robot[0]},
        pictures=render_states(env, states, settings.cameras, settings.segmentation),
        attributes={FIXTURE_POSES: json.dumps(current_fixture_poses(env.domain))},
    )


def stand_as_recorded(env: LiberoEnv, attributes: Any) -> None:
    """Reset, with the fixtures where they stood: noted in the file, or decided by the seed of our recorder.

    Args:
        env (`LiberoEnv`): the episode's task.
        attributes (mapping): of the episode's group in its file.

    Raises:
        ValueError: if the file does not say where the fixtures stood.
    """
    seed = attributes.get("seed")
    env.reset(seed=0 if seed is None else int(seed))
    poses = read_fixture_poses(attributes, env.domain)
    if poses is not None:
        place_fixtures(env.domain, poses)
    elif seed is None and (moved := current_fixture_poses(env.domain)):
        raise ValueError(
            f"the file does not say where {', '.join(f'`{name}`' for name in moved)} stood: fixtures are no part of a "
            "state, and the attributes `model_file` (LIBERO's files) and `seed` (our recorder's) are missing. Give "
            "the files that it was made from."
        )


def _robot_in(env: LiberoEnv, state: np.ndarray) -> dict[str, np.ndarray]:
    env.set_simulator_state(state)
    return env.robot_observation()


def _replay(
    env: LiberoEnv, first_state: np.ndarray, actions: np.ndarray
) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]]] | None:
    """Carry actions out; states and robot readings before each of them, or None where the goal is not reached."""
    env.set_simulator_state(first_state)
    for _ in range(SETTLING_STEPS):
        env.step(OPEN_HAND_STILL)
    states, robot, success = [], [], False
    for action in actions:
        states.append(env.simulator_state())
        robot.append(env.robot_observation())
        _, success, _ = env.step(action)
    return (states, robot) if success else None
