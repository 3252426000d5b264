"""Reads LeRobot data sets: tables in Parquet, pictures in videos or in the tables. Does not travel to the Hub.

Layouts v2.0 and v2.1 (one table and one video per episode) and v3.0 (many episodes per file) are told apart by
`codebase_version` in `meta/info.json`. Shape legend: `T` steps, `H`, `W` pixels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .choices_worldvla import require_choice
from .demonstrations import ACTION_DIM, LEROBOT_INFO, Demonstration, Demonstrations, LeRobotReading
from .lerobot_layout import EpisodeFiles, list_episodes
from .parquet_tables import read_column
from .video_frames import read_video_frames

# Our names of the cameras and what LIBERO data sets call them; any other camera goes by its feature's own name.
CAMERA_FEATURES = {
    "agentview": (
        "observation.images.image",
        "observation.images.agentview",
        "observation.images.agentview_rgb",
        "observation.images.agentview_image",
        "observation.images.front",
        "observation.image",
        "image",
        "agentview_rgb",
    ),
    "wrist": (
        "observation.images.wrist_image",
        "observation.images.image2",
        "observation.images.wrist",
        "observation.images.eye_in_hand",
        "observation.images.eye_in_hand_rgb",
        "observation.images.robot0_eye_in_hand_image",
        "observation.wrist_image",
        "wrist_image",
        "eye_in_hand_rgb",
    ),
}
ACTION_FEATURES = ("action", "actions")
STATE_FEATURES = ("observation.state", "state")
_QUARTER = 0.25  # share of the time between two frames by which a frame may be off


@dataclass(frozen=True)
class LeRobotDemonstration(Demonstration):
    """An episode of a LeRobot data set; see `Demonstration`.

    Attributes:
        episode (`EpisodeFiles`): its number, and the files that it lies in.
        features (`tuple[tuple[str, str, str], ...]`): name of a camera, its feature, and `video` or `image`.
        fps (`float`): frames per second.
        action_feature (`str`): the feature that holds the commands.
        state_feature (`str`, *optional*): the one that holds the robot's readings.
        rotate_180 (`bool`): whether pictures are turned.
    """

    episode: EpisodeFiles
    features: tuple[tuple[str, str, str], ...]
    fps: float
    action_feature: str
    state_feature: str | None
    rotate_180: bool

    def _column(self, feature: str) -> Any:
        table = Path(self.path) / self.episode.table
        column = read_column(table, feature, self.episode.index)
        if len(column) != self.num_steps:
            raise ValueError(
                f"`{table}` holds {len(column)} steps of episode {self.episode.index}, but the data set says "
                f"{self.num_steps}. Download it again."
            )
        return column

    def _numbers(self, feature: str) -> np.ndarray:
        rows = self._column(feature).to_pylist()
        try:
            numbers = np.array(rows, dtype=np.float32).reshape(self.num_steps, -1)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{self.path}`: `{feature}` of episode {self.episode.index} does not hold rows of numbers of one "
                "length. Download the data set again."
            ) from error
        if not np.isfinite(numbers).all():
            step = int(np.argmin(np.isfinite(numbers).all(1)))
            raise ValueError(
                f"`{self.path}`: `{feature}` of episode {self.episode.index} holds NaN or infinity, first in step "
                f"{step}. Repair the data set or leave the episode out."
            )
        return numbers

    @property
    def actions(self) -> np.ndarray:
        """Commands carried out, `float32 (T, 7)`: position deltas, rotation deltas, gripper, as the data set has them.

        Raises:
            ValueError: if they have another width than the data set says.
        """
        actions = self._numbers(self.action_feature)
        if actions.shape[1] != ACTION_DIM:
            raise ValueError(_wrong_width(self.path, self.action_feature, actions.shape[1]))
        return actions

    @property
    def proprioception(self) -> np.ndarray:
        """What the robot felt, `float32 (T, n)`: as the data set has it."""
        if self.state_feature is None:
            raise ValueError(f"`{self.path}` has no feature of the robot's readings ({' or '.join(STATE_FEATURES)}).")
        return self._numbers(self.state_feature)

    def _camera(self, camera: str) -> tuple[str, str]:
        """Feature of a camera, and whether it is a `video` or an `image`."""
        found = {name: (feature, kind) for name, feature, kind in self.features}
        found |= {feature: (feature, kind) for _, feature, kind in self.features}
        if camera not in found:
            require_choice(f"camera of `{self.path}`:", camera, list(found))
        return found[camera]

    def require_camera(self, camera: str) -> None:
        """Refuse a camera that was not recorded, as `Demonstration.require_camera`; features are names, too."""
        self._camera(camera)

    def frames(self, camera: str = "agentview", steps: slice = slice(None)) -> np.ndarray:
        """Images of one camera, as `Demonstration.frames`; a camera's feature is also taken for its name."""
        feature, kind = self._camera(camera)
        chosen = range(self.num_steps)[steps]
        if kind == "image":
            pictures = self._column(feature)
            frames = np.stack([self._decode_image(feature, pictures[step].as_py()) for step in chosen])
        else:
            video, start = self.episode.video(feature)
            times = start + np.array(self._column("timestamp").to_pylist(), dtype=np.float64)[list(chosen)]
            frames = read_video_frames(Path(self.path) / video, times.tolist(), _QUARTER / self.fps)
        return np.ascontiguousarray(frames[:, ::-1, ::-1]) if self.rotate_180 else frames

    def _decode_image(self, feature: str, picture: Any) -> np.ndarray:
        from datasets import Image

        stored = picture if isinstance(picture, dict) else {}
        if stored.get("bytes") is None:
            path = Path(self.path) / str(stored.get("path"))
            if not path.is_file():
                raise ValueError(
                    f"`{self.path}`: a picture of `{feature}` in episode {self.episode.index} is neither in the table "
                    f"nor at `{path}`. Download the data set again."
                )
            stored = {"path": str(path), "bytes": None}
        try:
            return np.asarray(Image().decode_example(stored).convert("RGB"))
        except OSError as error:
            raise ValueError(
                f"`{self.path}`: a picture of `{feature}` in episode {self.episode.index} cannot be decoded "
                f"({error}). Download the data set again."
            ) from error

    def files(self, camera: str) -> tuple[Path, ...]:
        """Table and, where there is one, video that decide what is read."""
        feature, kind = self._camera(camera)
        videos = [self.episode.video(feature)[0]] if kind == "video" else []
        return tuple(Path(self.path) / file for file in (self.episode.table, *videos))


