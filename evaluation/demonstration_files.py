"""Writes demonstrations in LIBERO's own HDF5 layout, never leaving a half-written file at a final name.

Each episode is first written to a file of its own; when a task has enough of them they are joined into
`<task name>_demo.hdf5`. Both steps write under a temporary name and then rename.
Shape legend: `T` steps, `H`, `W` pixels, `S` numbers of a simulator state.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from evaluation.atomic_files import write_atomically
from evaluation.libero_env import quaternion_to_axis_angle
from evaluation.libero_setup import LiberoTask

# As in tokenization/demonstrations.py, whose package the recording processes do not load: it brings torch along.
CAMERA_KEYS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
MASK_KEYS = {"agentview": "agentview_segmentation", "wrist": "eye_in_hand_segmentation"}


@dataclass
class RecordedPictures:
    """What the cameras saw in P moments of an episode.

    Attributes:
        frames (`dict`): upright `uint8` images `(P, H, W, 3)` by camera.
        masks (`dict`): upright `uint8` arrays `(P, H, W)` of indices into `names`, by camera; empty if not recorded.
        names (`tuple[str, ...]`): what the numbers of the masks stand for.
        objects_of_interest (`tuple[str, ...]`): which of them the task is about.
    """

    frames: dict[str, np.ndarray]
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    objects_of_interest: tuple[str, ...] = ()


@dataclass
class RecordedEpisode:
    """A successful episode; entry t of every array belongs to the moment before action t.

    Attributes:
        seed (`int`, *optional*): seed of its reset; None where it is not known.
        initial_state (`int`): number of its benchmark state, -1 for a random placement.
        actions (`np.ndarray` of shape `(T, 7)`): commands that were carried out.
        expert_actions (`np.ndarray` of shape `(T, 7)`): commands that the expert wanted; the same without variation.
        states (`np.ndarray` of shape `(T, S)`): simulator states.
        robot (`dict`): the robot's observations, arrays `(T, ...)` under robosuite's names.
        pictures (`RecordedPictures`): what the cameras saw before actions 0, n, 2n, ...
        picture_stride (`int`): n.
        attributes (`dict`): what else is noted in the attributes of the episode.
    """

    seed: int | None
    initial_state: int
    actions: np.ndarray
    expert_actions: np.ndarray
    states: np.ndarray
    robot: dict[str, np.ndarray]
    pictures: RecordedPictures
    picture_stride: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)


def write_episode(path: Path, episode: RecordedEpisode) -> None:
    """Write one episode to a file of its own.

    Args:
        path (`Path`): the file.
        episode (`RecordedEpisode`): the episode.
    """
    write_atomically(path, lambda temporary: _write_episode(temporary, episode))


def _write_episode(path: Path, episode: RecordedEpisode) -> None:
    num_steps = len(episode.actions)
    finished = np.zeros(num_steps, np.uint8)
    finished[-1] = 1
    robot = episode.robot
    position, quaternion = robot["robot0_eef_pos"], robot["robot0_eef_quat"]
    orientation = np.stack([quaternion_to_axis_angle(row) for row in quaternion])
    with h5py.File(path, "w") as file:
        group = file.create_group("episode")
        group.attrs["num_samples"] = num_steps
        group.attrs["init_state"] = episode.states[0]
        if episode.seed is not None:
            group.attrs["seed"] = episode.seed
        group.attrs["initial_state"] = episode.initial_state
        group.attrs.update(episode.attributes)
        group["actions"] = episode.actions
        if not np.array_equal(episode.expert_actions, episode.actions):
            group["expert_actions"] = episode.expert_actions
        group["states"] = episode.states
        group["robot_states"] = np.concatenate([robot["robot0_gripper_qpos"], position, quaternion], axis=1)
        group["rewards"] = finished
        group["dones"] = finished
        observations = group.create_group("obs")
        observations["ee_states"] = np.concatenate([position, orientation], axis=1)
        observations["ee_pos"] = position
        observations["ee_ori"] = orientation
        observations["gripper_states"] = robot["robot0_gripper_qpos"]
        observations["joint_states"] = robot["robot0_joint_pos"]
        _write_pictures(group, episode)


def _write_pictures(group: h5py.Group, episode: RecordedEpisode) -> None:
    pictures = episode.pictures
    if episode.picture_stride > 1:
        group.attrs["picture_stride"] = episode.picture_stride
    if pictures.masks:
        group.attrs["segmentation_names"] = json.dumps(pictures.names)
        group.attrs["objects_of_interest"] = json.dumps(pictures.objects_of_interest)
    arrays = {CAMERA_KEYS[camera]: frames for camera, frames in pictures.frames.items()}
    arrays |= {MASK_KEYS[camera]: masks for camera, masks in pictures.masks.items()}
    for key, array in arrays.items():
        group["obs"].create_dataset(
            key,
            data=array[:, ::-1, ::-1],  # as MuJoCo renders them
            chunks=(1, *array.shape[1:]),
            compression="gzip",
            compression_opts=4,
        )


def join_episodes(path: Path, parts: Sequence[Path], task: LiberoTask, settings: dict[str, Any]) -> None:
    """Join episode files into one demonstration file of a task.

    Args:
        path (`Path`): the demonstration file.
        parts (`Sequence[Path]`): episode files, in order.
        task (`LiberoTask`): the task.
        settings (`dict`): what the recorder was asked for and what it found, kept as JSON in the attribute `recorder`.
    """
    write_atomically(path, lambda temporary: _join_episodes(temporary, parts, task, settings))


def _join_episodes(path: Path, parts: Sequence[Path], task: LiberoTask, settings: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        total = 0
        for number, part in enumerate(parts):
            with h5py.File(part, "r") as source:
                source.copy("episode", data, name=f"demo_{number}")
            total += int(data[f"demo_{number}"].attrs["num_samples"])
        data.attrs["num_demos"] = len(parts)
        data.attrs["total"] = total
        data.attrs["tag"] = "libero-v1"
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["recorder"] = json.dumps(settings)
        _write_task_attributes(data, task, settings)


def _write_task_attributes(data: h5py.Group, task: LiberoTask, settings: dict[str, Any]) -> None:
    from libero.libero.envs.bddl_utils import get_problem_info

    bddl_file = Path(task.bddl_file)
    relative = f"bddl_files/{bddl_file.parent.name}/{bddl_file.name}"  # the same bytes on every machine
    problem = get_problem_info(task.bddl_file)
    size = settings["image_size"]
    data.attrs["bddl_file_name"] = relative
    data.attrs["bddl_file_content"] = bddl_file.read_text()
    data.attrs["problem_info"] = json.dumps(
        {
            "problem_name": problem["problem_name"],
            "domain_name": problem["domain_name"],
            "language_instruction": task.instruction,
        }
    )
    data.attrs["env_name"] = problem["problem_name"]
    data.attrs["env_args"] = json.dumps(
        {
            "type": 1,
            "env_name": problem["problem_name"],
            "problem_name": problem["problem_name"],
            "bddl_file": relative,
            "env_kwargs": {
                "robots": ["Panda"],
                "controller": "OSC_POSE",
                "control_freq": 20,
                "camera_names": ["agentview", "robot0_eye_in_hand"],
                "camera_heights": size,
                "camera_widths": size,
            },
        }
    )


def read_recorder_settings(path: Path) -> dict[str, Any] | None:
    """What the recorder noted in a finished demonstration file.

    Args:
        path (`Path`): the file.

    Returns:
        `dict`, or `None` where the file is not one of the recorder's.
    """
    try:
        with h5py.File(path, "r") as file:
            return json.loads(file["data"].attrs["recorder"])
    except (OSError, KeyError):
        return None
