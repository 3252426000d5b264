"""Demonstrations, whatever they are stored in. Does not travel to the Hub.

Read are HDF5 files in LIBERO's layout (`libero_files.py`) and LeRobot data sets (`lerobot_files.py`); docs/data.md
says what is done to each. Shape legend: `T` steps, `H`, `W` pixels, `S` numbers of a simulator state.

Timing: frame t is what was seen before action t; frame t + 1 follows action t.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

ACTION_DIM = 7
LEROBOT_INFO = Path("meta") / "info.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class LeRobotReading:
    """What a LeRobot data set does not say about itself.

    Attributes:
        action_feature (`str`, *optional*): the feature that holds the commands; by default `action` or `actions`.
        state_feature (`str`, *optional*): the one that holds the robot's readings; by default `observation.state` or
            `state`.
        rotate_180 (`bool`): turn pictures by 180 degrees, for data sets that store them as MuJoCo renders them.
    """

    action_feature: str | None = None
    state_feature: str | None = None
    rotate_180: bool = False


AS_STORED = LeRobotReading()


@dataclass(frozen=True)
class Demonstration(ABC):
    """One recorded episode. Arrays are read when they are asked for, so it is cheap and can be pickled.

    Attributes:
        path (`str`): the file or folder that it comes from.
        name (`str`): the episode's name in there, such as `demo_0`.
        instruction (`str`): what the robot was told.
        num_steps (`int`): T.
        cameras (`tuple[str, ...]`): the cameras that were recorded.
    """

    path: str
    name: str
    instruction: str
    num_steps: int
    cameras: tuple[str, ...]

    def __len__(self) -> int:
        return self.num_steps

    @property
    @abstractmethod
    def actions(self) -> np.ndarray:
        """Commands carried out, `float32 (T, 7)`: position deltas, rotation deltas, gripper (-1 open ... +1 close)."""

    @property
    def expert_actions(self) -> np.ndarray:
        """What the expert wanted to do, `float32 (T, 7)`; differs from `actions` where the recorder disturbed them."""
        return self.actions

    @property
    def states(self) -> np.ndarray:
        """The simulator's flattened states before each action, `float64 (T, S)`."""
        raise ValueError(f"`{self.path}` holds no simulator states. Give a file of a simulator that recorded them.")

    @property
    @abstractmethod
    def proprioception(self) -> np.ndarray:
        """What the robot felt, `float32 (T, 8)`: hand position, hand orientation (axis * angle), finger joints."""

    @abstractmethod
    def frames(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """Images of one camera.

        Args:
            camera (`str`): one of `cameras`.
            steps (`slice`): which pictures; all by default.

        Returns:
            `np.ndarray` of shape `(T, H, W, 3)`: `uint8`, upright; with a picture stride n, `ceil(T / n)` of them.

        Raises:
            ValueError: if the camera was not recorded, or its pictures cannot be read.
        """

    @property
    def picture_stride(self) -> int:
        """Pictures and masks are there for every n-th step; 1 in all but pictures-only files."""
        return 1

    @property
    def segmentation_names(self) -> tuple[str, ...]:
        """What the numbers of the masks stand for; empty where none are recorded."""
        return ()

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """Which of `segmentation_names` the task is about."""
        return ()

    def segmentation(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """What is seen in each pixel of one camera.

        Args:
            camera (`str`): one of `cameras`.
            steps (`slice`): which pictures; all by default.

        Returns:
            `np.ndarray` of shape `(T, H, W)`: `uint8`, upright, indices into `segmentation_names`.

        Raises:
            ValueError: if the masks of this camera were not recorded.
        """
        raise ValueError(
            f"`{self.path}` has no segmentation masks of camera `{camera}` in `{self.name}`. "
            "Record them with `evaluation/record_demonstrations.py --segmentation`."
        )

    @property
    def leads_to_next_frame(self) -> np.ndarray:
        """Whether frame t + 1 is what action t alone led to, `bool (T,)`; the last entry is false.

        False, too, where steps were left out: see `tokenization.noops`.
        """
        return np.arange(self.num_steps) < self.num_steps - 1

    @abstractmethod
    def files(self, camera: str) -> tuple[Path, ...]:
        """The files that decide what is read.

        Args:
            camera (`str`): the camera of interest.

        Returns:
            `tuple[Path, ...]`: in an order that does not change.
        """

    def identity(self) -> dict[str, Any]:
        """What decides, with the bytes of `files`, everything that is read.

        Returns:
            `dict`: can be written as JSON; does not depend on where the files lie.
        """
        return {key: value for key, value in asdict(self).items() if key != "path"}

    def require_camera(self, camera: str) -> None:
        """Refuse a camera that was not recorded.

        Raises:
            ValueError: lists those that were.
        """
        if camera not in self.cameras:
            listed = ", ".join(f"`{name}`" for name in self.cameras)
            raise ValueError(f"`{self.path}` has no camera `{camera}` in `{self.name}`. Recorded were: {listed}.")


class Demonstrations(Sequence[Demonstration]):
    """The episodes of one file or data set, in the order of their numbers.

    Args:
        path (`str`): the file or folder.
        episodes (`Sequence[Demonstration]`): its episodes.
    """

    def __init__(self, path: str, episodes: Sequence[Demonstration]):
        self.path = path
        self._episodes = tuple(episodes)

    @property
    def instruction(self) -> str:
        """What the robot was told in the first episode; an HDF5 file has one instruction."""
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


def read_demonstrations(
    path: str | Path, allow_picture_stride: bool = False, lerobot: LeRobotReading = AS_STORED
) -> Demonstrations:
    """Open a demonstration file or data set and check it.

    Checked at once: that it is complete, that arrays have the right width, and for HDF5 files that the arrays of an
    episode have the same length and actions are finite. The rest is checked, episode by episode, when it is read.

    Args:
        path (`str` or `Path`): an HDF5 file in LIBERO's layout, or the folder of a LeRobot data set.
        allow_picture_stride (`bool`): whether files with pictures of every n-th step only will do.
        lerobot (`LeRobotReading`): how a LeRobot data set is to be read.

    Returns:
        `Demonstrations`: a lazy sequence of `Demonstration`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it fails a check; the message names the key.
    """
    if Path(path).is_dir():
        from .lerobot_files import read_lerobot_folder

        return read_lerobot_folder(Path(path), lerobot)
    from .libero_files import read_libero_file

    if lerobot != AS_STORED:
        raise ValueError(
            f"`{path}` is no LeRobot data set: HDF5 files in LIBERO's layout say themselves how they are to be read. "
            "Leave out the options of LeRobot data sets."
        )
    return read_libero_file(str(path), allow_picture_stride)


def find_demonstration_files(paths: Sequence[str | Path]) -> list[Path]:
    """List the demonstration files and data sets that a user named.

    Args:
        paths (`Sequence[str]`): HDF5 files, folders whose `*.hdf5` files are meant, folders of LeRobot data sets, or
            ids of LeRobot data sets on the Hub, which are downloaded into its cache.

    Returns:
        `list[Path]`: files and folders for `read_demonstrations`, in the order given, the files of a folder by name.

    Raises:
        FileNotFoundError: if a path does not exist or a folder holds no demonstrations.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if (path / LEROBOT_INFO).is_file():
            found = [path]
        elif not path.exists() and path.suffix not in (".hdf5", ".h5") and _HUB_ID.fullmatch(str(path)):
            from .lerobot_files import download_lerobot_dataset

            found = [download_lerobot_dataset(str(path))]
        else:
            found = sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise FileNotFoundError(
                f"No demonstrations at `{path}`. Give HDF5 files, folders that hold them, folders of LeRobot data "
                f"sets (with {LEROBOT_INFO.as_posix()}) or their ids on the Hub; "
                "`python evaluation/record_demonstrations.py` records some."
            )
        files += found
    return files
