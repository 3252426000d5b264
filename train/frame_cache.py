"""Gathers pictures of demonstrations and of image folders into arrays on disk, once.

A clip is what one camera saw in one episode; a picture of an image folder is a clip, and an episode, of its own.
Shapes: `F` pictures, `C` clips, `H, W` pixels.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from tokenization.demonstrations import LEROBOT_INFO, Demonstration, find_demonstration_files, read_demonstrations
from tokenization.image_processing_worldvla import check_image_size
from tokenization.pixels_worldvla import convert_to_rgb, resize_and_crop
from tokenization.region_boxes import fit_mask
from train.atomic_files import new_folder, write_json

logger = logging.getLogger("worldvla.frames")

MEDIAN_SAMPLES = 32  # pictures of a clip that its median is taken over
STILL_CAMERAS = ("agentview",)  # a camera that moves has no median worth the name
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LABELS = "labels.json"
NO_LABELS: tuple[tuple[str, ...], tuple[str, ...]] = (("background",), ())


@dataclass(frozen=True)
class FrameSources:
    """Where pictures come from.

    Attributes:
        demonstrations (`Sequence[str]`): HDF5 files, or folders that hold them.
        cameras (`Sequence[str]`): whose pictures are taken.
        images (`Sequence[str]`): folders of image files, searched with their sub-folders.
        image_size (`tuple[int, int]`, *optional*): height and width that pictures are brought to, by the rule of
            `resize_and_crop`; None takes demonstrations as they are.
    """

    demonstrations: Sequence[str] = ()
    cameras: Sequence[str] = ("agentview",)
    images: Sequence[str] = ()
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked before files are opened."""
        if self.image_size is not None:
            check_image_size(self.image_size)
        if not self.demonstrations and not self.images:
            raise ValueError("No pictures: give `--demonstrations`, `--images`, or both.")
        if self.images and self.image_size is None:
            raise ValueError("Images of a folder differ in size: say with `--image_size` to which they are brought.")

    def files(self) -> tuple[list[Path], list[Path]]:
        """List what the paths name.

        Returns:
            `tuple[list[Path], list[Path]]`: demonstration files and image files.

        Raises:
            FileNotFoundError: if a path names nothing.
        """
        return find_demonstration_files(self.demonstrations), find_image_files(self.images)

    def key(self) -> str:
        """Name of these sources: changes when a file or an option does.

        Returns:
            `str`: 16 hexadecimal digits.
        """
        files = [_version_of(path) for group in self.files() for path in group]
        described = json.dumps([files, list(self.cameras), self.image_size])
        return hashlib.sha256(described.encode()).hexdigest()[:16]


@dataclass
class Clip:
    """Pictures of one camera in one episode, as they are gathered.

    Attributes:
        frames (`np.ndarray` of shape `(T, H, W, 3)`): uint8.
        masks (`np.ndarray` of shape `(T, H, W)`, *optional*): uint8, indices into the first of `labels`.
        labels (`tuple`): names of the masks' values, and the names that the task is about.
        episode (`int`): number of the episode.
        still (`bool`): whether the camera stands still.
    """

    frames: np.ndarray
    episode: int
    masks: np.ndarray | None = None
    labels: tuple[tuple[str, ...], tuple[str, ...]] = field(default=NO_LABELS)
    still: bool = False


def find_image_files(folders: Sequence[str]) -> list[Path]:
    """List the image files of folders and their sub-folders.

    Args:
        folders (`Sequence[str]`): the folders.

    Returns:
        `list[Path]`: in the order given, the files of a folder by name.

    Raises:
        FileNotFoundError: if a folder does not exist or holds no image file.
    """
    files: list[Path] = []
    for folder in map(Path, folders):
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise FileNotFoundError(
                f"No images in `{folder}`. `--images` takes folders with {', '.join(IMAGE_SUFFIXES)} files."
            )
        files += found
    return files