def _wrong_width(path: str | Path, feature: str, width: Any) -> str:
    return (
        f"`{path}`: `{feature}` has {width} numbers per step, but a command has {ACTION_DIM} (position deltas, "
        "rotation deltas, gripper). Give a data set of one arm with such commands, or another feature of this one."
    )


def read_lerobot_folder(root: Path, reading: LeRobotReading) -> Demonstrations:
    """Open a LeRobot data set and check it; see `tokenization.demonstrations.read_demonstrations`.

    Args:
        root (`Path`): its folder.
        reading (`LeRobotReading`): what the data set does not say about itself.

    Returns:
        `Demonstrations`: a lazy sequence of `LeRobotDemonstration`, in the order of their numbers.

    Raises:
        FileNotFoundError: if a file that it should hold is missing.
        ValueError: if its version is not read, a feature is missing or has another width.
    """
    info = _read_info(root)
    features = info["features"]
    action = _choose_feature(root, features, "action feature", reading.action_feature, ACTION_FEATURES)
    if list(features[action].get("shape", ())) != [ACTION_DIM]:
        raise ValueError(_wrong_width(root, action, features[action].get("shape")))
    state = reading.state_feature
    if state is not None or any(name in features for name in STATE_FEATURES):
        state = _choose_feature(root, features, "state feature", state, STATE_FEATURES)
    cameras = _list_cameras(root, features)
    videos = [feature for _, feature, kind in cameras if kind == "video"]
    episodes = [
        LeRobotDemonstration(
            str(root), f"episode_{episode.index:06d}", instruction, num_steps, tuple(name for name, _, _ in cameras),
            episode, cameras, float(info["fps"]), action, state, reading.rotate_180,
        )
        for episode, instruction, num_steps in list_episodes(root, info, videos)
    ]  # fmt: skip
    if not episodes:
        raise ValueError(f"`{root}` holds no episodes. Download the data set again.")
    return Demonstrations(str(root), episodes)


def _read_info(root: Path) -> dict[str, Any]:
    path = root / LEROBOT_INFO
    if not path.is_file():
        raise FileNotFoundError(
            f"`{root}` is no LeRobot data set: it has no {LEROBOT_INFO.as_posix()}. Give its folder, or "
            "single HDF5 files."
        )
    try:
        info = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is not readable JSON ({error}). Download the data set again.") from error
    missing = [key for key in ("codebase_version", "fps", "features", "data_path") if key not in info]
    if missing:
        raise ValueError(f"`{path}` lacks the key `{missing[0]}`. Download the data set again.")
    return info


def _choose_feature(
    root: Path, features: dict[str, Any], kind: str, wanted: str | None, defaults: Sequence[str]
) -> str:
    found = next((name for name in defaults if name in features), None) if wanted is None else wanted
    name = found or defaults[0]
    require_choice(f"{kind} of `{root}`:", name, list(features))
    return name


def _list_cameras(root: Path, features: dict[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Our name or the feature's own, the feature, and its kind."""
    pictures = {name: entry["dtype"] for name, entry in features.items() if entry.get("dtype") in ("video", "image")}
    if not pictures:
        listed = ", ".join(f"`{name}`" for name in features)
        raise ValueError(f"`{root}` has no pictures: none of its features is a video or an image. It has {listed}.")
    names = {}
    for camera, candidates in CAMERA_FEATURES.items():
        feature = next((name for name in candidates if name in pictures), None)
        if feature is not None:
            names[feature] = camera
    return tuple((names.get(feature, feature), feature, kind) for feature, kind in pictures.items())


def download_lerobot_dataset(name: str) -> Path:
    """Bring a data set of the Hub into the Hub's cache, or find it there.

    Args:
        name (`str`): its id, such as `HuggingFaceVLA/libero`.

    Returns:
        `Path`: its folder.

    Raises:
        FileNotFoundError: if there is neither such a folder here nor such a data set that can be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["meta/**", "data/**", "videos/**", "images/**"]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise FileNotFoundError(
            f"No demonstrations at `{name}`: there is no such file or folder here, and as a data set of the Hub it "
            f"cannot be had ({reason[0] if reason else type(error).__name__}). Check the path or the id; "
            "offline, only data sets that are in the Hub's cache are found."
        ) from error
