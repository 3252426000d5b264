"""Reads demonstrations in LIBERO's own HDF5 layout. Does not travel to the Hub.

Layout: `data/demo_N/{actions, states, obs/{agentview_rgb, eye_in_hand_rgb, ee_states, gripper_states, ...}}`, the
instruction in the attribute `problem_info` of `data`. Shape legend: `T` steps, `H`, `W` pixels, `S` state numbers.

Timing: frame t is what was seen before action t; frame t + 1 follows action t.

Our recorder adds, on request, segmentation masks (`obs/{agentview,eye_in_hand}_segmentation`, numbers that index the
attribute `segmentation_names`), and can leave pictures out (attribute `picture_stride`).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np

CAMERA_KEYS = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
MASK_KEYS = {"agentview": "agentview_segmentation", "wrist": "eye_in_hand_segmentation"}
ACTION_DIM = 7
_MASK_ATTRIBUTES = ("segmentation_names", "objects_of_interest")
# Upright for the field is MuJoCo's picture turned by 180 degrees; `opencv` files are already flipped top to bottom.
_UPRIGHT = {"opengl": (slice(None, None, -1), slice(None, None, -1)), "opencv": (slice(None), slice(None, None, -1))}


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode. Arrays are read from the file when they are asked for, so it is cheap and can be pickled.

    Attributes:
        path (`str`): the file.
        name (`str`): the episode's group, such as `demo_0`.
        instruction (`str`): what the robot was told.
        num_steps (`int`): T.
        cameras (`tuple[str, ...]`): the cameras that were recorded.
        image_convention (`str`): how the file stores images, `opengl` or `opencv`.
        picture_stride (`int`): pictures and masks are there for every n-th step; 1 in all but pictures-only files.
        segmentation_names (`tuple[str, ...]`): what the numbers of the masks stand for; empty where none are recorded.
        objects_of_interest (`tuple[str, ...]`): which of these names the task is about.
    """

    path: str
    name: str
    instruction: str
    num_steps: int
    cameras: tuple[str, ...]
    image_convention: str = "opengl"
    picture_stride: int = 1
    segmentation_names: tuple[str, ...] = ()
    objects_of_interest: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.num_steps

    def _read(self, key: str, steps: slice = slice(None)) -> np.ndarray:
        with _open(self.path) as file:
            group = file["data"][self.name]
            if key not in group:
                raise ValueError(_missing(self.path, f"data/{self.name}/{key}"))
            try:
                return group[key][steps]
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

    def frames(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """Images of one camera.

        Args:
            camera (`str`): `agentview` or `wrist`.
            steps (`slice`): which pictures; all by default.

        Returns:
            `np.ndarray` of shape `(T, H, W, 3)`: `uint8`, upright; with a picture stride n, `ceil(T / n)` of them.

        Raises:
            ValueError: if the camera is unknown or was not recorded.
        """
        if camera not in self.cameras:
            listed = ", ".join(f"`{name}`" for name in self.cameras)
            raise ValueError(f"`{self.path}` has no camera `{camera}` in `{self.name}`. Recorded were: {listed}.")
        return self._upright(f"obs/{CAMERA_KEYS[camera]}", steps)

    def segmentation(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """What is seen in each pixel of one camera.

        Args:
            camera (`str`): `agentview` or `wrist`.
            steps (`slice`): which pictures; all by default.

        Returns:
            `np.ndarray` of shape `(T, H, W)`: `uint8`, upright, indices into `segmentation_names`.

        Raises:
            ValueError: if the camera is unknown or its masks were not recorded.
        """
        if camera not in self.cameras or not self.segmentation_names:
            raise ValueError(
                f"`{self.path}` has no segmentation masks of camera `{camera}` in `{self.name}`. "
                "Record them with `evaluation/record_demonstrations.py --segmentation`."
            )
        return self._upright(f"obs/{MASK_KEYS[camera]}", steps)

    def _upright(self, key: str, steps: slice) -> np.ndarray:
        vertical, horizontal = _UPRIGHT[self.image_convention]
        return np.ascontiguousarray(self._read(key, steps)[:, vertical, horizontal])


class Demonstrations(Sequence[Demonstration]):
    """The episodes of one file, in the order of their numbers.

    Args:
        path (`str`): the file.
        episodes (`Sequence[Demonstration]`): its episodes.
    """

    def __init__(self, path: str, episodes: Sequence[Demonstration]):
        self.path = path
        self._episodes = tuple(episodes)

    @property
    def instruction(self) -> str:
        """What the robot was told in this file."""
        return self._episodes[0].instruction

    def __len__(self) -> int:
        return len(self._episodes)

    @overload
    def __getitem__(self, index: int) -> Demonstration: ...

    @overload
    def __getitem__(self, index: slice) -> "Demonstrations": ...

    def __getitem__(self, index: int | slice) -> "Demonstration | Demonstrations":
        if isinstance(index, slice):
            return Demonstrations(self.path, self._episodes[index])
        return self._episodes[index]

    def __iter__(self) -> Iterator[Demonstration]:
        return iter(self._episodes)


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


def read_demonstrations(path: str | Path, allow_picture_stride: bool = False) -> Demonstrations:
    """Open a demonstration file and check it.

    Checked at once: that the file is complete, that no key is missing, that all arrays of an episode have the same
    length and the right width, that actions are finite. Images are read, episode by episode, only when asked for.

    Args:
        path (`str` or `Path`): an HDF5 file in LIBERO's layout.
        allow_picture_stride (`bool`): whether files with pictures of every n-th step only will do.

    Returns:
        `Demonstrations`: a lazy sequence of `Demonstration`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file fails a check; the message names the key.
    """
    path = str(path)
    with _open(path) as file:
        if "data" not in file:
            raise ValueError(_missing(path, "data"))
        data = file["data"]
        instruction = _read_instruction(path, data)
        convention = str(data.attrs.get("macros_image_convention", "opengl"))
        if convention not in _UPRIGHT:
            raise ValueError(
                f"`{path}` stores images in the convention `{convention}`. Known are: {', '.join(_UPRIGHT)}."
            )
        names = sorted((name for name in data if name.startswith("demo_")), key=lambda name: int(name[5:]))
        if not names:
            raise ValueError(_missing(path, "data/demo_0"))
        episodes = []
        for name in names:
            num_steps, cameras = _check_episode(path, name, data[name])
            attributes = _read_picture_attributes(path, name, data[name], allow_picture_stride)
            episodes.append(Demonstration(path, name, instruction, num_steps, cameras, convention, *attributes))
    return Demonstrations(path, episodes)


def _read_instruction(path: str, data: h5py.Group) -> str:
    if "problem_info" not in data.attrs:
        raise ValueError(_missing(path, "data.attrs['problem_info']"))
    try:
        instruction = json.loads(data.attrs["problem_info"])["language_instruction"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(_missing(path, "data.attrs['problem_info']['language_instruction']")) from error
    return "".join(instruction).strip().strip('"')


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
    for key in ("actions", "obs"):
        if key not in group:
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


def find_demonstration_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the demonstration files that a user named.

    Args:
        paths (`Sequence[str]`): HDF5 files, or folders whose `*.hdf5` files are meant.

    Returns:
        `list[Path]`: in the order given, the files of a folder by name.

    Raises:
        FileNotFoundError: if a path does not exist or a folder holds no HDF5 file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise FileNotFoundError(
                f"No demonstrations at `{path}`. Give HDF5 files or folders that hold them; "
                "`python evaluation/record_demonstrations.py` records some."
            )
        files += found
    return files