def gather(sources: FrameSources, cache: Path) -> Path:
    """Write the pictures of the sources into a folder, unless a finished one of the same sources is there.

    Args:
        sources (`FrameSources`): where pictures come from.
        cache (`Path`): the folder is made in here.

    Returns:
        `Path`: folder with `frames.npy`, `medians.npy`, `clips.npz`, `labels.json` and, where masks were recorded,
        `masks.npy`.

    Raises:
        ValueError: if pictures have different sizes and no `image_size` is given, or an image cannot be read.
    """
    folder = cache / f"frames-{sources.key()}"
    if folder.exists():
        return folder
    demonstrations, images = sources.files()
    episodes = [one for file in demonstrations for one in read_demonstrations(file, allow_picture_stride=True)]
    counts = [-(-len(one) // one.picture_stride) for one in episodes]
    total = sum(counts) * len(sources.cameras) + len(images)
    size = sources.image_size or episodes[0].frames(sources.cameras[0], slice(1)).shape[1:3]
    has_masks = any(episode.segmentation_names for episode in episodes)
    with new_folder(folder) as temporary:
        frames = _new_array(temporary / "frames.npy", (total, *size, 3))
        masks = _new_array(temporary / "masks.npy", (total, *size)) if has_masks else None
        writer = _ClipWriter(frames, masks)
        for clip in tqdm(_clips(episodes, images, sources, size), desc="gather pictures", unit="clip"):
            writer.add(clip)
        writer.finish(temporary)
    return folder


def _new_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


class _ClipWriter:
    """Puts clips one after the other into arrays."""

    def __init__(self, frames: np.ndarray, masks: np.ndarray | None) -> None:
        self.frames, self.masks = frames, masks
        self.position = 0
        self.clip_of_frame = np.zeros(len(frames), dtype=np.int32)
        self.columns: dict[str, list[int]] = {"episode": [], "median": [], "label": []}
        self.medians: list[np.ndarray] = []
        self.labels: dict[Any, int] = {}

    def add(self, clip: Clip) -> None:
        where = slice(self.position, self.position + len(clip.frames))
        self.frames[where] = clip.frames
        if self.masks is not None and clip.masks is not None:
            self.masks[where] = clip.masks
        self.clip_of_frame[where] = len(self.columns["episode"])
        self.position = where.stop
        self.columns["episode"].append(clip.episode)
        self.columns["label"].append(self.labels.setdefault(clip.labels, len(self.labels)))
        self.columns["median"].append(len(self.medians) if clip.still else -1)
        if clip.still:
            shown = clip.frames[:: max(1, len(clip.frames) // MEDIAN_SAMPLES)]
            self.medians.append(np.median(shown, axis=0).astype(np.uint8))

    def finish(self, folder: Path) -> None:
        medians = np.stack(self.medians) if self.medians else np.zeros((0, *self.frames.shape[1:]), np.uint8)
        np.save(folder / "medians.npy", medians)
        columns = {name: np.array(values, np.int32) for name, values in self.columns.items()}
        np.savez(folder / "clips.npz", clip_of_frame=self.clip_of_frame, **columns)  # type: ignore[arg-type]
        write_json(folder / LABELS, list(self.labels))
        for array in (self.frames, self.masks):
            if isinstance(array, np.memmap):
                array.flush()
        if self.masks is not None and NO_LABELS in self.labels:
            logger.warning("Some episodes or images have no segmentation masks: they get no regions from them.")


def _clips(
    episodes: Sequence[Demonstration], images: Sequence[Path], sources: FrameSources, size: tuple[int, int]
) -> Iterator[Clip]:
    for number, episode in enumerate(episodes):
        for camera in sources.cameras:
            yield _clip_of(episode, camera, number, size, sources.image_size is not None)
    for number, path in enumerate(images, start=len(episodes)):
        try:
            with Image.open(path) as image:
                pixels = convert_to_rgb(image)
        except (OSError, ValueError) as error:
            raise ValueError(f"`{path}` cannot be read as an image ({error}). Remove or replace it.") from error
        yield Clip(resize_and_crop(pixels, size)[None], number)


def _clip_of(episode: Demonstration, camera: str, number: int, size: tuple[int, int], resize: bool) -> Clip:
    frames = episode.frames(camera)
    clip = Clip(frames, number, still=camera in STILL_CAMERAS)
    if episode.segmentation_names:
        clip.masks = episode.segmentation(camera)
        clip.labels = (episode.segmentation_names, episode.objects_of_interest)
    if frames.shape[1:3] == tuple(size):
        return clip
    if not resize:
        raise ValueError(
            f"Demonstration `{episode.name}` of `{episode.path}` has pictures of {frames.shape[1:3]} pixels, earlier "
            f"ones of {tuple(size)}. Say with `--image_size` to which size all are brought."
        )
    clip.frames = np.stack([resize_and_crop(frame, size) for frame in frames])
    if clip.masks is not None:
        clip.masks = np.stack([fit_mask(mask, size) for mask in clip.masks])
    return clip


def _version_of(path: Path) -> list[Any]:
    """A file's name, size and time; of a LeRobot data set those of the file that describes it."""
    file = path / LEROBOT_INFO if path.is_dir() else path
    return [str(path.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
