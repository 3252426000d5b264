"""Reads demonstrations in LIBERO's own HDF5 layout, whoever wrote them. Does not travel to the Hub.

Layout: `data/demo_N/{actions, states, obs/{agentview_rgb, eye_in_hand_rgb, ee_states, gripper_states, ...}}`, the
instruction in the attribute `problem_info` of `data`. Shape legend: `T` steps, `H`, `W` pixels, `S` state numbers.

Three kinds are told apart (docs/data.md): our recorder's (attribute `recorder`; observations from before the action),
LIBERO's (observations from after the action), and regenerated ones without attributes (before; the file's name is the
instruction). Our recorder adds, on request, segmentation masks (`obs/{agentview,eye_in_hand}_segmentation`, numbers
that index the attribute `segmentation_names`), and can leave pictures out (attribute `picture_stride`).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .demonstrations import ACTION_DIM, Demonstration, Demonstrations

CAMERA_KEYS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
MASK_KEYS = {"agentview": "agentview_segmentation", "wrist": "eye_in_hand_segmentation"}
_MASK_ATTRIBUTES = ("segmentation_names", "objects_of_interest")
# Upright for the field is MuJoCo's picture turned by 180 degrees; `opencv` files are already flipped top to bottom.
_UPRIGHT = {"opengl": (slice(None, None, -1), slice(None, None, -1)), "opencv": (slice(None), slice(None, None, -1))}
_ARM_JOINTS = slice(1, 8)  # of a flattened state: time, then the positions of the seven joints of the arm
_SCENE_PREFIX = re.compile(r"^[A-Z_]+_SCENE\d+_")


@dataclass(frozen=True)
class LiberoDemonstration(Demonstration):
    """An episode of an HDF5 file; see `Demonstration`.

    Attributes:
        image_convention (`str`): how the file stores images, `opengl` or `opencv`.
        observed_after (`bool`): the file's entry t of `obs` was seen after action t. Then the first action, of which
            the frame before it is not there, and the last observation are left out.
        stride (`int`): see `picture_stride`.
        mask_names (`tuple[str, ...]`): see `segmentation_names`.
        interest (`tuple[str, ...]`): see `objects_of_interest`.
    """

    image_convention: str = "opengl"
    observed_after: bool = False
    stride: int = 1
    mask_names: tuple[str, ...] = ()
    interest: tuple[str, ...] = ()

    def _read(self, key: str, steps: slice = slice(None)) -> np.ndarray:
        with _open(self.path) as file:
            group = file["data"][self.name]
            if key not in group:
                raise ValueError(_missing(self.path, f"data/{self.name}/{key}"))
            first = int(self.observed_after and not key.startswith("obs/"))
            rows = range(len(group[key]))[first : len(group[key]) - self.observed_after + first][steps]
            try:
                return group[key][rows.start : max(rows.stop, rows.start) : rows.step]
            except OSError as error:
                raise ValueError(
                    f"`{self.path}`: `data/{self.name}/{key}` cannot be read ({error}). {_AGAIN}"
                ) from error

    @property
    def actions(self) -> np.ndarray:
        """Commands carried out, `float32 (T, 7)`: position deltas, rotation deltas, gripper (-1 open ... +1 close)."""
        return self._read("actions").astype(np.float32)

    @property
    def expert_actions(self) -> np.ndarray:
        """What the expert wanted to do, `float32 (T, 7)`; differs from `actions` where the recorder disturbed them."""
        with _open(self.path) as file:
            disturbed = "expert_actions" in file["data"][self.name]
        return self._read("expert_actions").astype(np.float32) if disturbed else self.actions

    @property
    def states(self) -> np.ndarray:
        """The simulator's flattened states before each action, `float64 (T, S)`."""
        return self._read("states")

    @property
    def proprioception(self) -> np.ndarray:
        """What the robot felt, `float32 (T, 8)`: hand position, hand orientation (axis * angle), finger joints."""
        parts = [self._read("obs/ee_states"), self._read("obs/gripper_states")]
        return np.concatenate(parts, axis=1).astype(np.float32)

    @property
    def picture_stride(self) -> int:
        """Pictures and masks are there for every n-th step; 1 in all but pictures-only files."""
        return self.stride

    @property
    def segmentation_names(self) -> tuple[str, ...]:
        """What the numbers of the masks stand for; empty where none are recorded."""
        return self.mask_names

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """Which of `segmentation_names` the task is about."""
        return self.interest

    def frames(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """Images of one camera, as `Demonstration.frames`."""
        self.require_camera(camera)
        return self._upright(f"obs/{CAMERA_KEYS[camera]}", steps)

    def segmentation(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """What is seen in each pixel of one camera, as `Demonstration.segmentation`."""
        if camera not in self.cameras or not self.segmentation_names:
            return super().segmentation(camera, steps)  # says what is missing
        return self._upright(f"obs/{MASK_KEYS[camera]}", steps)

    def _upright(self, key: str, steps: slice) -> np.ndarray:
        vertical, horizontal = _UPRIGHT[self.image_convention]
        return np.ascontiguousarray(self._read(key, steps)[:, vertical, horizontal])

    def files(self, camera: str) -> tuple[Path, ...]:
        """The file that decides what is read."""
        return (Path(self.path),)


_AGAIN = "Record or download the file again."


def _missing(path: str, key: str) -> str:
    return f"`{path}` lacks the key `{key}`. It is not a complete LIBERO demonstration file. {_AGAIN}"


def _open(path: str) -> h5py.File:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no demonstration file `{path}`.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"`{path}` is not a readable HDF5 file: truncated or of another kind ({error}). {_AGAIN}"
        ) from error


def read_libero_file(path: str, allow_picture_stride: bool = False) -> Demonstrations:
    """Open an HDF5 file and check it; see `tokenization.demonstrations.read_demonstrations`.

    Args:
        path (`str`): the file.
        allow_picture_stride (`bool`): whether files with pictures of every n-th step only will do.

    Returns:
        `Demonstrations`: a lazy sequence of `LiberoDemonstration`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file fails a check; the message names the key.
    """
    with _open(path) as file:
        try:
            return Demonstrations(path, _list_episodes(path, file, allow_picture_stride))
        except OSError as error:
            raise ValueError(f"`{path}` is damaged ({error}). {_AGAIN}") from error


def _list_episodes(path: str, file: h5py.File, allow_picture_stride: bool) -> list[LiberoDemonstration]:
    if not isinstance(file.get("data"), h5py.Group):
        raise ValueError(_missing(path, "data"))
    data = file["data"]
    instruction = _read_instruction(path, data)
    convention = str(data.attrs.get("macros_image_convention", "opengl"))
    if convention not in _UPRIGHT:
        raise ValueError(f"`{path}` stores images in the convention `{convention}`. Known are: {', '.join(_UPRIGHT)}.")
    names = sorted((name for name in data if re.fullmatch(r"demo_\d+", name)), key=lambda name: int(name[5:]))
    if not names:
        raise ValueError(_missing(path, "data/demo_0"))
    checked = {name: _check_episode(path, name, data[name]) for name in names}
    after = _is_observed_after(data, names[0])
    episodes = []
    for name, (length, cameras) in checked.items():
        steps = length - after
        if steps < 1:
            raise ValueError(f"`{path}`: `data/{name}` has one step, and no frame from before it. {_AGAIN}")
        attributes = _read_picture_attributes(path, name, data[name], allow_picture_stride)
        episodes.append(LiberoDemonstration(path, name, instruction, steps, cameras, convention, after, *attributes))
    return episodes


def _read_instruction(path: str, data: h5py.Group) -> str:
    """The instruction; files without any attribute are regenerated ones, which are called by it."""
    stem = Path(path).stem
    if not len(data.attrs) and stem.endswith("_demo"):
        return _SCENE_PREFIX.sub("", stem.removesuffix("_demo")).replace("_", " ")
    if "problem_info" not in data.attrs:
        raise ValueError(_missing(path, "data.attrs['problem_info']"))
    try:
        instruction = "".join(json.loads(data.attrs["problem_info"])["language_instruction"]).strip().strip('"')
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(_missing(path, "data.attrs['problem_info']['language_instruction']")) from error
    if not instruction:
        raise ValueError(f"`{path}`: the instruction in `data.attrs['problem_info']` is empty. {_AGAIN}")
    return instruction


def _is_observed_after(data: h5py.Group, name: str) -> bool:
    """Whether entry t of `obs` was seen after action t, as LIBERO's own script stores it.

    The joint readings among the observations agree with the states either of the same or of the next entry.
    """
    if "recorder" in data.attrs:
        return False
    group = data[name]
    if "states" in group and "joint_states" in group["obs"] and group["states"].ndim == 2:
        states = group["states"][:, _ARM_JOINTS]
        joints = group["obs/joint_states"][()]
        if states.shape == joints.shape and len(states) > 1:
            same, following = (np.abs(joints[:-1] - other).sum() for other in (states[:-1], states[1:]))
            if same != following:
                return bool(following < same)
    return "model_file" in group.attrs


def _read_picture_attributes(
    path: str, name: str, group: Any, allow_picture_stride: bool
) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Picture stride, names of the segmentation, objects of interest."""
    stride = _picture_stride(group)
    if stride > 1 and not allow_picture_stride:
        raise ValueError(
            f"`{path}` holds pictures of one in {stride} steps: enough for a VQ-GAN, but a policy or world model "
            "needs each. Record with `--picture_stride 1`."
        )
    names, interest = (tuple(json.loads(group.attrs.get(key, "[]"))) for key in _MASK_ATTRIBUTES)
    if names:
        for camera, key in MASK_KEYS.items():
            if CAMERA_KEYS[camera] in group["obs"]:
                _check_masks(path, f"data/{name}/obs/{key}", group["obs"], camera, len(names))
    return stride, names, interest


def _picture_stride(group: Any) -> int:
    return int(group.attrs.get("picture_stride", 1))


def _check_masks(path: str, where: str, observations: Any, camera: str, num_names: int) -> None:
    if MASK_KEYS[camera] not in observations:
        raise ValueError(_missing(path, where))
    masks, images = observations[MASK_KEYS[camera]], observations[CAMERA_KEYS[camera]]
    if masks.dtype != np.uint8 or masks.shape != images.shape[:3]:
        raise ValueError(
            f"`{path}`: `{where}` must be uint8 of shape {images.shape[:3]}, got {masks.dtype} of shape "
            f"{masks.shape}. {_AGAIN}"
        )
    if masks.size and int(masks[:1].max()) >= num_names:
        raise ValueError(
            f"`{path}`: `{where}` holds number {masks[:1].max()}, but there are {num_names} names. {_AGAIN}"
        )


def _check_episode(path: str, name: str, group: Any) -> tuple[int, tuple[str, ...]]:
    """Check one episode; returns its number of steps and its cameras."""
    where = f"data/{name}"
    if not isinstance(group, h5py.Group):
        raise ValueError(_missing(path, f"{where}/actions"))
    for key, kind in (("actions", h5py.Dataset), ("obs", h5py.Group)):
        if not isinstance(group.get(key), kind):
            raise ValueError(_missing(path, f"{where}/{key}"))
    cameras = tuple(camera for camera, key in CAMERA_KEYS.items() if key in group["obs"])
    if not cameras:
        raise ValueError(_missing(path, f"{where}/obs/{CAMERA_KEYS['agentview']}"))
    for key in ("actions", "expert_actions") if "expert_actions" in group else ("actions",):
        _check_actions(path, f"{where}/{key}", group[key])
    num_steps = len(group["actions"])
    _check_lengths(path, where, group, num_steps)
    for camera in cameras:
        _check_images(path, f"{where}/obs/{CAMERA_KEYS[camera]}", group["obs"][CAMERA_KEYS[camera]])
    return num_steps, cameras


def _check_actions(path: str, key: str, actions: h5py.Dataset) -> None:
    """Refuse commands of another shape, and numbers that are none."""
    if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != ACTION_DIM:
        raise ValueError(f"`{path}`: `{key}` must have shape (T, {ACTION_DIM}), T >= 1, got {actions.shape}. {_AGAIN}")
    if not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(f"`{path}`: `{key}` must hold floating-point numbers, got {actions.dtype}. {_AGAIN}")
    finite = np.isfinite(actions[()]).all(1)
    if not finite.all():
        raise ValueError(f"`{path}`: `{key}` holds NaN or infinity, first in step {int(np.argmin(finite))}. {_AGAIN}")


def _check_lengths(path: str, where: str, group: h5py.Group, num_steps: int) -> None:
    arrays = {key: value for key, value in group.items() if isinstance(value, h5py.Dataset)}
    arrays |= {f"obs/{key}": value for key, value in group["obs"].items() if isinstance(value, h5py.Dataset)}
    stride = _picture_stride(group)
    pictures = {f"obs/{key}" for key in (*CAMERA_KEYS.values(), *MASK_KEYS.values())}
    for key, value in arrays.items():
        length = value.shape[0] if value.ndim else 0
        expected = -(-num_steps // stride) if key in pictures else num_steps
        if length != expected:
            raise ValueError(
                f"`{path}`: lengths disagree in `{where}`: {num_steps} actions, but `{key}` has {length} steps. "
                f"{_AGAIN}"
            )


def _check_images(path: str, key: str, images: h5py.Dataset) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"`{path}`: `{key}` must be uint8 of shape (T, H, W, 3), got {images.dtype} of shape "
            f"{images.shape}. {_AGAIN}"
        )
